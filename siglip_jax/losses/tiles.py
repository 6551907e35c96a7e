"""The sum over all pairs of the sigmoid loss, computed one tile of logits at a time.

Gradients are computed in the same pass as the value, with three matrix products per tile: the backward pass recomputes
nothing, and memory grows with the embeddings and not with the pairs. Over a mesh axis the texts are passed around the
ring of devices together with their gradients so far (section 3.3 of Zhai et al. 2023, arXiv 2303.15343); nothing is
gathered.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

Carry = TypeVar("Carry")
Result = TypeVar("Result")
AxisName = str | tuple[str, ...]
BlockSize = int | str | None

# Rows and columns of a tile of logits with block_size="auto".
TILE = 8192  # on an accelerator: 256 MiB in float32, matrices that keep it busy
CPU_TILE = 1024  # such a tile stays in the cache


class Gradients(NamedTuple):
    """Gradients of the sum; the first three lack the factor exp(logit_scale)."""

    images: Float[Array, "images embedding"]
    texts: Float[Array, "texts embedding"]
    scale: Float[Array, ""]
    bias: Float[Array, ""]


class Pairs(NamedTuple):
    """Embeddings to compare, with temperature and bias; an image and a text of the same group of any kind match."""

    images: Float[Array, "images embedding"]
    texts: Float[Array, "texts embedding"]
    image_groups: Int[Array, "images ..."]
    text_groups: Int[Array, "texts ..."]
    scale: Float[Array, ""]
    bias: Float[Array, ""]


def with_tile_size(
    block_size: BlockSize,
    most: int,
    compute: Callable[..., Result],
    *args: Any,
    auto: tuple[int, int] = (CPU_TILE, TILE),
) -> Result:
    """Returns `compute(size, *args)` for the rows and columns of a tile, at most `most`.

    With "auto" the size is that of the platform that the program is lowered for.

    Args:
      block_size: rows and columns of a tile; None: a single tile; "auto": one of `auto`.
      most: largest size of use.
      compute: function of the size and of arrays.
      *args: trees of arrays.
      auto: sizes for "auto", on a CPU and elsewhere.

    Raises:
      ValueError: if the block size is not None, "auto" or a positive integer.
    """
    if block_size is None:
        return compute(most, *args)
    if block_size == "auto":
        on_cpu, elsewhere = (min(size, most) for size in auto)
        if on_cpu == elsewhere:
            return compute(on_cpu, *args)
        either = {"cpu": functools.partial(compute, on_cpu), "default": functools.partial(compute, elsewhere)}
        return lax.platform_dependent(*args, **either)
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f'block_size must be None, "auto" or an integer of at least 1, got {block_size!r}')
    return compute(min(block_size, most), *args)


def make_pairs(
    image_embeds: ArrayLike,
    text_embeds: ArrayLike,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike,
    image_groups: ArrayLike | None,
    text_groups: ArrayLike | None,
) -> Pairs:
    """Returns checked arrays of a common dtype; without groups, pairs match by row.

    Raises:
      ValueError: if shapes do not fit each other, or only one of both groups is given.
    """
    images, texts = jnp.asarray(image_embeds), jnp.asarray(text_embeds)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1] or 0 in images.shape + texts.shape:
        raise ValueError(
            "embeddings must be (images, width) and (texts, width) of one width, at least one of each, got"
            f" {images.shape} and {texts.shape}"
        )
    if (image_groups is None) != (text_groups is None):
        given = "image_groups" if text_groups is None else "text_groups"
        raise ValueError(f"image_groups and text_groups must be given together, got only {given}")
    if image_groups is None or text_groups is None:
        if len(images) != len(texts):
            raise ValueError(
                f"texts must be as many as images to match by row, got {len(images)} images and {len(texts)} texts;"
                " pass image_groups and text_groups for other matches"
            )
        image_groups = text_groups = jnp.arange(len(images))
    groups = jnp.asarray(image_groups), jnp.asarray(text_groups)
    for name, x, ids in (("image", images, groups[0]), ("text", texts, groups[1])):
        if ids.shape[:1] != x.shape[:1] or ids.ndim > 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"{name}_groups must be an integer for each of the {len(x)} {name}s, got shape {ids.shape} of"
                f" {ids.dtype}"
            )
    if groups[0].shape[1:] != groups[1].shape[1:]:
        raise ValueError(
            f"image_groups and text_groups must have as many columns, got {groups[0].shape} and {groups[1].shape}"
        )
    common = common_dtype(images.dtype, texts.dtype)
    sums = common_dtype(common, jnp.float32)
    scale, bias = (jnp.asarray(x, sums).reshape(()) for x in (logit_scale, logit_bias))
    return Pairs(images.astype(common), texts.astype(common), *groups, scale, bias)


def common_dtype(*dtypes: DTypeLike) -> Any:
    """Returns the dtype to which all dtypes promote, also under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def signed_loss(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns −log σ(−z) = log(1 + exp(z)) without overflow, and without cancellation where it is tiny."""
    return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


def matching(image_groups: Int[Array, "images ..."], text_groups: Int[Array, "texts ..."]) -> Array:
    """Returns whether each pair matches, (images, texts): in any column if the groups have several."""
    match = image_groups[:, None] == text_groups[None, :]
    return match if match.ndim == 2 else match.any(axis=2)


@functools.partial(jax.jit, static_argnames=("block_size", "axis_name"))
def sum_over_pairs(pairs: Pairs, block_size: BlockSize, axis_name: AxisName | None = None) -> Float[Array, ""]:
    """Returns the sum over all pairs of −log σ(±logit), + for those that match.

    Args:
      pairs: embeddings to compare.
      block_size: rows and columns of a tile of logits.
      axis_name: axis of `shard_map` or `pmap` over which images and texts are sharded. The sum is then over the images
        of this device and the texts of all, and the gradients are those of the total of the sums of all devices.
    """
    # A zero that varies over the axes of a mesh as the sums do: `shard_map` requires loops to keep such types.
    one_of_each = (x.reshape(-1)[0].astype(pairs.scale.dtype) for x in pairs)
    nothing = jnp.zeros_like(functools.reduce(jnp.add, one_of_each))
    if axis_name is not None:
        nothing += (lax.axis_index(axis_name) * 0).astype(nothing.dtype)
    return _sum_over_pairs(axis_name, block_size, jax.tree.map(lambda x: x + nothing.astype(x.dtype), pairs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_pairs(axis_name: AxisName | None, block_size: BlockSize, pairs: Pairs) -> Float[Array, ""]:
    return _ring(axis_name, block_size, pairs, False)[0]


def _forward(axis_name: AxisName | None, block_size: BlockSize, pairs: Pairs) -> tuple[Array, tuple[Pairs, Gradients]]:
    value, gradients = _ring(axis_name, block_size, pairs, True)
    assert gradients is not None
    return value, (pairs, gradients)


def _backward(
    axis_name: AxisName | None, block_size: BlockSize, kept: tuple[Pairs, Gradients], cotangent: Array
) -> tuple[Pairs]:
    pairs, d = kept
    if axis_name is not None:
        # The gradients of the texts already sum the shares of all devices with equal weights; other weights yield NaN.
        least, most = -lax.pmax(-cotangent, axis_name), lax.pmax(cotangent, axis_name)
        cotangent = jnp.where(least == most, cotangent, jnp.nan)
    by_scale = cotangent * jnp.exp(pairs.scale)
    return (
        Pairs(
            images=(by_scale * d.images).astype(pairs.images.dtype),
            texts=(by_scale * d.texts).astype(pairs.texts.dtype),
            image_groups=None,  # type: ignore[bad-argument-type]  # integers have no gradient
            text_groups=None,  # type: ignore[bad-argument-type]
            scale=by_scale * d.scale,
            bias=cotangent * d.bias,
        ),
    )


_sum_over_pairs.defvjp(_forward, _backward)


def _ring(
    axis_name: AxisName | None, block_size: BlockSize, pairs: Pairs, with_gradients: bool
) -> tuple[Array, Gradients | None]:
    """Returns the sum over the images of this device and the texts of each device in turn, and its gradients."""
    most = max(len(pairs.images), len(pairs.texts))
    ring = functools.partial(_ring_of_tiles, axis_name, with_gradients)
    return with_tile_size(block_size, most, ring, pairs)


def _ring_of_tiles(
    axis_name: AxisName | None, with_gradients: bool, size: int, pairs: Pairs
) -> tuple[Array, Gradients | None]:
    count = 1 if axis_name is None else lax.axis_size(axis_name)
    if axis_name is None or count == 1:
        return _tiles(size, pairs, with_gradients)
    onwards = functools.partial(lax.ppermute, axis_name=axis_name, perm=[(i, (i + 1) % count) for i in range(count)])

    def pass_on(so_far: Any) -> Any:
        value, d = so_far
        return value, None if d is None else d._replace(texts=onwards(d.texts))

    def compare(texts: Any) -> Any:
        return _tiles(size, pairs._replace(texts=texts[0], text_groups=texts[1]), with_gradients)

    def step(_: Any, carry: Any) -> Any:
        # The products do not depend on the transfers before them, which can therefore overlap with them.
        texts, so_far = carry
        following, so_far = jax.tree.map(onwards, texts), pass_on(so_far)
        return following, jax.tree.map(jnp.add, compare(texts), so_far)

    texts = (pairs.texts, pairs.text_groups)
    following = jax.tree.map(onwards, texts)
    texts, so_far = lax.fori_loop(1, count - 1, step, (following, compare(texts)))
    so_far = pass_on(so_far)
    return pass_on(jax.tree.map(jnp.add, compare(texts), so_far))  # back to the device of the texts


def _tiles(size: int, pairs: Pairs, with_gradients: bool) -> tuple[Array, Gradients | None]:
    """Returns the sum over all tiles and its gradients."""
    p = pairs
    dtype = p.scale.dtype
    product = functools.partial(jnp.matmul, precision="highest", preferred_element_type=dtype)
    scale = jnp.exp(p.scale)
    zeros = [jnp.zeros_like(x, dtype) for x in (p.images, p.texts)] if with_gradients else []
    # Value and derivatives by scale and bias: sums of many terms, whose rounding errors are kept beside them.
    sums = jnp.zeros_like(jnp.stack([p.scale] * (3 if with_gradients else 1)))

    def tile(carry: tuple[Array, Array, list[Array]], row: Any, rows: int, column: Any, columns: int) -> Any:
        sums, lost, gradients = carry
        images, image_groups = (lax.dynamic_slice_in_dim(x, row, rows) for x in (p.images, p.image_groups))
        texts, text_groups = (lax.dynamic_slice_in_dim(x, column, columns) for x in (p.texts, p.text_groups))
        similarity = product(images, texts.T)
        match = matching(image_groups, text_groups)
        logits = similarity * scale + p.bias
        z = jnp.where(match, -logits, logits)
        new = [jnp.sum(signed_loss(z))]
        if with_gradients:
            slope = jax.nn.sigmoid(z)
            slope = jnp.where(match, -slope, slope)  # derivative of the sum by each logit
            factor = slope.astype(images.dtype)
            of_images, of_texts = gradients
            of_images = _add_rows(of_images, row, product(factor, texts))
            of_texts = _add_rows(of_texts, column, product(factor.T, images))
            gradients = [of_images, of_texts]
            new += [jnp.sum(slope * similarity), jnp.sum(slope)]
        return (*_compensated(sums, lost, jnp.stack(new)), gradients)

    def columns_of(carry: Any, row: Any, rows: int) -> Any:
        return _each(len(p.texts), size, lambda c, start, columns: tile(c, row, rows, start, columns), carry)

    sums, lost, gradients = _each(len(p.images), size, columns_of, (sums, jnp.zeros_like(sums), zeros))
    value, *of_scalars = sums + lost
    return value, Gradients(*gradients, *of_scalars) if with_gradients else None


def _compensated(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """Adds a term by Neumaier's summation: `total` + `lost` is the sum to twice the precision."""
    new = total + term
    of_term = (total - new) + term
    of_total = (term - new) + total
    return new, lost + jnp.where(jnp.abs(total) >= jnp.abs(term), of_term, of_total)


def _add_rows(total: Array, start: Any, part: Array) -> Array:
    """Returns an array with `part` added to its rows from `start` on."""
    old = lax.dynamic_slice_in_dim(total, start, len(part))
    return lax.dynamic_update_slice_in_dim(total, old + part, start, 0)


def _each(count: int, size: int, body: Callable[[Carry, Any, int], Carry], carry: Carry) -> Carry:
    """Runs `body(carry, start, length)` over blocks of `size`, and over the remainder."""
    full, rest = divmod(count, size)
    if full == 1:
        carry = body(carry, 0, size)
    elif full:
        carry = lax.fori_loop(0, full, lambda i, c: body(c, i * size, size), carry)
    return body(carry, full * size, rest) if rest else carry
