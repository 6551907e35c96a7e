"""Every released variant through every format and back, to the last bit."""

import numpy as np
import pytest

import siglip_jax
from siglip_jax.configs.variants import find
from siglip_jax.params import flatten
from tests.support.scaled_variants import DTYPES, NAMES, random_checkpoint, scaled_config, write_as_released

CASE = "giant_like"
BOTH = ["text_model", "vision_model"]


def bits(params):
    """Every parameter as bytes: equal floats are not enough (-0.0 is 0.0)."""
    return {path: (x.shape, np.asarray(x).dtype.name, np.asarray(x).tobytes()) for path, x in flatten(params).items()}


def files(directory):
    return {file.name: file.read_bytes() for file in directory.glob("*") if file.is_file()}


def destination(tmp_path, format):
    return tmp_path / ("out.npz" if format == "big_vision" else f"{format}_out")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_variant_round_trips_through_every_format(tmp_path, name, dtype, caplog):
    variant = find(name)
    config = scaled_config(variant)
    checkpoint = random_checkpoint(config, DTYPES[dtype], variant.text_head)
    first = tmp_path / "first"
    siglip_jax.write_checkpoint(first, checkpoint, "huggingface")
    expected, expected_files = bits(checkpoint.params), files(first)
    assert bits(siglip_jax.read_checkpoint(first).params) == expected
    for format in ("huggingface", "big_vision", "open_clip", "orbax"):
        there, back = destination(tmp_path, format), tmp_path / f"{format}_back"
        siglip_jax.write_checkpoint(there, siglip_jax.read_checkpoint(first), format)
        read = siglip_jax.read_checkpoint(there)
        assert read.format == format and bits(read.params) == expected, format
        siglip_jax.write_checkpoint(back, read, "huggingface")
        assert files(back) == expected_files, format


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stacked", [[], ["vision_model"], BOTH], ids=["one_by_one", "image_stacked", "stacked"])
@pytest.mark.parametrize("name", NAMES)
def test_the_released_npz_files(tmp_path, name, stacked, dtype):
    variant = find(name)
    config = scaled_config(variant)
    checkpoint = random_checkpoint(config, DTYPES[dtype], variant.text_head)
    params = dict(checkpoint.params)
    if not variant.text_head:
        params["text_model"] = {k: v for k, v in params["text_model"].items() if k != "head"}
    written = siglip_jax.Checkpoint(config, params, "big_vision", checkpoint.architecture)
    prefix = "" if stacked == ["vision_model"] else "params/"
    path = write_as_released(tmp_path / variant.npz, written, stacked, prefix)
    read = siglip_jax.read_checkpoint(path)
    assert read.config == config.replace(extra={})
    assert bits(read.params) == bits(checkpoint.params)
    siglip_jax.write_checkpoint(tmp_path / "again.npz", read)
    with np.load(path) as one, np.load(tmp_path / "again.npz") as two:
        assert set(one) == set(two)
        for key in one:
            assert one[key].dtype == two[key].dtype and one[key].tobytes() == two[key].tobytes(), key
            assert one[key].shape == two[key].shape, key
