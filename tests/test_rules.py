"""Ordered rules: the first match wins, every parameter has a value, and mistakes are told with what to do."""

import pytest

from siglip_jax.rules import match_rule, match_rules

PATHS = ["text_model/head/kernel", "text_model/head/bias", "logit_scale"]


def test_the_first_match_wins():
    rules = ((".*/kernel", 1), ("text_model/.*", 2), (".*", 3))
    assert match_rules(rules, PATHS, "rates") == dict(zip(PATHS, (1, 2, 3), strict=True))
    assert [match_rule(rules, path, "rates") for path in PATHS] == [1, 2, 3]


def test_a_pattern_must_match_the_whole_path():
    with pytest.raises(ValueError, match=r"^rates must match every parameter, got no rule for text_model/head/kernel;"):
        match_rule((("head", 1),), PATHS[0], "rates")


def test_a_value_may_be_false_or_none():
    assert match_rules(((".*/bias", None), (".*", False)), PATHS, "x") == {
        PATHS[0]: False,
        PATHS[1]: None,
        PATHS[2]: False,
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (("decoder/.*", 1), (".*", 2)),
            r"^decays: 'decoder/\.\*' matches no parameter; use a pattern for paths such as",
        ),
        ((("(", 1), (".*", 2)), r"^decays must be regular expressions, got '\('"),
        (((".*/kernel", 1),), r"got no rule for text_model/head/bias; end the rules with \('\.\*', \.\.\.\)$"),
    ],
)
def test_mistakes(rules, message):
    with pytest.raises(ValueError, match=message):
        match_rules(rules, PATHS, "decays")
