"""Self-attention as one kernel for TPUs, in Pallas, forward and backward.

The kernel reads query, key and value as the projections leave them, (batch, tokens, heads * width), and writes the
output and the gradients likewise: nothing is transposed or padded in the memory of the device. A step of its grid holds
all tokens of some heads, whose joint width is a multiple of the 128 lanes, or of all heads. There the heads are taken
apart, tokens are padded, and scores exist for one block of queries of one head at a time. The backward pass keeps
nothing but the inputs: with all keys at hand, it computes the softmax again.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip_jax.parallel.mesh import BATCH_AXES, platform_of

LANES, SUBLANES = 128, 16  # a tile of bfloat16, as wide as the smaller matrix units
MAX_TOKENS = 1024
_BLOCK_QUERIES = 256
_CHUNK_ROWS = 64  # rows of tokens of which heads are taken apart at a time; the code has a copy of each head
_ROOMY_BYTES, _MAX_BYTES = 28 << 20, 58 << 20  # of on-chip memory, of which the smallest supported chip has 64 MiB
_LOG2E = math.log2(math.e)
_MASKED = -1e30  # finite, so that differences stay finite; exp2 makes it 0


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How an attention is divided: `group` heads a step of the grid, `block` queries of one head at a time."""

    tokens: int
    heads: int
    width: int
    dtype: jnp.dtype
    group: int = 0
    buffers: int = 2

    @property
    def blocks(self) -> int:
        return -(-self.tokens // _BLOCK_QUERIES)

    @property
    def block(self) -> int:
        return _round_up(-(-self.tokens // self.blocks), SUBLANES)

    @property
    def queries(self) -> int:
        return self.block * self.blocks

    @property
    def keys(self) -> int:
        return _round_up(self.tokens, LANES)

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.width)

    def on_chip_bytes(self, arrays: int) -> int:
        """Returns the bytes on chip: the blocks of `arrays` arrays, as many with the heads apart, and scores."""
        size = self.dtype.itemsize
        block = _round_up(self.tokens, SUBLANES) * _round_up(self.group * self.width, LANES) * size
        apart = self.group * max(self.queries, self.keys) * LANES * size
        scores = self.block * self.keys * (4 * 6 + 2 * size) + 2 * self.keys * LANES * 4
        return self.buffers * arrays * block + (4 if arrays > 4 else 3) * apart + scores


def _divide(tokens: int, heads: int, width: int, dtype: DTypeLike) -> _Plan | None:
    """Returns how the attention is divided; None if a chip cannot hold the smallest part."""
    whole = _Plan(tokens, heads, width, jnp.dtype(dtype))
    groups = [g for g in range(1, heads + 1) if heads % g == 0 and (g * width % LANES == 0 or g == heads)]
    options = [
        dataclasses.replace(whole, group=group, buffers=buffers) for buffers in (2, 1) for group in reversed(groups)
    ]
    roomy = [plan for plan in options if plan.on_chip_bytes(7) <= _ROOMY_BYTES]
    options = roomy or [plan for plan in options if plan.on_chip_bytes(7) <= _MAX_BYTES]
    return options[0] if options else None


def supports(tokens: int, heads: int, width: int, dtype: DTypeLike) -> bool:
    """Returns whether `pallas_attention` takes these numbers of tokens and heads, width of a head and dtype."""
    return (
        1 <= tokens <= MAX_TOKENS
        and width <= LANES
        and jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
        and _divide(tokens, heads, width, dtype) is not None
    )


def pallas_attention(
    query: Float[Array, "batch tokens joint"],
    key: Float[Array, "batch tokens joint"],
    value: Float[Array, "batch tokens joint"],
    bias: Float[Array, "#batch 1 1 tokens"] | None = None,
    *,
    num_heads: int,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Float[Array, "batch tokens joint"]:
    """Returns the self-attention of all heads, computed by one kernel on a TPU.

    The compiler cannot divide a kernel. Over a mesh, each device therefore computes its examples and heads by itself,
    with the batch sharded over `data` and `fsdp` and the width over `tensor`, as far as their sizes allow.

    Args:
      query: queries, bfloat16 or float32, at most 1,024 tokens, heads of a width up to 128.
      key: keys, of the same shape and dtype.
      value: values, of the same shape and dtype.
      bias: what is added to the scores of each key, as `mask_to_bias` makes it of a mask; it gets no gradient. All keys
        have equal weights where all of an example have the lowest float32.
      num_heads: number of heads.
      mesh: mesh to use unless `jax.set_mesh` has set one.
      interpret: whether to run as ordinary operations, on any device; for tests.

    Returns:
      The output, of the shape and dtype of `query`; the softmax and the sums are float32.

    Raises:
      ValueError: if the shapes or the dtype are not supported.
    """
    over, batch_axes, heads_axis = _shards(len(query), num_heads, mesh)
    plan = _divide_over(query.shape, num_heads, query.dtype, mesh)
    if len({(x.shape, x.dtype) for x in (query, key, value)}) > 1 or plan is None:
        raise ValueError(
            f"query, key and value must have one shape with at most {MAX_TOKENS:,} tokens and heads of at most {LANES},"
            " in bfloat16 or float32, and fit the on-chip memory for attn_implementation='pallas', got"
            f" {query.shape}, {key.shape} and {value.shape} of {query.dtype.name} with {num_heads} heads; use 'xla'"
        )
    attend = functools.partial(_attention, plan, interpret)
    rows = _key_rows(bias, plan)
    if over is None:
        return attend(query, key, value, rows)
    spec = PartitionSpec(batch_axes or None, None, heads_axis)
    of_rows = PartitionSpec(batch_axes if rows is not None and len(rows) > 1 and batch_axes else None)
    return jax.shard_map(
        attend,
        mesh=over,
        in_specs=(spec, spec, spec, of_rows),
        out_specs=spec,
        axis_names={axis for axis, kind in _kinds(over).items() if kind == AxisType.Auto},
        check_vma=False,
    )(query, key, value, rows)


def runs(shape: tuple[int, ...], num_heads: int, dtype: DTypeLike, mesh: Mesh | None) -> bool:
    """Returns whether `pallas_attention` takes arrays of a shape (batch, tokens, heads * width).

    Where the mesh or the default device is a TPU, also whether its compiler takes the kernel, forward and backward;
    that says nothing of what fails while it runs, nor of a TPU that is not there and for which no mesh is given.
    """
    plan = _divide_over(shape, num_heads, dtype, mesh)
    if plan is None or platform_of(mesh) != "tpu":
        return plan is not None
    return _compiles(plan, jax.devices()[0] if mesh is None else mesh.devices.flat[0])


def _divide_over(shape: tuple[int, ...], num_heads: int, dtype: DTypeLike, mesh: Mesh | None) -> _Plan | None:
    """Returns how each device of a mesh divides its part; None if it cannot."""
    batch, tokens, joint = shape
    over, _, heads_axis = _shards(batch, num_heads, mesh)
    heads = num_heads // (over.shape[heads_axis] if over is not None and heads_axis else 1)
    width = joint // num_heads
    fits = joint == num_heads * width and supports(tokens, heads, width, dtype)
    return _divide(tokens, heads, width, dtype) if fits else None


@functools.cache
def _compiles(plan: _Plan, device: jax.Device) -> bool:
    """Returns whether the compiler of a device takes the kernel; warns once for each shape that it does not."""
    x = jax.ShapeDtypeStruct(
        (1, plan.tokens, plan.heads * plan.width), plan.dtype, sharding=SingleDeviceSharding(device)
    )

    def gradients(*inputs: Array) -> tuple[Array, ...]:
        out, pullback = jax.vjp(functools.partial(_with_rows, plan), *inputs)
        return pullback(out)

    # In a thread of its own, no trace and no mesh of the caller is in force.
    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(lambda: jax.jit(gradients).lower(x, x, x).compile()).exception()
    if error is not None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"attention of {plan.tokens} tokens and {plan.heads} heads of {plan.width} is computed by XLA, since the"
            f" compiler refuses the fused kernel: {reason}; attn_implementation='xla' does the same without it",
            stacklevel=2,
        )
    return error is None


def _with_rows(plan: _Plan, query: Array, key: Array, value: Array) -> Array:
    return _attention(plan, False, query, key, value, _key_rows(None, plan))


def _kinds(mesh: Mesh | AbstractMesh) -> dict[str, AxisType]:
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))


def _shards(
    batch: int, num_heads: int, mesh: Mesh | None
) -> tuple[Mesh | AbstractMesh | None, tuple[str, ...], str | None]:
    """Returns the mesh, None without one or inside `shard_map`, and its axes for the batch and for the heads."""
    current = jax.sharding.get_abstract_mesh()
    over = mesh if current.empty else current
    kinds = {} if over is None else _kinds(over)
    if over is None or AxisType.Auto not in kinds.values():
        return None, (), None
    batch_axes = tuple(axis for axis in BATCH_AXES if kinds.get(axis) == AxisType.Auto)
    if batch % math.prod(over.shape[axis] for axis in batch_axes):
        batch_axes = ()
    by_heads = kinds.get("tensor") == AxisType.Auto and num_heads % over.shape["tensor"] == 0
    return over, batch_axes, "tensor" if by_heads else None


def _key_rows(bias: Array | None, plan: _Plan) -> Float[Array, "batch 2 keys"] | None:
    """Returns by what the scores of each key are multiplied and what is then added, for a softmax of powers of 2.

    Without any key to attend to, the scores are multiplied by 0, which is what adding the lowest float32 to them does.
    """
    if bias is None and plan.keys == plan.tokens:
        return None
    add = jnp.zeros((1, plan.tokens), jnp.float32) if bias is None else bias[:, 0, 0, :].astype(jnp.float32)
    none = jnp.all(add <= float(jnp.finfo(jnp.float32).min) / 2, axis=1, keepdims=True)
    gain = jnp.broadcast_to(jnp.where(none, 0.0, plan.scale * _LOG2E), add.shape)
    add = jnp.where(none, 0.0, jnp.maximum(add, _MASKED) * _LOG2E)
    padding = ((0, 0), (0, plan.keys - plan.tokens))
    rows = (jnp.pad(gain, padding), jnp.pad(add, padding, constant_values=_MASKED * _LOG2E))
    return jnp.stack([x.astype(jnp.float32) for x in rows], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(plan: _Plan, interpret: bool, query: Array, key: Array, value: Array, rows: Array | None) -> Array:
    (out,) = _call(_forward_kernel, plan, interpret, (query, key, value), rows, outputs=1)
    return out


def _forward(plan: _Plan, interpret: bool, *arrays: Any) -> tuple[Array, tuple[Any, ...]]:
    return _attention(plan, interpret, *arrays), arrays


def _backward(plan: _Plan, interpret: bool, arrays: tuple[Any, ...], cotangent: Array) -> tuple[Any, ...]:
    *inputs, rows = arrays
    gradients = _call(_backward_kernel, plan, interpret, (*inputs, cotangent.astype(plan.dtype)), rows, outputs=3)
    return (*gradients, None if rows is None else jnp.zeros_like(rows))


_attention.defvjp(_forward, _backward)


def _call(
    kernel: Callable[..., None],
    plan: _Plan,
    interpret: bool,
    arrays: tuple[Array, ...],
    rows: Array | None,
    outputs: int,
) -> tuple[Array, ...]:
    """Calls a kernel for each example and group of heads."""
    batch = len(arrays[0])
    mode = {} if plan.buffers == 2 else {"pipeline_mode": pl.Buffered(plan.buffers)}
    block = pl.BlockSpec((1, plan.tokens, plan.group * plan.width), lambda b, g: (b, 0, g), **mode)
    specs, operands = [block] * len(arrays), list(arrays)
    if rows is not None:
        shared = len(rows) == 1
        specs.append(pl.BlockSpec((1, 2, plan.keys), lambda b, g: (0 if shared else b, 0, 0)))
        operands.append(rows)
    backward = outputs == 3
    scratch = [
        pltpu.VMEM((plan.group, length, plan.width), plan.dtype)
        for length in (plan.queries, plan.keys, plan.keys, plan.queries)[: len(arrays)]
    ]
    scratch += [pltpu.VMEM((plan.keys, plan.width), jnp.float32)] * (2 if backward else 0)
    scores = batch * plan.heads * plan.tokens**2
    results = pl.pallas_call(
        functools.partial(kernel, plan, rows is not None),
        grid=(batch, plan.heads // plan.group),
        in_specs=specs,
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, plan.dtype)] * outputs,
        scratch_shapes=scratch,
        cost_estimate=pl.CostEstimate(
            flops=(10 if backward else 4) * scores * plan.width,
            transcendentals=scores,
            bytes_accessed=(len(arrays) + outputs) * arrays[0].size * plan.dtype.itemsize,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_MAX_BYTES + (4 << 20)
        ),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*operands)
    return tuple(results)


def _forward_kernel(plan: _Plan, has_rows: bool, *refs: Any) -> None:
    query_ref, key_ref, value_ref, *others = refs
    rows_ref = others.pop(0) if has_rows else None
    out_ref, query, key, value = others
    _split(query_ref, query)
    _split(key_ref, key)
    _split(value_ref, value)

    def block(head: Array, start: Array) -> None:
        q = query[head, pl.ds(start, plan.block), :]
        powers, total = _softmax(plan, q, key[head], rows_ref)
        out = _dot(powers.astype(plan.dtype), value[head], 1, 0) / total
        query[head, pl.ds(start, plan.block), :] = out.astype(plan.dtype)  # this block is not read again

    _each_block(plan, block)
    _merge(query, out_ref)


def _backward_kernel(plan: _Plan, has_rows: bool, *refs: Any) -> None:
    query_ref, key_ref, value_ref, cotangent_ref, *others = refs
    rows_ref = others.pop(0) if has_rows else None
    dquery_ref, dkey_ref, dvalue_ref, query, key, value, cotangent, dkey, dvalue = others
    _split(query_ref, query)
    _split(key_ref, key)
    _split(value_ref, value)
    _split(cotangent_ref, cotangent)

    def block(head: Array, start: Array) -> None:
        k = key[head]
        q = query[head, pl.ds(start, plan.block), :]
        do = cotangent[head, pl.ds(start, plan.block), :]
        powers, total = _softmax(plan, q, k, rows_ref)
        weights = powers / total
        dweights = _dot(do, value[head], 1, 1)
        mean = jnp.sum(weights * dweights, axis=1, keepdims=True)
        dscores = (weights * (dweights - mean)).astype(plan.dtype)
        dvalue[...] += _dot(weights.astype(plan.dtype), do, 0, 0)
        dkey[...] += _dot(dscores, q, 0, 0)
        query[head, pl.ds(start, plan.block), :] = (_dot(dscores, k, 1, 0) * plan.scale).astype(plan.dtype)

    def one_head(head: Array, carry: None) -> None:
        dkey[...] = jnp.zeros_like(dkey)
        dvalue[...] = jnp.zeros_like(dvalue)
        jax.lax.fori_loop(0, plan.blocks, lambda i, _: block(head, pl.multiple_of(i * plan.block, SUBLANES)), None)
        key[head] = (dkey[...] * plan.scale).astype(plan.dtype)
        value[head] = dvalue[...].astype(plan.dtype)

    jax.lax.fori_loop(0, plan.group, one_head, None)
    _merge(query, dquery_ref)
    _merge(key, dkey_ref)
    _merge(value, dvalue_ref)


def _each_block(plan: _Plan, block: Callable[[Array, Array], None]) -> None:
    """Calls `block` for each head and start of a block of queries."""

    def one(index: Array, carry: None) -> None:
        head, i = jax.lax.div(index, plan.blocks), jax.lax.rem(index, plan.blocks)
        block(head, pl.multiple_of(i * plan.block, SUBLANES))

    jax.lax.fori_loop(0, plan.group * plan.blocks, one, None)


def _softmax(plan: _Plan, q: Array, k: Array, rows_ref: Any) -> tuple[Array, Array]:
    """Returns the weights of the keys (queries, keys) before division, and their sums (queries, 1)."""
    scores = _dot(q, k, 1, 1)
    scores = scores * (plan.scale * _LOG2E if rows_ref is None else rows_ref[0, 0:1, :])
    if rows_ref is not None:
        scores = scores + rows_ref[0, 1:2, :]
    powers = jnp.exp2(scores - jnp.max(scores, axis=1, keepdims=True))
    return powers, jnp.sum(powers, axis=1, keepdims=True)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """Returns the product over an axis of each matrix, in float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    axes = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def _split(ref: Any, apart: Any) -> None:
    """Copies (1, tokens, heads * width) to (heads, padded tokens, width), with zeros for padding."""
    heads, length, width = apart.shape
    tokens = ref.shape[1]
    if length > tokens:
        whole = tokens // SUBLANES * SUBLANES
        apart[:, whole:, :] = jnp.zeros((heads, length - whole, width), apart.dtype)

    def copy(start: Any, size: int) -> None:
        for head in range(heads):
            part = ref[0, pl.ds(start, size), head * width : (head + 1) * width]
            apart[head, pl.ds(start, size), :] = part

    _each_chunk(tokens, copy)


def _merge(apart: Any, ref: Any) -> None:
    """Copies (heads, padded tokens, width) to (1, tokens, heads * width)."""
    heads, _, width = apart.shape

    def copy(start: Any, size: int) -> None:
        for head in range(heads):
            ref[0, pl.ds(start, size), head * width : (head + 1) * width] = apart[head, pl.ds(start, size), :]

    _each_chunk(ref.shape[1], copy)


def _each_chunk(tokens: int, copy: Callable[[Any, int], None]) -> None:
    """Calls `copy` with the start and the size of each chunk of rows; all but the last share their code."""
    count, rest = divmod(tokens, _CHUNK_ROWS)
    if count:
        jax.lax.fori_loop(0, count, lambda i, _: copy(pl.multiple_of(i * _CHUNK_ROWS, _CHUNK_ROWS), _CHUNK_ROWS), None)
    if rest:
        copy(count * _CHUNK_ROWS, rest)
