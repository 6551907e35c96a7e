"""The fused attention for TPUs: against float64 where it runs as ordinary operations, and through the TPU compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array

from siglip_jax import make_mesh
from siglip_jax.models import pallas_attention as file
from siglip_jax.models.attention import mask_to_bias
from siglip_jax.models.pallas_attention import pallas_attention, supports
from siglip_jax.models.xla_attention import eager_attention
from siglip_jax.planning.topology import open_topology

TOLERANCES = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def arrays(tokens: int, heads: int, width: int, dtype, batch: int = 2) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(batch, tokens, heads * width)), dtype) for _ in range(4))


def half_mask(batch: int, tokens: int) -> np.ndarray:
    """A mask of which the last example has no key to attend to."""
    mask = np.random.default_rng(1).random((batch, tokens)) < 0.7
    mask[-1] = False
    return mask


def truth(query, key, value, cotangent, mask: np.ndarray | None, heads: int) -> list[np.ndarray]:
    """The output and the gradients for query, key and value, in float64."""
    batch, tokens, joint = query.shape

    def apart(x) -> np.ndarray:
        return np.asarray(x, np.float64).reshape(batch, tokens, heads, -1).swapaxes(1, 2)

    q, k, v, g = map(apart, (query, key, value, cotangent))
    scale = (joint // heads) ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, np.where(mask.any(1)[:, None, None, None], -np.inf, 0))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = g @ v.swapaxes(-1, -2)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) * scale
    parts = (weights @ v, of_scores @ k, of_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g)
    return [x.swapaxes(1, 2).reshape(query.shape) for x in parts]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "heads", "width", "dtype", "masked"),
    [
        (77, 2, 72, jnp.float32, True),
        (196, 2, 64, jnp.bfloat16, True),
        (128, 4, 96, jnp.float32, False),
        (300, 4, 64, jnp.float32, True),
    ],
)
def test_output_and_gradients_are_those_of_float64(
    tokens: int, heads: int, width: int, dtype, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_ROOMY_BYTES", 7 << 20)  # several steps of the grid for the last case
    query, key, value, cotangent = arrays(tokens, heads, width, dtype)
    mask = half_mask(2, tokens) if masked else None

    def attend(*inputs: Array) -> Array:
        bias = None if mask is None else mask_to_bias(mask)
        return pallas_attention(*inputs, bias, num_heads=heads, interpret=True)

    @jax.jit
    def all_of_it(*inputs: Array) -> tuple[Array, ...]:
        out, pullback = jax.vjp(attend, *inputs)
        return out, *pullback(cotangent)

    for got, expected in zip(
        all_of_it(query, key, value), truth(query, key, value, cotangent, mask, heads), strict=True
    ):
        assert got.dtype == dtype
        error = np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCES[dtype]


def test_any_bias_of_keys_is_added_as_by_eager_attention() -> None:
    query, key, value, _ = arrays(16, 2, 64, jnp.float32)
    bias = jnp.asarray(np.random.default_rng(2).normal(size=(2, 1, 1, 16)), jnp.float32) * 3
    bias = bias.at[0, 0, 0, :5].set(jnp.finfo(jnp.float32).min)
    got = pallas_attention(query, key, value, bias, num_heads=2, interpret=True)
    expected, _ = eager_attention(*(x.reshape(2, 16, 2, 64) for x in (query, key, value)), bias)
    np.testing.assert_allclose(got, expected.reshape(got.shape), rtol=0, atol=1e-5 * np.abs(expected).max())


def test_an_on_chip_memory_holds_what_is_divided_for_it() -> None:
    for tokens, heads, width in ((196, 12, 64), (576, 16, 64), (729, 16, 72), (1024, 16, 64), (256, 24, 64)):
        for dtype in (jnp.bfloat16, jnp.float32):
            plan = file._divide(tokens, heads, width, dtype)
            assert plan is not None and plan.on_chip_bytes(7) <= file._MAX_BYTES
            assert heads % plan.group == 0 and (plan.group * width % 128 == 0 or plan.group == heads)
            assert plan.queries >= tokens and plan.keys >= tokens
    assert supports(1024, 16, 72, jnp.bfloat16)
    assert not supports(1024, 16, 72, jnp.float32)  # 16 heads of 72 are the fewest that fill lanes
    assert not supports(1025, 12, 64, jnp.bfloat16)
    assert not supports(196, 4, 144, jnp.bfloat16)
    assert not supports(196, 12, 64, jnp.float16)


def test_what_is_not_supported_is_refused_in_one_line() -> None:
    x = jnp.zeros((1, 1040, 128))
    with pytest.raises(ValueError, match=r"^query, key and value must have one shape .* got \(1, 1040, 128\).*'xla'$"):
        pallas_attention(x, x, x, num_heads=2)
    with pytest.raises(ValueError, match=r"got \(1, 16, 128\), .* with 3 heads; use 'xla'"):
        pallas_attention(x[:, :16], x[:, :16], x[:, :16], num_heads=3)


def test_each_device_of_a_mesh_computes_its_own_part() -> None:
    mesh = make_mesh()
    query, key, value, _ = arrays(16, 2, 64, jnp.float32, batch=2 * mesh.size)
    bias = mask_to_bias(half_mask(2 * mesh.size, 16))

    @jax.jit
    def attend(*inputs: Array) -> Array:
        return pallas_attention(*inputs, num_heads=2, mesh=mesh, interpret=True)

    got = attend(query, key, value, bias)
    expected = pallas_attention(query, key, value, bias, num_heads=2, interpret=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert "all-gather" not in attend.lower(query, key, value, bias).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compilers_of_three_generations_take_it(machine: str) -> None:
    device = SingleDeviceSharding(open_topology(machine).devices[0])
    for tokens, heads, width, dtype in ((77, 4, 72, jnp.bfloat16), (196, 2, 64, jnp.float32)):
        x = jax.ShapeDtypeStruct((1, tokens, heads * width), dtype, sharding=device)
        mask = jax.ShapeDtypeStruct((1, tokens), jnp.bool_, sharding=device)

        def gradients(query: Array, key: Array, value: Array, mask: Array, heads: int = heads) -> Array:
            out, pullback = jax.vjp(
                lambda *inputs: pallas_attention(*inputs, mask_to_bias(mask), num_heads=heads), query, key, value
            )
            return pullback(out)

        compiled = jax.jit(gradients).lower(x, x, x, mask).compile()
        assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
        flops = (4 + 10) * heads * tokens**2 * width
        assert flops <= compiled.cost_analysis()["flops"] <= 1.1 * flops + 1e6


@pytest.mark.slow
def test_nothing_is_gathered_over_a_mesh_of_tpus() -> None:
    devices = np.array(open_topology("v5e:2x2").devices).reshape(2, 1, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor"))
    x = jax.ShapeDtypeStruct((4, 77, 4 * 64), jnp.bfloat16, sharding=cut)

    def loss(*inputs: Array) -> Array:
        return jnp.sum(pallas_attention(*inputs, num_heads=4, mesh=mesh).astype(jnp.float32))

    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().as_text()
    assert "bf16[2,77,128]" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
