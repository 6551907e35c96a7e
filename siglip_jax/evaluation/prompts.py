"""Prompts of zero-shot classification: templates filled with names of classes, in big_vision's canonical form.

Names and templates are written in lower case without ASCII punctuation, as for the published results.

Source: `prompt_engineering.py` of big_vision, which does so in its zero-shot evaluator, not in its tokenizer.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siglip_jax._files import read_lines
from siglip_jax.data.columns import number_of
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
    classes: Sequence[str], templates: Sequence[str], *, canonicalize: bool = True, first_name_only: bool = True
) -> list[list[str]]:
    """Returns the prompts of each class: one for each of its names and each template.

    Args:
      classes: names of the classes; commas separate the names of one class.
      templates: sentences in which the name replaces `{}`.
      canonicalize: whether to write names and templates in canonical form: lower case, without punctuation, underscores
        as spaces; otherwise they are unchanged.
      first_name_only: whether to use only the name before the first comma: "tench" of "tench, Tinca tinca"; otherwise
        each name of a class has prompts of its own. big_vision's evaluator uses the first names by default.

    Returns:
      The prompts of each class, name by name.

    Raises:
      ValueError: if there are no classes or no templates, a template has no `{}`, or a name is blank.

    Example:
      >>> prompts(["tench, Tinca tinca", "Great_Dane"], ["A photo of {}."])
      [['a photo of tench'], ['a photo of great dane']]
      >>> prompts(["tench, Tinca tinca", "Great_Dane"], ["A photo of {}."], first_name_only=False)
      [['a photo of tench', 'a photo of tinca tinca'], ['a photo of great dane']]
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
    if canonicalize:
        templates = [canonicalize_text(template.replace("_", " "), keep=SLOT) for template in templates]
    found = []
    for given in classes:
        names = names_of(given)[: 1 if first_name_only else None]
        if canonicalize:
            names = [canonicalize_text(name.replace("_", " ")) for name in names]
        if not names or not all(name.strip() for name in names):
            raise ValueError(f"class names must not be blank, got {given!r}; rename it, or keep its punctuation")
        found.append([template.replace(SLOT, name) for name in names for template in templates])
    return found


def names_of(given: str) -> list[str]:
    """Returns the names of a class, which commas separate; the first one may be blank, others are then left out."""
    first, *others = (name.strip() for name in given.split(","))
    return [first, *filter(None, others)]


def named_classes(classes: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Returns the names to use for the classes of a data set, checked against their order.

    Args:
      classes: names of the classes in the data set, in its order.
      given: a name for each class in the same order; or lines of a class and its name, such as "n01440764 tench", in
        any order and also of further classes.

    Raises:
      ValueError: if names are missing, or are those of the data set in another order.

    Example:
      >>> named_classes(["n01440764", "n01443537"], ["n01443537 goldfish", "n01440764 tench, Tinca tinca"])
      ('tench, Tinca tinca', 'goldfish')
    """
    split = (re.split(r"[\s,:;=|]+", line.strip(), maxsplit=1) for line in given)
    by_class = {_key(words[0]): words[1] for words in split if len(words) == 2 and words[1]}
    if len(by_class) == len(given) and all(_key(name) in by_class for name in classes):
        return tuple(by_class[_key(name)] for name in classes)
    if len(given) != len(classes):
        raise ValueError(f"names must be one for each of {len(classes)} classes, got {len(given)}")
    place = {_key(name): i for i, name in enumerate(classes)}
    moved = [i for i, name in enumerate(given) if place.get(_key(name), i) != i]
    if 2 * len(moved) > len(given):
        i = moved[0]
        raise ValueError(
            f"names must be in the order of the classes of the data, {brief(classes)}, got {given[i]!r} in the place of"
            f" {classes[i]!r}; reorder them, or write the class of the data before each name"
        )
    return tuple(given)


def refuse_codes(names: Sequence[str]) -> None:
    """Raises a `ValueError` if all names of classes are WordNet ids such as n01440764, which no text encoder knows."""
    if names and all(re.fullmatch(r"n\d{8}", name) for name in names):
        raise ValueError(
            f"names of classes must be words, got WordNet ids such as {names[0]!r}; give names with classes (--classes"
            f" FILE), a file with lines such as '{names[0]} tench'"
        )


def brief(names: Sequence[str], most: int = 4) -> str:
    """Returns the first names and the last one as a text, to show their order."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])}, ..., {names[-1]}"


def _key(name: str) -> Any:
    """Returns what is compared of the name of a class: its number, or its words in lower case."""
    number = number_of(name)
    return " ".join(name.replace("_", " ").casefold().split()) if number is None else number


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
