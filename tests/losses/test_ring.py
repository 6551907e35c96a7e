"""The loss over a mesh equals the loss of one device, and what it costs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from siglip_jax import make_mesh, ring_sigmoid_loss, sigmoid_loss
from tests.support.float64_loss import TEMPERATURES, check, embeddings, truth

EVERY = (0, 1, 2, 3)


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def arrays(*values):
    return [jnp.asarray(x, jnp.float32) for x in values]


@pytest.mark.slow
@pytest.mark.parametrize(  # 24, 12, 6 or 3 rows a device: tiles that divide them and not, smaller and larger
    ("devices", "block_size"), [(1, 5), (2, None), (2, 5), (4, 2), (4, "auto"), (8, None), (8, 2), (8, 5)]
)
def test_over_a_mesh(devices, block_size):
    images, texts = embeddings(24, alike=0.5)
    mesh = mesh_of(devices)
    sharded = jax.device_put(arrays(images, texts), NamedSharding(mesh, PartitionSpec("data")))
    loss = functools.partial(sigmoid_loss, mesh=mesh, block_size=block_size)
    compiled, alone = jax.jit(jax.value_and_grad(loss, EVERY)), jax.jit(loss)
    for scale, bias in TEMPERATURES:
        value, gradients = compiled(*sharded, *arrays(scale, bias))
        check((value, gradients), truth(images, texts, scale, bias))
        assert gradients[1].sharding.is_equivalent_to(sharded[1].sharding, 2)
        np.testing.assert_allclose(alone(*sharded, *arrays(scale, bias)), value, rtol=1e-6)  # without gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "jit"), [("data", True), ("fsdp", True), (("data", "fsdp"), False), (("data", "fsdp", "tensor"), True)]
)
def test_along_one_axis_or_several(axis, jit):
    images, texts = embeddings(16)
    loss = functools.partial(sigmoid_loss, mesh=make_mesh(data=2, fsdp=2, tensor=2), axis=axis, block_size=3)
    given = arrays(images, texts, np.log(10), -10.0)
    both = jax.value_and_grad(loss, EVERY)
    check((jax.jit(both) if jit else both)(*given), truth(images, texts, np.log(10), -10.0))


@pytest.mark.slow
def test_groups_over_a_mesh():
    images, texts = embeddings(8, 24)
    groups = np.arange(8) // 2, np.random.RandomState(0).randint(0, 6, 24)
    named = {"image_groups": jnp.asarray(groups[0]), "text_groups": jnp.asarray(groups[1])}
    loss = functools.partial(sigmoid_loss, mesh=make_mesh(), **named, block_size=2)
    found = jax.jit(jax.value_and_grad(loss, EVERY))(*arrays(images, texts, np.log(10), -10.0))
    check(found, truth(images, texts, np.log(10), -10.0, groups[0][:, None] == groups[1]))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 3])
def test_inside_pmap(block_size):
    images, texts = embeddings(48, alike=0.5)

    def step(images, texts, scale, bias):
        loss = functools.partial(ring_sigmoid_loss, axis_name="devices", block_size=block_size)
        value, gradients = jax.value_and_grad(loss, EVERY)(images, texts, scale, bias)
        return lax.pmean(value, "devices"), (*gradients[:2], *lax.pmean(gradients[2:], "devices"))

    one, two, scale, bias = arrays(images, texts, np.log(30), -12.0)
    sharded = one.reshape(8, 6, -1), two.reshape(8, 6, -1)
    values, (*of_embeddings, of_scale, of_bias) = jax.pmap(step, "devices", in_axes=(0, 0, None, None))(
        *sharded, scale, bias
    )
    # Inside pmap each device differentiates the sum of all shares: eight times their mean.
    of_embeddings = [g.reshape(48, -1) / 8 for g in of_embeddings]
    check((values[0], (*of_embeddings, of_scale[0], of_bias[0])), truth(images, texts, np.log(30), -12.0))
    assert (values == values[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma):
    images, texts = embeddings(16)
    sharded, whole = PartitionSpec("data"), PartitionSpec()

    def share(*given):
        return lax.pmean(ring_sigmoid_loss(*given, axis_name="data", block_size="auto"), "data")

    loss = jax.shard_map(
        share, mesh=mesh_of(4), in_specs=(sharded, sharded, whole, whole), out_specs=whole, check_vma=check_vma
    )
    found = jax.jit(jax.value_and_grad(loss, EVERY))(*arrays(images, texts, np.log(10), -10.0))
    check(found, truth(images, texts, np.log(10), -10.0))


def test_the_local_loss_inside_shard_map():
    """Blocked, but without a ring: each device has a loss of its own, as under the reference's data parallelism."""
    images, texts = embeddings(16)
    sharded, whole = PartitionSpec("data"), PartitionSpec()

    def local(*given):
        return lax.pmean(sigmoid_loss(*given, block_size=3), "data")

    loss = jax.shard_map(local, mesh=mesh_of(4), in_specs=(sharded, sharded, whole, whole), out_specs=whole)
    value, slope = jax.jit(jax.value_and_grad(loss, 2))(*arrays(images, texts, 1.0, -3.0))
    parts = [truth(images[i : i + 4], texts[i : i + 4], 1.0, -3.0) for i in range(0, 16, 4)]
    np.testing.assert_allclose(value, np.mean([part[0] for part in parts]), rtol=1e-6)
    np.testing.assert_allclose(slope, np.mean([part[1][2] for part in parts]), rtol=1e-5)


@pytest.mark.slow
def test_shares_of_unequal_weight_give_no_wrong_gradient():
    images, texts, scale, bias = arrays(*embeddings(16), 1.0, -3.0)

    def gradient(images, texts, weight):
        def loss(texts):
            return weight * ring_sigmoid_loss(images, texts, scale, bias, axis_name="devices")

        return jax.grad(loss)(texts)

    sharded = images.reshape(8, 2, -1), texts.reshape(8, 2, -1)
    one_device = (jnp.arange(8) == 0).astype(jnp.float32)
    assert jnp.isnan(jax.pmap(gradient, "devices")(*sharded, one_device)).all()
    equal = jax.pmap(gradient, "devices")(*sharded, jnp.full(8, 0.5))
    np.testing.assert_allclose(equal.reshape(16, -1) / 4, truth(*embeddings(16), 1.0, -3.0)[1][1], rtol=1e-4, atol=1e-6)


def test_second_derivatives_of_the_ring():
    images, texts, scale, bias = arrays(*embeddings(8), 1.0, -3.0)

    def curvature(**options):
        return jax.jit(jax.hessian(lambda s: sigmoid_loss(images, texts, s, bias, **options)))(scale)

    np.testing.assert_allclose(curvature(mesh=mesh_of(4), block_size=2), curvature(), rtol=1e-5)


def test_what_it_costs():
    """Eight devices, B = 32,768, E = 768 in float32: big_vision's formula takes 1.6 GiB a device and an all-gather."""
    mesh = make_mesh()
    sharded, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x = jax.ShapeDtypeStruct((32768, 768), jnp.float32, sharding=sharded)
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    loss = functools.partial(sigmoid_loss, mesh=mesh, block_size="auto")
    compiled = jax.jit(jax.value_and_grad(loss, EVERY)).lower(x, x, one, one).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 120 * 2**20
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    # Texts and their groups go to the next device before the first block is computed, and in the loop; the texts'
    # gradients in the loop, before the last block, and home.
    assert text.count(" collective-permute(") == 7
    # The mean of the shares with the sums of both scalars' gradients, and the check that all shares weigh the same.
    assert text.count(" all-reduce(") == 2


def test_sends_come_before_the_product_they_hide_behind():
    sharded, whole = PartitionSpec("data"), PartitionSpec()

    def share(*given):
        return ring_sigmoid_loss(*given, axis_name="data")[None]

    shares = jax.shard_map(share, mesh=mesh_of(4), in_specs=(sharded, sharded, whole, whole), out_specs=sharded)
    order = re.findall(r" (ppermute|dot_general)\[", str(jax.make_jaxpr(shares)(*arrays(*embeddings(16), 1.0, -3.0))))
    send = ["ppermute", "ppermute"]  # texts and their groups
    first, last, loop = [*send, "dot_general"], ["dot_general"], [*send, "dot_general"]
    assert order == first + last + loop  # the body of the loop is printed after what surrounds it


@pytest.mark.parametrize(
    ("images", "texts", "options", "message"),
    [
        (12, 12, {}, "multiples of the 8 devices along data, got 12 images and 12 texts"),
        (8, 12, {"image_groups": np.arange(8), "text_groups": np.arange(12)}, "8 devices .* 8 images and 12 texts"),
        (8, 8, {"axis": "model"}, "axis must be one of the mesh axes data, fsdp, tensor, got model"),
        (8, 16, {}, "got 8 images and 16 texts"),
    ],
)
def test_mistakes_are_refused(images, texts, options, message):
    given = arrays(*embeddings(images, texts), 1.0, -3.0)
    options = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(*given, mesh=make_mesh(), **options)


def test_an_explicit_mesh_is_refused():
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match="Auto axes"):
        sigmoid_loss(*arrays(*embeddings(8), 1.0, -3.0), mesh=explicit)
