"""A program lowered for a platform on a machine that lacks it is the program that the platform itself would make."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglip_jax import SiglipConfig, SiglipModel, sigmoid_loss
from siglip_jax.losses import softmax_loss
from siglip_jax.models import products
from siglip_jax.processing import resize_and_normalize

CONFIG = SiglipConfig(
    text_config={"hidden_size": 48, "intermediate_size": 88, "num_attention_heads": 2, "num_hidden_layers": 1,
                 "vocab_size": 64, "max_position_embeddings": 16},
    vision_config={"hidden_size": 48, "intermediate_size": 88, "num_attention_heads": 2, "num_hidden_layers": 1,
                   "image_size": 32, "patch_size": 8},
)  # fmt: skip
MODEL = SiglipModel(CONFIG, dtype=jnp.bfloat16)
PAIRS = 2048  # more than a tile of a CPU


def forward():
    ids, pixels = jax.ShapeDtypeStruct((2, 16), jnp.int32), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(MODEL.init, jax.random.key(0), ids, pixels)["params"]
    return lambda params, ids, pixels: MODEL.apply({"params": params}, ids, pixels), (params, ids, pixels)


def loss():
    embeds, scalar = jax.ShapeDtypeStruct((PAIRS, 8), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.float32)

    def both(*args):
        return sum(f(*args, block_size="auto") for f in (sigmoid_loss, softmax_loss))

    return jax.grad(both, (0, 1, 2, 3)), (embeds, embeds, scalar, scalar)


def training_step():
    apply, (params, ids, pixels) = forward()
    optimizer = optax.adamw(1e-3)

    def step(params, state, ids, pixels):
        def loss(params):
            out = apply(params, ids, pixels)
            pair = out.image_embeds, out.text_embeds
            return sigmoid_loss(*pair, params["logit_scale"], params["logit_bias"], block_size="auto")

        with jax.numpy_dtype_promotion("standard"):  # optax's own code relies on it
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

    return step, (params, jax.eval_shape(optimizer.init, params), ids, pixels)


def preparation():
    return lambda x: resize_and_normalize(x, (16, 16)), (jax.ShapeDtypeStruct((2, 40, 30, 3), jnp.uint8),)


def lowered(program, platform):
    """Returns the program without the table of source lines and the names of functions, which count up."""
    function, args = program()
    module = jax.export.export(jax.jit(lambda *args: function(*args)), platforms=[platform])(*args).mlir_module()
    return re.sub(r"#loc.*\n|loc\(.*?\)|@\w+", "", module)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
@pytest.mark.parametrize("program", [loss, training_step, preparation], ids=lambda f: f.__name__)
def test_the_default_backend_does_not_change_what_is_lowered(program, platform, monkeypatch):
    here = lowered(program, platform)
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
    there = lowered(program, platform)
    jax.clear_caches()
    assert here == there


def operands_of_products(module):
    """Returns the element types of the operands of each product, such as "bf16 bf16"."""
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<([^>]*)>, tensor<([^>]*)>\)", module)
    return {" ".join(shape.split("x")[-1] for shape in pair) for pair in found}


@pytest.mark.slow
def test_only_a_cpu_gets_the_products_of_a_cpu(monkeypatch):
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: False)
    jax.clear_caches()
    logits = {"f32 f32"}  # the embeddings are compared in float32
    assert operands_of_products(lowered(forward, "tpu")) == {"bf16 bf16"} | logits
    assert operands_of_products(lowered(forward, "cuda")) == {"bf16 bf16"} | logits
    assert operands_of_products(lowered(forward, "cpu")) == logits
    jax.clear_caches()


def test_tiles_have_the_size_of_the_platform():
    tile = f"tensor<{PAIRS}x{PAIRS}xf32>"
    assert tile in lowered(loss, "tpu") and tile in lowered(loss, "cuda")
    assert tile not in lowered(loss, "cpu") and "tensor<1024x1024xf32>" in lowered(loss, "cpu")


def test_a_program_for_three_platforms_runs_here():
    function, _ = forward()
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 64, (2, 16)), jnp.int32)
    pixels = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    params = MODEL.init(jax.random.key(0), ids, pixels)["params"]
    both = jax.jit(lambda *args: function(*args).logits_per_image)
    exported = jax.export.export(both, platforms=["cpu", "cuda", "tpu"])(params, ids, pixels)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_array_equal(exported.call(params, ids, pixels), both(params, ids, pixels))
