"""Canonical text, as SigLIP was trained on."""

import pytest

from siglip_jax.processing.text.canonical import canonicalize, remove_punctuation


@pytest.mark.parametrize(
    ("text", "keep", "expected"),
    [
        ("Jack-o'-Lantern", "", "jackolantern"),
        ("  a\tphoto of  THE {}!  ", "{}", "a photo of the {}"),
        ("a {} in { a } game.", "{}", "a {} in a game"),
        ("tench, Tinca tinca.", ",", "tench, tinca tinca"),
        ("Ärger – ß", "", "ärger – ß"),  # only ASCII punctuation goes
        ("...", "", ""),
    ],
)
def test_canonical(text, keep, expected):
    assert canonicalize(text, keep=keep) == expected


def test_case_may_stay_and_punctuation_goes_alone():
    assert canonicalize("A  Cat!", lower_case=False) == "A Cat"
    assert remove_punctuation("a_b-c  d.") == "abc  d"
