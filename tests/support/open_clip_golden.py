"""Small SigLIPs of open_clip's own, and what they compute, as golden files for tests/checkpoints/test_other_models.py.

`python -m tests.support.open_clip_golden` writes tests/golden/open_clip_*.npz anew. It needs open_clip_torch 3.3.0,
timm 1.0.31 and torchvision 0.28.0 beside torch. Install them apart from the tests' environment
(`pip install --no-deps --target`, with that directory on PYTHONPATH): `transformers` prepares images in another way
where it finds torchvision.

A file holds `config` (the JSON of open_clip's `model_cfg`), `state/…` (the state dict, of values that float16 holds
exactly), the inputs `ids` and `pixels` (images, channel, height, width), and what open_clip computes in float64.
"""

import functools
import importlib
import json
import sys
import warnings

import numpy as np

from tests.support.cases import GOLDEN

SIDE = 64
# timm's models of these names, made smaller; timm computes the exact GELU in the first, the approximation in the other.
TOWERS = {
    "vit_base_patch16_siglip_64": {"mlp_ratio": 2.0},
    "vit_so400m_patch16_siglip_64": {"mlp_ratio": 3.7362, "act_layer": "gelu_tanh"},
}
SIZES = {"base": (48, 2, 96, 4), "so400m": (48, 2, 179, 4)}  # width, depth, MLP, heads
# SigLIP 1 and 2 as open_clip has them, but for the sizes. The second's MLP is of 98, and 44 * (98 / 44) < 98.
TEXT = {
    "context_length": 12,
    "vocab_size": 61,
    "heads": 4,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
MODELS = {
    "exact": ("vit_base_patch16_siglip_64", TEXT | {"width": 40}),
    "tanh": (
        "vit_so400m_patch16_siglip_64",
        TEXT | {"width": 44, "mlp_ratio": 2.23, "act_kwargs": {"approximate": "tanh"}},
    ),
}


def model_cfg(name):
    tower, text = MODELS[name]
    vision = {
        "image_size": SIDE,
        "timm_model_name": tower,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    return {"embed_dim": 48, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}


@functools.cache
def import_open_clip():
    """Returns the package, with the towers known to timm."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # built for another torch: two operators that are never called are not there
            for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
                del sys.modules[module]
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import_open_clip.library = library  # what it defines lives as long as it does
        import open_clip
        import timm

        for name, sizes in TOWERS.items():
            timm.models.register_model(_tower(timm, name, sizes))
    return open_clip


def _tower(timm, name, sizes):
    def make(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **more):
        more = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "class_token": False} | sizes | more
        return timm.models.VisionTransformer(img_size=SIDE, **more)

    make.__name__ = name
    return make


def build(cfg):
    """open_clip's model of a `model_cfg`, to compute with."""
    cfg = {key: value for key, value in cfg.items() if key != "custom_text"}
    return import_open_clip().CustomTextCLIP(**cfg).eval()


def random_state(model):
    """Random values of a size that keeps activations of order one, each of which float16 holds exactly."""
    random = np.random.RandomState(0)
    state = {}
    for key, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        x = random.standard_normal(shape)
        if key == "logit_scale":
            x = np.asarray(np.log(10.0))
        elif key == "logit_bias":
            x = np.asarray(-3.0)
        elif key.endswith("bias"):
            x = 0.2 * x
        elif len(shape) == 1:  # gains
            x = 1 + 0.3 * x
        elif key.endswith("weight") and "token_embedding" not in key:
            x = 1.5 * x / np.sqrt(np.prod(shape[1:]))
        state[key] = np.asarray(x, np.float16)
    return state


def compute(model, state, ids, pixels):
    """What the model computes with a state dict (all of it, and nothing more) in its own type."""
    import torch

    dtype = next(model.parameters()).dtype
    tensors = {key: torch.tensor(np.asarray(x, np.float32)).to(dtype) for key, x in state.items()}
    model.load_state_dict(tensors, strict=True)
    return outputs(model, ids, pixels)


def outputs(model, ids, pixels):
    import torch

    dtype = next(model.parameters()).dtype
    images, texts = torch.tensor(np.asarray(pixels, np.float32)).to(dtype), torch.tensor(ids).long()
    with torch.no_grad():
        found = {
            "image": model.encode_image(images),
            "text": model.encode_text(texts),
            "zimg": model.encode_image(images, normalize=True),
            "ztxt": model.encode_text(texts, normalize=True),
            "logits": model.get_logits(images, texts)[0],
        }
    return {key: x.numpy() for key, x in found.items()}


def main():
    for name in MODELS:
        cfg = model_cfg(name)
        model = build(cfg).double()
        state = random_state(model)
        random = np.random.RandomState(1)
        ids = random.randint(0, cfg["text_cfg"]["vocab_size"], (3, cfg["text_cfg"]["context_length"])).astype(np.int32)
        pixels = random.uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(np.float16)
        out = compute(model, state, ids, pixels)
        path = GOLDEN / f"open_clip_{name}.npz"
        arrays = {f"state/{key}": x for key, x in state.items()}
        np.savez_compressed(path, config=json.dumps(cfg), ids=ids, pixels=pixels, **arrays, **out)
        print(path.name, path.stat().st_size, {key: float(np.abs(x).mean().round(3)) for key, x in out.items()})


if __name__ == "__main__":
    main()
