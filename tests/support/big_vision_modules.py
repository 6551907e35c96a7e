"""The formulae of big_vision's `two_towers`, `vit` and `text_transformer`, in plain flax.linen and nothing of ours.

Names are those that flax gives big_vision's modules, so that the tree of a published file is applied as it is.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = nn.gelu(nn.Dense(self.mlp_dim)(x))  # flax's default is the tanh approximation
        return nn.Dense(width)(x)


class Block(nn.Module):
    mlp_dim: int
    heads: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=self.heads)(y, y)
        return x + MlpBlock(self.mlp_dim)(nn.LayerNorm()(x)), None


class Encoder(nn.Module):
    depth: int
    mlp_dim: int
    heads: int
    scan: bool

    @nn.compact
    def __call__(self, x):
        if self.scan:
            stack = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=(), length=self.depth
            )
            x, _ = stack(self.mlp_dim, self.heads, name="encoderblock")(x)
        else:
            for i in range(self.depth):
                x, _ = Block(self.mlp_dim, self.heads, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
    mlp_dim: int
    heads: int

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (x.shape[0], 1, 1))
        x = nn.MultiHeadDotProductAttention(num_heads=self.heads)(probe, x)
        y = nn.LayerNorm()(x)
        return (x + MlpBlock(self.mlp_dim)(y))[:, 0]


class Image(nn.Module):
    """`vit`, with its four ways to pool and an optional final layer."""

    width: int
    depth: int
    mlp_dim: int
    heads: int
    patch: int
    scan: bool
    pool: str = "map"
    classes: int | None = None

    @nn.compact
    def __call__(self, images):
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, strides=sides, padding="VALID", name="embedding")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))
        x = Encoder(self.depth, self.mlp_dim, self.heads, self.scan, name="Transformer")(x)
        if self.pool == "map":
            x = MAPHead(self.mlp_dim, self.heads)(x)
        elif self.pool == "gap":
            x = x.mean(1)
        elif self.pool == "0":
            x = x[:, 0]
        return nn.Dense(self.classes, name="head")(x) if self.classes else x


class Text(nn.Module):
    """`text_transformer`, with `pool_type="last"`; `out` None for no head."""

    vocabulary: int
    width: int
    depth: int
    mlp_dim: int
    heads: int
    out: int | None
    scan: bool

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(self.vocabulary, self.width)(ids)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))
        x = Encoder(self.depth, self.mlp_dim, self.heads, self.scan)(x)[:, -1]
        return x if self.out is None else nn.Dense(self.out, name="head")(x)


class TwoTowers(nn.Module):
    image: FrozenDict
    text: FrozenDict

    @nn.compact
    def __call__(self, images, ids):
        """Returns the two embeddings before and after normalisation, and the logits (images, texts)."""
        image = Image(**self.image, name="img")(images)
        text = Text(**self.text, name="txt")(ids)
        zimg = image / (jnp.linalg.norm(image, axis=-1, keepdims=True) + 1e-8)
        ztxt = text / (jnp.linalg.norm(text, axis=-1, keepdims=True) + 1e-8)
        t = jnp.exp(self.param("t", nn.initializers.zeros, (1,)))
        b = self.param("b", nn.initializers.zeros, (1,))
        logits = zimg @ ztxt.T * t[None] + b[None]
        return {"image": image, "text": text, "zimg": zimg, "ztxt": ztxt, "logits": logits}


def read_tree(path):
    """The nested tree of a file as `numpy.load` gives it, old ones repaired as `text_transformer.load` does."""
    tree = {}
    with np.load(path) as file:
        for key in file:
            at = tree
            *names, leaf = key.removeprefix("params/").split("/")
            for name in names:
                at = at.setdefault(name, {})
            at[leaf] = file[key]
    if "pos_embedding" in tree["txt"]["Encoder_0"]:
        tree["txt"]["pos_embedding"] = tree["txt"]["pos_embedding"] + tree["txt"]["Encoder_0"].pop("pos_embedding")
    return tree
