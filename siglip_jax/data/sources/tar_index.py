"""Positions of the members of a tar file, from its headers alone: nothing is extracted, and no name is used as a path.

Reads the formats that `tarfile` writes (ustar, GNU, pax). Only regular files count; links, folders and devices are
skipped.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_ZERO = bytes(_BLOCK)
_LONGEST = 2**20  # bytes of a long name, or of the pax header of one member
_REGULAR = (b"0", b"\0", b"7")
_MOST_DIGITS = 19
_DIGITS = re.compile(rb"[0-9]{1,%d}" % _MOST_DIGITS)


class Member(NamedTuple):
    """A regular file in a tar.

    Attributes:
      name: name in the tar, with folders; bytes that are not UTF-8 become surrogates (surrogateescape).
      offset: position of its data, in bytes from the start of the tar.
      size: bytes of its data.
    """

    name: str
    offset: int
    size: int


class BrokenTarError(ValueError):
    """Raised for a tar that is unreadable before its end; the message is the reason without the path."""


def members(path: str) -> Iterator[Member]:
    """Yields the regular files in a tar, in order.

    Raises:
      OSError: if the file is unreadable.
      BrokenTarError: at the position where the file is truncated, compressed, or not a tar.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        yield from _members(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _members(descriptor: int, end: int) -> Iterator[Member]:
    position, name, size = 0, None, None  # name and size of the next member, if an entry before it has them
    while position < end:
        header = os.pread(descriptor, _BLOCK, position)
        if header == _ZERO:
            return
        if position == 0 and header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
            raise BrokenTarError(
                "a tar must be uncompressed for random access, got a compressed one; unpack it to a plain .tar"
            )
        if len(header) < _BLOCK or not _sum_is_right(header):
            raise BrokenTarError(f"byte {position} must begin a tar header, got other bytes")
        kind = header[156:157]
        own = _number(header[124:136], position)
        length = own if size is None or kind in (b"L", b"K", b"x", b"g") else size
        start = position + _BLOCK
        if start + length > end:
            raise BrokenTarError(
                f"the member at byte {position} must have {length} bytes, got {end - start}; it is truncated"
            )
        if kind in (b"L", b"x"):
            if length > _LONGEST:
                raise BrokenTarError(f"the name at byte {position} must have at most {_LONGEST} bytes, got {length}")
            notes = os.pread(descriptor, length, start)
            if kind == b"L":
                name = _text(notes)
            else:
                found = pax_entries(notes, position)
                name = _text(found.get(b"path", b"")) or name
                size = int(found[b"size"]) if _DIGITS.fullmatch(found.get(b"size", b"")) else size
        elif kind not in (b"K", b"g"):
            if kind in _REGULAR:
                yield Member(name or _own_name(header), start, length)
            elif kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                length = 0
            name = size = None
        position = start + -(-length // _BLOCK) * _BLOCK


def _sum_is_right(header: bytes) -> bool:
    try:
        return int(header[148:156].split(b"\0")[0].strip() or b"0", 8) == sum(header) - sum(header[148:156]) + 256
    except ValueError:
        return False


def _number(field: bytes, position: int) -> int:
    try:
        value = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise BrokenTarError(f"the header at byte {position} must have a size, got {field!r}")
    return value


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _own_name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU stores times there
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def pax_entries(notes: bytes, position: int) -> dict[bytes, bytes]:
    """Returns the entries "LENGTH KEY=VALUE\\n" of an extended header."""
    found: dict[bytes, bytes] = {}
    start = 0  # not the rest of the notes, whose copies would take quadratic time
    while start < len(notes) and notes[start]:
        space = notes.find(b" ", start, start + _MOST_DIGITS + 1)
        digits = notes[start : max(space, start)]
        if not _DIGITS.fullmatch(digits) or not len(digits) < int(digits) <= len(notes) - start:
            raise BrokenTarError(
                f"the pax header at byte {position} must have entries of the stated length, got others"
            )
        key, _, value = notes[space + 1 : start + int(digits) - 1].partition(b"=")
        found[key] = value
        start += int(digits)
    return found
