"""Where the members of a tar file lie, from its headers alone: nothing is extracted, and names are only names.

Reads the formats that `tarfile` writes (ustar, GNU, pax), for plain files; links, folders and devices are passed over.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_ZERO = bytes(_BLOCK)
_LONGEST = 2**20  # bytes that a long name, or the notes of pax on one member, may take
_REGULAR = (b"0", b"\0", b"7")


class Member(NamedTuple):
    """A plain file in a tar."""

    name: str
    offset: int  # bytes from the start of the tar
    size: int  # bytes


class BrokenTarError(ValueError):
    """A tar that cannot be read to its end; the message is only the reason."""


def members(path: str) -> Iterator[Member]:
    """Yields the plain files in a tar, in order.

    Raises:
      OSError: if it cannot be read.
      BrokenTarError: where it is cut off, compressed, or not a tar.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        yield from _members(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _members(descriptor: int, end: int) -> Iterator[Member]:
    position, name, size = 0, None, None  # name and size of the next member, where an entry before it gives them
    while position < end:
        header = os.pread(descriptor, _BLOCK, position)
        if header == _ZERO:
            return
        if position == 0 and header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
            raise BrokenTarError("it is compressed, and cannot be read from the middle; unpack it to a plain .tar")
        if len(header) < _BLOCK or not _sum_is_right(header):
            raise BrokenTarError(f"no tar header at byte {position}")
        kind = header[156:157]
        own = _number(header[124:136], position)
        length = own if size is None or kind in (b"L", b"K", b"x", b"g") else size
        start = position + _BLOCK
        if start + length > end:
            raise BrokenTarError(f"cut off: a member at byte {position} should have {length} bytes")
        if kind in (b"L", b"x"):
            if length > _LONGEST:
                raise BrokenTarError(f"a name at byte {position} takes {length} bytes")
            notes = os.pread(descriptor, length, start)
            if kind == b"L":
                name = _text(notes)
            else:
                found = _pax(notes, position)
                name = found.get(b"path", b"").decode("utf-8", "replace") or name
                size = int(found[b"size"]) if found.get(b"size", b"").isdigit() else size
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
        raise BrokenTarError(f"a header without a size at byte {position}")
    return value


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")


def _own_name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU keeps times there
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _pax(notes: bytes, position: int) -> dict[bytes, bytes]:
    """Returns the entries "LENGTH KEY=VALUE\\n" of an extended header."""
    found: dict[bytes, bytes] = {}
    while notes and notes[0]:
        length, _, _ = notes.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(notes):
            raise BrokenTarError(f"a pax header that makes no sense at byte {position}")
        key, _, value = notes[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key] = value
        notes = notes[int(length) :]
    return found
