"""A part while it is made: it is kept in one file from time to time and when a run is stopped, so that little is lost.

The file, `part-000017.unfinished`, is removed once the part is written.
"""

import collections
import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from siglip_jax._files import write_atomically
from siglip_jax.search.items import Items, metadata_of, state_of
from siglip_jax.search.manifest import Manifest
from siglip_jax.search.parts import record_path, write_part


@dataclasses.dataclass
class Growing:
    """The items of a part that are done, in the order in which they were done.

    Attributes:
      done: number of items that were embedded or could not be read.
      embeds: L2-normalised embeddings, (rows, E) float32 each.
      numbers: index of the item of each row.
      ids: name of the item of each row.
      states: state of the item of each row, see `siglip_jax.search.items.state_of`.
      columns: metadata of the item of each row, by the name of the column.
      unreadable: `position`, `id` and `error` of each unreadable item.
    """

    done: int = 0
    embeds: list[Float32[np.ndarray, "rows embed"]] = dataclasses.field(default_factory=list)
    numbers: list[int] = dataclasses.field(default_factory=list)
    ids: list[str] = dataclasses.field(default_factory=list)
    states: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, list[Any]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    unreadable: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, items: Items, embeds: Float32[np.ndarray, "rows embed"], numbers: list[int]) -> None:
        """Adds the embeddings of items.

        Args:
          items: images or texts that are embedded.
          embeds: L2-normalised embeddings, (rows, E) float32.
          numbers: index of the item of each row.
        """
        self.done += len(numbers)
        self.embeds.append(embeds)
        self.numbers += numbers
        self.ids += map(items.name, numbers)
        self.states += (state_of(items, number) for number in numbers)
        for number in numbers:
            for name, value in metadata_of(items, number).items():
                self.columns[name].append(value)

    def with_known(self, items: Items, embeds: list[np.ndarray], numbers: list[int]) -> "Growing":
        """Returns these items and others whose embeddings were known.

        Args:
          items: images or texts that are embedded.
          embeds: L2-normalised embedding of each of the others, (E,) float32.
          numbers: index of the item of each of them.
        """
        if not numbers:
            return self
        both = copy.deepcopy(self)
        both.add(items, np.stack(embeds), numbers)
        return both

    def lose(self, items: Items, errors: dict[int, Exception]) -> list[dict[str, Any]]:
        """Adds unreadable items and returns their entries for `errors.jsonl`.

        Args:
          items: images or texts that are embedded.
          errors: errors by the index of the item.
        """
        lost = []
        for number, error in errors.items():
            said = " ".join(str(error).split()) or type(error).__name__
            lost.append({"position": number, "id": items.name(number), "error": said})
        self.done += len(lost)
        self.unreadable += lost
        return lost

    def write(self, directory: Path, manifest: Manifest, part: int) -> None:
        """Writes the part, whose items are all done, in the order of the items.

        Args:
          directory: directory of the collection.
          manifest: manifest of the collection.
          part: index of the part, from 0.
        """
        order = np.argsort(np.array(self.numbers, np.int64), kind="stable").tolist()
        empty = np.zeros((0, manifest.layout["width"]), np.float32)
        write_part(
            directory,
            manifest,
            part,
            np.concatenate([empty, *self.embeds])[order],
            [self.ids[i] for i in order],
            sorted(self.unreadable, key=lambda entry: entry["position"]),
            states=[self.states[i] for i in order],
            columns={name: [self.columns[name][i] for i in order] for name in manifest.layout.get("columns", ())},
        )
        _path(directory, part).unlink(missing_ok=True)

    def keep(self, directory: Path, manifest: Manifest, part: int) -> None:
        """Writes what is done to the file from which `growing` continues.

        Args:
          directory: directory of the collection.
          manifest: manifest of the collection.
          part: index of the part, from 0.
        """
        facts = {name: getattr(self, name) for name in _KEPT} | {"collection": manifest.key}
        embeds = b"".join(np.ascontiguousarray(rows, np.float32).tobytes() for rows in self.embeds)
        body = json.dumps(facts).encode() + b"\n" + embeds
        write_atomically(_path(directory, part), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


_KEPT = ("done", "numbers", "ids", "states", "columns", "unreadable")


def growing(directory: Path, manifest: Manifest, part: int) -> Growing:
    """Returns what an earlier run has kept of a part; nothing if the file is damaged or of another collection.

    Args:
      directory: directory of the collection.
      manifest: manifest of the collection.
      part: index of the part, from 0.
    """
    try:
        checksum, _, body = _path(directory, part).read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return Growing()
        head, _, embeds = body.partition(b"\n")
        facts = json.loads(head)
        if facts["collection"] != manifest.key:
            return Growing()
        rows = np.frombuffer(embeds, np.float32).reshape(len(facts["numbers"]), manifest.layout["width"])
        lists = [facts["ids"], facts["states"], *facts["columns"].values()]
        if {len(values) for values in lists} != {len(rows)} or facts["done"] != len(rows) + len(facts["unreadable"]):
            return Growing()  # stopped in the middle of a batch
        facts["columns"] = collections.defaultdict(list, facts["columns"])
        return Growing(embeds=[rows], **{name: facts[name] for name in _KEPT})
    except (OSError, ValueError, KeyError, TypeError):
        return Growing()


def _path(directory: Path, part: int) -> Path:
    return record_path(directory, part).with_suffix(".unfinished")
