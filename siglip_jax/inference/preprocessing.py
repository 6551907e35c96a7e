"""Record of how images and texts are prepared, part of every result: it changes metrics by several points."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import PIL.Image

from siglip_jax.inference.engine import Siglip
from siglip_jax.processing import SiglipTokenizer

_IMAGE = ("do_resize", "size", "patch_size", "max_num_patches", "do_rescale", "rescale_factor", "do_normalize")
_AFTER = ("image_mean", "image_std", "do_convert_rgb")


def describe(
    siglip: Siglip,
    *,
    model_name: str,
    templates: Sequence[str] | None = None,
    canonicalize: bool = False,
    first_name_only: bool = False,
    texts: bool = True,
) -> dict[str, Any]:
    """Returns the model, its dtype and its preparation of images and texts, as a dictionary that JSON can hold.

    Args:
      siglip: model with its processor.
      model_name: name of the model, as the user gave it.
      templates: templates of zero-shot classification; None: there are none.
      canonicalize: whether prompts are in big_vision's canonical form: lower case, without punctuation.
      first_name_only: whether only the name of a class before its first comma is used.
      texts: whether texts are used; otherwise `text` is left out.
    """
    processor = siglip.processor.image_processor
    options = processor.to_dict()
    image: dict[str, Any] = {"processor": type(processor).__name__}
    options |= {name: False for name in options if name.startswith("do_") and options[name] is None}
    image |= {name: options[name] for name in _IMAGE if options.get(name) is not None}
    if options.get("resample") is not None:
        image["resample"] = PIL.Image.Resampling(options["resample"]).name.lower()
    image |= {name: options[name] for name in _AFTER if options.get(name) is not None}
    facts: dict[str, Any] = {"model": model_name, "dtype": jnp.dtype(siglip.model.dtype).name, "image": image}
    if not texts:
        return facts
    tokenizer = siglip.processor.tokenizer
    text: dict[str, Any] = {
        "tokenizer": type(tokenizer).__name__,
        "lower_case": bool(canonicalize or getattr(tokenizer, "do_lower_case", False)),
        "punctuation": not (canonicalize or isinstance(tokenizer, SiglipTokenizer)),  # which removes it
        "canonical": canonicalize,
        "length": siglip.config.text_config.max_position_embeddings,
        "pad_token": tokenizer.pad_token,
        "pad_id": tokenizer.pad_token_id,
    }
    if templates is not None:
        text |= {"templates": list(templates), "first_name_only": first_name_only}
    return facts | {"text": text}


def lines_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the result of `describe` as rows (name, description) of a table."""
    image = facts["image"]
    size = image.get("size")
    if size is not None:
        to = f"{size['height']} x {size['width']} pixels" if "height" in size else str(size)
    else:
        to = f"at most {image.get('max_num_patches')} patches of {image.get('patch_size')}"
    resized = f"resized to {to}, {image['resample']}" if image.get("do_resize", True) else "not resized"
    rescaled = f"x {image['rescale_factor']:.6g}" if image.get("do_rescale", True) else "not rescaled"
    mean, std = image.get("image_mean"), image.get("image_std")
    normalized = f"mean {_short(mean)}, std {_short(std)}" if image.get("do_normalize", True) else "not normalised"
    rgb = "" if image.get("do_convert_rgb") is False else ", to RGB"
    lines = [
        ("model", f"{facts['model']}, {facts['dtype']}"),
        ("images", f"{image['processor']}: {resized}, {rescaled}, {normalized}{rgb}"),
    ]
    if text := facts.get("text"):
        case = "lower case" if text["lower_case"] else "case as it is"
        written = case if text["punctuation"] else f"{case}, no punctuation"
        pad = f"padded to {text['length']} with {text['pad_token']} ({text['pad_id']})"
        lines.append(("texts", f"{text['tokenizer']}: {written}, {pad}"))
        if "templates" in text:
            first = ", first name only" if text["first_name_only"] else ", all names"
            lines.append(("templates", " | ".join(text["templates"]) + first))
    return lines


def _short(values: Any) -> str:
    """Returns numbers as text, one number if all are equal."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return " ".join(f"{x:g}" for x in (values[:1] if len(set(values)) == 1 else values))
