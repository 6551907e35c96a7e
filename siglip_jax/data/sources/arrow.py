"""Tables of encoded images in Arrow files, mapped into memory: what `datasets` writes, and what Parquet becomes here.

Any row is read at once, without the rest of its file. `datasets` itself is not needed, and nothing is unpickled.
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
    """The columns that are read, found in a schema.

    Attributes:
      image, text, label: names; None where there is no such column.
      names: those there are, in the order of the schema.
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
        """Finds them by type and name.

        Raises:
          ValueError: if there are no images, or neither captions nor labels.
        """
        holding = [name for name in schema.names if holds_images(schema.field(name).type)]
        if image_key is not None and image_key in schema.names and image_key not in holding:
            kind = schema.field(image_key).type
            raise ValueError(f"{where}: expected bytes of images in the column {image_key!r}, found {kind}")
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
                f"{where}: expected texts in the column {self.text!r}, found {kind}; name it with text_key"
            )
        self.image = image
        self.names = [name for name in schema.names if name in (image, self.text, self.label)]


class ArrowSource:
    """Rows of Arrow files, of the streaming or the random-access format, in the order of the files."""

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
        """Maps the files; only their headers, and the column of labels, are read.

        Args:
          files: in their order.
          path: what the user called them.
          image_key, text_key, label_key: names of columns; by default the usual ones are looked for.
          images_only: whether captions and labels are left alone, and need not be there.
          made_of: the files that these are a copy of.

        Raises:
          OSError: if a file cannot be read.
          ValueError: if it is not Arrow, or a column is missing.
        """
        self.path, self._paths, self._made_of = path, list(files), list(made_of or files)
        batches = self._mapped()
        if not sum(batch.num_rows for batch in batches):
            raise ValueError(f"{path}: expected a row for each image, found none")
        schema = batches[0].schema
        self._chosen = Chosen(schema, image_key, text_key, label_key, path, images_only)
        for batch in batches:
            if not {*self._chosen.names} <= {*batch.schema.names}:
                raise ValueError(
                    f"{path}: expected the columns {self._chosen.names} in each file, found {batch.schema.names}"
                )
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._labels, self.classes = None, ()
        if self._chosen.label is not None:
            found = pa.chunked_array([batch.column(self._chosen.label) for batch in batches])
            self._labels, self.classes = _labels(found, schema, self._chosen.label, path)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_batches"}

    def _mapped(self) -> list[pa.RecordBatch]:
        """Returns the batches of all files, mapped once in each process."""
        if "_batches" not in self.__dict__:
            self._batches = [batch for path in self._paths for batch in _map_file(path)]
        return self._batches

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: {index} is not below {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._mapped()[number], index - int(self._starts[number])
        where = self.name(index)
        image = batch.column(self._chosen.image)[row].as_py()
        image = image.get("bytes") if isinstance(image, dict) else image
        if not image:
            raise ValueError(f"{where}: no bytes of an image")
        texts = None if self._chosen.text is None else batch.column(self._chosen.text)[row].as_py()
        if isinstance(texts, list):
            texts = [text for text in texts if text is not None]
        label = None if self._labels is None else columns.label_of(int(self._labels[index]))
        return Example(image, columns.as_texts(texts, where), label, where)

    def name(self, index: int) -> str:
        """Returns what the user called the files, and the number of the row."""
        return f"{os.path.basename(self.path)}:{index}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields name and path of every file that is read, or that a copy was made of."""
        return ((os.path.basename(path), path) for path in self._made_of)


def holds_images(kind: pa.DataType) -> bool:
    """Says whether a column of this type can hold encoded images: bytes, or a struct with a field `bytes`."""
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
                raise ValueError(f"{path}: expected an Arrow file, found something else ({error})") from None
    try:
        for batch in batches:
            batch.validate()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: broken Arrow file ({error})") from None
    return batches


def _labels(found: pa.ChunkedArray, schema: pa.Schema, name: str, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels of all rows as positions in the names of the classes, and these."""
    if pa.types.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    if not pa.types.is_integer(found.type):
        if found.type not in _TEXT_TYPES:
            raise ValueError(f"{path}: expected numbers or names in the column {name!r}, found {found.type}")
        return columns.as_labels(found.to_pylist(), f"{path}: {name}")
    names = _names_of_classes(schema, name)
    if not names:
        return columns.as_labels(found.to_pylist(), f"{path}: {name}")
    numbers = pc.fill_null(found.cast(pa.int64()), columns.NO_LABEL).to_numpy()
    if numbers.max(initial=-1) >= len(names):
        raise ValueError(f"{path}: expected labels below {len(names)}, the number of classes, found {numbers.max()}")
    return np.maximum(numbers, columns.NO_LABEL).astype(np.int32), names


def _names_of_classes(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Returns the names that `datasets` keeps in the schema; nothing where it keeps none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return ()
