"""Image classification against the reference: logits, the three losses, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from siglip_jax import SiglipForImageClassification
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats.huggingface import to_tensors
from siglip_jax.models.classifier import classification_loss
from siglip_jax.training.objective import Labels
from tests.support import cases

INTEGERS, FLOATS = np.array([2, 0, 4], np.int32), np.random.RandomState(3).rand(3, 5).astype(np.float32)

PROBLEMS = {
    "single label": (5, None, INTEGERS),
    "single label, one ignored": (5, None, np.array([2, -100, 4], np.int32)),
    "multi label": (5, None, FLOATS),
    "regression": (1, None, FLOATS[:, 0]),
    "regression of several": (5, "regression", FLOATS),
    "named": (5, "multi_label_classification", FLOATS),
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_losses_and_gradients_equal_the_reference(tmp_path, problem):
    pytest.importorskip("torch", reason="torch has no CPU build here; test_losses_equal_their_definition stands in")
    import torch
    import transformers

    count, kind, labels = PROBLEMS[problem]
    config = cases.make_config("odd_heads").replace(num_labels=count, problem_type=kind)
    architecture = "SiglipForImageClassification"
    cases.write_directory(tmp_path, config, cases.make_tensors(config, architecture), architecture)
    inputs = cases.make_inputs(config)
    reference = transformers.SiglipForImageClassification.from_pretrained(tmp_path).eval()
    targets = torch.tensor(labels.astype(np.int64) if labels.dtype == np.int32 else labels)
    expected = reference(torch.tensor(inputs["pixel_values"].transpose(0, 3, 1, 2)), labels=targets)
    expected.loss.backward()

    model, params = SiglipForImageClassification.from_pretrained(tmp_path)

    def loss(params):
        out = model.apply({"params": params}, jnp.asarray(inputs["pixel_values"]), jnp.asarray(labels))
        return out.loss, out.logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected.logits.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, expected.loss.detach(), rtol=1e-5)
    tensors = to_tensors(Checkpoint(config, gradients, "huggingface", architecture))
    found = {key: tensor.make() for key, tensor in tensors.items()}
    for key, p in reference.named_parameters():
        if p.grad is None:
            assert key.startswith("vision_model.head.") and not found[key].any()
        else:
            wrong = np.abs(found[key] - p.grad.numpy()).max()
            query = dict(reference.named_parameters())[key.replace("k_proj.bias", "q_proj.bias")].grad
            assert wrong <= 1e-5 * query.abs().max(), key


@pytest.mark.slow
def test_losses_equal_their_definition():
    logits = jnp.asarray(np.random.RandomState(0).standard_normal((3, 5)).astype(np.float32))
    p = np.exp(np.float64(logits))
    p /= p.sum(1, keepdims=True)
    found = classification_loss(logits, jnp.asarray(INTEGERS), None)
    np.testing.assert_allclose(found, -np.log(p[np.arange(3), INTEGERS]).mean(), rtol=1e-6)
    s = 1 / (1 + np.exp(-np.float64(logits)))
    found = classification_loss(logits, jnp.asarray(FLOATS), None)
    np.testing.assert_allclose(found, -(FLOATS * np.log(s) + (1 - FLOATS) * np.log(1 - s)).mean(), rtol=1e-6)
    found = classification_loss(logits[:, :1], jnp.asarray(FLOATS[:, 0]), None)
    np.testing.assert_allclose(found, ((np.float64(logits[:, 0]) - FLOATS[:, 0]) ** 2).mean(), rtol=1e-6)


@pytest.mark.parametrize("labels", [np.zeros((3, 4), np.float32), np.zeros((2,), np.int32), np.zeros((3, 5), np.int32)])
def test_labels_of_the_wrong_shape_are_refused(labels):
    with pytest.raises(ValueError, match="must have shape"):
        classification_loss(jnp.zeros((3, 5)), jnp.asarray(labels), None)


@pytest.mark.parametrize("label", [-1, 5, -5])
def test_labels_that_are_no_classes_are_refused_and_nan_under_jit(label):
    """Negative ones took the classes from the end; torch raises an IndexError."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    labels = jnp.array([0, label, -100])
    with pytest.raises(ValueError, match=f"labels must be 0 to 4, got {label}; leave out images without a label"):
        classification_loss(logits, labels, None)
    loss = jax.jit(lambda x, y: classification_loss(x, y, None))
    assert np.isnan(loss(logits, labels))
    kept = np.log(np.exp(logits[0]).sum()) - logits[0, 0]
    np.testing.assert_allclose(loss(logits, jnp.array([0, -100, -100])), kept, rtol=1e-6)
    objective = Labels(nn.Dense(1), lambda key, x: x)
    with pytest.raises(ValueError, match=f"labels must be 0 to 4, got {label}"):
        objective.loss({}, logits, {"label": jnp.array([0, label, 1])})
    assert np.isnan(jax.jit(lambda y: objective.loss({}, logits, {"label": y})[0])(jnp.array([0, label, 1])))
