"""Columns of Arrow and Parquet files: which ones hold images, captions and labels, and one type for each in all files.

The same values have many types: strings, large strings and dictionaries of them, and null where no row has a value.
"""

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from siglip_jax.data import columns

_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
_BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())


class Chosen:
    """The columns of a table that are read.

    Attributes:
      image: name of the column of images.
      text: name of the column of captions, or None.
      label: name of the column of labels, or None.
      boxes: names of the columns of boxes and of their captions, or ().
      schema: the columns whose names are not None, in the order of the files, with the type that they are read as.
      names: names of these columns.
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
        """Chooses the columns by their types and names; a column without any value is not chosen unless it is given.

        Args:
          schema: names and types of all columns, as from `merged`.
          image_key: column of the images; None: chosen among those that hold bytes of images, or else by name among
            those that hold texts, which are paths.
          text_key: column of the captions; None: the first of a usual name.
          label_key: column of the labels; None: the first of a usual name.
          where: path of the data set, for messages.
          images_only: whether captions and labels are ignored.

        Raises:
          ValueError: if there are no images, or neither captions nor labels.
        """
        types = {name: schema.field(name).type for name in schema.names}
        named = [name for name, kind in types.items() if not pa.types.is_null(kind)]
        if image_key is None:
            holding = [name for name in named if _holds_images(types[name])]
            paths = [name for name in named if types[name] == pa.large_string()]
            image = columns.pick(holding, None, columns.IMAGE, "image_key", where)
            if image is None and len(holding) == 1:
                image = holding[0]
            image = image or columns.pick(paths, None, columns.IMAGE, "image_key", where)
        else:
            image = columns.pick(types, image_key, (), "image_key", where)
            if not _holds_images(types[image_key]) and types[image_key] != pa.large_string():
                raise ValueError(
                    f"{where}: the column {image_key!r} must hold bytes or paths of images, got {types[image_key]}"
                )
        text = label = None
        if not images_only:
            text = columns.pick(named if text_key is None else types, text_key, columns.TEXT, "text_key", where)
            label = columns.pick(named if label_key is None else types, label_key, columns.LABEL, "label_key", where)
        if image is None:
            raise columns.missing("bytes of images", columns.IMAGE, types, "image_key", where)
        if text is None and label is None and not images_only:
            raise columns.missing("captions", columns.TEXT, types, "text_key or label_key", where)
        if text is not None and types[text] not in (pa.large_string(), pa.large_list(pa.large_string())):
            raise ValueError(
                f"{where}: the column {text!r} must hold texts, got {types[text]}; name the captions with text_key"
            )
        self.image, self.text, self.label = image, text, label
        both = (columns.BOXES, columns.BOX_CAPTIONS)
        self.boxes = both if not images_only and {*both} <= {*named} else ()
        self.names = [name for name in types if name in (image, text, label, *self.boxes)]
        self.schema = pa.schema([schema.field(name) for name in self.names], schema.metadata)


def merged(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Returns the columns of several files with their plain types; of different types the first one that has values.

    Args:
      schemas: names and types of the columns of each file, one or more; a name that a file has twice is left out.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for name in schema.names:
            if schema.names.count(name) == 1 and (name not in types or pa.types.is_null(types[name])):
                types[name] = plain(schema.field(name).type)
    return pa.schema(list(types.items()), schemas[0].metadata)


def plain(kind: pa.DataType) -> pa.DataType:
    """Returns the type that stands for all types of the same values: large ones, without dictionaries."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if kind in _TEXT_TYPES:
        return pa.large_string()
    if kind in _BYTES_TYPES:
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.large_list(plain(kind.value_type))
    if pa.types.is_struct(kind):  # an image of `datasets`
        fields = {kind.field(i).name: plain(kind.field(i).type) for i in range(kind.num_fields)}
        kept = {"bytes": pa.large_binary(), "path": pa.large_string()}
        if "bytes" in fields and all(fields.get(n, t) in (t, pa.null()) for n, t in kept.items()):
            return pa.struct(list(kept.items()))
    return kind


def as_plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns a column as its plain type, as from `merged`.

    Raises:
      ValueError: if the column has another type.
    """
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(array.type) and pa.types.is_struct(kind) and array.type != kind:
        names = [array.type.field(i).name for i in range(array.type.num_fields)]
        nulls = pa.nulls(len(array))
        fields = [kind.field(i) for i in range(kind.num_fields)]
        parts = [as_plain(array.field(f.name) if f.name in names else nulls, f.type) for f in fields]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=array.is_null())
    return array.cast(kind)


@contextlib.contextmanager
def refused(path: str, kind: str) -> Iterator[None]:
    """Turns every error of pyarrow about a broken file into a `ValueError` of one line that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{path}: the file must be a valid {kind} file, got a broken one ({reason})") from None


def _holds_images(kind: pa.DataType) -> bool:
    """Returns whether a column of this plain type can hold encoded images: bytes, or a struct of bytes and a path."""
    return kind == pa.large_binary() or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
