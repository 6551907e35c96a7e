"""A small tokenizer in the form of Gemma's, trained here, and directories such as the SigLIP 2 repositories are."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from tests.support.spiece import captions

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
MARKUP = ("<start_of_turn>", "<h1>")  # the second is one the published files do not call special


def train(path: Path, *, capitals: bool = True) -> Path:
    """Writes a `tokenizer.json`: byte-pair encoding, byte fallback, ids and pipeline in Gemma's order."""
    texts = captions(2000, 0)
    texts += [text.title() for text in captions(1000, 1)] + [text.upper() for text in captions(500, 2)]
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, special_tokens=["!", ".", "▁▁"], show_progress=False)
    learner.train_from_iterator(texts if capitals else [text.lower() for text in texts], trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *MARKUP]
    pieces += sorted(model["vocab"], key=model["vocab"].get)

    bpe = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    gemma = tokenizers.Tokenizer(bpe)
    gemma.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    decoders = tokenizers.decoders
    gemma.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    template = tokenizers.processors.TemplateProcessing
    gemma.post_processor = template("$A:0 <eos>:0", "$A:0 <eos>:0 $B:1 <eos>:1", [("<eos>", 1)])
    make = tokenizers.AddedToken
    gemma.add_tokens([make(token, normalized=False, special=token != "<h1>") for token in (*SPECIALS, *MARKUP)])
    gemma.save(str(path))
    return path


SETTINGS = {
    "add_bos_token": False,
    "add_eos_token": True,
    "additional_special_tokens": ["<start_of_turn>"],
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "do_lower_case": True,
    "eos_token": "<eos>",
    "model_input_names": ["input_ids"],
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "padding_side": "right",
    "processor_class": "SiglipProcessor",
    "spaces_between_special_tokens": False,
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
}


def write_settings(directory: Path, **changes: Any) -> None:
    """Writes a `tokenizer_config.json` such as the repositories have; None leaves a setting out."""
    settings = {name: value for name, value in (SETTINGS | changes).items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_config(directory: Path, model_type: str = "siglip") -> None:
    """Writes a `config.json` of a fixed-resolution (`siglip`) or NaFlex (`siglip2`) model."""
    text = {"model_type": f"{model_type}_text_model", "vocab_size": 256000}
    vision = {"model_type": f"{model_type}_vision_model"}
    config = {"model_type": model_type, "text_config": text, "vision_config": vision}
    (directory / "config.json").write_text(json.dumps(config))
