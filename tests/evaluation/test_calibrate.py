"""Calibration of the bundled model on the example images: it is measured on images that nothing was fitted to."""

import numpy as np
import pytest

import siglip_jax
from siglip_jax.evaluation import Options, calibrate, evaluate_zero_shot
from siglip_jax.evaluation.calibration import fit_sigmoid, halves
from siglip_jax.evaluation.prompts import TEMPLATES
from tests.support.sources import Listed, pictograms


@pytest.fixture(scope="module")
def siglip():
    """The bundled model with the bias that training left, which is as low for 64 labels as those of released models."""
    model = siglip_jax.load()
    return model.with_params({**model.params, "logit_bias": np.float32([-7.6])})


@pytest.fixture(scope="module")
def source():
    return pictograms()


@pytest.fixture(scope="module")
def found(siglip, source):
    return calibrate(siglip, source, precision=0.8)


@pytest.mark.slow
def test_the_result_is_that_of_the_parts(siglip, source, found):
    images, labels = [example.image for example in source.examples], np.arange(64)
    cosines = siglip.encode_image(images) @ siglip.encode_text(source.classes).T
    matches = np.eye(64, dtype=bool)
    own, other = halves(labels, labels, 0)
    fit = fit_sigmoid(cosines[own], matches[own])
    made = found.calibration
    assert (made.temperature, made.bias) == pytest.approx(fit[:2], rel=1e-4)
    assert (made.labels, made.prompts[0]) == (source.classes, ("alembic",))
    assert (found.temperature_before, found.bias_before) == (siglip.temperature, siglip.logit_bias)
    for half, rows in ((found.held_out, other), (found.fitted, own)):
        assert half.examples == 32
        before = siglip.similarity([images[i] for i in rows], source.classes)
        after = siglip.similarity([images[i] for i in rows], calibration=made)
        np.testing.assert_allclose(after[matches[rows]], half.after.matching, rtol=1e-4)
        assert half.before.above_half == (before[matches[rows]] > 0.5).mean()
        taken = after >= made.threshold
        assert half.accepted.precision == (taken & matches[rows]).sum() / taken.sum()
        assert half.accepted.recall == (taken & matches[rows]).sum() / 32
    assert found.fitted.accepted.precision >= 0.8


@pytest.mark.slow
def test_probabilities_get_better_and_the_order_stays(siglip, source, found):
    before, after = found.held_out.before, found.held_out.after
    assert after.pairs.error < before.pairs.error
    assert after.best.error < before.best.error
    assert after.log_loss < before.log_loss
    assert after.above_half > before.above_half
    images = [example.image for example in source.examples]
    plain = siglip.classify(images, source.classes)
    calibrated = siglip.classify(images, calibration=found.calibration)
    assert [[e["label"] for e in row] for row in plain] == [[e["label"] for e in row] for row in calibrated]


@pytest.mark.slow
def test_ensembles_of_prompts_are_in_the_calibration(siglip, source):
    few = Listed(source.examples[:12], source.classes[:12])
    found = calibrate(siglip, few, templates=TEMPLATES["clip"], options=Options(model_name="mine"))
    made = found.calibration
    assert len(made.prompts[0]) == 8 and made.prompts[0][-1] == "alembic" and made.model == "mine"
    top = [row[0]["label"] for row in siglip.classify([e.image for e in few.examples], calibration=made)]
    ranked = evaluate_zero_shot(siglip, few, templates=TEMPLATES["clip"]).ranked[:, 0]
    assert top == [few.classes[i] for i in ranked]
    assert found.preprocessing["text"]["templates"] == list(TEMPLATES["clip"])
    assert [len(x.counts) for x in (found.held_out.after.pairs, found.held_out.after.best)] == [7, 1]  # of 72 and 6


@pytest.mark.slow
def test_what_cannot_be_calibrated(siglip, source):
    first, second = source.examples[:2]
    with pytest.raises(ValueError, match="precision must be above 0 and up to 1, got 90.0; 0.9 is usual"):
        calibrate(siglip, source, precision=90.0)
    with pytest.raises(ValueError, match="images with labels must be two or more different ones, got 1 in 3 rows"):
        calibrate(siglip, Listed([first] * 3, source.classes[:2]))
    with pytest.raises(ValueError, match="classes must be two or more, got only 'alembic'"):
        calibrate(siglip, Listed([first, first], source.classes[:1]))
    swapped = Listed([first._replace(label=1), second._replace(label=0)], source.classes[:2])
    with pytest.raises(ValueError, match="matching pairs must have larger cosines than others"):
        calibrate(siglip, swapped)
