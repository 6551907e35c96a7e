"""A training step over FSDP and tensor parallelism is the step of one device, and what it sends is known."""

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from siglip_jax import SiglipModel, make_mesh, sigmoid_loss
from siglip_jax.parallel import global_batch
from siglip_jax.params import flatten
from tests.support import cases

BATCH, AXIS = 8, ("data", "fsdp")
# Momentum, not Adam: where a gradient is zero but for rounding, as of a key's bias, Adam would make a whole step of it.
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def make_step(model, mesh=None):
    def loss(params, ids, pixels):
        out = model.apply({"params": params}, ids, pixels)
        over = {} if mesh is None else {"mesh": mesh, "axis": AXIS, "block_size": "auto"}
        return sigmoid_loss(out.image_embeds, out.text_embeds, params["logit_scale"], params["logit_bias"], **over)

    def step(params, state, ids, pixels):
        """Returns the new parameters and state, and the loss."""
        value, gradients = jax.value_and_grad(loss)(params, ids, pixels)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A checkpoint and a batch; what is compiled for them is kept."""

    directory: Path
    batch: tuple[np.ndarray, np.ndarray]

    @functools.cache  # noqa: B019
    def step(self, sizes, scan_layers):
        """Returns the step over a mesh, its outputs laid out as its inputs, and all its inputs."""
        mesh = make_mesh(*sizes)
        model, placed = SiglipModel.from_pretrained(self.directory, scan_layers=scan_layers, mesh=mesh)
        state = OPTIMIZER.init(placed)
        shardings = jax.tree.map(lambda x: x.sharding, (placed, state))
        inputs = (placed, state, *global_batch(self.batch, mesh))
        return jax.jit(make_step(model, mesh), out_shardings=(*shardings, None)).lower(*inputs).compile(), inputs

    @functools.cache  # noqa: B019
    def on_one_device(self, scan_layers):
        """Returns the parameters before and after a step, by path, and the loss."""
        model, params = SiglipModel.from_pretrained(self.directory, scan_layers=scan_layers)
        new, _, value = jax.jit(make_step(model))(params, OPTIMIZER.init(params), *self.batch)
        return flatten(jax.device_get(params)), flatten(jax.device_get(new)), value


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    directory = cases.make_checkpoint(tmp_path_factory.mktemp("model"), "giant_like")
    config = cases.make_config("giant_like")
    inputs = cases.make_inputs(config)
    random = np.random.RandomState(2)
    ids = random.randint(0, config.text_config.vocab_size, (BATCH, 16)).astype(np.int32)
    pixels = random.standard_normal((BATCH, *inputs["pixel_values"].shape[1:])).astype(np.float32)
    return Setting(directory, (ids, pixels))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "scan_layers"),
    [((8, 1, 1), True), ((1, 8, 1), True), ((2, 2, 2), True), ((2, 2, 2), False)],
    ids=str,
)
def test_parameters_after_a_step_are_those_of_one_device(setting, sizes, scan_layers):
    before, expected, value = setting.on_one_device(scan_layers)
    step, given = setting.step(sizes, scan_layers)
    found, _, sharded_value = step(*given)
    np.testing.assert_allclose(sharded_value, value, rtol=1e-6)
    found = flatten(jax.device_get(found))
    assert found.keys() == expected.keys()
    moved = 0
    for path, x in expected.items():
        assert np.abs(found[path] - x).max() <= 1e-6 * np.abs(x).max(), path
        moved += np.abs(x - before[path]).max() > 1e-3 * np.abs(x).max()
    assert moved > 40  # the step is large enough to be seen


# Data alone: the ring's permutes, and the gradients' sum. FSDP: parameters are gathered layer by layer, and the batch
# stays where it is. With tensor parallelism, the partial sums of each pair of matrices too.
SENT = {
    (8, 1, 1): {"collective-permute": 7, "all-reduce": 1},
    (1, 8, 1): {"collective-permute": 7, "all-reduce": 2, "all-gather": 37},
    (2, 2, 2): {"collective-permute": 20, "all-reduce": 22, "all-gather": 51, "all-to-all": 1},
}


@pytest.mark.parametrize("sizes", SENT, ids=str)
def test_what_a_step_sends(setting, sizes):
    """With stacked layers, so that what is sent for each layer counts once."""
    step, _ = setting.step(sizes, True)
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    sent = Counter(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", step.as_text()))
    assert sent == SENT[sizes]
