"""JSON lines, CSV or TSV beside images: a row holds the path of an image and its captions or label.

JSON lines may also hold `boxes` and `box_captions` of the image.
"""

import csv
import itertools
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from siglip_jax.data import columns
from siglip_jax.data.example import Example
from siglip_jax.data.sources.paths import file_named, name_bytes, name_of, path_inside, read_file

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv")
_CHUNK = 2**16  # rows
_SEPARATORS = (",", "\t", ";", "|")
_LOOK = 1000  # rows that are searched for names of columns

Row = tuple[int, dict[str, Any]]  # number of the line, counted from 1, and its fields


class TableSource:
    """Rows of a table, whose image paths are relative to its folder and must not lead out of that or another folder."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_key: str | None = None,
        text_key: str | None = None,
        label_key: str | None = None,
        images_only: bool = False,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Reads the table, but no image.

        Args:
          path: path of the table.
          image_key: column of the image paths; None: the usual names are tried.
          text_key: column of the captions; None: the usual names are tried.
          label_key: column of the labels; None: the usual names are tried.
          images_only: whether captions and labels are ignored and may be missing.
          root: folder that all images must be in, and that relative paths may begin in; None: that of the table.

        Raises:
          FileNotFoundError: if the table does not exist.
          ValueError: if a line is broken, or a column is missing.
        """
        self.path = os.fspath(path)
        self._file = Path(path).name
        self._folder = os.path.abspath(Path(path).parent)
        self._root = self._folder if root is None else os.path.abspath(root)
        rows = _rows(Path(path))
        first = list(itertools.islice(rows, _LOOK))
        names = list(dict.fromkeys(name for _, row in first for name in row))
        if not first:
            raise ValueError(f"{path}: a data set must have a row for each image, got no rows")
        image = columns.pick(names, image_key, columns.IMAGE, "image_key", self.path)
        text = label = None
        if not images_only:
            text = columns.pick(names, text_key, columns.TEXT, "text_key", self.path)
            label = columns.pick(names, label_key, columns.LABEL, "label_key", self.path)
        if image is None:
            raise columns.missing("paths of images", columns.IMAGE[4:], names, "image_key", self.path)
        if text is None and label is None and not images_only:
            raise columns.missing("captions", columns.TEXT, names, "text_key or label_key", self.path)

        self._image, self._text = image, text
        self.has_boxes = {columns.BOXES, columns.BOX_CAPTIONS} <= {*names} and not images_only
        self._lines = array("q")
        images, texts, labels, boxes = [], [], [], []
        everything = itertools.chain(first, rows)
        while chunk := list(itertools.islice(everything, _CHUNK)):
            self._lines.extend(line for line, _ in chunk)
            images.append(pa.array([_path(row.get(image)) for _, row in chunk], pa.large_binary()))
            if text is not None:
                texts.append(pa.array([_texts(row.get(text)) for _, row in chunk], pa.large_list(pa.large_string())))
            if label is not None:
                labels += [row.get(label) for _, row in chunk]
            if self.has_boxes:
                found = [json.dumps([row.get(columns.BOXES), row.get(columns.BOX_CAPTIONS)]) for _, row in chunk]
                boxes.append(pa.array(found, pa.large_string()))
        self._images = pa.chunked_array(images).combine_chunks()
        self._texts = pa.chunked_array(texts).combine_chunks() if texts else None
        self._boxes = pa.chunked_array(boxes).combine_chunks() if boxes else None
        self._labels, self.classes = None, ()
        if label is not None:
            self._labels, self.classes = columns.as_labels(
                labels, f"{path}: {label}", lambda row: f"line {self._lines[row]}"
            )

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        where = self.name(index)
        name = name_of(self._images[index].as_py() or b"")
        if not name:
            raise ValueError(f"{where}: an image must be the path of a file, got none in {self._image!r}")
        texts = () if self._texts is None else self._texts[index].as_py()
        if texts is None:
            raise ValueError(
                f"{where}: captions must be a string or a list of strings, got something else in {self._text!r}"
            )
        label = None if self._labels is None else columns.label_of(int(self._labels[index]))
        image = read_file(path_inside(name, self._folder, self._root, where), name, where)
        boxes, captions = (None, ()) if self._boxes is None else json.loads(self._boxes[index].as_py())
        return Example(image, tuple(texts), label, where, boxes, captions or ())

    def name(self, index: int) -> str:
        """Returns the name of the table and the number of the line of an example."""
        return f"{self._file}:{self._lines[index]}"

    @property
    def image_numbers(self) -> Int64[np.ndarray, " examples"]:
        """Number of the image that each row names, (rows,), counted from 0 by first row."""
        return columns.numbered(None if name is None else name_of(name) for name in self._images.to_pylist())

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read: the table and the images that it names."""
        yield self._file, self.path
        for name in map(name_of, filter(None, self._images.to_pylist())):
            yield file_named(name, self._folder, self._root)

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column, one for each row, None where a row has none.

        Args:
          name: name of the column.

        Raises:
          ValueError: if no row has the column.
        """
        values, names = [], set()
        for _, row in _rows(Path(self.path)):
            values.append(row.get(name))
            names.update(row)
        if name not in names:
            raise ValueError(f"{self.path}: the columns must be some of {columns.listed(sorted(names))}, got {name!r}")
        return values

    def contents(self) -> Iterator[bytes]:
        """Yields the bytes of the table: what the source has beside its images."""
        with open(self.path, "rb") as file:
            while chunk := file.read(2**20):
                yield chunk


def _path(value: Any) -> bytes | None:
    return name_bytes(value) if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    """Returns the captions in a value, or None for an invalid value, which is an error only when the row is read."""
    try:
        return columns.as_texts(value, "")
    except ValueError:
        return None


def _rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a table.

    Raises:
      ValueError: if a line is broken; the message has its number.
    """
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = _csv if path.suffix.lower() in (".csv", ".tsv") else _json_lines
            for line, row in read(file, path):
                yield line, row
    except UnicodeDecodeError:
        raise ValueError(f"{path}: a table must be text in UTF-8, got other bytes after line {line}") from None


def _json_lines(file: Any, path: Path) -> Iterator[Row]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {line} must be JSON, got other text ({error}); fix or remove it") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {line} must be a JSON object, got a {type(row).__name__}")
        yield line, row


def _csv(file: Any, path: Path) -> Iterator[Row]:
    separator = _separator(file.readline(), "\t" if path.suffix.lower() == ".tsv" else ",")
    file.seek(0)
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: names of columns must be different, got {columns.listed(names)}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                raise ValueError(
                    f"{path}: line {reader.line_num} must have {len(names)} fields, got {len(fields)}; "
                    'put captions that contain the separator into "quotes"'
                )
            yield reader.line_num, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}: line {reader.line_num} must be valid CSV, got other text ({error}); fix or remove it"
        ) from None


def _separator(head: str, usual: str) -> str:
    """Returns the separator by which the first line has most columns of usual names, or else most columns."""
    known = {*columns.IMAGE, *columns.TEXT, *columns.LABEL}

    def found(separator: str) -> tuple[int, int]:
        names = next(csv.reader([head], delimiter=separator, skipinitialspace=True), [])
        return sum(name.strip().lower() in known for name in names), len(names)

    return max(dict.fromkeys((usual, *_SEPARATORS)), key=found)
