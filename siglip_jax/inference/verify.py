"""Does a checkpoint do what the released model does? Its files are checked, and published logits are computed anew."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax.checkpoints.checkpoint import Contents
from siglip_jax.checkpoints.describe import released_variant
from siglip_jax.checkpoints.read import read_contents
from siglip_jax.checkpoints.verify import Check, has_tokenizer, verify_contents, verify_tokenizer
from siglip_jax.configs.published import Answer
from siglip_jax.configs.variants import Variant
from siglip_jax.inference.answers import Comparison, compare
from siglip_jax.inference.load import load


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was checked of a model.

    Attributes:
      path: local directory or file.
      format: format of the checkpoint.
      variant: name of the released checkpoint of the same sizes; None if there is none.
      checks: what was checked.
      comparisons: published answers beside those of the model.
      not_computed: what published answers need that was not given, a sentence each.
    """

    path: Path
    format: str
    variant: str | None
    checks: tuple[Check, ...]
    comparisons: tuple[Comparison, ...]
    not_computed: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether every check is right."""
        return all(check.right for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in types that JSON has."""
        return {
            "path": str(self.path),
            "format": self.format,
            "same_shapes_as": self.variant,
            "checks": [check._asdict() for check in self.checks],
            "answers": [comparison.to_dict() for comparison in self.comparisons],
            "not_computed": list(self.not_computed),
            "right": self.right,
        }


def verify_model(
    name_or_path: str | os.PathLike[str],
    image: str | os.PathLike[str] | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_answer: OnProgress | None = None,
) -> Verification:
    """Checks the files of a checkpoint, and compares its logits with published ones of the same sizes.

    Args:
      name_or_path: local directory or file, or a Hub name.
      image: the published image, or a .npy of its pixel values (images, height, width, channels); None: only answers to
        images that are drawn here are computed.
      on_progress: called with (bytes checked, bytes in all).
      on_answer: called with (published answers computed, all that will be).

    Returns:
      The checks and comparisons.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it cannot be read as a checkpoint, or `image` is not one that something is published for.

    Example:
      >>> import siglip_jax
      >>> verify_model(siglip_jax.assets.BUNDLED_MODEL).right
      True
    """
    contents = read_contents(name_or_path)
    variant = released_variant(contents.config, contents.architecture)
    given = None if image is None else os.fspath(image)
    answers, left = _answers(variant, given)
    checks = list(verify_contents(contents, on_progress))
    checks += verify_tokenizer(contents)
    comparisons: list[Comparison] = []
    if answers and has_tokenizer(contents):
        comparisons += _compared(contents, answers, given, on_answer)
    elif answers:
        left.append(f"{answers[0].kind}: no tokenizer beside the weights")
    for comparison in comparisons:
        error, tolerance = comparison.error, comparison.answer.tolerance
        said = f"{comparison.expected.size} values, largest difference {error:.1e}, tolerance {tolerance:.0e}"
        differs = "" if comparison.right else "; a fine-tuned model differs here by design"
        checks.append(Check(f"published {comparison.answer.kind}", comparison.right, said + differs))
    name = None if variant is None else variant.name
    return Verification(contents.path, contents.format, name, tuple(checks), tuple(comparisons), tuple(left))


def _answers(variant: Variant | None, image: str | None) -> tuple[list[Answer], list[str]]:
    """Returns the published answers that can be computed with what is given, and what the others need."""
    published = variant.answers if variant is not None else ()
    form = None if image is None else "pixels" if Path(image).suffix == ".npy" else "image"
    found = [answer for answer in published if answer.given in ("drawn", form)]
    if image is not None and not any(answer.given == form for answer in found):
        known = sorted(
            {f"the {answer.given}: {', '.join(answer.images)}" for answer in published if answer not in found}
        )
        drawn = "the published images are drawn here" if found else "nothing is published for these sizes"
        raise ValueError(f"--image: expected {' or '.join(known) or f'none, {drawn}'}; found {image}")
    needs = {
        "image": "pass --image with {}",
        "pixels": "pass --image with a .npy of the pixel values of {} ({})",
    }
    left = [
        f"{answer.kind}: {needs[answer.given].format(', '.join(answer.images), answer.pixels)}"
        for answer in published
        if answer not in found
    ]
    return found, list(dict.fromkeys(left))


def _compared(
    contents: Contents, answers: list[Answer], image: str | None, on_answer: OnProgress | None
) -> Iterator[Comparison]:
    given: Any = None
    if image is not None:
        given = [image] if Path(image).suffix != ".npy" else np.load(image, mmap_mode="r")
    siglip, counter = load(contents.path), Counter(on_answer, len(answers))
    for answer in answers:
        yield compare(siglip, answer, given)
        counter.add(1)
