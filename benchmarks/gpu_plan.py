"""The rows of `benchmarks/gpu.py`, the most valuable of each section and side first, and how they are printed.

Nothing here touches a device.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

BASE, LARGE, SO400M = "siglip-base-patch16-224", "siglip-large-patch16-384", "siglip-so400m-patch14-384"
WIDTH = 768  # of the embeddings of the loss
SIDES = ("ours", "torch")
SHARE = {"training": 0.36, "loss": 0.2, "forward": 0.32, "attention": 0.12}  # of the time of a run, by section
REMAT = (None, "dots_with_no_batch_dims", "full")
FIRST = "a product of the card"  # the cell that all others are compared with
# Published for other cards; the sources are the projects' own tables.
ELSEWHERE = """
Published elsewhere, for other cards or by their authors:
  timm, compiled, bfloat16, images/s: RTX 5090 B/16-224 4,393, L/16-256 1,039, So400m/14-384 239
  timm, the same on an RTX Pro 6000: B/16-224 5,052, L/16-256 1,245, So400m/14-384 282
  JAX-Toolbox, pretraining of ViT-B/16, images/s on an H100: 1,459
  siglip-kernel, loss and gradients on a GH200 or H100: 48.8 ms and 1.4 GB at B = 65,536
"""


class Row(NamedTuple):
    """One measurement.

    Attributes:
      section: "training", "loss", "forward" or "attention".
      cell: what is measured; rows of one cell are compared.
      name: how it is measured.
      side: "ours" (jax) or "torch": the process that measures it.
      settings: arguments of the function of `gpu_ours` or `gpu_torch` that has the name of the section.
    """

    section: str
    cell: str
    name: str
    side: str
    settings: dict[str, Any]


class Sizes(NamedTuple):
    """What a plan measures.

    Attributes:
      product: side of the square matrices whose product is the yardstick.
      training: model and pairs of a step.
      loss: batches, in the order of their value.
      blocks: block sizes to try beside "auto", on the first batch.
      dense: largest batch whose whole matrix is tried.
      forward: model and batches.
      attention: a name of `attention.SHAPES` and a batch.
      seconds: duration of a row, at least three turns.
    """

    product: int
    training: Sequence[tuple[str, int]]
    loss: Sequence[int]
    blocks: Sequence[int]
    dense: int
    forward: Sequence[tuple[str, Sequence[int]]]
    attention: Sequence[tuple[str, int]]
    seconds: float


FULL = Sizes(
    product=8192,
    training=((BASE, 256), (SO400M, 32)),
    loss=(65536, 16384, 262144, 4096, 1048576),
    blocks=(4096, 16384, 2048),
    dense=65536,
    forward=((BASE, (32, 256, 1)), (SO400M, (32, 1, 256)), (LARGE, (32, 1, 256))),
    attention=(("base, 224 pixels", 256), ("so400m, 384 pixels", 32), ("so400m, 224 pixels", 64), ("base, text", 256)),
    seconds=0.5,
)
TINY = Sizes(
    product=64,
    training=(("tiny", 4),),
    loss=(64, 32),
    blocks=(16,),
    dense=32,
    forward=(("tiny", (2, 1)),),
    attention=(("base, text", 1),),
    seconds=0.0,
)


def plan(sizes: Sizes) -> list[Row]:
    """Returns all rows of both sides, section by section."""
    rows = [Row("training", FIRST, f"{name} {sizes.product}^3", name, {"product": sizes.product}) for name in SIDES]
    for section in (_training, _loss, _forward, _attention):
        rows += section(sizes)
    return rows


def _training(sizes: Sizes) -> Iterator[Row]:
    def row(side: str, name: str, model: str, batch: int, **settings: Any) -> Row:
        cell = f"{model}, {batch} pairs, AdamW"
        return Row("training", cell, f"{side}, {name}", side, {"model": model, "batch": batch, **settings})

    for remat in REMAT:
        for model, batch in sizes.training:
            yield row("ours", f"remat {remat}" if remat else "nothing repeated", model, batch, remat=remat)
    model, batch = sizes.training[0]
    yield row("ours", "eager attention", model, batch, remat=None, attention="eager")
    yield row("ours", "layers not scanned", model, batch, remat=None, scan=False)
    for checkpoint in (False, True):
        for model, batch in sizes.training:
            name = "compiled, checkpointed" if checkpoint else "compiled"
            yield row("torch", name, model, batch, compiled=True, checkpoint=checkpoint)
    yield row("torch", "eager", model, batch, compiled=False, checkpoint=False)


def _loss(sizes: Sizes) -> Iterator[Row]:
    def row(side: str, name: str, kind: str, batch: int, **settings: Any) -> Row:
        cell = f"B = {batch:,}, E = {WIDTH}, forward and backward"
        return Row("loss", cell, f"{side}, {name}", side, {"kind": kind, "batch": batch, "width": WIDTH, **settings})

    for i, batch in enumerate(sizes.loss):
        yield row("ours", "block_size auto", "blocked", batch)
        for block in () if i else sizes.blocks:
            yield row("ours", f"block_size {block}", "blocked", batch, block_size=block)
    for batch in sizes.loss:
        if batch <= sizes.dense:
            yield row("torch", "formula", "formula", batch)
        yield row("torch", "siglip_kernel", "siglip_kernel", batch)
    for batch in sorted(size for size in sizes.loss if size <= sizes.dense):
        yield row("ours", "block_size None", "dense", batch)
        yield row("ours", "formula in jax", "formula", batch)
        yield row("torch", "formula compiled", "compiled formula", batch)


def _forward(sizes: Sizes) -> Iterator[Row]:
    def row(side: str, name: str, model: str, batch: int, **settings: Any) -> Row:
        cell = f"{model}, {batch} image{'s' * (batch > 1)}"
        return Row("forward", cell, f"{side}, {name}", side, {"model": model, "batch": batch, **settings})

    for quantization in (None, "int8", "fp8"):
        for model, batches in sizes.forward:
            for batch in batches:
                yield row("ours", quantization or "bfloat16", model, batch, quantization=quantization)
    for compiled in (True, False):
        for model, batches in sizes.forward:
            for batch in batches:
                yield row("torch", "compiled, flash" if compiled else "sdpa", model, batch, compiled=compiled)


def _attention(sizes: Sizes) -> Iterator[Row]:
    for shape, batch in sizes.attention:
        for gradient in (False, True):
            cell = f"{shape}, batch {batch}, {'forward and backward' if gradient else 'forward'}"
            settings = {"shape": shape, "batch": batch, "gradient": gradient}
            for name in ("cudnn", "xla", "eager"):
                yield Row("attention", cell, f"ours, {name}", "ours", settings | {"implementation": name})
            for name in ("flash", "cudnn"):
                yield Row("attention", cell, f"torch, {name}", "torch", settings | {"implementation": name})


def config_of(model: str, layers: int | None = None) -> Any:
    """Returns the configuration of a model of a plan, with fewer layers if told so."""
    from inference_files import TINY as tiny

    from siglip_jax.configs.configuration import SiglipConfig

    if model == "tiny":
        return SiglipConfig(text_config=tiny, vision_config=tiny | {"image_size": 32})
    config = SiglipConfig.from_variant(model)
    if layers is None:
        return config
    towers = {name: getattr(config, name) for name in ("text_config", "vision_config")}
    cut = {name: dataclasses.replace(tower, num_hidden_layers=layers) for name, tower in towers.items()}
    return dataclasses.replace(config, **cut)


@functools.cache
def _model_flops(model: str, pairs: int) -> int:
    from siglip_jax.models.cost import image_flops, step_flops

    config = config_of(model)
    return step_flops(config, pairs, pairs) if pairs else image_flops(config.vision_config)


def work_of(row: Row) -> tuple[int, int]:
    """Returns what a row does: floating-point operations, without those that are repeated, and examples."""
    s = row.settings
    if "product" in s:
        return 2 * s["product"] ** 3, 1
    if row.section == "training":
        return _model_flops(s["model"], s["batch"]), s["batch"]
    if row.section == "loss":
        return 6 * s["batch"] ** 2 * s["width"], s["batch"]
    if row.section == "forward":
        return s["batch"] * _model_flops(s["model"], 0), s["batch"]
    from attention import SHAPES

    shape = next(shape for shape in SHAPES if shape.name == s["shape"])
    flops = 4 * s["batch"] * shape.heads * shape.tokens**2 * shape.width
    return flops * (3 if s["gradient"] else 1), s["batch"]


def result(row: Row, answer: dict[str, Any]) -> dict[str, Any]:
    """Returns what is recorded of a row: its fields, what its process answered, and the rates that follow."""
    found = {"section": row.section, "cell": row.cell, "name": row.name, "side": row.side, **answer}
    if "seconds" in answer:
        flops, examples = work_of(row)
        found |= {"per_second": examples / answer["seconds"], "tflops": flops / answer["seconds"] / 1e12}
    return found


def line_of(found: dict[str, Any], product: float | None, peer: float | None) -> str:
    """Returns a row as text.

    Args:
      found: the row, from `result`.
      product: TFLOP/s of the card's own product.
      peer: seconds of the fastest row of torch in the cell.
    """
    if "why" in found:
        return f"  {found['name']:<34} not measured: {found['why']}"
    if "seconds" not in found:  # compiled ahead
        sizes = f"temporaries {found['temporaries'] / 1e9:.2f} GB, in all {found['bytes'] / 1e9:.2f} GB"
        return f"  {found['name']:<34} {sizes}, {found['fused']} calls of fused attention, {found['compilation']:.0f} s"
    share = f"{found['tflops'] / product:>5.0%}" if product else f"{'':>5}"
    ratio = f"{peer / found['seconds']:>6.2f} x torch" if peer and found["side"] == "ours" else ""
    memory = f"{found['bytes'] / 1e9:>7.2f} GB" if "bytes" in found else f"{'':>10}"
    rate = f"{found['per_second']:>11,.1f}/s {found['tflops']:>8.2f} TFLOP/s {share}"
    extra = "".join(f"  {key} {found[key]:.3g}" for key in ("latency_ms", "loss", "difference") if key in found)
    return f"  {found['name']:<34}{1000 * found['seconds']:>10.3f} ms{rate} {memory} {ratio}{extra}"


def report(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns all results as text: the rows of each cell, beside the fastest of torch."""
    lines = [", ".join(f"{name} {value}" for name, value in facts.items())]
    product = max((row["tflops"] for row in rows if row["cell"] == FIRST and "tflops" in row), default=None)
    if product:
        lines.append(f"shares are of the card's own product of matrices, {product:.3g} TFLOP/s")
    lines.append("bytes: arguments, results and temporaries (ours, by the compiler); peak of the allocator (torch)")
    for section, cell in dict.fromkeys((row["section"], row["cell"]) for row in rows):
        own = [row for row in rows if (row["section"], row["cell"]) == (section, cell)]
        peer = min((row["seconds"] for row in own if row["side"] == "torch" and "seconds" in row), default=None)
        lines += ["", f"{section}: {cell}", *(line_of(row, product, peer) for row in own)]
    return "\n".join(lines) + "\n" + ELSEWHERE
