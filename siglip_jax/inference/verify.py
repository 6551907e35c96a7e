"""Verification of a checkpoint: checks its files and compares its logits with the published ones."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._npy import load_npy
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
    """The result of `verify_model`.

    Attributes:
      path: local directory or file of the checkpoint.
      format: format of the checkpoint, such as "huggingface".
      variant: name of the released checkpoint of the same sizes; None if there is none.
      checks: the `Check` of every property that was examined.
      comparisons: logits or probabilities of the model beside the published ones.
      not_computed: for each published answer that was not computed, a sentence that states what it needs.

    Example:
      >>> import siglip_jax
      >>> verification = verify_model(siglip_jax.assets.BUNDLED_MODEL)
      >>> verification.format, verification.variant, verification.right
      ('huggingface', None, True)
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
        """Returns the verification as a dictionary that JSON can hold.

        Returns:
          `path`, `format`, `same_shapes_as` (the variant), `checks`, `answers` (the comparisons), `not_computed` and
          `right`.

        Example:
          >>> import siglip_jax
          >>> verify_model(siglip_jax.assets.BUNDLED_MODEL).to_dict()["checks"][0]["right"]
          True
        """
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
    """Checks the files of a checkpoint and compares its logits with those published for a model of the same sizes.

    A fine-tuned model is expected to differ from the published logits.

    Args:
      name_or_path: local directory or file of the checkpoint, or a Hub name.
      image: path of the published image, or of a .npy file of floats with its pixel values (images, height, width,
        channels); None: only published answers to images that can be drawn are computed.
      on_progress: called with (bytes checked, bytes in total); None: progress is not reported.
      on_answer: called with (published answers computed, answers to compute); None: progress is not reported.

    Returns:
      A `Verification` with the checks and the comparisons; its `right` is True if every check passed.

    Raises:
      FileNotFoundError: if the checkpoint or the image does not exist.
      ValueError: if the checkpoint cannot be read, or no logits are published for `image`.

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
    """Returns the published answers that can be computed with `image`, and what the others need, in words."""
    published = variant.answers if variant is not None else ()
    form = None if image is None else "pixels" if Path(image).suffix == ".npy" else "image"
    found = [answer for answer in published if answer.given in ("drawn", form)]
    if image is not None and not any(answer.given == form for answer in found):
        forms = {"image": "the image", "pixels": "a .npy of the pixel values of"}
        known = sorted(
            {f"{forms[answer.given]} {', '.join(answer.images)}" for answer in published if answer not in found}
        )
        drawn = "the published images are drawn here" if found else "nothing is published for these sizes"
        raise ValueError(f"image must be {' or '.join(known) or f'None ({drawn})'}, got {image}")
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
    """Yields the comparison of each published answer with that of the model."""
    given: Any = None
    if image is not None:
        given = [image] if Path(image).suffix != ".npy" else load_npy(image)
    siglip, counter = load(contents.path), Counter(on_answer, len(answers))
    for answer in answers:
        yield compare(siglip, answer, given)
        counter.add(1)
