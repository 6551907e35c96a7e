"""A module with the signature, parameters and outputs of big_vision's and openpi's image tower, over this encoder.

Its parameters are one tree with their names and shapes, so that their checkpoints and their code, which restores,
freezes and shards by name, apply as they are.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from siglip_jax.checkpoints.keymap import VISION
from siglip_jax.checkpoints.table import check_names_and_shapes
from siglip_jax.configs.configuration import SiglipVisionConfig
from siglip_jax.interop.trees import Pair, pairs
from siglip_jax.models.encoder import Options
from siglip_jax.models.outputs import TowerOutput
from siglip_jax.models.positions import sincos_positions
from siglip_jax.models.vision import ImageTransformer
from siglip_jax.params import Shape, flatten, unflatten

# Width, layers, width of the MLP and heads (big_vision, `decode_variant`; arXiv 2106.04560, table 2).
SIZES = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}
POOL_TYPES = ("map", "gap", "0", "none")
# Their names of the policies, which they use with `scan` only.
_REMAT = {
    "nothing_saveable": "full",
    "dots_saveable": "dots",
    "dots_with_no_batch_dims_saveable": "dots_with_no_batch_dims",
}


class Trunk(ImageTransformer):
    """The image tower without its embeddings."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch patches width"]) -> TowerOutput:
        return self.transform(x, None, True, False, True)


class BigVisionModule(nn.Module):
    """The image tower of big_vision and openpi; `big_vision_module` makes one of a variant.

    Parameters: `embedding`, `pos_embedding`, `Transformer`, and where there is one `MAPHead_0` and `head`, as in
    `models/vit.py` of big_vision and `models/siglip.py` of openpi. As in openpi, patches are embedded in float32 and
    everything after that is in `dtype_mm`, also the result; layer norms are computed in float32.

    Source: `_Model` of big_vision's `models/vit.py`; `_Module` of openpi's `models/siglip.py`.

    Attributes:
      num_classes: width of the final linear layer; None: there is none.
      patch_size: rows and columns of a patch in pixels.
      width: width of the tower.
      depth: number of layers.
      mlp_dim: width of the MLPs; None: four times `width`.
      num_heads: number of attention heads.
      posemb: "learn", a table of one size, or "sincos2d", which has no parameters.
      pool_type: "map" (pooling head), "gap" (mean), "0" (first patch) or "none" (all patches).
      head_zeroinit: whether the final layer starts at zero.
      scan: whether the layers are stacked and run by `lax.scan`, each recomputed in the backward pass.
      remat_policy: with `scan`, what is kept for the backward pass: "nothing_saveable", "dots_saveable" or
        "dots_with_no_batch_dims_saveable".
      dtype_mm: compute dtype after the embeddings.
      attn_implementation: as in `SiglipVisionModel`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> module = BigVisionModule(num_classes=5, patch_size=(8, 8), width=32, depth=2, num_heads=2)
      >>> images = jnp.zeros((2, 16, 24, 3))
      >>> variables = jax.eval_shape(module.init, jax.random.key(0), images)
      >>> x, out = jax.eval_shape(module.apply, variables, images)
      >>> x.shape, out["pre_logits_2d"].shape
      ((2, 5), (2, 2, 3, 32))
    """

    num_classes: int | None = None
    patch_size: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    mlp_dim: int | None = None
    num_heads: int = 12
    posemb: str = "learn"
    pool_type: str = "gap"
    head_zeroinit: bool = True
    scan: bool = False
    remat_policy: str = "nothing_saveable"
    dtype_mm: str = "float32"
    attn_implementation: str = "auto"

    @nn.compact
    def __call__(self, image: ArrayLike, *, train: bool = False) -> tuple[Array, dict[str, Any]]:
        """Encodes images.

        Args:
          image: (images, height, width, channels) floating point, in the range [-1, 1]. Pixels beyond a whole number of
            patches are dropped.
          train: ignored; there is no dropout.

        Returns:
          The result, and intermediate arrays by their names in big_vision: "stem", "with_posemb", "encoder" (of each
          block "+mlp", its output, and "pre_ln", that of the last), "encoded", "head_input", "pre_logits_2d",
          "pre_logits", and with `num_classes` "logits_2d" and "logits". The result is (images, width), or with
          `pool_type="none"` (images, patches, width); the width is `num_classes` if given.

        Raises:
          ValueError: if a field has an unknown value, or the parameters are not those of this module.
        """
        dtype = jnp.dtype(self.dtype_mm)
        image = jnp.asarray(image, jnp.float32)
        grid = image.shape[1] // self.patch_size[0], image.shape[2] // self.patch_size[1]
        trunk, every = self._trunk()
        embed = nn.Conv(self.width, self.patch_size, self.patch_size, "VALID", dtype=jnp.float32, parent=None)
        final = nn.Dense(
            self.num_classes or 1,
            dtype=dtype,
            kernel_init=nn.initializers.zeros if self.head_zeroinit else nn.initializers.lecun_normal(),
            parent=None,
        )
        if self.is_initializing():
            self._create(image[:1], trunk, every, embed, final)
        tree = self.variables["params"]
        channels, classes = image.shape[3], self.num_classes
        shapes = {pair.key: pair.key_shape for pair in every}
        shapes |= {"embedding/kernel": (*self.patch_size, channels, self.width), "embedding/bias": (self.width,)}
        if self.posemb == "learn":
            shapes["pos_embedding"] = (1, grid[0] * grid[1], self.width)
        if classes:
            shapes |= {"head/kernel": (self.width, classes), "head/bias": (classes,)}
        flat = flatten(tree)
        check_names_and_shapes("the tree of parameters", shapes, {key: jnp.shape(x) for key, x in flat.items()})

        out: dict[str, Any] = {}
        x: Any = embed.apply({"params": tree["embedding"]}, image)
        out["stem"] = x
        positions = tree["pos_embedding"] if self.posemb == "learn" else sincos_positions(grid, self.width)[None]
        x = out["with_posemb"] = x.reshape(len(x), -1, self.width) + positions.astype(jnp.float32)
        params = unflatten({pair.path: flat[pair.key].reshape(pair.shape) for pair in every})[VISION]
        found: Any = trunk.apply({"params": params}, x.astype(dtype))
        blocks = found.hidden_states[1:]
        out["encoder"] = {f"block{i:02d}": {"+mlp": block} for i, block in enumerate(blocks)}
        out["encoder"]["pre_ln"] = found.hidden_states[-1]
        x = out["encoded"] = found.last_hidden_state
        x_2d = x.reshape(len(x), *grid, self.width)
        if self.pool_type != "none":
            pooled = {"map": found.pooler_output, "gap": jnp.mean(x, axis=1), "0": x[:, 0]}[self.pool_type]
            x = out["head_input"] = pooled
        out["pre_logits_2d"], out["pre_logits"] = x_2d, x
        if classes:
            x_2d = out["logits_2d"] = final.apply({"params": tree["head"]}, x_2d)
            x = out["logits"] = final.apply({"params": tree["head"]}, x)
        return x, out

    def _trunk(self) -> tuple[Trunk, list[Pair]]:
        """Returns the tower after its embeddings, and its parameters in both trees."""
        for name, value, known in (
            ("pool_type", self.pool_type, POOL_TYPES),
            ("posemb", self.posemb, ("learn", "sincos2d")),
            ("remat_policy", self.remat_policy, tuple(_REMAT)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}; use the module it was trained with")
        config = SiglipVisionConfig(
            hidden_size=self.width,
            intermediate_size=self.mlp_dim or 4 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
            vision_use_head=self.pool_type == "map",
        )
        options = Options(
            dtype=jnp.dtype(self.dtype_mm),
            attn_implementation=self.attn_implementation,
            remat=_REMAT[self.remat_policy] if self.scan else None,
            scan_layers=self.scan,
        )
        layout = {"prefix": "", "roots": {VISION: ""}}
        every = pairs(config, [VISION] if self.scan else [], layout)
        every = [pair for pair in every if not pair.path.startswith(f"{VISION}/embeddings/")]
        return Trunk(config, options, parent=None), every

    def _create(self, image: Array, trunk: Trunk, every: list[Pair], embed: nn.Conv, final: nn.Dense) -> None:
        """Creates the parameters, with the initialisers of big_vision."""
        x, embedding = embed.init_with_output(self.make_rng("params"), image)
        patches = x.shape[1] * x.shape[2]
        x = x.reshape(1, patches, self.width).astype(self.dtype_mm)
        ours = flatten({VISION: trunk.init(self.make_rng("params"), x)["params"]})
        theirs = unflatten({pair.key: ours[pair.path].reshape(pair.key_shape) for pair in every})
        theirs["embedding"] = embedding["params"]
        if self.posemb == "learn":
            shape: Shape = (1, patches, self.width)
            theirs["pos_embedding"] = jax.random.normal(self.make_rng("params"), shape) / self.width**0.5
        if self.num_classes:
            theirs["head"] = final.init(self.make_rng("params"), x)["params"]
        for name, subtree in theirs.items():
            self.param(name, lambda _, subtree=subtree: subtree)


def big_vision_module(num_classes: int | None = None, *, variant: str | None = None, **fields: Any) -> BigVisionModule:
    """Returns a module in the place of big_vision's `vit.Model` and openpi's `siglip.Module`.

    Code that calls these calls this function with the same arguments; names and shapes of parameters, results and `out`
    are theirs, and checkpoints of PaliGemma and pi0 are restored into it as into their own.

    Source: `Model` of big_vision's `models/vit.py`; `Module` of openpi's `models/siglip.py`.

    Args:
      num_classes: width of the final linear layer, as the width of the language model; None: there is none.
      variant: sizes, and the patch size in pixels, as in "So400m/14" or "B"; None: those of `fields`.
      fields: further fields of `BigVisionModule`, which win over the variant: `pool_type`, `scan`, `dtype_mm`, …. Their
        `dropout` and `rep_size` must be off.

    Returns:
      The module; `module.apply({"params": params}, images, train=False)` returns `(x, out)`.

    Raises:
      ValueError: if the variant is unknown, or an option is on that this encoder does not have.

    Example:
      The image tower of pi0:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> module = big_vision_module(2048, variant="So400m/14", pool_type="none", scan=True, dtype_mm="bfloat16")
      >>> images = jnp.zeros((1, 224, 224, 3))
      >>> variables = jax.eval_shape(module.init, jax.random.key(0), images)
      >>> x, out = jax.eval_shape(module.apply, variables, images)
      >>> x.shape, x.dtype.name, sorted(variables["params"])
      ((1, 256, 2048), 'bfloat16', ['Transformer', 'embedding', 'head', 'pos_embedding'])
    """
    for name in ("dropout", "rep_size"):
        if value := fields.pop(name, None):
            raise ValueError(f"{name} must be off, got {value}; this encoder has none")
    if "patch_size" in fields:
        fields["patch_size"] = tuple(fields["patch_size"])
    return BigVisionModule(num_classes, **{**_decode(variant), **fields})


def _decode(variant: str | None) -> Mapping[str, Any]:
    """Returns the fields of a variant such as "B" or "B/32"."""
    if variant is None:
        return {}
    name, slash, patch = variant.partition("/")
    if name not in SIZES or slash and not patch.isdecimal():
        raise ValueError(f"variant must be one of {', '.join(SIZES)}, with a patch size as in B/16, got {variant!r}")
    found = dict(zip(("width", "depth", "mlp_dim", "num_heads"), SIZES[name], strict=True))
    return found | ({"patch_size": (int(patch),) * 2} if slash else {})
