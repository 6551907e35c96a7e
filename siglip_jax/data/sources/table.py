"""JSON lines, CSV or TSV beside images: a row names an image by its path and holds its captions or label."""

import csv
import itertools
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from siglip_jax.data.example import Example
from siglip_jax.data.sources import columns
from siglip_jax.data.sources.paths import read_inside

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv")
_CHUNK = 2**16  # rows
_LOOK = 1000  # rows that are looked at to find the columns

Row = tuple[int, dict[str, Any]]  # the number of the line, counted from 1, and what it holds


class TableSource:
    """Rows of a table; paths of images are relative to the folder of the table and may not lead out of it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_key: str | None = None,
        text_key: str | None = None,
        label_key: str | None = None,
        images_only: bool = False,
    ) -> None:
        """Reads the table, but no image.

        Args:
          image_key, text_key, label_key: names of columns; by default the usual ones are looked for.
          images_only: whether captions and labels are left alone, and need not be there.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if a line cannot be read, or a column is missing.
        """
        self.path = os.fspath(path)
        self._file = Path(path).name
        self._root = os.path.realpath(Path(path).parent)
        rows = _rows(Path(path))
        first = list(itertools.islice(rows, _LOOK))
        names = list(dict.fromkeys(name for _, row in first for name in row))
        if not first:
            raise ValueError(f"{path}: expected a row for each image, found none")
        image = columns.pick(names, image_key, columns.IMAGE, "image_key", self.path)
        text = label = None
        if not images_only:
            text = columns.pick(names, text_key, columns.TEXT, "text_key", self.path)
            label = columns.pick(names, label_key, columns.LABEL, "label_key", self.path)
        if image is None:
            raise columns.missing("paths of images", columns.IMAGE[4:], names, "image_key", self.path)
        if text is None and label is None and not images_only:
            raise columns.missing("captions", columns.TEXT, names, "text_key or label_key", self.path)

        self._lines = array("q")
        images, texts, labels = [], [], []
        everything = itertools.chain(first, rows)
        while chunk := list(itertools.islice(everything, _CHUNK)):
            self._lines.extend(line for line, _ in chunk)
            images.append(pa.array([_path(row.get(image)) for _, row in chunk], pa.large_string()))
            if text is not None:
                texts.append(pa.array([_texts(row.get(text)) for _, row in chunk], pa.large_list(pa.large_string())))
            if label is not None:
                labels += [row.get(label) for _, row in chunk]
        self._images = pa.chunked_array(images).combine_chunks()
        self._texts = pa.chunked_array(texts).combine_chunks() if texts else None
        self._labels, self.classes = None, ()
        if label is not None:
            self._labels, self.classes = columns.as_labels(labels, f"{path}: {label}")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        where = self.name(index)
        name = self._images[index].as_py()
        if not name:
            raise ValueError(f"{where}: no path of an image")
        texts = () if self._texts is None else self._texts[index].as_py()
        if texts is None:
            raise ValueError(f"{where}: expected a caption or a list of captions, found something else")
        label = None if self._labels is None else columns.label_of(int(self._labels[index]))
        return Example(read_inside(self._root, name, where), tuple(texts), label, where)

    def name(self, index: int) -> str:
        """Returns the name of the table and the number of the line."""
        return f"{self._file}:{self._lines[index]}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields name and path of every file that is read: the table, and the images that it names."""
        yield self._file, self.path
        for name in filter(None, self._images.to_pylist()):
            yield name, os.path.join(self._root, name)


def _path(value: Any) -> str | None:
    return columns.whole(value) if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    """Returns the captions in a value; None where they are something else, which is said when the row is read."""
    try:
        return columns.as_texts(value, "")
    except ValueError:
        return None


def _rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a table.

    Raises:
      ValueError: with the number of the line, if one is broken.
    """
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = _csv if path.suffix.lower() in (".csv", ".tsv") else _json_lines
            for line, row in read(file, path):
                yield line, row
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected text in UTF-8, found other bytes after line {line}") from None


def _json_lines(file: Any, path: Path) -> Iterator[Row]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {line} is not JSON ({error}); mend or remove it") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: expected a JSON object in line {line}, found a {type(row).__name__}")
        yield line, row


def _csv(file: Any, path: Path) -> Iterator[Row]:
    head = file.readline()
    file.seek(0)
    tabs = path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head)
    reader = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: expected columns of different names, found {columns.listed(names)}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                raise ValueError(
                    f"{path}: expected {len(names)} fields in line {reader.line_num}, found {len(fields)}; "
                    'put captions that hold the separator into "quotes"'
                )
            yield reader.line_num, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} cannot be read ({error}); mend or remove it") from None
