"""Tables of encoded images in memory-mapped Arrow files: those that `datasets` writes, and copies of Parquet files.

Each row is read on its own, without the rest of its file. `datasets` is not needed, and nothing is unpickled.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siglip_jax.data.example import Example
from siglip_jax.data.sources import columns

_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())


class Chosen:
    """The columns of a table that are read.

    Attributes:
      image: name of the column of images.
      text: name of the column of captions, or None.
      label: name of the column of labels, or None.
      names: the names that are not None, in the order of the schema.
    """

    def __init__(
        self,
        schema: pa.Schema,
        image_key: str | None,
        text_key: str | None,
        label_key: str | None,
        where: str,
        images_only: bool = False,
    ) -> None:
        """Chooses the columns by their types and names.

        Args:
          schema: names and types of all columns.
          image_key: column of the images; None: chosen among those that can hold images, see `holds_images`.
          text_key: column of the captions; None: the first of a usual name.
          label_key: column of the labels; None: the first of a usual name.
          where: path of the data set, for messages.
          images_only: whether captions and labels are ignored.

        Raises:
          ValueError: if there are no images, or neither captions nor labels.
        """
        holding = [name for name in schema.names if holds_images(schema.field(name).type)]
        if image_key is not None and image_key in schema.names and image_key not in holding:
            kind = schema.field(image_key).type
            raise ValueError(f"{where}: the column {image_key!r} must hold bytes of images, got {kind}")
        image = columns.pick(
            holding if image_key is None else schema.names, image_key, columns.IMAGE, "image_key", where
        )
        if image is None and len(holding) == 1:
            image = holding[0]
        self.text = self.label = None
        if not images_only:
            self.text = columns.pick(schema.names, text_key, columns.TEXT, "text_key", where)
            self.label = columns.pick(schema.names, label_key, columns.LABEL, "label_key", where)
        if image is None:
            raise columns.missing("bytes of images", columns.IMAGE, schema.names, "image_key", where)
        if self.text is None and self.label is None and not images_only:
            raise columns.missing("captions", columns.TEXT, schema.names, "text_key or label_key", where)
        if self.text is not None and not _is_text(schema.field(self.text).type):
            kind = schema.field(self.text).type
            raise ValueError(
                f"{where}: the column {self.text!r} must hold texts, got {kind}; name the captions with text_key"
            )
        self.image = image
        self.names = [name for name in schema.names if name in (image, self.text, self.label)]


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

        Raises:
          OSError: if a file is unreadable.
          ValueError: if a file is not Arrow, or a column is missing.
        """
        self.path, self._paths, self._made_of = path, list(files), list(made_of or files)
        batches = self._mapped()
        if not sum(batch.num_rows for batch in batches):
            raise ValueError(f"{path}: a data set must have a row for each image, got no rows")
        schema = batches[0].schema
        self._chosen = Chosen(schema, image_key, text_key, label_key, path, images_only)
        for batch in batches:
            if not {*self._chosen.names} <= {*batch.schema.names}:
                raise ValueError(
                    f"{path}: each file must have the columns {columns.listed(self._chosen.names)}, "
                    f"got {columns.listed(batch.schema.names)}"
                )
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._labels, self.classes = None, ()
        if self._chosen.label is not None:
            found = pa.chunked_array([batch.column(self._chosen.label) for batch in batches])
            self._labels, self.classes = _labels(found, schema, self._chosen.label, path)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_batches"}

    def _mapped(self) -> list[pa.RecordBatch]:
        """Returns the batches of all files, which are mapped once per process."""
        if "_batches" not in self.__dict__:
            self._batches = [batch for path in self._paths for batch in _map_file(path)]
        return self._batches

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: index must be from 0 to {len(self) - 1}, got {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._mapped()[number], index - int(self._starts[number])
        where = self.name(index)
        image = batch.column(self._chosen.image)[row].as_py()
        image = image.get("bytes") if isinstance(image, dict) else image
        if not image:
            raise ValueError(f"{where}: the image must be bytes of an image file, got none")
        texts = None if self._chosen.text is None else batch.column(self._chosen.text)[row].as_py()
        if isinstance(texts, list):
            texts = [text for text in texts if text is not None]
        label = None if self._labels is None else columns.label_of(int(self._labels[index]))
        return Example(image, columns.as_texts(texts, where), label, where)

    def name(self, index: int) -> str:
        """Returns the name of the data set and the index of the row."""
        return f"{os.path.basename(self.path)}:{index}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read; for a copy, of the original files."""
        return ((os.path.basename(path), path) for path in self._made_of)

    def contents(self) -> Iterator[Any]:
        """Yields the captions and labels of all rows, as buffers: what the source has beside its images."""
        for batch in self._mapped():
            for name in (self._chosen.text, self._chosen.label):
                yield from (buffer for buffer in (batch.column(name).buffers() if name else ()) if buffer is not None)


def holds_images(kind: pa.DataType) -> bool:
    """Returns whether a column of this type can hold encoded images: bytes, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_images(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return kind.value_type in _TEXT_TYPES
    return kind in _TEXT_TYPES


def _map_file(path: str) -> list[pa.RecordBatch]:
    with pa.memory_map(path) as file:
        try:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except pa.ArrowInvalid:
            file.seek(0)
            try:
                batches = list(pa.ipc.open_stream(file))
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path}: the file must be an Arrow file, got something else ({error})") from None
    try:
        for batch in batches:
            batch.validate()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: the file must be a valid Arrow file, got a broken one ({error})") from None
    return batches


def _labels(found: pa.ChunkedArray, schema: pa.Schema, name: str, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels of all rows as indices of classes, (rows,) int32, and the names of the classes."""
    if pa.types.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    if pa.types.is_floating(found.type):  # integers with missing values, as pandas writes them
        values = np.nan_to_num(found.to_numpy(), nan=columns.NO_LABEL)
        if (np.abs(values) < 2**31).all() and (values == np.floor(values)).all():
            found = pa.chunked_array([values.astype(np.int64)])
    if not pa.types.is_integer(found.type):
        if found.type not in _TEXT_TYPES:
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
