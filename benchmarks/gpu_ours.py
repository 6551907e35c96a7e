"""Our side of `benchmarks/gpu.py`: a program for each row, compiled ahead and then measured.

A program is made of shapes alone, so that the same code compiles for an H100 that is not there.
"""

import dataclasses
import math
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attention
import gpu_h100
import jax
import jax.numpy as jnp
import numpy as np
from gpu_plan import Row, config_of
from gpu_worker import in_a_line, timed
from jax import ShapeDtypeStruct
from jax.sharding import SingleDeviceSharding
from loss_sides import jax_loss

from siglip_jax.inference.encoder import jitted
from siglip_jax.models import SiglipModel
from siglip_jax.params import path_of
from siglip_jax.quantization import is_quantized, quantize
from siglip_jax.training.objective import Pairs
from siglip_jax.training.optimizer import make_optimizer, treatments
from siglip_jax.training.recipe import Optimizer
from siglip_jax.training.step import Step, init_state, make_step

# Programs that are compiled together, the first few and then more; nothing is measured meanwhile, as compiling uses the
# card too.
TOGETHER = (3, 6)
_EMBEDS: dict[tuple[str, int], np.ndarray] = {}  # of the rows in bfloat16, by model and batch


@dataclasses.dataclass
class Program:
    """A jitted function and its arguments.

    Attributes:
      function: the function.
      shapes: shapes of the arguments.
      make: function that makes the arguments.
      carried: whether the first result takes the place of the first argument, which is donated.
      quality: function of arguments and results that returns further facts of the row; None: there are none.
    """

    function: Any
    shapes: tuple[Any, ...]
    make: Callable[[], tuple[Any, ...]]
    carried: bool = False
    quality: Callable[[Any, Any], dict[str, float]] | None = None


def filled(shapes: Any) -> Any:
    """Returns arrays of shapes with the random values of a new model: norms near 1, token ids, the rest small."""

    def leaf(keys: tuple[Any, ...], x: Any) -> jax.Array:
        path = path_of(keys)
        if "logit_" in path:
            return jnp.full(x.shape, math.log(10) if path.endswith("scale") else -10.0, x.dtype)
        key = jax.random.key(zlib.crc32(path.encode()))
        return _random(key, x.shape, jnp.dtype(x.dtype), 1.0 if path.endswith("scale") else 0.0)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@jax.jit(static_argnums=(1, 2))
def _random(key: Any, shape: tuple[int, ...], dtype: Any, mean: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.random.randint(key, shape, 2, min(jnp.iinfo(dtype).max, 30_000), dtype)
    return (mean + 0.02 * jax.random.normal(key, shape)).astype(dtype)


def shapes_of(model: SiglipModel, config: Any, towers: str = "vision text logit") -> tuple[Any, Any, Any]:
    """Returns the shapes of the parameters, of the pixels (1, h, w, 3) and of the token ids (1, tokens)."""
    side = config.vision_config.image_size
    pixels = ShapeDtypeStruct((1, side, side, config.vision_config.num_channels), jnp.float32)
    ids = ShapeDtypeStruct((1, config.text_config.max_position_embeddings), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids, pixels)["params"]
    return {name: part for name, part in params.items() if name.split("_")[0] in towers.split()}, pixels, ids


def training(
    model: str, batch: int, remat: str | None, attention: str = "auto", scan: bool = True, layers: int | None = None
) -> Program:
    """Returns the whole step that `siglip-jax train` takes: gradient, clipping, AdamW, metrics."""
    config = config_of(model, layers)
    options: Any = {"remat": remat, "scan_layers": scan, "attn_implementation": attention}
    module = SiglipModel(config, dtype=jnp.bfloat16, **options)
    params, pixels, ids = shapes_of(module, config)
    table = treatments(Optimizer(), [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)])
    optimizer = make_optimizer(Optimizer(), table, lambda step: 1.0)
    step = Step(Pairs(module, prepare=lambda key, images: images.astype(jnp.float32) / 127.5 - 1.0), optimizer)

    def state(params: Any) -> Any:
        return init_state(params, lambda path: False, optimizer, average=False)

    batches = {
        "pixels": ShapeDtypeStruct((batch, *pixels.shape[1:]), jnp.uint8),
        "input_ids": ShapeDtypeStruct((batch, *ids.shape[1:]), jnp.int32),
    }
    shapes = (jax.eval_shape(state, params), batches)
    return Program(
        make_step(step, shapes[0]),
        shapes,
        make=lambda: (state(filled(params)), filled(batches)),
        carried=True,
        quality=lambda given, found: {"loss": float(found[1]["loss"])},
    )


def loss(kind: str, batch: int, width: int, block_size: int | None = None) -> Program:
    """Returns the loss of bfloat16 embeddings with its four gradients."""
    function = jax_loss(kind, **({"block_size": block_size} if block_size else {}))
    embeds = ShapeDtypeStruct((batch, width), jnp.bfloat16)
    scalar = ShapeDtypeStruct((), jnp.float32)

    def make() -> tuple[Any, ...]:
        return (*(_unit(jax.random.key(i), batch, width) for i in range(2)), jnp.log(10.0), jnp.float32(-10))

    return Program(
        jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2, 3))),
        (embeds, embeds, scalar, scalar),
        make,
        quality=lambda given, found: {"loss": float(found[0])},
    )


@jax.jit(static_argnums=(1, 2))
def _unit(key: Any, batch: int, width: int) -> jax.Array:
    x = jax.random.normal(key, (batch, width))
    return (x / jnp.linalg.norm(x, axis=1, keepdims=True)).astype(jnp.bfloat16)


def forward(model: str, batch: int, quantization: str | None, scan: bool = False, layers: int | None = None) -> Program:
    """Returns the image tower with weights of bfloat16 or quantized ones, as `load` makes it."""
    config = config_of(model, layers)
    module = SiglipModel(config, dtype=jnp.bfloat16, scan_layers=scan)
    float32, pixels, _ = shapes_of(module, config, "vision logit")

    def stored_leaf(keys: tuple[Any, ...], x: Any) -> Any:
        if quantization and is_quantized(path_of(keys)):
            return quantize(x, quantization)
        return x.astype(jnp.bfloat16)

    def stored(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(stored_leaf, params)

    images = ShapeDtypeStruct((batch, *pixels.shape[1:]), jnp.float32)

    def compared(given: Any, found: Any) -> dict[str, float]:
        embeds = np.asarray(found, np.float32)
        other = _EMBEDS.setdefault((model, batch), embeds)
        return {"difference": float(np.linalg.norm(embeds - other, axis=1).max())} if quantization else {}

    return Program(
        jitted(module, "get_image_features", None),
        (jax.eval_shape(stored, float32), images),
        make=lambda: (stored(filled(float32)), filled(images)),
        quality=compared,
    )


def attention_alone(shape: str, batch: int, gradient: bool, implementation: str) -> Program:
    """Returns attention without its projections, in bfloat16."""
    function = attention.implementations().get(implementation)
    if function is None:
        raise ImportError(f"{implementation} is not installed")
    _, tokens, heads, width = next(found for found in attention.SHAPES if found.name == shape)
    x = ShapeDtypeStruct((batch, tokens, heads, width), jnp.bfloat16)

    def whole(q: Any, k: Any, v: Any) -> Any:
        out, pull = jax.vjp(function, q, k, v)
        return out, pull(out)

    def make() -> tuple[Any, ...]:
        return tuple(_random(jax.random.key(i), x.shape, x.dtype, 0.0) * 50 for i in range(3))

    def exact(given: Any, found: Any) -> dict[str, float]:
        out = found[0] if gradient else found
        first = [np.asarray(x[:1], np.float64) for x in given]
        return {"difference": float(np.abs(np.asarray(out[:1], np.float64) - attention.truth(*first)).max())}

    return Program(jax.jit(whole if gradient else function), (x, x, x), make, quality=exact)


def product(product: int) -> Program:
    """Returns a product of two square matrices of bfloat16."""
    x = ShapeDtypeStruct((product, product), jnp.bfloat16)
    return Program(jax.jit(jnp.matmul), (x, x), lambda: (filled(x), filled(x)))


def program_of(row: Row, **changed: Any) -> Program:
    """Returns the program of a row, with some settings changed."""
    makers = {"training": training, "loss": loss, "forward": forward, "attention": attention_alone}
    settings = row.settings | changed
    return product(**settings) if "product" in settings else makers[row.section](**settings)


def facts() -> dict[str, Any]:
    """Returns the device and the versions; the first use of the device."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "jax": jax.__version__, "platform": device.platform}


def memory_of(compiled: Any) -> dict[str, int]:
    """Returns the bytes of a compiled program: temporaries, and all that it needs at once."""
    used = compiled.memory_analysis()
    both = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return {"temporaries": used.temp_size_in_bytes, "bytes": both + used.temp_size_in_bytes}


def measure(rows: list[Row], seconds: float, answer: Callable[..., None]) -> None:
    """Compiles some rows together, measures them one by one, and goes on with the next."""

    def compiled_of(row: Row) -> tuple[Program, Any]:
        program = program_of(row)
        return program, program.function.lower(*program.shapes).compile()

    with ThreadPoolExecutor(min(TOGETHER[-1], os.cpu_count() or 1)) as pool:
        start = 0
        while start < len(rows):
            group = rows[start : start + TOGETHER[bool(start)]]
            tasks = [pool.submit(compiled_of, row) for row in group]
            for task in tasks:
                task.exception()  # waits
                answer()  # says that this process is not stuck
            for i, task in enumerate(tasks, start):
                try:
                    answer(row=i, **_measured(*task.result(), seconds))
                except Exception as error:  # a row that fails is a result; libraries raise anything
                    answer(row=i, why=in_a_line(error))
            start += len(group)


def _measured(program: Program, compiled: Any, seconds: float) -> dict[str, Any]:
    given, found = list(program.make()), None
    jax.block_until_ready(given)

    def step() -> Any:
        nonlocal found
        found = compiled(*given)
        if program.carried:
            given[0] = found[0]
        return found

    times = timed(step, jax.block_until_ready, seconds)
    return times | memory_of(compiled) | (program.quality(given, found) if program.quality else {})


def compile_ahead(rows: list[Row], answer: Callable[..., None]) -> None:
    """Compiles every row for an H100 that is not there, and answers with bytes instead of times.

    Layers are scanned; where they are not, or cannot be, as quantized ones, there are two.
    """
    where = SingleDeviceSharding(gpu_h100.device())
    answer(facts={"jax": jax.__version__, "compiled for": gpu_h100.device().device_kind, "measured": "nothing"})
    for i, row in enumerate(rows):
        quicker: dict[str, Any] = {"scan": True} if row.section == "forward" else {}
        if row.settings.get("quantization") or row.settings.get("scan") is False:
            quicker = {"layers": 2}
        try:
            program = program_of(row, **quicker)
            shapes = jax.tree.map(lambda x: ShapeDtypeStruct(x.shape, x.dtype, sharding=where), program.shapes)
            start = time.perf_counter()
            compiled = program.function.lower(*shapes).compile()
            fused = compiled.as_text().count("__cudnn$fmha")
            answer(row=i, **memory_of(compiled), fused=fused, compilation=time.perf_counter() - start)
        except Exception as error:  # a row that fails is a result
            answer(row=i, why=in_a_line(error))
