"""The options of the modules, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import SiglipForImageClassification, SiglipModel, SiglipTextModel, SiglipVisionModel
from siglip_jax.params import flatten
from tests.support import cases

CONFIG = cases.make_config("odd_heads")
TEXT, VISION = CONFIG.text_config, CONFIG.vision_config


@pytest.fixture(scope="module")
def inputs():
    return {k: jnp.asarray(v) for k, v in cases.make_inputs(CONFIG).items()}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return SiglipModel.from_pretrained(cases.make_checkpoint(tmp_path_factory.mktemp("modules"), "odd_heads"))


def apply(loaded, *args, **kwargs):
    model, params = loaded
    return model.apply({"params": params}, *args, **kwargs)


@pytest.mark.slow
def test_features_are_the_pooled_embeddings(loaded, inputs):
    out = apply(loaded, inputs["input_ids"], inputs["pixel_values"])
    images = apply(loaded, inputs["pixel_values"], method="get_image_features")
    texts = apply(loaded, inputs["input_ids"], method="get_text_features")
    np.testing.assert_array_equal(images, out.vision_model_output.pooler_output)
    np.testing.assert_array_equal(texts, out.text_model_output.pooler_output)
    np.testing.assert_allclose(jnp.linalg.norm(out.image_embeds, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(out.logits_per_text, out.logits_per_image.T)


def test_towers_alone_equal_the_whole(loaded, inputs):
    model, params = loaded
    out = apply(loaded, inputs["input_ids"], inputs["pixel_values"])
    text = SiglipTextModel(TEXT).apply({"params": {"text_model": params["text_model"]}}, inputs["input_ids"])
    vision = SiglipVisionModel(VISION).apply(
        {"params": {"vision_model": params["vision_model"]}}, inputs["pixel_values"]
    )
    np.testing.assert_array_equal(text.pooler_output, out.text_model_output.pooler_output)
    np.testing.assert_array_equal(vision.pooler_output, out.vision_model_output.pooler_output)


@pytest.mark.slow
def test_output_is_a_pytree_with_the_reference_s_order(loaded, inputs):
    out = apply(loaded, inputs["input_ids"], inputs["pixel_values"], return_loss=True)
    assert out[0] is out.loss and out["logits_per_image"] is out[1] and len(out.to_tuple()) == 7
    without = apply(loaded, inputs["input_ids"], inputs["pixel_values"])
    assert without.loss is None and without[0] is without.logits_per_image
    doubled = jax.tree.map(lambda x: 2 * x, out)
    np.testing.assert_array_equal(doubled.image_embeds, 2 * out.image_embeds)


def test_hidden_states_end_before_the_last_normalisation(loaded, inputs):
    out = apply(loaded, inputs["input_ids"], inputs["pixel_values"], output_hidden_states=True).text_model_output
    assert len(out.hidden_states) == 3 and out.attentions is None
    x = out.hidden_states[-1]
    scale, bias = (loaded[1]["text_model"]["final_layer_norm"][k][None, None] for k in ("scale", "bias"))
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(x * scale + bias, out.last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_mask_of_ones_changes_nothing_and_padding_is_seen_without_one(loaded, inputs):
    ids = inputs["input_ids"]
    plain = apply(loaded, ids, method="get_text_features")
    ones = apply(loaded, ids, jnp.ones_like(ids), method="get_text_features")
    np.testing.assert_array_equal(plain, ones)
    other = apply(loaded, ids.at[:, 3].set(1), method="get_text_features")
    assert jnp.abs(plain - other).max() > 1e-2
    mask = jnp.ones_like(ids).at[:, 3].set(0)
    masked = [apply(loaded, x, mask, method="get_text_features") for x in (ids, ids.at[:, 3].set(1))]
    np.testing.assert_allclose(masked[0], masked[1], rtol=1e-5, atol=1e-6)


def test_a_fully_masked_row_stays_finite(loaded, inputs):
    mask = jnp.ones_like(inputs["input_ids"]).at[0].set(0)
    for implementation in ("xla", "eager"):
        model = loaded[0].clone(attn_implementation=implementation)
        assert jnp.isfinite(apply((model, loaded[1]), inputs["input_ids"], mask, method="get_text_features")).all()


def test_the_text_tower_is_not_causal(loaded, inputs):
    ids = inputs["input_ids"]
    hidden = [
        apply(loaded, x, inputs["pixel_values"]).text_model_output.last_hidden_state
        for x in (ids, ids.at[:, -1].set(5))
    ]
    assert jnp.abs(hidden[0][:, 0] - hidden[1][:, 0]).max() > 1e-3


@pytest.mark.slow
def test_a_batch_permutes(loaded, inputs):
    order = jnp.array([2, 0, 1])
    out = apply(loaded, inputs["input_ids"], inputs["pixel_values"])
    permuted = apply(loaded, inputs["input_ids"], inputs["pixel_values"][order])
    np.testing.assert_allclose(permuted.logits_per_image, out.logits_per_image[order], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_keeps_normalisation_and_logits_in_float32(loaded, inputs):
    model, params = loaded
    exact = apply(loaded, inputs["input_ids"], inputs["pixel_values"], return_loss=True)
    half = model.clone(dtype=jnp.bfloat16)
    forward = jax.jit(functools.partial(half.apply, return_loss=True))
    out = forward({"params": params}, inputs["input_ids"], inputs["pixel_values"])
    assert out.vision_model_output.last_hidden_state.dtype == jnp.bfloat16
    assert {x.dtype for x in (out.loss, out.logits_per_image, out.image_embeds)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(jnp.linalg.norm(out.text_embeds, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(out.image_embeds, exact.image_embeds, atol=0.02)
    # The logits are those of the embeddings to float32 precision, not to that of bfloat16.
    logits = out.image_embeds @ out.text_embeds.T * jnp.exp(params["logit_scale"])[None] + params["logit_bias"][None]
    np.testing.assert_allclose(out.logits_per_image, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_bfloat16(loaded, inputs):
    """Under the strict promotion that all tests have, and in the type of the parameters."""
    mask, params = jnp.ones_like(inputs["input_ids"]).at[0, 5:].set(0), {"text_model": loaded[1]["text_model"]}

    def gradients(dtype, implementation):
        model = SiglipTextModel(TEXT, dtype=dtype, attn_implementation=implementation)

        def total(params):
            embeds = model.apply({"params": params}, inputs["input_ids"], mask).pooler_output.astype(jnp.float32)
            return jnp.sum(embeds**2)

        return flatten(jax.jit(jax.grad(total))(params))

    exact = gradients(jnp.float32, "xla")
    for implementation in ("xla", "eager"):
        for path, x in gradients(jnp.bfloat16, implementation).items():
            assert x.dtype == jnp.float32
            if not path.endswith("k_proj/bias"):  # zero but for rounding: a softmax does not see a shift of its scores
                assert np.linalg.norm(x - exact[path]) < 0.05 * np.linalg.norm(exact[path]), path


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout(inputs, scan_layers):
    text = TEXT.replace(attention_dropout=0.5)
    model = SiglipTextModel(text, scan_layers=scan_layers)
    params = model.init(jax.random.key(0), inputs["input_ids"])["params"]
    plain = model.apply({"params": params}, inputs["input_ids"]).pooler_output
    run = [
        model.apply(
            {"params": params}, inputs["input_ids"], deterministic=False, rngs={"dropout": jax.random.key(seed)}
        ).pooler_output
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(run[0], run[1])
    assert (run[0] != run[2]).any() and (run[0] != plain).any()
    weights = (
        model.clone(attn_implementation="eager")
        .apply(
            {"params": params},
            inputs["input_ids"],
            deterministic=False,
            output_attentions=True,
            rngs={"dropout": jax.random.key(1)},
        )
        .attentions
    )
    dropped = [float((w == 0).mean()) for w in weights]
    assert all(0.4 < share < 0.6 for share in dropped)
    assert (weights[0] != weights[1]).any()


@pytest.mark.parametrize(
    ("kwargs", "call", "words"),
    [
        ({"attn_implementation": "flash"}, {}, ["cudnn", "'flash'"]),
        ({"attn_implementation": "auto"}, {"output_attentions": True}, ["'eager'", "'auto'"]),
        ({"attn_implementation": "xla"}, {"output_attentions": True}, ["'eager'", "'xla'"]),
        ({"attn_implementation": "xla"}, {"deterministic": False}, ["dropout", "'eager'", "'xla'"]),
        ({"remat": "some"}, {}, ["full", "'some'"]),
        ({"init_scheme": "zeros"}, {}, ["paper", "'zeros'"]),
    ],
)
def test_choices_that_cannot_run_say_so(inputs, kwargs, call, words):
    model = SiglipTextModel(TEXT.replace(attention_dropout=0.1), **kwargs)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with pytest.raises(ValueError) as caught:
        model.init(rngs, inputs["input_ids"], **call)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
def test_cudnn_without_a_gpu_says_so(inputs):
    if jax.default_backend() == "gpu":
        model = SiglipTextModel(TEXT, attn_implementation="cudnn")  # float32: refused on a GPU too
    else:
        model = SiglipTextModel(TEXT, attn_implementation="cudnn", dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="must be .* for attn_implementation='cudnn', got .*; use 'auto' or 'xla'"):
        model.init(jax.random.key(0), inputs["input_ids"])


@pytest.mark.slow
def test_without_a_pooling_head(inputs):
    config = VISION.replace(vision_use_head=False)
    model = SiglipVisionModel(config)
    params = model.init(jax.random.key(0), inputs["pixel_values"])["params"]
    out = model.apply({"params": params}, inputs["pixel_values"])
    assert "head" not in params["vision_model"] and out.pooler_output is None
    with pytest.raises(ValueError, match="vision_use_head must be True for an embedding, got False; .*pooling head"):
        _ = out.embedding
    whole = SiglipModel(CONFIG.replace(vision_config=config))
    with pytest.raises(ValueError, match="must be True for SiglipModel, got False; use SiglipVisionModel"):
        whole.init(jax.random.key(0), inputs["input_ids"], inputs["pixel_values"])


def pixels(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((None, pixels(1, 32, 32, 3)), {}, ["input_ids must be given, got None", "get_image_features"]),
        ((jnp.ones((1, 16), jnp.int32),), {}, ["pixel_values must be given, got None", "get_text_features"]),
        ((jnp.ones((1, 17), jnp.int32), pixels(1, 32, 32, 3)), {}, ["at most 16 tokens", "got 17", "truncate"]),
        ((jnp.ones((1, 16), jnp.int32), pixels(1, 3, 32, 32)), {}, ["(1, 3, 32, 32)", "transpose with (0, 2, 3, 1)"]),
        ((jnp.ones((1, 16), jnp.int32), pixels(1, 32, 32, 1)), {}, ["(1, 32, 32, 1)", "(batch, 32, 32, 3)"]),
        ((jnp.ones((1, 16), jnp.int32), pixels(32, 32, 3)), {}, ["(32, 32, 3)", "batch axis"]),
        ((jnp.ones((1, 16), jnp.int32), pixels(1, 40, 40, 3)), {}, ["25", "16", "interpolate_pos_encoding"]),
        (
            (jnp.ones((1, 16), jnp.int32), pixels(1, 4, 40, 3)),
            {"interpolate_pos_encoding": True},
            ["one patch of 8", "got shape"],
        ),
        ((jnp.ones((2, 16), jnp.int32), pixels(1, 32, 32, 3)), {"return_loss": True}, ["1 images", "2 texts"]),
        (
            (jnp.ones((1, 16), jnp.int32), pixels(1, 32, 32, 3)),
            {"attention_mask": jnp.ones((1, 1, 16))},
            ["(batch, tokens)", "(1, 1, 16)"],
        ),
    ],
)
def test_wrong_inputs_are_refused_with_both_shapes(loaded, args, kwargs, words):
    with pytest.raises(ValueError) as caught:
        apply(loaded, *args, **kwargs)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
def test_jit_and_pmap_equal_the_plain_call(loaded, inputs):
    model, params = loaded
    images = jnp.tile(inputs["pixel_values"], (3, 1, 1, 1))[:8]
    plain = apply(loaded, images, method="get_image_features")

    def forward(params, images):
        return model.apply({"params": params}, images, method="get_image_features")

    np.testing.assert_allclose(jax.jit(forward)(params, images), plain, rtol=1e-5, atol=1e-5)
    mapped = jax.pmap(forward, in_axes=(None, 0))(params, images[:, None])[:, 0]
    np.testing.assert_allclose(mapped, plain, rtol=1e-5, atol=1e-5)


def test_a_classifier_without_labels_gives_the_mean(inputs):
    model = SiglipForImageClassification(CONFIG.replace(num_labels=0))
    params = model.init(jax.random.key(0), inputs["pixel_values"])["params"]
    out = model.apply({"params": params}, inputs["pixel_values"], output_hidden_states=True)
    tower = SiglipVisionModel(VISION).apply({"params": params}, inputs["pixel_values"])
    np.testing.assert_allclose(out.logits, tower.last_hidden_state.mean(1), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="num_labels must be at least 1 where labels are given, got 0"):
        model.apply({"params": params}, inputs["pixel_values"], labels=jnp.zeros(3, jnp.int32))


@pytest.mark.slow
def test_a_product_of_the_hessian_and_a_vector(inputs):
    model = SiglipVisionModel(VISION)
    params = model.init(jax.random.key(0), inputs["pixel_values"])["params"]
    leaf = params["vision_model"]["encoder"]["layers_0"]["layer_norm1"]["scale"]
    direction = jnp.linspace(-1, 1, leaf.size)

    def gradient(scale):
        def loss(scale):
            changed = jax.tree.map(lambda x: scale if x is leaf else x, params)
            return jnp.sum(model.apply({"params": changed}, inputs["pixel_values"]).pooler_output ** 2)

        return jax.grad(loss)(scale)

    _, found = jax.jvp(gradient, (leaf,), (direction,))
    step = 1e-2
    expected = (gradient(leaf + step * direction) - gradient(leaf - step * direction)) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("remat", "expected"),
    [
        (None, (8, 1, 1)),
        ("dots", (6, 1, 1)),
        ("dots_with_no_batch_dims", (5, 1, 0)),
        ("attention_and_mlp_input", (3, 0, 1)),
        ("full", (1, 0, 0)),
    ],
)
def test_a_layer_keeps_what_its_remat_policy_names(remat, expected):
    """Counts arrays as wide as the tower, as wide as the MLP, and with one number for each query of each head."""
    model, pixels = (
        SiglipVisionModel(VISION, remat=remat, scan_layers=True),
        jnp.zeros((7, *[VISION.image_size] * 2, 3)),
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), pixels)

    def kept(variables, pixels):
        return jax.vjp(lambda v: model.apply(v, pixels).pooler_output, variables)[1]

    found = [x.shape for x in jax.tree.leaves(jax.eval_shape(kept, variables, pixels))]
    tokens, batch = VISION.num_patches, (VISION.num_hidden_layers, 7)
    wide = (*batch, tokens, VISION.hidden_size), (*batch, tokens, VISION.intermediate_size)
    shapes = (*wide, (*batch, VISION.num_attention_heads, tokens))
    assert tuple(map(found.count, shapes)) == expected
