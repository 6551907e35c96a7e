"""The cross-entropy of a caption decoder over a large vocabulary, one block of logits at a time.

Two passes over blocks of the vocabulary: the first finds the sum that the softmax of each token divides by, with a
maximum that is corrected on the way, the second makes the gradients. A block of the table's gradient is complete after
one product over all tokens, so it is written once. Gradients are made together with the value, with four matrix
products in all, and the backward pass only scales them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from siglip_jax.losses.sigmoid import check_axis
from siglip_jax.losses.tiles import (
    CPU_TILE,
    TILE,
    AxisName,
    BlockSize,
    _each,
    common_dtype,
    signed_loss,
    with_tile_size,
)

_LEAST = 256  # rows of a block with block_size="auto": fewer would not keep a device busy


def captioning_loss(
    states: Float[Array, "examples tokens width"],
    table: Float[Array, "vocabulary width"],
    targets: Int[Array, "examples tokens"],
    weights: Float[Array, "examples tokens"] | None = None,
    *,
    block_size: BlockSize = None,
    mesh: Mesh | None = None,
    axis: AxisName = "data",
) -> Float[Array, ""]:
    """Returns the weighted sum over tokens of the cross-entropy of `states @ table.T` with the target of each token.

    Gradients are computed together with the value. With a block size no array of logits is larger than (tokens of a
    device, rows of a block), and no temporary grows with the vocabulary; the gradient of the table is the only result
    that does. Products have the dtype of the states, to which blocks of the table are rounded; logits, sums and
    gradients are float32. A cross-entropy keeps its digits where it is tiny. `jax.jvp` is not supported.

    The gradient of the weights is the cross-entropy of each token.

    Source: Wan et al. 2024, arXiv 2403.19596 (LocCa); Tschannen et al. 2023, arXiv 2306.07915 (CapPa).

    Args:
      states: outputs of the decoder, (examples, tokens, width).
      table: one row for each token of the vocabulary, (vocabulary, width), as the table of the decoder's inputs.
      targets: id of the token that each state predicts, (examples, tokens) integers from 0 to vocabulary - 1; any
        other id must have the weight 0.
      weights: factor of the cross-entropy of each token, (examples, tokens); None: 1 / (examples * tokens), which makes
        the value a mean.
      block_size: rows of the table of which logits are in memory at a time; None: all logits at once; "auto": a number
        that suits the kind of device.
      mesh: mesh over whose `axis` states, targets and weights are sharded by example; each device needs the whole
        table, whose gradient is summed over the devices once. None: the loss is computed without `shard_map`.
      axis: axis of the mesh over which the batch is sharded; a tuple for several, as in `("data", "fsdp")`.

    Returns:
      A float32 scalar; NaN if a target that is being traced is outside the table and its weight is not 0.

    Raises:
      ValueError: if shapes do not fit each other, a target whose value is known is outside the table, or the examples
        are not a multiple of the devices along `axis`.

    Example:
      >>> states = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]]))
      >>> loss = captioning_loss(states, jnp.eye(3), jnp.array([[0, 2]]), block_size=2)
      >>> round(float(loss), 3)  # the mean of -log 0.5 and -log 0.6
      0.602
    """
    given = checked(states, table, targets, weights)
    if mesh is not None:
        check_axis(mesh, axis, examples=len(states))
    return _loss(mesh, axis, block_size, *given)


def caption_weights(input_ids: Int[Array, "texts tokens"], eos_token_id: int) -> Float[Array, "texts tokens"]:
    """Returns 1 / length for the tokens of each text up to and including its first end, and 0 for padding.

    Each row sums to 1, so the weights divided by the number of texts make the loss a mean over texts.

    Args:
      input_ids: ids of the tokens, (texts, tokens); whatever follows the first end of a text is padding.
      eos_token_id: id of the token that ends a text; a text without it counts whole.

    Returns:
      (texts, tokens) float32.
    """
    ends = input_ids == eos_token_id
    length = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, input_ids.shape[1])[:, None]
    return jnp.where(jnp.arange(input_ids.shape[1])[None] < length, 1 / length.astype(jnp.float32), 0.0)


def checked(states: ArrayLike, table: ArrayLike, targets: ArrayLike, weights: ArrayLike | None) -> tuple[Array, ...]:
    """Returns the arrays, the weights in the dtype of sums.

    Raises:
      ValueError: if shapes do not fit each other, or the value of a target is known, its weight is not 0, and it is no
        row of the table.
    """
    states, table, targets = jnp.asarray(states), jnp.asarray(table), jnp.asarray(targets)
    if states.ndim != 3 or table.ndim != 2 or states.shape[2] != table.shape[1] or 0 in states.shape + table.shape:
        raise ValueError(
            "states and table must be (examples, tokens, width) and (vocabulary, width) of one width, at least one of"
            f" each, got {states.shape} and {table.shape}"
        )
    if targets.shape != states.shape[:2] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"targets must be an integer for each state, {states.shape[:2]}, got {targets.shape} of {targets.dtype}"
        )
    sums = common_dtype(states.dtype, jnp.float32)
    weights = jnp.full(targets.shape, 1 / targets.size, sums) if weights is None else jnp.asarray(weights).astype(sums)
    if weights.shape != targets.shape:
        raise ValueError(f"weights must be a number for each target, {targets.shape}, got {weights.shape}")
    if not any(isinstance(x, jax.core.Tracer) or not x.is_fully_addressable for x in (targets, weights)):
        ids, count = np.asarray(targets), len(table)
        wrong = ids[((ids < 0) | (ids >= count)) & (np.asarray(weights) != 0)]
        if wrong.size:
            raise ValueError(
                f"targets must be 0 to {count - 1}, got {wrong[0]}; give tokens that do not count weight 0"
            )
    return states, table, targets, weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss(mesh: Mesh | None, axis: AxisName, block_size: BlockSize, *given: Array) -> Array:
    return _over_mesh(mesh, axis, block_size, False, *given)[0]


def _forward(mesh: Mesh | None, axis: AxisName, block_size: BlockSize, *given: Array) -> tuple[Array, Any]:
    value, *gradients = _over_mesh(mesh, axis, block_size, True, *given)
    states, table, *_ = given
    return value, (states, table, gradients)


def _backward(mesh: Mesh | None, axis: AxisName, block_size: BlockSize, kept: Any, cotangent: Array) -> Any:
    states, table, (of_states, of_table, of_weights) = kept
    scaled = (cotangent * of_states).astype(states.dtype), (cotangent * of_table).astype(table.dtype)
    return *scaled, None, cotangent * of_weights  # integers have no gradient


_loss.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _over_mesh(
    mesh: Mesh | None, axis: AxisName, block_size: BlockSize, with_gradients: bool, *given: Array
) -> tuple[Array, ...]:
    """Returns the value and, where asked for, the gradients of states, table and weights."""
    if mesh is None:
        return _share(None, block_size, with_gradients, *given)
    sharded, replicated = PartitionSpec(axis), PartitionSpec()
    share = functools.partial(_share, axis, block_size, with_gradients)
    out_specs = (replicated, sharded, replicated, sharded) if with_gradients else (replicated,)
    in_specs = (sharded, replicated, sharded, sharded)
    return jax.shard_map(share, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*given)


def _share(
    axis: AxisName | None,
    block_size: BlockSize,
    with_gradients: bool,
    states: Array,
    table: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, ...]:
    """Returns what the tokens of this device add to the value, and the gradients, both summed over the devices."""
    tokens = states.reshape(-1, states.shape[-1]), table, targets.reshape(-1), weights.reshape(-1)
    on_cpu, elsewhere = (max(_LEAST, tile**2 // targets.size // 128 * 128) for tile in (CPU_TILE, TILE))
    blocks = functools.partial(_blocks, with_gradients)
    value, *gradients = with_tile_size(block_size, len(table), blocks, *tokens, auto=(on_cpu, elsewhere))
    if axis is not None:
        value = lax.psum(value, axis)
    if not with_gradients:
        return (value,)
    of_states, of_table, of_weights = gradients
    if axis is not None:
        of_table = lax.psum(of_table, axis)
    return value, of_states.reshape(states.shape), of_table, of_weights.reshape(weights.shape)


def _blocks(
    with_gradients: bool, size: int, states: Array, table: Array, targets: Array, weights: Array
) -> tuple[Array, ...]:
    """Returns the value and, where asked for, the gradients, with `size` rows of the table at a time."""
    dtype = weights.dtype
    product = functools.partial(jnp.matmul, precision="highest", preferred_element_type=dtype)
    weights = jnp.where((targets >= 0) & (targets < len(table)) | (weights == 0), weights, jnp.nan)

    def logits_of(start: Any, rows: int) -> tuple[Array, Array, Array]:
        # A factor of 1 that XLA does not see through: for TPUs it would round the whole table before the loop.
        one = jnp.where(jnp.asarray(start) >= 0, 1.0, 0.0).astype(table.dtype)
        block = (lax.dynamic_slice_in_dim(table, start, rows) * one).astype(states.dtype)
        return block, product(states, block.T), targets[:, None] == start + jnp.arange(rows)[None]

    def online(carry: Any, start: Any, rows: int) -> Any:
        most, total, own = carry
        _, logits, is_own = logits_of(start, rows)
        others = jnp.where(is_own, -jnp.inf, logits)
        new = jnp.maximum(most, jnp.max(others, axis=1))
        total = total * jnp.exp(most - new) + jnp.sum(jnp.exp(others - new[:, None]), axis=1)
        return new, total, own + jnp.sum(jnp.where(is_own, logits, 0.0), axis=1)

    # The target is left out of the sum: where it is certain, log(total) - logit would have lost all digits.
    zeros = jnp.zeros_like(weights)
    lowest = jnp.full_like(weights, jnp.finfo(dtype).min)
    most, total, own = _each(len(table), size, online, (lowest, zeros, zeros))
    losses = signed_loss(most + jnp.log(total) - own)
    value = jnp.sum(weights * losses)
    if not with_gradients:
        return (value,)
    of_all = jnp.maximum(most, own)
    factor = 1 / (total * jnp.exp(most - of_all) + jnp.exp(own - of_all))
    most, factor, of_own = (x[:, None] for x in (of_all, factor, jnp.expm1(-losses)))

    def differentiate(carry: Any, start: Any, rows: int) -> Any:
        of_states, of_table = carry
        block, logits, is_own = logits_of(start, rows)
        slopes = weights[:, None] * jnp.where(is_own, of_own, jnp.exp(logits - most) * factor)
        slopes = slopes.astype(states.dtype)
        of_block = product(slopes.T, states)
        return of_states + product(slopes, block), lax.dynamic_update_slice_in_dim(of_table, of_block, start, 0)

    of_table = jnp.broadcast_to(zeros[:1, None], table.shape)  # a zero that varies over the devices as the sums do
    of_states, of_table = _each(len(table), size, differentiate, (jnp.zeros_like(states, dtype), of_table))
    return value, of_states, of_table, losses
