"""Parity of the models of variable resolution with `transformers`, on grids and sizes that break ports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import (
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipModel,
    SiglipTextModel,
)
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats.huggingface import to_tensors
from siglip_jax.models.positions import flexible_positions
from tests.models.test_parity import assert_equal, error, outputs_of
from tests.support import cases, naflex_cases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=list(naflex_cases.CASES))
def case(request):
    return request.param


@pytest.fixture(scope="module")
def directory(case, tmp_path_factory):
    return naflex_cases.make_checkpoint(tmp_path_factory.mktemp("naflex"), case)


@pytest.fixture(scope="module")
def inputs(case):
    return {k: jnp.asarray(v) for k, v in naflex_cases.make_inputs(naflex_cases.make_config(case)).items()}


@pytest.fixture(scope="module")
def golden(case):
    return dict(np.load(cases.GOLDEN / f"{case}.npz"))


def compute(directory, inputs, *, attn_implementation="auto", jit=True, **options):
    model, params = Siglip2Model.from_pretrained(directory, attn_implementation=attn_implementation, **options)

    def everything(params, inputs):
        weights = attn_implementation == "eager"
        found = naflex_cases.runs(functools.partial(model.apply, {"params": params}, output_attentions=weights), inputs)
        return {k: v for k, v in found.items() if k.startswith("plain/") or ".attentions" not in k}

    found = (jax.jit(everything) if jit else everything)(params, inputs)
    return {k: np.asarray(v) for k, v in found.items()}


def loss_gradients(directory, inputs, **options):
    model, params = Siglip2Model.from_pretrained(directory, **options)
    given = cases.loss_inputs(inputs)
    loss = jax.grad(lambda params: model.apply({"params": params}, **given, return_loss=True).loss)
    tensors = to_tensors(Checkpoint(model.config, jax.jit(loss)(params), "huggingface", "Siglip2Model"))
    return {f"gradient/{k}": v.make() for k, v in tensors.items()}


@pytest.fixture(scope="module")
def fused(directory, inputs):
    return compute(directory, inputs)


@pytest.fixture(scope="module")
def gradients(directory, inputs):
    return loss_gradients(directory, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_output_equals_the_reference(directory, inputs, golden, scan_layers):
    found = compute(directory, inputs, scan_layers=scan_layers, attn_implementation="eager")
    assert_equal(found, outputs_of(golden, attentions=True))


@pytest.mark.slow
def test_fused_attention_equals_the_reference(fused, golden):
    assert_equal(fused, outputs_of(golden, attentions=False))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["naflex_odd"], indirect=True)
def test_without_jit_equals_the_reference(directory, inputs, golden):
    assert_equal(compute(directory, inputs, jit=False), outputs_of(golden, attentions=False))


@pytest.mark.slow
def test_gradients_of_the_loss_equal_the_reference(directory, inputs, golden, gradients):
    scanned = loss_gradients(directory, inputs, scan_layers=True, remat="full")
    for found in (gradients, scanned):
        assert_equal(cases.projections(found), {k: v for k, v in golden.items() if k.startswith("gradient/")})


@pytest.mark.slow
def test_golden_files_are_what_the_reference_computes(directory, inputs, golden, fused, gradients):
    pytest.importorskip("torch", reason="torch has no CPU build here; the golden files made with it stand in")
    given = {k: np.asarray(v) for k, v in inputs.items()}
    truth = naflex_cases.reference_results(directory, given, "float64")
    expected = {k: v for k, v in truth.items() if k.startswith("gradient/")}
    assert_equal(outputs_of(truth, attentions=True) | cases.projections(expected), golden)
    assert_equal(gradients, expected)
    reference = naflex_cases.reference_results(directory, given, "float32")
    assert_equal(fused, outputs_of(reference, attentions=False))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["naflex"], indirect=True)
def test_what_is_in_the_padding_changes_nothing(directory, inputs):
    model, params = Siglip2Model.from_pretrained(directory)
    call = jax.jit(lambda *args: model.apply({"params": params}, *args, method="get_image_features"))
    mask, grids = inputs["pixel_attention_mask"], inputs["spatial_shapes"]
    quiet = jnp.where(mask[..., None] == 1, inputs["pixel_values"], 0.0)
    np.testing.assert_array_equal(call(inputs["pixel_values"], mask, grids), call(quiet, mask, grids))
    cut = call(quiet[3:4, :6], mask[3:4, :6], grids[3:4])
    whole = call(quiet, mask, grids)[3:4]
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-5 * float(jnp.abs(whole).max()))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["naflex"], indirect=True)
def test_one_program_serves_all_grids(directory, inputs):
    model, params = Siglip2VisionModel.from_pretrained(directory)
    traces = []

    @jax.jit
    def call(pixels, mask, grids):
        traces.append(grids)
        return model.apply({"params": params}, pixels, mask, grids).pooler_output

    given = inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]
    call(*given), call(given[0], given[1], given[2][:, ::-1])
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["naflex"], indirect=True)
@pytest.mark.parametrize("implementation", ["xla", "eager"])
def test_bfloat16_stays_near_float32_and_finite(directory, inputs, golden, implementation):
    model, params = Siglip2Model.from_pretrained(directory, dtype=jnp.bfloat16, attn_implementation=implementation)
    out = jax.jit(lambda given: model.apply({"params": params}, **given))(cases.loss_inputs(inputs))
    assert np.abs(np.asarray(out.image_embeds) - golden["plain/image_embeds"]).max() < 0.02


@pytest.mark.slow
def test_towers_alone_equal_the_whole(directory, inputs, golden):
    text, text_params = Siglip2TextModel.from_pretrained(directory)
    vision, vision_params = Siglip2VisionModel.from_pretrained(directory)
    images = inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]
    found = text.apply({"params": text_params}, inputs["input_ids"]).pooler_output
    assert error(np.asarray(found), golden["plain/text.pooler_output"]) <= 1e-5
    found = vision.apply({"params": vision_params}, *images).pooler_output
    assert error(np.asarray(found), golden["plain/vision.pooler_output"]) <= 1e-5


@pytest.mark.slow
def test_what_is_saved_loads_in_both_libraries(directory, inputs, golden, tmp_path):
    model, params = Siglip2Model.from_pretrained(directory)
    model.save_pretrained(tmp_path, params)
    assert_equal(compute(tmp_path, inputs), outputs_of(golden, attentions=False))
    pytest.importorskip("torch", reason="torch has no CPU build here; reading it back is tested above")
    given = {k: np.asarray(v) for k, v in inputs.items()}
    before, after = (naflex_cases.reference_results(path, given) for path in (directory, tmp_path))
    assert all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["naflex_odd"], indirect=True)
def test_the_classifier_equals_the_reference(case, inputs, tmp_path):
    pytest.importorskip("torch", reason="torch has no CPU build here; test_the_classifier_is_a_masked_mean stands in")
    import torch
    import transformers

    path = naflex_cases.make_checkpoint(tmp_path, case, "Siglip2ForImageClassification")
    labels = np.array([0, 1, 1, 0, 1, 0], np.int32)
    names = "pixel_values", "pixel_attention_mask", "spatial_shapes"
    reference = transformers.Siglip2ForImageClassification.from_pretrained(path).eval()
    given = {k: torch.tensor(np.asarray(inputs[k])) for k in names}
    expected = reference(**given, labels=torch.tensor(labels.astype(np.int64)))
    model, params = Siglip2ForImageClassification.from_pretrained(path)
    found = model.apply({"params": params}, *(inputs[k] for k in names), labels=labels)
    np.testing.assert_allclose(found.logits, expected.logits.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.loss, expected.loss.detach(), rtol=1e-5)


@pytest.mark.parametrize("case", ["naflex_odd"], indirect=True)
def test_the_classifier_is_a_masked_mean(case, inputs, golden, tmp_path):
    path = naflex_cases.make_checkpoint(tmp_path, case, "Siglip2ForImageClassification")
    model, params = Siglip2ForImageClassification.from_pretrained(path)
    images = inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]
    tower = {"vision_model": params["vision_model"]}
    patches = Siglip2VisionModel(model.config.vision_config).apply({"params": tower}, *images)
    rows = [
        np.asarray(x)[:n].mean(0) for x, n in zip(patches.last_hidden_state, naflex_cases.GRIDS.prod(1), strict=True)
    ]
    expected = np.stack(rows) @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]
    np.testing.assert_allclose(model.apply({"params": params}, *images).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["naflex"], indirect=True)
def test_a_fresh_classifier_is_zero_and_said(directory, caplog):
    model, params = Siglip2ForImageClassification.from_pretrained(directory)
    assert not params["classifier"]["kernel"].any() and params["classifier"]["kernel"].shape == (64, 2)
    assert "no classifier" in caplog.text


def antialiased(side, size):
    """The weights of a bilinear resize with antialiasing, as its definition has them, in float64: (size, side)."""
    places = (np.arange(size)[:, None] + 0.5) * side / size - 0.5
    weights = np.maximum(0, 1 - np.abs(places - np.arange(side)[None]) / max(1, side / size))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, 4, 16])
def test_positions_equal_an_antialiased_bilinear_resize(side):
    table = np.random.RandomState(0).standard_normal((side * side, 5)).astype(np.float32)
    square = table.reshape(side, side, 5)
    grids = [(1, 1), (16, 16), (1, 256), (256, 1), (13, 19), (7, 3), (15, 17)]
    found = jax.jit(flexible_positions, static_argnums=2)(jnp.asarray(table), jnp.asarray(grids), 256)
    for (rows, columns), positions in zip(grids, found, strict=True):
        count = rows * columns
        down, across = antialiased(side, rows), antialiased(side, columns)
        expected = np.einsum("ri,cj,ijd->rcd", down, across, square.astype(np.float64)).reshape(count, 5)
        np.testing.assert_allclose(positions[:count], expected, atol=5e-7)
        np.testing.assert_array_equal(positions[count:], np.tile(positions[0], (256 - count, 1)))
        big_vision = jax.image.resize(jnp.asarray(square), (rows, columns, 5), "bilinear", antialias=True)
        np.testing.assert_allclose(positions[:count], big_vision.reshape(count, 5), atol=1e-5)


PIXELS, MASK, GRID = np.zeros((2, 24, 48), np.float32), np.ones((2, 24), np.int32), np.array([(4, 6), (2, 3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, MASK, GRID), "pixel_values must be given, got None; use Siglip2ImageProcessor"),
        ((PIXELS, MASK, None), "spatial_shapes must be given, got None"),
        ((PIXELS.reshape(2, 24, 16, 3), MASK, GRID), r"must be \(batch, patches, 48\).*got shape \(2, 24, 16, 3\)"),
        ((PIXELS[..., :47], MASK, GRID), r"patches of 4 x 4 pixels by 3 channels, got shape \(2, 24, 47\)"),
        ((PIXELS.astype(np.int32), MASK, GRID), "must be floating point, got int32"),
        ((PIXELS, MASK[:, :20], GRID), r"as pixel_values, \(2, 24\), got \(2, 20\)"),
        ((PIXELS, MASK, GRID[:1]), r"columns of 2 images, got shape \(1, 2\)"),
        ((PIXELS, MASK, GRID.astype(np.float32)), "integers.*float32"),
        ((PIXELS, MASK, np.array([(4, 6), (5, 5)])), "grids of 1 to 24 patches.* got 5 x 5 for image 1"),
        ((PIXELS, MASK, np.array([(0, 6), (5, 4)])), "grids of 1 to 24 patches.* got 0 x 6 for image 0"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_in_one_line(arguments, message):
    config = naflex_cases.make_config("naflex").vision_config
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(lambda: Siglip2VisionModel(config).init(jax.random.key(0), *arguments))
    assert "\n" not in str(caught.value)


def test_a_model_of_the_other_kind_is_refused(tmp_path):
    fixed, flexible = cases.make_checkpoint(tmp_path, "base_like"), naflex_cases.make_checkpoint(tmp_path, "naflex")
    for cls, path in ((Siglip2Model, fixed), (SiglipModel, flexible), (SiglipTextModel, flexible)):
        with pytest.raises(ValueError, match="Siglip"):
            cls.from_pretrained(path)
