import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import SiglipTextConfig, make_mesh, shard_params
from siglip_jax.losses import captioning_loss
from siglip_jax.models.decoder import CaptionDecoder
from siglip_jax.models.encoder import Options
from siglip_jax.params import flatten, stack_layers, unflatten, unstack_layers

# Heads of 12, an MLP that is not four times as wide, 16 positions, images of another width than texts.
CONFIG = SiglipTextConfig(
    vocab_size=50,
    hidden_size=36,
    intermediate_size=88,
    num_hidden_layers=5,
    num_attention_heads=3,
    max_position_embeddings=16,
)
BATCH, TOKENS, PATCHES, IMAGE_WIDTH = 8, 11, 7, 20
PARALLEL = np.arange(BATCH) % 2 == 1


@functools.cache
def inputs():
    random = np.random.RandomState(0)
    mask = np.arange(PATCHES)[None] < random.randint(2, PATCHES + 1, (BATCH, 1))
    return (
        jnp.asarray(random.randint(0, CONFIG.vocab_size, (BATCH, TOKENS))),
        jnp.asarray(random.standard_normal((BATCH, PATCHES, IMAGE_WIDTH)), jnp.float32),
        jnp.asarray(mask),
        jnp.asarray(PARALLEL),
    )


@functools.cache
def parameters():
    """Returns parameters, all of them random."""
    shapes = jax.eval_shape(CaptionDecoder(CONFIG, Options()).init, jax.random.key(0), *inputs())["params"]
    random = np.random.RandomState(1)
    return jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape) / 5, jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def run(options, params, *given):
    return CaptionDecoder(CONFIG, options).apply({"params": params}, *given)


def states(params, *given, **options):
    return run(Options(**options), params, *(given or inputs()))


def float64(params, ids, image, mask, parallel):
    """Returns the states from the definition, one example and one head at a time."""
    params = unflatten({name: np.asarray(p, np.float64) for name, p in flatten(params).items()})

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.layer_norm_eps) * p["scale"] + p["bias"]

    def attention(p, x, context, seen):
        q, k, v = dense(p["q_proj"], x), dense(p["k_proj"], context), dense(p["v_proj"], context)
        out, size = [], CONFIG.hidden_size // CONFIG.num_attention_heads
        for at in range(0, CONFIG.hidden_size, size):
            head = slice(at, at + size)
            scores = np.where(seen, q[:, head] @ k[:, head].T / np.sqrt(size), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        return dense(p["out_proj"], np.concatenate(out, -1))

    def mlp(p, x):
        x = dense(p["fc1"], x)
        return dense(p["fc2"], x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2)

    results = []
    for tokens, patches, here, at_once in zip(*map(np.asarray, (ids, image, mask, parallel)), strict=True):
        x = np.concatenate([params["start"], params["token_embedding"]["embedding"][tokens[:-1]]])
        x = np.repeat(params["mask"], len(tokens), 0) if at_once else x
        x = x + params["position_embedding"]["embedding"][: len(tokens)]
        causal = np.tri(len(tokens), dtype=bool) | at_once
        for i in range(CONFIG.num_hidden_layers // 2):
            p = params[f"layers_{i}"]
            y = norm(p["layer_norm1"], x)
            x = x + attention(p["self_attn"], y, y, causal)
            x = x + attention(p["cross_attn"], norm(p["layer_norm2"], x), patches.astype(np.float64), here[None])
            x = x + mlp(p["mlp"], norm(p["layer_norm3"], x))
        results.append(norm(params["final_layer_norm"], x))
    return np.stack(results)


@pytest.mark.parametrize("implementation", ["auto", "xla", "eager", "pallas"])
def test_states_equal_float64(implementation):
    found = states(parameters(), attn_implementation=implementation)
    expected = float64(parameters(), *inputs())
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_without_a_mask_every_patch_is_attended_to():
    ids, image, mask, _ = inputs()
    found = states(parameters(), ids, image)
    expected = float64(parameters(), ids, image, np.ones_like(mask), np.zeros(BATCH, bool))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_bfloat16_is_near():
    found = states(parameters(), dtype=jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    expected = float64(parameters(), *inputs())
    assert np.abs(np.asarray(found, np.float64) - expected).max() <= 0.05 * np.abs(expected).max()


def test_a_state_depends_on_the_tokens_before_its_own_alone():
    ids, image, mask, _ = inputs()
    compute = functools.partial(states, parameters())
    before = compute(ids, image, mask)
    for at in (0, 4, TOKENS - 1):
        after = compute(ids.at[:, at].set((ids[:, at] + 1) % CONFIG.vocab_size), image, mask)
        np.testing.assert_array_equal(after[:, : at + 1], before[:, : at + 1])
        later = np.abs(after - before)[:, at + 1 :].max(-1)
        assert (later > 1e-4).all()


def test_in_parallel_no_state_depends_on_a_token_and_each_on_the_image():
    ids, image, mask, parallel = inputs()
    compute = functools.partial(states, parameters())
    before, after = compute(ids, image, mask, parallel), compute((ids + 1) % CONFIG.vocab_size, image, mask, parallel)
    np.testing.assert_array_equal(after[PARALLEL], before[PARALLEL])
    assert (np.abs(after - before)[~PARALLEL][:, 1:].max(-1) > 1e-4).all()
    other = compute(ids, image + 1, mask, parallel)
    assert (np.abs(other - before).max(-1) > 1e-4).all()


def test_padding_of_the_image_does_not_matter():
    ids, image, mask, parallel = inputs()
    found = states(parameters(), ids, jnp.where(mask[..., None], image, 9.0), mask, parallel)
    np.testing.assert_array_equal(found, states(parameters()))


@pytest.mark.parametrize(("depth", "layers", "expected"), [(12, None, 6), (5, None, 2), (1, None, 1), (5, 4, 4)])
def test_the_number_of_layers(depth, layers, expected):
    module = CaptionDecoder(dataclasses.replace(CONFIG, num_hidden_layers=depth), Options(), layers)
    found = jax.eval_shape(module.init, jax.random.key(0), *inputs())["params"]
    assert [name for name in found if name.startswith("layers_")] == [f"layers_{i}" for i in range(expected)]
    assert found["token_embedding"]["embedding"].shape == (50, 36)
    assert found["start"].shape == found["mask"].shape == (1, 36)
    assert found["layers_0"]["cross_attn"]["k_proj"]["kernel"].shape == (IMAGE_WIDTH, 36)


def loss_and_gradients(params, **options):
    module = CaptionDecoder(CONFIG, Options(**options))

    def loss(params, image):
        found = module.apply({"params": params}, inputs()[0], image, *inputs()[2:])
        return captioning_loss(found, params["token_embedding"]["embedding"], inputs()[0], block_size=16)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, inputs()[1])


@functools.cache
def as_they_are():
    return loss_and_gradients(parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"scan_layers": True}, {"remat": "full"}, {"remat": "dots"}, {"remat": "full", "scan_layers": True}],
    ids=str,
)
def test_how_it_is_computed_changes_no_gradient(options):
    stacked = options.get("scan_layers")
    value, (of_params, of_image) = loss_and_gradients(
        stack_layers({"decoder": parameters()}, jnp.stack)["decoder"] if stacked else parameters(), **options
    )
    if stacked:
        assert of_params["layers"]["mlp"]["fc1"]["kernel"].shape == (2, 36, 88)
        of_params = unstack_layers({"decoder": of_params})["decoder"]
    expected, (right, right_image) = as_they_are()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert flatten(of_params).keys() == flatten(right).keys()
    for name, x in (flatten(right) | {"image": right_image}).items():
        found = of_image if name == "image" else flatten(of_params)[name]
        # Keys have no gradient by their bias: what is left there is rounding.
        np.testing.assert_allclose(found, x, atol=1e-5 * max(np.abs(x).max(), 1e-3), err_msg=name)


@pytest.mark.slow
def test_over_a_mesh_its_parameters_are_sharded_and_its_states_equal():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = shard_params({"decoder": parameters()}, mesh)["decoder"]
    layer = sharded["layers_0"]
    specs = {
        "q": layer["cross_attn"]["q_proj"]["kernel"].sharding.spec,
        "out": layer["cross_attn"]["out_proj"]["kernel"].sharding.spec,
        "table": sharded["token_embedding"]["embedding"].sharding.spec,
    }
    assert specs == {
        "q": PartitionSpec("fsdp", "tensor"),
        "out": PartitionSpec("tensor", "fsdp"),
        "table": PartitionSpec("tensor", None),  # 50 rows are not divided by four devices
    }
    for scan in (False, True):
        params = stack_layers({"decoder": sharded}, jnp.stack)["decoder"] if scan else sharded
        found = states(params, mesh=mesh, scan_layers=scan)
        assert found.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 3)
        expected = float64(parameters(), *inputs())
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_mistakes_are_refused():
    ids, image, *_ = inputs()
    with pytest.raises(ValueError, match="at most 16 tokens per text, got 22"):
        states(parameters(), jnp.concatenate([ids, ids], axis=1), image)
    with pytest.raises(ValueError, match="input_ids must be 0 to 49, got 50"):
        CaptionDecoder(CONFIG, Options()).apply({"params": parameters()}, jnp.full((1, 4), 50), image[:1])
    with pytest.raises(ValueError, match="remat must be None or one of"):
        states(parameters(), remat="some")
