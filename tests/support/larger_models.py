"""Small random models of `transformers` that contain an image tower of SigLIP, and layouts of models of other code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from siglip_jax.configs.configuration import SiglipVisionConfig
from tests.support import cases

VISION = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 16}
_FLEXIBLE = {k: v for k, v in _SIGLIP.items() if k != "image_size"}
_FLEXIBLE |= {"model_type": "siglip2_vision_model", "num_patches": 16}
_TOWER, _MODEL = "model.vision_tower", "model.vision_model"


def _text(kind: str) -> dict[str, Any]:
    return TEXT | {"model_type": kind}


def _paligemma() -> Any:
    import transformers

    return transformers.PaliGemmaConfig(vision_config=_SIGLIP, text_config=_text("gemma"), projection_dim=16)


def _gemma3() -> dict[str, Any]:
    return {"vision_config": _SIGLIP, "text_config": _text("gemma3_text"), "mm_tokens_per_image": 4}


def _janus() -> dict[str, Any]:
    vq = {"embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1]}
    vq |= {"num_res_blocks": 1, "projection_dim": 16, "image_token_embed_dim": 16, "num_patches": 4}
    vision = {k: v for k, v in VISION.items() if k != "intermediate_size"} | {"mlp_ratio": 1.55, "projection_dim": 16}
    return {"vision_config": vision, "text_config": _text("llama"), "vq_config": vq}


def _phi4() -> dict[str, Any]:
    audio = {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "input_size": 16}
    audio |= {"nemo_conv_channels": 8, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16}
    return {"vision_config": VISION | {"crop_size": 28}, "audio_config": audio, **TEXT}


def _t5gemma2() -> dict[str, Any]:
    encoder = _gemma3() | {"text_config": _text("t5gemma2_text")}
    return {"encoder": encoder, "decoder": _text("t5gemma2_decoder")}


def _idefics2() -> dict[str, Any]:
    perceiver = {"hidden_size": 16, "resampler_depth": 1, "resampler_n_latents": 2, "resampler_n_heads": 2}
    perceiver |= {"resampler_head_dim": 8, "num_key_value_heads": 2}
    return {"vision_config": VISION, "text_config": _text("mistral"), "perceiver_config": perceiver}


def _granite() -> dict[str, Any]:
    vision = VISION | {"out_hidden_size": 16, "scale_factor": 2, "deepstack_visual_indexes": [0]}
    return {"vision_config": vision, "text_config": _text("granite_docling_text")}


def _with_text(kind: str, vision: dict[str, Any] = _SIGLIP) -> Any:
    return lambda: {"vision_config": vision, "text_config": _text(kind)}


# By the name of the family: class of the model, arguments of its configuration, and where the tower is in the model.
FAMILIES: dict[str, tuple[str, Any, str]] = {
    "paligemma": ("PaliGemmaForConditionalGeneration", _paligemma, _TOWER),
    "gemma3": ("Gemma3ForConditionalGeneration", _gemma3, _TOWER),
    "shieldgemma2": ("ShieldGemma2ForImageClassification", _gemma3, f"model.{_TOWER}"),
    "llava": ("LlavaForConditionalGeneration", _with_text("llama"), _TOWER),
    "llava_next": ("LlavaNextForConditionalGeneration", _with_text("llama"), _TOWER),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", _with_text("qwen2"), _TOWER),
    "aya_vision": ("AyaVisionForConditionalGeneration", _with_text("cohere2"), _TOWER),
    "cohere2_vision": ("Cohere2VisionForConditionalGeneration", _with_text("cohere2"), _TOWER),
    "deepseek_vl": ("DeepseekVLForConditionalGeneration", _with_text("llama"), _MODEL),
    "modernvbert": ("ModernVBertModel", _with_text("modernbert"), "vision_model"),
    "colpali": ("ColPaliForRetrieval", lambda: {"vlm_config": _paligemma(), "embedding_dim": 8}, "vlm.vision_tower"),
    "t5gemma2": ("T5Gemma2ForConditionalGeneration", _t5gemma2, "model.encoder.vision_tower"),
    "pi0": (
        "PI0ForConditionalGeneration",
        lambda: {"vlm_config": _paligemma(), "dit_config": _text("gemma")},
        "model.vlm.vision_tower",
    ),
    "idefics2": ("Idefics2ForConditionalGeneration", _idefics2, _MODEL),
    "idefics3": ("Idefics3ForConditionalGeneration", _with_text("llama", VISION), _MODEL),
    "smolvlm": ("SmolVLMForConditionalGeneration", _with_text("llama", VISION), _MODEL),
    "phi4_multimodal": (
        "Phi4MultimodalForCausalLM",
        _phi4,
        "model.embed_tokens_extend.image_embed.img_processor",
    ),
    "janus": ("JanusForConditionalGeneration", _janus, _MODEL),
    "granite_docling": ("GraniteDoclingForConditionalGeneration", _granite, _MODEL),
    "lfm2_vl": ("Lfm2VlForConditionalGeneration", _with_text("lfm2", _FLEXIBLE), _TOWER),
}


def build(family: str) -> tuple[Any, Any]:
    """Returns a model of `transformers` with random weights, and its image tower."""
    import torch
    import transformers

    name, arguments, where = FAMILIES[family]
    given = arguments()
    config = getattr(transformers, name).config_class(**given) if isinstance(given, dict) else given
    model = getattr(transformers, name)(config).eval()
    model.set_attn_implementation("eager")  # with "sdpa" and no mask, Phi-4-multimodal is causal, as it was not trained
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=random)
    return model, model.get_submodule(where)


# Models whose own code is not in `transformers`: where their files hold the tower, and their `config.json`.
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "model.vision_tower.vision_tower.vision_model.",
        {"model_type": "llava_qwen", "hidden_size": 896, "mm_vision_tower": "google/siglip-so400m-patch14-384"},
    ),
    "lerobot_pi0": (
        "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.",
        {"type": "pi0", "n_obs_steps": 1, "input_features": {}},
    ),
    "smolvla": ("model.vlm_with_expert.vlm.model.vision_model.", {"type": "smolvla", "n_obs_steps": 1}),
    "gr00t": (
        "backbone.eagle_model.vision_model.vision_model.",
        {"model_type": "gr00t_n1_5", "backbone_cfg": {"select_layer": 12, "tune_visual": True}},
    ),
    "phi4mm": (
        "model.embed_tokens_extend.image_embed.img_processor.",
        {"model_type": "phi4mm", "embd_layer": {"image_embd_layer": {"crop_size": 448}}},
    ),
    "ovis": (
        "visual_tokenizer.backbone.vision_model.",
        {
            "model_type": "ovis",
            "visual_tokenizer_config": {
                "model_type": "siglip_visual_tokenizer",
                "backbone_config": VISION | {"model_type": "siglip_vision_model"},
            },
        },
    ),
    "tinyllava": (
        "vision_tower._vision_tower.vision_model.",
        {
            "model_type": "tinyllava",
            "vision_config": VISION | {"model_type": "siglip_vision_model", "model_name_or_path": "google/siglip"},
        },
    ),
    "eagle": (
        "vision_model.vision_model.",
        {"model_type": "eagle_2_5_vl", "vision_config": VISION | {"model_type": "siglip_vision_model"}},
    ),
    "minicpmv": (
        "vpm.",
        {
            "model_type": "minicpmv",
            "drop_vision_last_layer": True,
            "vision_config": VISION | {"num_hidden_layers": 3, "model_type": "siglip_vision_model"},
        },
    ),
}
BUCKETED = ("idefics2", "idefics3", "smolvlm", "phi4_multimodal", "smolvla", "phi4mm", "minicpmv")


def write_layout(directory: Path, layout: str, head: bool = False) -> tuple[SiglipVisionConfig, dict[str, np.ndarray]]:
    """Writes a larger model of one of `LAYOUTS`; returns the configuration and the tensors of its tower."""
    prefix, d = LAYOUTS[layout]
    config = SiglipVisionConfig(**VISION, vision_use_head=head, bucket_positions=layout in BUCKETED)
    tensors = cases.make_tensors(config, "SiglipVisionModel")
    renamed = {prefix + key.removeprefix("vision_model."): x for key, x in tensors.items()}
    renamed["language_model.embed_tokens.weight"] = np.ones((3, 4), np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(d))
    return config, tensors
