"""Models of variable resolution through the engine, the pipeline and the command line, against the reference."""

import json

import numpy as np
import PIL.Image
import pytest
import transformers

from siglip_jax import load, pipeline
from siglip_jax.cli import main
from tests.support.spiece import quiet_reference
from tests.support.tiny_checkpoint import picture, write_checkpoint

SIZES = [(40, 30), (200, 12), (30, 160), (64, 64), (9, 9)]  # width, height
TEXTS = ["a cat", "two dogs on the beach", "a red car"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("flexible"), flexible=True)


@pytest.fixture(scope="module")
def pictures():
    return [PIL.Image.fromarray(picture(i, size)) for i, size in enumerate(SIZES)]


@pytest.mark.slow
def test_similarity_is_the_reference_s(directory, pictures):
    torch = pytest.importorskip("torch", reason="torch has no CPU build here; the module itself is tested elsewhere")
    siglip = load(directory)
    with quiet_reference():
        images = transformers.Siglip2ImageProcessorPil.from_pretrained(directory)(pictures, return_tensors="pt")
        model = transformers.Siglip2Model.from_pretrained(directory).eval()
        ids = torch.tensor(siglip.processor(text=TEXTS)["input_ids"].astype(np.int64))
        with torch.no_grad():
            expected = torch.sigmoid(model(input_ids=ids, **images).logits_per_image)
    np.testing.assert_allclose(siglip.similarity(pictures, TEXTS), expected, rtol=1e-5)


@pytest.mark.slow
def test_few_programs_serve_all_forms_and_padding_changes_nothing(directory, pictures):
    siglip = load(directory)
    assert {tuple(grid) for grid in siglip.processor(images=pictures)["spatial_shapes"].tolist()} == {
        (4, 5), (1, 17), (10, 2), (4, 4),
    }  # fmt: skip
    together = siglip.encode_image(pictures, batch_size=8)
    assert siglip._encode_pixels._cache_size() == 1
    for image, row in zip(pictures, together, strict=True):
        np.testing.assert_allclose(siglip.encode_image(image)[0], row, atol=5e-7)
    assert siglip._encode_pixels._cache_size() == 2
    assert np.isfinite(together).all() and np.abs(together[0] - together[1]).max() > 1e-3


@pytest.mark.slow
def test_pipeline_and_command_line(directory, pictures, tmp_path, capsys):
    pictures[1].save(tmp_path / "wide.png")
    ranked = load(directory).classify(pictures[1], TEXTS)
    classifier = pipeline("zero-shot-image-classification", model=str(directory))
    found = classifier(str(tmp_path / "wide.png"), candidate_labels=TEXTS, hypothesis_template="{}")
    assert {f["label"]: pytest.approx(f["score"]) for f in found} == {r["label"]: r["score"] for r in ranked}
    assert main(["classify", str(tmp_path / "wide.png"), "--labels", *TEXTS, "--model", str(directory), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [score["label"] for score in entry["scores"]] == [r["label"] for r in ranked]
