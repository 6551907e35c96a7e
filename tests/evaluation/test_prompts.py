"""Prompts of zero-shot classification."""

import pytest

from siglip_jax._files import read_lines
from siglip_jax.evaluation.prompts import TEMPLATES, find_templates, named_classes, prompts, refuse_codes


def test_prompts_stand_class_by_class():
    """As in `discriminative_classifier.py` of big_vision: a sentence for each name, or only for the first one."""
    templates = ("A photo of {}.", "{}, or {}?")
    assert prompts(["Red_Fox", "cat, Felis catus,"], templates, first_name_only=False) == [
        ["a photo of red fox", "red fox or red fox"],
        ["a photo of cat", "cat or cat", "a photo of felis catus", "felis catus or felis catus"],
    ]
    assert prompts(["Red_Fox", "cat, Felis"], templates) == [
        ["a photo of red fox", "red fox or red fox"],
        ["a photo of cat", "cat or cat"],
    ]
    assert prompts(["Red_Fox", "cat, Felis"], templates[:1], canonicalize=False) == [
        ["A photo of Red_Fox."],
        ["A photo of cat."],
    ]


def test_names_are_checked_against_the_order_of_the_classes():
    numbers = [str(i) for i in range(12)]
    words = [f"number {i}" for i in range(12)]
    assert named_classes(numbers, words) == tuple(words)
    lines = [f"{i}: {word}" for i, word in enumerate(words)]
    assert named_classes(numbers, lines[::-1]) == tuple(words)
    assert named_classes(["n02", "n01"], ["n00\tace", "n01\ttench, Tinca", "n02\tgoldfish"]) == (
        "goldfish",
        "tench, Tinca",
    )
    assert named_classes(["Big_cat", "dog"], ["big cat", "dog"]) == ("big cat", "dog")
    assert named_classes(["crane bird", "crane", "ox"], ["crane", "lifting crane", "ox"])[0] == "crane"  # may be meant
    with pytest.raises(
        ValueError, match="in the order of the classes of the data, ape, bee, cat, got 'cat' in the place of 'ape'; "
    ):
        named_classes(["ape", "bee", "cat"], ["cat", "ape", "bee"])
    with pytest.raises(ValueError, match="0, 1, 2, 3, ..., 11, got '1' in the place of '0'"):
        named_classes(numbers, [*numbers[1:], "0"])
    with pytest.raises(ValueError, match="names must be one for each of 2 classes, got 3"):
        named_classes(["a", "b"], ["n01 tench", "n02 ox", "n03 bee"])


def test_wordnet_ids_are_no_names():
    with pytest.raises(ValueError, match=r"got WordNet ids such as 'n01440764'; .*lines such as 'n01440764 tench'$"):
        refuse_codes(["n01440764", "n01443537"])
    refuse_codes(["n01440764", "tench"])


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], ["{}"], "classes and templates must be one or more, got 0 classes and 1 templates"),
        (["a"], [], "classes and templates must be one or more, got 1 classes and 0 templates"),
        (["a"], ["a photo"], "must have {} in the place of the name, got 'a photo'; write 'a photo of {}'"),
        (["a", "?!"], ["{}"], r"class names must not be blank, got '\?!'"),
        ([", a"], ["{}"], "class names must not be blank, got ', a'"),
    ],
)
def test_what_makes_no_sentence(classes, templates, message):
    with pytest.raises(ValueError, match=message):
        prompts(classes, templates, first_name_only=classes == [", a"])


def test_templates_by_name_and_from_a_file(tmp_path):
    assert find_templates("photo") == ("This is a photo of {}.",)
    assert len(TEMPLATES["clip"]) == 8 and all(template.count("{}") == 1 for template in TEMPLATES["clip"])
    file = tmp_path / "templates.txt"
    file.write_bytes("\ufeffa drawing of {}\r\n\r\n  {} \n".encode())
    assert find_templates(str(file)) == ("a drawing of {}", "{}")
    with pytest.raises(
        FileNotFoundError,
        match="templates must be one of names, photo, clip, or a file with one template per line, got 'imagenet'",
    ):
        find_templates("imagenet")
    file.write_text("\n\n")
    with pytest.raises(ValueError, match="one per line, got an empty file"):
        find_templates(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_lines(file, "names")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_lines(tmp_path / "none", "names")
