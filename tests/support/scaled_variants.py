"""The released variants with their awkward proportions kept and their sizes scaled down, with random weights."""

from pathlib import Path

import ml_dtypes
import numpy as np

import siglip_jax
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.configs.variants import VARIANTS, Variant
from siglip_jax.params import unflatten

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAMES = [variant.short_name for variant in VARIANTS]


def scaled_config(variant: Variant) -> SiglipConfig:
    """A twelfth of the heads' width, two or three layers; images, patches and text lengths as released."""
    config = SiglipConfig.from_variant(variant.name)

    def smaller(tower, **more):
        heads = tower.num_attention_heads
        size = tower.hidden_size // heads // 8
        depth = 2 + (tower.num_hidden_layers > 12)
        mlp = tower.intermediate_size * size * heads // tower.hidden_size
        return tower.replace(hidden_size=size * heads, intermediate_size=mlp, num_hidden_layers=depth, **more)

    text = smaller(config.text_config, vocab_size=config.text_config.vocab_size // 1000)
    vision = smaller(config.vision_config)
    text = text.replace(projection_size=vision.hidden_size)
    return config.replace(text_config=text, vision_config=vision)


def random_checkpoint(config: SiglipConfig, dtype: np.dtype, text_head: bool = True) -> siglip_jax.Checkpoint:
    """Every parameter random, so that no two can be mixed up; an identity for a text head that was not released."""
    random = np.random.RandomState(0)
    architecture = "Siglip2Model" if config.model_type == "siglip2" else "SiglipModel"
    flat = {row.path: random.standard_normal(row.shape).astype(dtype) for row in key_table(config, architecture)}
    if not text_head:
        width = config.text_config.hidden_size
        flat["text_model/head/kernel"] = np.eye(width, dtype=dtype)
        flat["text_model/head/bias"] = np.zeros(width, dtype)
    return siglip_jax.Checkpoint(config, unflatten(flat), "huggingface", architecture)


def write_as_released(path: Path, c: siglip_jax.Checkpoint, stacked: list[str], prefix: str = "params/") -> Path:
    """Writes an .npz with `numpy.savez`, independently of the library: names and shapes of big_vision's modules."""
    tree: dict[str, np.ndarray] = {}

    def attention(p, heads):
        width = p["q_proj"]["kernel"].shape[0]
        out = {}
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            out[f"{theirs}/kernel"] = p[ours]["kernel"].reshape(width, heads, width // heads)
            out[f"{theirs}/bias"] = p[ours]["bias"].reshape(heads, width // heads)
        out["out/kernel"] = p["out_proj"]["kernel"].reshape(heads, width // heads, width)
        out["out/bias"] = p["out_proj"]["bias"]
        return out

    def mlp(p):
        names = (("fc1", "Dense_0"), ("fc2", "Dense_1"))
        return {f"{theirs}/{leaf}": p[ours][leaf] for ours, theirs in names for leaf in ("kernel", "bias")}

    def block(p, heads):
        out = {f"LayerNorm_{i}/{leaf}": p[f"layer_norm{i + 1}"][leaf] for i in (0, 1) for leaf in ("scale", "bias")}
        out |= {f"MultiHeadDotProductAttention_0/{k}": v for k, v in attention(p["self_attn"], heads).items()}
        return out | {f"MlpBlock_0/{k}": v for k, v in mlp(p["mlp"]).items()}

    def encoder(at, p, heads, norm, stack):
        blocks = [block(p["encoder"][f"layers_{i}"], heads) for i in range(len(p["encoder"]))]
        for name in blocks[0]:
            if stack:
                tree[f"{at}/encoderblock/{name}"] = np.stack([b[name] for b in blocks])
            else:
                tree.update({f"{at}/encoderblock_{i}/{name}": b[name] for i, b in enumerate(blocks)})
        tree.update({f"{at}/encoder_norm/{leaf}": p[norm][leaf] for leaf in ("scale", "bias")})

    image, text = c.params["vision_model"], c.params["text_model"]
    heads = c.config.vision_config.num_attention_heads
    tree.update({f"img/embedding/{leaf}": x for leaf, x in image["embeddings"]["patch_embedding"].items()})
    positions = image["embeddings"]["position_embedding"]["embedding"]
    square = (16, 16, -1) if c.config.model_type == "siglip2" else (1, *positions.shape)
    tree["img/pos_embedding"] = positions.reshape(square)
    encoder("img/Transformer", image, heads, "post_layernorm", "vision_model" in stacked)
    tree["img/MAPHead_0/probe"] = image["head"]["probe"]
    tree.update({f"img/MAPHead_0/LayerNorm_0/{leaf}": x for leaf, x in image["head"]["layernorm"].items()})
    tree.update({f"img/MAPHead_0/MlpBlock_0/{k}": v for k, v in mlp(image["head"]["mlp"]).items()})
    pool = attention(image["head"]["attention"], heads)
    tree.update({f"img/MAPHead_0/MultiHeadDotProductAttention_0/{k}": v for k, v in pool.items()})
    tree["txt/Embed_0/embedding"] = text["embeddings"]["token_embedding"]["embedding"]
    tree["txt/pos_embedding"] = text["embeddings"]["position_embedding"]["embedding"][None]
    encoder(
        "txt/Encoder_0", text, c.config.text_config.num_attention_heads, "final_layer_norm", "text_model" in stacked
    )
    if "head" in text:
        tree.update({f"txt/head/{leaf}": x for leaf, x in text["head"].items()})
    tree |= {"t": c.params["logit_scale"], "b": c.params["logit_bias"]}
    np.savez(path, **{f"{prefix}{name}": x for name, x in tree.items()})
    return path
