"""Prompts of zero-shot classification: templates filled with names of classes, in big_vision's canonical form.

Names and templates are written in lower case without ASCII punctuation, as for the published results.

Source: `prompt_engineering.py` of big_vision, which does so in its zero-shot evaluator, not in its tokenizer.
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
    # The seven templates that the authors of CLIP found best together, and the bare name: big_vision's `clip_best`.
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
    """Returns the prompts of all classes, class by class: each class has one prompt per template.

    Args:
      classes: names of the classes; commas are kept, as they separate the names of one class.
      templates: sentences in which the name replaces `{}`.
      canonicalize: whether to write names and templates in canonical form: lower case, without punctuation, underscores
        as spaces; otherwise they are unchanged.
      first_name_only: whether to use only the name before the first comma: "tench" of "tench, Tinca tinca".

    Returns:
      Prompts, `len(classes) * len(templates)`.

    Raises:
      ValueError: if there are no classes or no templates, a template has no `{}`, or a name is blank.

    Example:
      >>> prompts(["tench, Tinca tinca", "Great_Dane"], ["A photo of {}."], first_name_only=True)
      ['a photo of tench', 'a photo of great dane']
    """
    if not classes or not templates:
        raise ValueError(
            f"classes and templates must be one or more, got {len(classes)} classes and {len(templates)} templates"
        )
    for template in templates:
        if SLOT not in template:
            raise ValueError(
                f"template must have {{}} in the place of the name, got {template!r}; write 'a photo of {{}}'"
            )
    names = [name.split(",")[0] if first_name_only else name for name in classes]
    if canonicalize:
        names = [canonicalize_text(name.replace("_", " "), keep=",") for name in names]
        templates = [canonicalize_text(template.replace("_", " "), keep=SLOT) for template in templates]
    for name, given in zip(names, classes, strict=True):
        if not name.strip(" ,"):
            raise ValueError(f"class names must not be blank, got {given!r}; rename it, or keep its punctuation")
    return [template.replace(SLOT, name) for name in names for template in templates]


def find_templates(name_or_file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the templates of a name in `TEMPLATES`, or those of a text file.

    Args:
      name_or_file: "names", "photo", "clip", or the path of a text file with one template per line.

    Raises:
      FileNotFoundError: if there is neither such a name nor such a file.
      ValueError: if the file is not text or has no lines.
    """
    if name_or_file in TEMPLATES:
        return TEMPLATES[str(name_or_file)]
    if not Path(name_or_file).is_file():
        raise FileNotFoundError(
            f"templates must be one of {', '.join(TEMPLATES)}, or a file with one template per line, "
            f"got {os.fspath(name_or_file)!r}"
        )
    return read_lines(name_or_file, "templates such as 'a photo of {}'")
