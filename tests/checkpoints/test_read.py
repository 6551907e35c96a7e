"""Pickled weights get the advice that fits the program that wrote them, wherever they are named."""

import re

import pytest

import siglip_jax
from siglip_jax import SiglipModel

TRANSFORMERS = "model.safetensors, got only {}, a pickle, which is never opened; load it with transformers and save it"
OPEN_CLIP = "open_clip_model.safetensors, got only {}, a pickle, which is never opened; load it with open_clip and save"
OTHER = "safetensors, got only {}, a pickle, which is never opened; load it with the program that wrote it and save it"


@pytest.mark.parametrize("read", [siglip_jax.read_checkpoint, SiglipModel.from_pretrained, siglip_jax.load])
@pytest.mark.parametrize("as_directory", [False, True])
@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["pytorch_model.bin"], TRANSFORMERS),
        (["pytorch_model-00001-of-00002.bin"], TRANSFORMERS),
        (["open_clip_pytorch_model.bin"], OPEN_CLIP),
        (["epoch_12.pt", "open_clip_config.json"], OPEN_CLIP),
        (["model.pt"], OTHER),
        (["siglip.pth"], OTHER),
    ],
)
def test_the_advice_fits_the_pickle(tmp_path, names, advice, as_directory, read):
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x02}.")
    path = tmp_path if as_directory else tmp_path / names[0]
    if names[0] == "epoch_12.pt" and not as_directory:
        advice = OTHER
    with pytest.raises(ValueError, match=re.escape(f"{path}: the weights must be {advice.format(names[0])}")) as caught:
        read(path)
    assert len(str(caught.value)) < 250 + len(str(path)) and "\n" not in str(caught.value)


def test_what_is_neither_file_nor_directory_is_refused():
    with pytest.raises(ValueError, match=r"^/dev/null: a checkpoint must be a .safetensors file, an .npz"):
        siglip_jax.read_checkpoint("/dev/null")
