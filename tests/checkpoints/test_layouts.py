"""Every class, family and dtype of `transformers`, both directions; and the table of layouts."""

from pathlib import Path

import pytest

from siglip_jax.checkpoints import LAYOUTS
from siglip_jax.cli import main

ROOT = Path(__file__).parents[2]
KINDS = ("Model", "TextModel", "VisionModel", "ForImageClassification")
CLASSES = [f"{family}{kind}" for family in ("Siglip", "Siglip2") for kind in KINDS]
TOLERANCE = 1e-5  # of the largest value


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the reference emits warnings
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_transformers_both_ways(name, tmp_path):
    pytest.importorskip("torch", reason="torch has no CPU build here; golden files stand in elsewhere")
    from tests.support import layouts

    for dtype in layouts.DTYPES:
        model, saved = layouts.build(name, dtype), tmp_path / dtype
        model.save_pretrained(saved, max_shard_size="40KB" if dtype == "bfloat16" else "1GB")
        assert layouts.different_bits(name, model, saved, tmp_path / f"{dtype}-again") == [], dtype
        if dtype == "float32":
            assert layouts.difference(name, model, saved) < TOLERANCE


def test_the_table_is_that_of_the_documents():
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        assert f"| {' | '.join(layout[:-1])} |".replace("*", "\\*") in text, layout
        assert (ROOT / layout.checked).is_file()
    assert len({layout[:2] for layout in LAYOUTS}) == len(LAYOUTS)
    assert {layout.reads for layout in LAYOUTS} == {"all", "tower"}


def test_info_prints_the_table(capsys):
    assert main(["info", "--layouts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["family", "layout", "reads", "parity", "writes"]
    assert sum("transformers" in line for line in lines) >= 5
    assert main(["info", "--layouts", "--json"]) == 0
    assert '"checked": "tests/checkpoints/test_layouts.py"' in capsys.readouterr().out
    assert main(["info", "x", "--layouts"]) == 2
    assert (
        "info must have a model, --variants or --layouts, got several; leave out all but one" in capsys.readouterr().err
    )
