"""Runs exported encoders without siglip_jax: prints the probability that each text describes an image.

    python run.py IMAGE TEXT [TEXT ...]

It needs jax, flatbuffers, numpy, pillow, safetensors, and tokenizers if there is a tokenizer.json, else sentencepiece.
"""

import json
import string
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export
from PIL import Image, ImageOps
from safetensors.numpy import load_file

HERE = Path(__file__).parent
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")  # for PostScript, Pillow would start a program


def manifest():
    """Returns the manifest: shapes, temperature and bias of the logits, and the preparation of images and texts."""
    return json.loads((HERE / "manifest.json").read_text())


def encoder(name):
    """Returns an encoder as a function from a batch of inputs to L2-normalised embeddings, (batch, width) float32.

    Args:
      name: "image" (inputs from `pixel_values`) or "text" (inputs from `input_ids`).
    """
    files = manifest()["encoders"][name]
    exported = export.deserialize(bytearray((HERE / files["program"]).read_bytes()))
    try:
        exported.mlir_module()
    except jax.errors.JaxRuntimeError:
        written = manifest()["jax_version"]
        sys.exit(
            f"{files['program']}: jax must be at least {written}, got {jax.__version__}; pip install 'jax>={written}'"
        )
    params = jax.device_put(load_file(HERE / files["params"]))
    return lambda inputs: np.asarray(jax.jit(exported.call)(params, inputs))


def eight_bits(image):
    """Returns a grey image of 16 bits, or of floats in [0, 1], as one of 8 bits; other images are unchanged."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values, white = np.asarray(image, np.float64), 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):
        sys.exit(f"image must have values in [0, {white}] in mode {image.mode}, got {values.min()} to {values.max()}")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def pixel_values(images):
    """Returns images as pixel values, (batch, height, width, 3) float32; transparency is composited over white.

    Args:
      images: iterable of paths or open binary files.
    """
    image = manifest()["image"]
    rows = []
    for file in images:
        whole = eight_bits(ImageOps.exif_transpose(Image.open(file, formats=FORMATS))).convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
        rows.append(np.asarray(whole.resize((image["width"], image["height"]), image["resample"]), np.float32))
    return (np.stack(rows) * np.float32(image["rescale_factor"]) - np.float32(image["mean"])) / np.float32(image["std"])


def input_ids(texts):
    """Returns texts as token ids, (batch, length) int32, padded and truncated to the model's length.

    Special tokens within a text, such as "</s>", are tokenised as plain text.

    Args:
      texts: iterable of strings.
    """
    text = manifest()["text"]
    if text["vocabulary"] == "tokenizer.json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        rows = [tokenizer.encode(one, add_special_tokens=False).ids for one in texts]
    else:
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(HERE / "spiece.model"))
        no_punctuation = str.maketrans("", "", string.punctuation)
        words = ["▁" + one.replace("▁", " ") for one in texts]
        words = ["<unk>" + " ".join(one.lower().translate(no_punctuation).split()) for one in words]
        rows = [pieces.encode(one)[len(pieces.encode("<unk>")) :] for one in words]
    length = text["length"]
    rows = [row[: length - 1] + [text["eos"]] for row in rows]
    return np.array([row + [text["pad"]] * (length - len(row)) for row in rows], np.int32)


if __name__ == "__main__":
    file, *texts = sys.argv[1:]
    cosines = encoder("image")(pixel_values([file])) @ encoder("text")(input_ids(texts)).T
    logits = cosines[0] * manifest()["temperature"] + manifest()["logit_bias"]
    if not np.isfinite(logits).all():
        sys.exit(f"{file}: the embeddings must be finite, got NaN or infinity; check the weights, or export in float32")
    for text, logit in sorted(zip(texts, logits, strict=True), key=lambda pair: -pair[1]):
        print(f"{1 / (1 + np.exp(-logit)):9.3g}  {text}")
