"""A module with the signature, parameters and outputs of big_vision's `two_towers`, over this package's encoder."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from siglip_jax._checks import check_choice
from siglip_jax.checkpoints.keymap import TEXT
from siglip_jax.checkpoints.table import check_names_and_shapes
from siglip_jax.configs.configuration import SiglipTextConfig
from siglip_jax.interop.module import _REMAT, _decode, big_vision_module
from siglip_jax.interop.trees import pairs
from siglip_jax.models.encoder import Embedding, Encoder, LayerNorm, Options
from siglip_jax.params import Shape, flatten, unflatten

_MODELS = {"image_model": "vit", "text_model": "proj.image_text.text_transformer"}
_POOLS = {
    "last": lambda x: x[:, -1],
    "first": lambda x: x[:, 0],
    "mean": lambda x: x.mean(axis=1),
    "gap": lambda x: x.mean(axis=1),
    "max": lambda x: x.max(axis=1),
    "gmp": lambda x: x.max(axis=1),
}


class TextTrunk(nn.Module):
    """The text tower between its embeddings and its head; returns the tokens and all hidden states."""

    config: SiglipTextConfig
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> tuple[Array, tuple[Array, ...]]:
        x, states, _ = Encoder(self.config, self.options, name="encoder")(x, None, True)
        norm = LayerNorm(self.config.layer_norm_eps, name="final_layer_norm", **self.options.types)
        return norm(x), states or ()


class BigVisionText(nn.Module):
    """The text tower `_Model` of big_vision's `models/proj/image_text/text_transformer.py`, in float32.

    Its fields are theirs; `pool_type="map"` and `dropout` are refused, which no SigLIP has.
    """

    num_classes: int | None
    width: int = 512
    depth: int = 12
    mlp_dim: int = 2048
    num_heads: int = 8
    vocab_size: int = 32_000
    pool_type: str = "last"
    scan: bool = False
    remat_policy: str = "nothing_saveable"
    attn_implementation: str = "auto"

    @nn.compact
    def __call__(self, text: ArrayLike, *, train: bool = False) -> tuple[Array, dict[str, Any]]:
        check_choice("pool_type", self.pool_type, tuple(_POOLS))
        check_choice("remat_policy", self.remat_policy, tuple(_REMAT))
        text = jnp.asarray(text)
        config = SiglipTextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=self.mlp_dim,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
            max_position_embeddings=text.shape[1],
        )
        options = Options(
            attn_implementation=self.attn_implementation,
            remat=_REMAT[self.remat_policy] if self.scan else None,
            scan_layers=self.scan,
        )
        every = pairs(config, [TEXT] if self.scan else [], {"prefix": "", "roots": {TEXT: ""}})
        every = [pair for pair in every if not pair.path.startswith((f"{TEXT}/embeddings/", f"{TEXT}/head/"))]
        trunk = TextTrunk(config, options, parent=None)
        if self.is_initializing():
            x = jnp.zeros((1, text.shape[1], self.width))
            ours = flatten({TEXT: trunk.init(self.make_rng("params"), x)["params"]})
            tree = unflatten({pair.key: ours[pair.path].reshape(pair.key_shape) for pair in every})
            self.param("Encoder_0", lambda _: tree["Encoder_0"])
        shapes = {pair.key: pair.key_shape for pair in every}
        flat = flatten({"Encoder_0": self.variables["params"]["Encoder_0"]})
        check_names_and_shapes("the tree of parameters", shapes, {key: jnp.shape(x) for key, x in flat.items()})

        embed = Embedding(self.vocab_size, self.width, _spread(self.width), name="Embed_0")
        x = embedded = embed(text)
        positions = self.param("pos_embedding", _spread(self.width), (1, *x.shape[1:]))
        params = unflatten({pair.path: flat[pair.key].reshape(pair.shape) for pair in every})[TEXT]
        found: Any = trunk.apply({"params": params}, x + positions)
        x, states = found
        out: dict[str, Any] = {f"block{i:02d}": {"+mlp": block} for i, block in enumerate(states[1:])}
        out |= {"embedded": embedded, "transformed": x, "pre_ln": states[-1]}
        out["vocab_logits"] = x @ jnp.asarray(embed.embedding).T
        x = out["pre_logits"] = _POOLS[self.pool_type](x)
        if self.num_classes:
            x = out["logits"] = nn.Dense(self.num_classes, name="head")(x)
        return x, out


def _spread(width: int) -> Any:
    return nn.initializers.normal(stddev=width**-0.5)


def _text(num_classes: int | None, *, variant: str | None = None, **fields: Any) -> BigVisionText:
    """Returns the text tower of a variant."""
    if dropout := fields.pop("dropout", None):
        raise ValueError(f"dropout must be off, got {dropout}; this encoder has none")
    return BigVisionText(num_classes, **{**_decode(variant), **fields})


class BigVisionTwoTowers(nn.Module):
    """A module in the place of big_vision's `two_towers.Model`, with the same fields, parameters and results.

    The parameters are the tree that `to_big_vision` returns, {"img": …, "txt": …, "t": …, "b": …}.

    Source: `Model` of big_vision's `models/proj/image_text/two_towers.py`.

    Attributes:
      image: arguments of `big_vision_module` for the image tower, as {"variant": "B/16", "pool_type": "map"}.
      text: sizes of the text tower: `variant` as in "B", or `width`, `depth`, `mlp_dim` and `num_heads`; further
        `vocab_size`, `pool_type` ("last", "first", "mean" or "max"), `scan` and `remat_policy`.
      text_model: module of the text tower, of which there is one here.
      image_model: module of the image tower, of which there is one here.
      out_dim: width of the final linear layers, or that of the image tower and that of the text tower; None: a tower
        has no such layer. All published SigLIPs have (None, width of the image tower).
      temperature_init: initial temperature; the parameter `t` is its logarithm.
      bias_init: initial bias of the sigmoid loss; None: there is no parameter `b`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> image, text = {"variant": "mu/16", "pool_type": "map"}, {"variant": "mu", "vocab_size": 100}
      >>> model = BigVisionTwoTowers(image, text, out_dim=(None, 32), temperature_init=10.0, bias_init=-10.0)
      >>> inputs = jnp.zeros((2, 32, 32, 3)), jnp.ones((3, 16), int)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
      >>> zimg, ztxt, out = jax.eval_shape(model.apply, variables, *inputs)
      >>> zimg.shape, ztxt.shape, sorted(variables["params"])
      ((2, 32), (3, 32), ['b', 'img', 't', 'txt'])
    """

    image: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None
    text_model: str = _MODELS["text_model"]
    image_model: str = _MODELS["image_model"]
    out_dim: int | tuple[int | None, int | None] = 128
    temperature_init: float = 1.0
    bias_init: float | None = None

    @nn.compact
    def __call__(
        self, image: ArrayLike | None, text: ArrayLike | None = None, **kw: Any
    ) -> tuple[Array | None, Array | None, dict[str, Any]]:
        """Embeds images and texts.

        Args:
          image: (images, height, width, channels) floating point, in the range [-1, 1]; None: only texts.
          text: (texts, tokens) ids; None: only images.
          **kw: `train`, which is ignored: there is no dropout.

        Returns:
          The normalised embeddings of the images and of the texts, each None without inputs, and `out`: intermediate
          arrays of the towers as "img/…" and "txt/…", "img/norm", "img/normalized", the temperature "t", its logarithm
          "t/parameter", and with `bias_init` the bias "b".

        Raises:
          ValueError: if a field has an unknown value, or the parameters are not those of this module.
        """
        for name, known in _MODELS.items():
            check_choice(name, getattr(self, name), (known,))
        dims = self.out_dim if isinstance(self.out_dim, tuple) else (self.out_dim, self.out_dim)
        out: dict[str, Any] = {}

        def embed(name: str, make: Any, classes: int | None, fields: Any, inputs: Any) -> Array | None:
            if inputs is None:
                return None
            x, found = make(**{"num_classes": classes, "name": name, **dict(fields or {})})(inputs, **kw)
            out.update({f"{name}/{key}": value for key, value in found.items()})
            norm = out[f"{name}/norm"] = jnp.linalg.norm(x, axis=1, keepdims=True)
            out[f"{name}/normalized"] = x = x / (norm + 1e-8)
            return x

        ztxt = embed("txt", _text, dims[1], self.text, text)
        zimg = embed("img", big_vision_module, dims[0], self.image, image)
        start: Shape = (1,)
        out["t/parameter"] = self.param("t", lambda _: jnp.full(start, jnp.log(self.temperature_init)))
        out["t"] = jnp.exp(out["t/parameter"])
        if self.bias_init is not None:
            out["b"] = self.param("b", lambda _: jnp.full(start, self.bias_init, jnp.float32))
        return zimg, ztxt, out
