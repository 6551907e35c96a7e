"""Orbax directories that lie about what they hold."""

import json
import tracemalloc

import numpy as np
import pytest

import siglip_jax
from siglip_jax.checkpoints.formats import orbax
from tests.support.scaled_variants import random_checkpoint
from tests.support.tiny_checkpoint import tiny_config


@pytest.fixture
def directory(tmp_path):
    made = random_checkpoint(tiny_config(vocab_size=60), np.dtype(np.float32))
    siglip_jax.write_checkpoint(tmp_path / "model", made, "orbax")
    return tmp_path / "model"


def params_folder(directory):
    return directory / json.loads((directory / "config.json").read_text())["orbax_params"]


def test_parameters_much_larger_than_their_files_are_refused(directory, monkeypatch):
    """Zeros take next to nothing on the disk, and would fill the memory."""
    monkeypatch.setattr(orbax, "_UNCHECKED", 0)
    monkeypatch.setattr(orbax, "_MOST_EXPANSION", 0.1)
    folder = params_folder(directory)
    with pytest.raises(ValueError, match="bytes of the parameters, got .* bytes; get it again") as caught:
        siglip_jax.read_checkpoint(directory)
    assert str(caught.value).startswith(f"{folder}: the files must have at least")


def test_a_folder_of_zeros_is_refused_before_it_is_read(tmp_path):
    config = tiny_config(vocab_size=700_000)  # 90 MB of token embeddings
    made = random_checkpoint(tiny_config(vocab_size=60), np.dtype(np.float32))
    table = made.params["text_model"]["embeddings"]["token_embedding"]
    table["embedding"] = np.broadcast_to(np.float32(0), (700_000, 32))
    zeros = siglip_jax.Checkpoint(config, made.params, "orbax", "SiglipModel")
    siglip_jax.write_checkpoint(tmp_path / "model", zeros)
    with pytest.raises(ValueError, match="the files must have at least 1/20 of the"):
        siglip_jax.read_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" + "[]," * 2_000_000 + "[]]"], ids=len)
def test_damaged_metadata_is_refused_in_one_short_line(directory, text):
    folder = params_folder(directory)
    (folder / "_METADATA").write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            siglip_jax.read_checkpoint(directory)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{folder}: ") or str(directory) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(folder))
