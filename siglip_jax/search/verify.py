"""Verification of a whole collection: every file is compared with its checksum, and its contents are looked at."""

import os
from pathlib import Path

from siglip_jax._files import read_json
from siglip_jax.search.approximate import FACTS, INDEX
from siglip_jax.search.checked import sum_of
from siglip_jax.search.collection import UNFINISHED, totals
from siglip_jax.search.making import ERRORS, error_lines
from siglip_jax.search.manifest import MANIFEST, Manifest, read_manifest
from siglip_jax.search.parts import (
    fault_of,
    parts_with_records,
    read_columns,
    read_embeddings,
    read_ids,
    read_record,
    record_path,
)

_LISTED = 10  # missing parts that are named


def is_collection(path: Path) -> bool:
    """Returns whether a directory is that of a collection, complete or not."""
    if not (path / MANIFEST).is_file():
        return False
    return record_path(path, 0).exists() or "layout" in read_json(path / MANIFEST, "it describes the directory")


def verify_collection(directory: str | os.PathLike[str]) -> list[str]:
    """Returns what is wrong with a collection, after comparing all of its files with their checksums.

    Args:
      directory: directory of the collection.

    Returns:
      One line for each damaged part, the first missing parts and their number, and for a manifest, list of errors or
      index that does not fit the parts; an empty list if the collection is complete and undamaged.

    Raises:
      OSError: if the directory has no manifest.
      ValueError: if the manifest is damaged.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
      ...     verify_collection(out)
      []
    """
    home = Path(directory)
    manifest = read_manifest(home)
    there = {part for part in parts_with_records(home) if part < manifest.parts}
    faults = [fault for part in sorted(there) if (fault := _fault(home, manifest, part)) is not None]
    if missing := manifest.parts - len(there):
        first = [part for part in range(len(there) + _LISTED) if part < manifest.parts and part not in there]
        faults += [f"{record_path(home, part)}: no such file; run the same siglip-jax embed again" for part in first]
        if missing > len(first):
            counted = f"{home}: {manifest.parts:,} parts must be there, got {len(there):,}"
            faults.append(f"{counted}; run the same siglip-jax embed again")
    if manifest.done is None:
        return [*faults, f"{home / MANIFEST}: {UNFINISHED}"]
    if faults:
        return faults
    records = [read_record(home, part) for part in range(manifest.parts)]
    found = totals(home, manifest, records)
    for name in found:
        if found[name] != manifest.done.get(name):
            faults.append(f"{home / MANIFEST}: {name} must be {found[name]}, got {manifest.done.get(name)}")
    if faults:
        return faults
    if not (home / ERRORS).is_file() or (home / ERRORS).read_bytes() != error_lines(records):
        faults.append(f"{home / ERRORS}: the file must list the unreadable items of the parts, got others")
    if (home / FACTS).is_file() and (home / INDEX).is_file():
        facts = read_json(home / FACTS, "it describes the index")
        if facts.get("collection") == found["checksum"] and (own := sum_of(home / INDEX)) != facts.get("sha256"):
            faults.append(f"{home / INDEX}: the SHA-256 must be {facts.get('sha256')}, got {own}; remove {FACTS}")
    return faults


def _fault(home: Path, manifest: Manifest, part: int) -> str | None:
    """Returns what is wrong with the files of a part, or with the embeddings and names in them."""
    fault = fault_of(home, manifest, part)
    if fault is None:
        try:
            record = read_record(home, part)
            read_embeddings(home, manifest, part, record, None)
            read_ids(home, manifest, part, record, None)
            read_columns(home, manifest, part, record, None)
        except (OSError, ValueError) as error:
            return str(error)
    return fault
