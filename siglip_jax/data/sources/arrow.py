"""Tables of encoded images in memory-mapped Arrow files: those that `datasets` writes, and copies of Parquet files.

Each row is read on its own, without the rest of its file. `datasets` is not needed, and nothing is unpickled.
"""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from siglip_jax.data import columns
from siglip_jax.data.example import Example
from siglip_jax.data.sources.arrow_columns import Chosen, as_plain, merged, plain, refused
from siglip_jax.data.sources.paths import file_named, path_inside, read_file


class ArrowSource:
    """Rows of Arrow files of the streaming or the random-access format, in the order of the files."""

    def __init__(
        self,
        files: Sequence[str],
        path: str,
        *,
        image_key: str | None = None,
        text_key: str | None = None,
        label_key: str | None = None,
        images_only: bool = False,
        made_of: Sequence[str] | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Maps the files into memory; only their headers and the column of labels are read.

        Args:
          files: paths of the Arrow files, in the order of their rows.
          path: path of the data set as the user gave it, for names and messages.
          image_key: column of the images; None: the usual names are tried.
          text_key: column of the captions; None: the usual names are tried.
          label_key: column of the labels; None: the usual names are tried.
          images_only: whether captions and labels are ignored and may be missing.
          made_of: paths of the files that `files` are a copy of; None: `files` are the originals.
          root: folder that images named by paths must be in; None: the folder of the file that names them.

        Raises:
          OSError: if a file is unreadable.
          ValueError: if a file is not Arrow, or a column is missing.
        """
        self.path, self._paths, self._made_of = path, list(files), list(made_of or files)
        self._root = None if root is None else os.path.abspath(root)
        batches = self._mapped()
        if not sum(batch.num_rows for batch in batches):
            raise ValueError(f"{path}: a data set must have a row for each image, got no rows")
        schema = merged(list(dict.fromkeys(batch.schema for batch in batches)))
        self._chosen = Chosen(schema, image_key, text_key, label_key, path, images_only)
        for number, batch in enumerate(batches):
            if not {*self._chosen.names} <= {*batch.schema.names}:
                raise ValueError(
                    f"{path}: each file must have the columns {columns.listed(self._chosen.names)}, "
                    f"got {columns.listed(batch.schema.names)}"
                )
            for name in self._chosen.names:
                kind, expected = plain(batch.schema.field(name).type), self._chosen.schema.field(name).type
                if kind not in (expected, pa.null()):
                    raise ValueError(f"{self._files[number]}: the column {name!r} must hold {expected}, got {kind}")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._labels, self.classes = None, ()
        if (label := self._chosen.label) is not None:
            found = pa.chunked_array(self._column(number, label) for number in range(len(batches)))
            self._labels, self.classes = _labels(found, schema, label, path)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_batches", "_files", "_valid")}

    def _mapped(self) -> list[pa.RecordBatch]:
        """Returns the batches of all files, which are mapped once per process."""
        if "_batches" not in self.__dict__:
            mapped = [(batch, path) for path in self._paths for batch in _map_file(path)]
            self._files, self._valid = [path for _, path in mapped], set()
            self._batches = [batch for batch, _ in mapped]
        return self._batches

    def _batch(self, number: int) -> pa.RecordBatch:
        """Returns the chosen columns of a batch, whose offsets are compared with its buffers when it is first used.

        Offsets that lead elsewhere would otherwise end the process, or return bytes of another row.
        """
        batch = self._mapped()[number].select(self._chosen.names)
        if number not in self._valid:
            with refused(self._files[number], "Arrow"):
                batch.validate(full=True)
            self._valid.add(number)
        return batch

    def _column(self, number: int, name: str) -> pa.Array:
        """Returns a column of a batch as its plain type."""
        array = self._batch(number).column(name)
        with refused(self._files[number], "Arrow"):
            return as_plain(array, self._chosen.schema.field(name).type)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: index must be from 0 to {len(self) - 1}, got {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batch(number), index - int(self._starts[number])
        where = self.name(index)
        image = batch.column(self._chosen.image)[row].as_py()
        image, file = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if isinstance(image, str):
            image, file = None, image
        if not image and file:
            image = read_file(path_inside(file, *self._folders(index), where), file, where)
        if not image:
            raise ValueError(f"{where}: the image must be bytes of an image file, got none")
        texts = None if self._chosen.text is None else batch.column(self._chosen.text)[row].as_py()
        if isinstance(texts, list):
            texts = [text for text in texts if text is not None]
        label = None if self._labels is None else columns.label_of(int(self._labels[index]))
        boxes, captions = [batch.column(name)[row].as_py() for name in self._chosen.boxes] or (None, None)
        return Example(image, columns.as_texts(texts, where), label, where, boxes, captions or ())

    @property
    def has_boxes(self) -> bool:
        """Whether there are columns of boxes and of their captions."""
        return bool(self._chosen.boxes)

    def name(self, index: int) -> str:
        """Returns the name of the data set and the index of the row."""
        return f"{os.path.basename(self.path)}:{index}"

    @property
    def image_numbers(self) -> Int64[np.ndarray, " examples"] | None:
        """Number of the image that each row names, (rows,), counted from 0 by first row; None where rows hold bytes."""
        if self._chosen.schema.field(self._chosen.image).type != pa.large_string():
            return None
        return columns.numbered(path for number in range(len(self._starts) - 1) for path in self._paths_in(number))

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read: of a copy the original files, and images named by paths."""
        for path in self._made_of:
            yield os.path.basename(path), path
        for number, start in enumerate(self._starts[:-1].tolist()):
            try:
                named = self._paths_in(number)
            except ValueError:  # a broken batch, an error only when its rows are read
                continue
            for row, file in enumerate(named):
                if file:
                    yield file_named(file, *self._folders(start + row))

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column of the original files, one for each row.

        Args:
          name: name of the column.

        Raises:
          ValueError: if a file lacks the column or is damaged.
        """
        values: list[Any] = []
        tables: Iterator[tuple[str, Any]] = zip(self._files, self._mapped(), strict=True)
        if self._made_of != self._paths:
            tables = ((path, pq.ParquetFile(path)) for path in self._made_of)
        for path, table in tables:
            names = (table.schema_arrow if isinstance(table, pq.ParquetFile) else table.schema).names
            if name not in names:
                raise ValueError(f"{path}: the columns must be some of {columns.listed(names)}, got {name!r}")
            with refused(path, "Arrow or Parquet"):
                found = table.read([name]) if isinstance(table, pq.ParquetFile) else table.select([name])
                found.validate(full=True)
                values += found.column(name).to_pylist()
        return values

    def contents(self) -> Iterator[Any]:
        """Yields captions, labels and boxes of all rows, as buffers: what the source has beside its images."""
        for number in range(len(self._starts) - 1):
            for name in filter(None, (self._chosen.text, self._chosen.label, *self._chosen.boxes)):
                yield from (buffer for buffer in self._column(number, name).buffers() if buffer is not None)

    def _paths_in(self, number: int) -> list[str | None]:
        """Returns the path of the image of each row of a batch, None where the row holds its bytes; [] if all do."""
        if self._chosen.schema.field(self._chosen.image).type == pa.large_binary():
            return []
        array = self._column(number, self._chosen.image)
        if not pa.types.is_struct(array.type):
            return array.to_pylist()
        if not array.field("bytes").null_count:
            return []
        held = array.field("bytes").is_valid().to_pylist()
        return [None if there else file for there, file in zip(held, array.field("path").to_pylist(), strict=True)]

    def _folders(self, index: int) -> tuple[str, str]:
        """Returns the folder of the file that a row belongs to, and the folder that an image must be in."""
        file = self._made_of[int(np.searchsorted(self._ends, index, side="right"))]
        folder = os.path.dirname(os.path.abspath(file))
        return folder, self._root or folder

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Number of the row after the last one of each original file."""
        if self._made_of == self._paths:
            rows = dict.fromkeys(self._made_of, 0)
            for path, batch in zip(self._files, self._mapped(), strict=True):
                rows[path] += batch.num_rows
            return np.cumsum([rows[path] for path in self._made_of])
        return np.cumsum([pq.read_metadata(path).num_rows for path in self._made_of])


def _map_file(path: str) -> list[pa.RecordBatch]:
    with pa.memory_map(path) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            reader = None
            file.seek(0)
        with refused(path, "Arrow"):
            if reader is not None:
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            else:
                try:
                    stream = pa.ipc.open_stream(file)
                except pa.ArrowInvalid as error:
                    reason = " ".join(str(error).split())[:150]
                    raise ValueError(f"{path}: the file must be an Arrow file, got something else ({reason})") from None
                batches = list(stream)
            for batch in batches:
                batch.validate()
            for schema in {batch.schema for batch in batches}:
                for field in schema:  # names of columns and of their fields are decoded only now
                    plain(field.type)
    return batches


def _labels(found: pa.ChunkedArray, schema: pa.Schema, name: str, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels of all rows as indices of classes, (rows,) int32, and the names of the classes."""
    if pa.types.is_null(found.type):
        return np.full(len(found), columns.NO_LABEL, np.int32), ()
    if pa.types.is_floating(found.type):  # integers with missing values, as pandas writes them
        values = np.nan_to_num(found.to_numpy(), nan=columns.NO_LABEL)
        if (np.abs(values) < 2**31).all() and (values == np.floor(values)).all():
            found = pa.chunked_array([values.astype(np.int64)])
    if not pa.types.is_integer(found.type):
        if found.type != pa.large_string():
            raise ValueError(f"{path}: the column {name!r} must hold integers or names of classes, got {found.type}")
        return columns.as_labels(found.to_pylist(), f"{path}: {name}")
    names = _names_of_classes(schema, name)
    if not names:
        return columns.as_labels(found.to_pylist(), f"{path}: {name}")
    numbers = pc.fill_null(found.cast(pa.int64()), columns.NO_LABEL).to_numpy()
    if numbers.max(initial=-1) >= len(names):
        raise ValueError(f"{path}: labels must be below {len(names)}, the number of classes, got {numbers.max()}")
    return np.maximum(numbers, columns.NO_LABEL).astype(np.int32), names


def _names_of_classes(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Returns the names of classes that `datasets` stores in the schema, or ()."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return ()
