"""The registry of checkpoint formats. A new format is one file in this folder and one line here."""

from siglip_jax.checkpoints.formats import big_vision, huggingface, open_clip, orbax, quantized, timm
from siglip_jax.checkpoints.formats._format import Format, Shardings

__all__ = ["FORMATS", "Format", "Shardings"]

# The first format that recognises the files of a checkpoint reads them.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (quantized.FORMAT, open_clip.FORMAT, timm.FORMAT, huggingface.FORMAT, big_vision.FORMAT, orbax.FORMAT)
}
