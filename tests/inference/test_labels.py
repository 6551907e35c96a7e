"""Labels: one that may stand for several."""

import pytest

from siglip_jax.inference.labels import check_labels


def test_one_label_with_commas_asks_whether_several_are_meant():
    message = "'a cat, a dog,a bird' is one label; if 3 are meant, give 'a cat' 'a dog' 'a bird' each on its own"
    with pytest.warns(UserWarning, match=f"^{message}$"):
        assert check_labels("a cat, a dog,a bird") == ("a cat, a dog,a bird",)


@pytest.mark.parametrize("labels", [["tench, Tinca tinca", "goldfish"], ["well,"], ["a cat"]])
def test_other_labels_ask_nothing(labels):
    assert check_labels(labels) == tuple(labels)
