"""Prompts of zero-shot classification."""

import pytest

from siglip_jax._files import read_lines
from siglip_jax.evaluation.prompts import TEMPLATES, find_templates, prompts


def test_prompts_stand_class_by_class():
    templates = ("A photo of {}.", "{}, or {}?")
    assert prompts(["Red_Fox", "cat, Felis"], templates) == [
        "a photo of red fox",
        "red fox or red fox",
        "a photo of cat, felis",
        "cat, felis or cat, felis",
    ]
    assert prompts(["Red_Fox", "cat, Felis"], templates[:1], canonicalize=False, first_name_only=True) == [
        "A photo of Red_Fox.",
        "A photo of cat.",
    ]


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
