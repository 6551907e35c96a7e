"""Parity with `transformers` in float32, on shapes that break ports: odd heads, odd MLPs, projections, outliers.

Every comparison runs against golden files, so that it holds where torch is absent; where torch is present the golden
files are checked against it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats.huggingface import to_tensors
from siglip_jax.models import SiglipModel
from tests.support import cases

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of the largest value


@pytest.fixture(scope="session", params=list(cases.CASES))
def case(request):
    return request.param


@pytest.fixture(scope="session")
def directory(case, tmp_path_factory):
    return cases.make_checkpoint(tmp_path_factory.mktemp("checkpoints"), case)


@pytest.fixture(scope="session")
def inputs(case):
    return {k: jnp.asarray(v) for k, v in cases.make_inputs(cases.make_config(case)).items()}


@pytest.fixture(scope="session")
def golden(case):
    return dict(np.load(cases.GOLDEN / f"{case}.npz"))


def error(found, expected, scale=None):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected if scale is None else scale).max()


def assert_equal(found, expected):
    assert expected, "nothing to compare"
    assert set(found) == set(expected)
    # Two gradients have no size of their own to measure an error against, and take that of their neighbour. A softmax
    # does not see a shift of its scores, so the true gradient of a key's bias is zero. The gradient of the temperature
    # is a sum over all pairs of terms of both signs, which may cancel.
    neighbours = {k: k.replace("k_proj.bias", "q_proj.bias").replace("logit_scale", "logit_bias") for k in expected}
    scales = {k: np.maximum(np.abs(expected[k]).max(), np.abs(expected[neighbours[k]]).max()) for k in expected}
    wrong = {k: e for k in expected if not (e := error(found[k], expected[k], scales[k])) <= TOLERANCE}
    assert not wrong


def compute(directory, inputs, *, scan_layers=False, jit=True, attn_implementation="auto"):
    model, params = SiglipModel.from_pretrained(
        directory, scan_layers=scan_layers, attn_implementation=attn_implementation
    )

    def everything(params, inputs):
        weights = attn_implementation == "eager"
        forward = functools.partial(model.apply, {"params": params}, output_attentions=weights)
        return cases.runs(forward, inputs)

    found = (jax.jit(everything) if jit else everything)(params, inputs)
    return {k: np.asarray(v) for k, v in found.items()}


def outputs_of(results, attentions):
    return {k: v for k, v in results.items() if not k.startswith("gradient/") and (attentions or ".attent" not in k)}


@pytest.fixture(scope="session")
def fused(directory, inputs):
    return compute(directory, inputs)


@pytest.mark.slow
def test_every_output_equals_the_reference(directory, inputs, golden):
    assert_equal(compute(directory, inputs, attn_implementation="eager"), outputs_of(golden, attentions=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["odd_heads", "giant_like", "non_divisible"], indirect=True)
def test_every_output_of_scanned_layers_equals_the_reference(directory, inputs, golden):
    """Of all cases only the gradients, below."""
    found = compute(directory, inputs, scan_layers=True, attn_implementation="eager")
    assert_equal(found, outputs_of(golden, attentions=True))


@pytest.mark.slow
def test_fused_attention_equals_the_reference(fused, golden):
    assert_equal(fused, outputs_of(golden, attentions=False))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["odd_heads"], indirect=True)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_without_jit_equals_the_reference(directory, inputs, golden, scan_layers):
    found = compute(directory, inputs, scan_layers=scan_layers, jit=False)
    assert_equal(found, outputs_of(golden, attentions=False))


def loss_gradients(model, params, inputs):
    """Gradients of the loss under the names and in the shapes of the file."""

    def loss(params):
        return model.apply({"params": params}, inputs["input_ids"], inputs["pixel_values"], return_loss=True).loss

    gradients = jax.jit(jax.grad(loss))(params)
    tensors = to_tensors(Checkpoint(model.config, gradients, "huggingface", "SiglipModel"))
    return {f"gradient/{k}": v.make() for k, v in tensors.items()}


@pytest.fixture(scope="session")
def gradients(directory, inputs):
    return loss_gradients(*SiglipModel.from_pretrained(directory), inputs)


def assert_gradients(found, golden):
    assert_equal(cases.projections(found), {k: v for k, v in golden.items() if k.startswith("gradient/")})


@pytest.mark.slow
def test_gradients_of_the_loss_equal_the_reference(gradients, golden):
    assert_gradients(gradients, golden)


@pytest.mark.slow
def test_gradients_of_scanned_layers_computed_again_equal_the_reference(directory, inputs, golden):
    model, params = SiglipModel.from_pretrained(directory, scan_layers=True, remat="full")
    assert_gradients(loss_gradients(model, params, inputs), golden)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "remat"),
    [("so400m_like", "dots"), ("giant_like", "dots"), ("odd_heads", "attention_and_mlp_input")],
    indirect=["case"],
)
def test_gradients_with_something_kept_equal_the_reference(directory, inputs, golden, remat):
    model, params = SiglipModel.from_pretrained(directory, remat=remat)
    assert_gradients(loss_gradients(model, params, inputs), golden)


@pytest.mark.slow
def test_golden_files_are_what_the_reference_computes(directory, inputs, golden, fused, gradients):
    pytest.importorskip("torch", reason="torch has no CPU build here; the golden files made with it stand in")
    given = {k: np.asarray(v) for k, v in inputs.items()}
    truth = cases.reference_results(directory, given, "float64")
    expected = {k: v for k, v in truth.items() if k.startswith("gradient/")}
    assert_equal(outputs_of(truth, attentions=True) | cases.projections(expected), golden)
    assert_equal(gradients, expected)
    reference = cases.reference_results(directory, given, "float32")
    assert_equal(fused, outputs_of(reference, attentions=False))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["base_like"], indirect=True)
def test_tolerance_would_catch_a_wrong_gelu(directory, inputs, golden):
    model, params = SiglipModel.from_pretrained(directory)
    wrong = model.config.replace(vision_config=model.config.vision_config.replace(hidden_act="gelu"))
    out = jax.jit(SiglipModel(wrong).apply)({"params": params}, inputs["input_ids"], inputs["pixel_values"])
    assert error(np.asarray(out.image_embeds), golden["plain/image_embeds"]) > 3 * TOLERANCE
