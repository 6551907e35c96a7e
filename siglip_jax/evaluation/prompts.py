"""The texts of zero-shot classification: sentences with a slot, names of classes, and big_vision's way of writing them.

The names of a class and the sentences are written in lower case without ASCII punctuation, as the published figures
were made (`prompt_engineering.py` of big_vision, which does so in its zero-shot evaluator, not in its tokenizer).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from siglip_jax._files import read_lines
from siglip_jax.processing.text.canonical import canonicalize as canonicalize_text

SLOT = "{}"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "names": ("{}",),
    "photo": ("This is a photo of {}.",),
    # The seven that the authors of CLIP found best together, and the bare name, as in big_vision's `clip_best`.
    "clip": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "{}",
    ),
}


def prompts(
    classes: Sequence[str], templates: Sequence[str], *, canonicalize: bool = True, first_name_only: bool = False
) -> list[str]:
    """Returns the sentences of each class, one class after the other: as many for each as there are templates.

    Args:
      classes: names; commas stay, they part the several names of a class.
      templates: sentences whose `{}` a name takes.
      canonicalize: write both in canonical form, underscores as blanks; otherwise they stay as they are.
      first_name_only: of "tench, Tinca tinca" take "tench".

    Raises:
      ValueError: if there are none of either, a template has no `{}`, or nothing is left of a name.
    """
    if not classes or not templates:
        raise ValueError(f"expected classes and templates, found {len(classes)} classes and {len(templates)} templates")
    for template in templates:
        if SLOT not in template:
            raise ValueError(
                f"template must have {{}} where the name goes, found {template!r}; write 'a photo of {{}}'"
            )
    names = [name.split(",")[0] if first_name_only else name for name in classes]
    if canonicalize:
        names = [canonicalize_text(name.replace("_", " "), keep=",") for name in names]
        templates = [canonicalize_text(template.replace("_", " "), keep=SLOT) for template in templates]
    for name, given in zip(names, classes, strict=True):
        if not name.strip(" ,"):
            raise ValueError(f"class names must not be blank, found {given!r}; name it, or keep its punctuation")
    return [template.replace(SLOT, name) for name in names for template in templates]


def find_templates(name_or_file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the templates of this name in `TEMPLATES`, or of a text file with one a line.

    Raises:
      FileNotFoundError: if it is neither.
      ValueError: if the file is not text or has no lines.
    """
    if name_or_file in TEMPLATES:
        return TEMPLATES[str(name_or_file)]
    if not Path(name_or_file).is_file():
        raise FileNotFoundError(
            f"{name_or_file}: expected one of {', '.join(TEMPLATES)}, or a file with one template a line, found neither"
        )
    return read_lines(name_or_file, "templates such as 'a photo of {}'")
