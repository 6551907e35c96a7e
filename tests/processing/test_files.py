"""Fields of the processor's files that are of another type: one line with the file and the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from siglip_jax.processing import Siglip2ImageProcessor, SiglipImageProcessorPil, SiglipProcessor, SiglipTokenizer

IMAGES, NESTED = "preprocessor_config.json", "processor_config.json"
TOKENS, NAMES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WILD: list[Any] = [None, True, -1, 0, 2**63, 10**400, 1e300, float("nan"), float("inf"), "", "x" * 5000, {}, {"x": {}}]
WILD += [[], [[]], [None], [[[[[1]] * 50] * 50]], ["x", 3], {"content": 3}, {"height": 2**63, "width": 2**63}]


@pytest.fixture
def directory(spiece: Path, tmp_path: Path) -> Path:
    SiglipProcessor(SiglipImageProcessorPil(size=(16, 16)), SiglipTokenizer(spiece)).save_pretrained(tmp_path)
    return tmp_path


def write(directory: Path, file: str, field: str, value: Any) -> None:
    """Sets a field of a file, and removes the file that takes precedence over it."""
    path = directory / file
    if file == IMAGES:
        (directory / NESTED).unlink()
    if file in (NAMES, ADDED):
        (directory / TOKENS).unlink()
    settings = json.loads(path.read_text()) if path.is_file() else {}
    (settings["image_processor"] if file == NESTED else settings)[field] = value
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("file", [IMAGES, NESTED])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rescale_factor", {}, "a finite number, got {}"),
        ("rescale_factor", float("inf"), "a finite number, got inf"),
        ("size", 2**63, "a size in whole pixels, each from 1 to 65535, got 9223372036854775808"),
        (
            "size",
            {"height": 0, "width": 4},
            "a size in whole pixels, each from 1 to 65535, got {'height': 0, 'width': 4}",
        ),
        ("image_mean", float("nan"), "a number or one per channel, each finite, got nan"),
        ("image_mean", [0.5, "0.5"], "a number or one per channel, each finite, got "),
        ("image_std", [0.5, 0, 0.5], "not contain 0, got "),
        ("resample", 9, "an integer from 0 to 5, got 9"),
        ("do_normalize", "no", "true or false, got 'no'"),
        ("image_processor_type", [1], "a string, got "),
    ],
)
def test_an_image_processor(directory, file, field, value, message):
    write(directory, file, field, value)
    with pytest.raises(ValueError) as caught:
        SiglipProcessor.from_pretrained(directory)
    assert str(caught.value).startswith(
        f"{directory / file}: {field} must {'' if 'not' in message else 'be '}{message}"
    )
    with pytest.raises(ValueError, match=field):
        SiglipImageProcessorPil.from_pretrained(directory)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        (TOKENS, "additional_special_tokens", 5, "a list of strings, or of objects with a 'content', got 5"),
        (
            TOKENS,
            "extra_special_tokens",
            {"image": 5},
            "a list of strings, or of objects with a 'content', got {'image': 5}",
        ),
        (TOKENS, "eos_token", 3, "a string, or an object with a 'content', got 3"),
        (TOKENS, "pad_token", None, "a token, got null; leave it out for the default"),
        (TOKENS, "cls_token", {"content": "<c>", "lstrip": 3}, "a string, or an object with a 'content', got "),
        (TOKENS, "model_max_length", "64", "a number of tokens, at least 1, got '64'"),
        (TOKENS, "model_max_length", float("nan"), "a number of tokens, at least 1, got nan"),
        (TOKENS, "padding_side", "top", "one of 'right', 'left', got 'top'"),
        (TOKENS, "model_input_names", [3], "a list of strings, got [3]"),
        (TOKENS, "do_lower_case", 1, "true or false, got 1"),
        (TOKENS, "sp_model_kwargs", {"model_file": "/x"}, "an object of enable_sampling, nbest_size and alpha, got "),
        (TOKENS, "added_tokens_decoder", {"-1": "<x>"}, "an object from ids below 2147483648 to tokens, got "),
        (TOKENS, "added_tokens_decoder", {"2147483648": "<x>"}, "an object from ids below 2147483648 to tokens, got "),
        (TOKENS, "added_tokens_decoder", ["<x>"], "an object from ids below 2147483648 to tokens, got ['<x>']"),
        (NAMES, "unk_token", ["<unk>"], "a string, or an object with a 'content', got ['<unk>']"),
        (NAMES, "additional_special_tokens", "<x>", "a list of strings, or of objects with a 'content', got '<x>'"),
    ],
)
def test_a_tokenizer(directory, file, field, value, message):
    write(directory, file, field, value)
    for read in (SiglipProcessor, SiglipTokenizer):
        with pytest.raises(ValueError) as caught:
            read.from_pretrained(directory)
        assert str(caught.value).startswith(f"{directory / file}: {field} must be {message}")


@pytest.mark.parametrize("value", [-1, "5", None, 2**31, 1.5])
def test_added_tokens(directory, value):
    write(directory, ADDED, "<x>", value)
    with pytest.raises(ValueError) as caught:
        SiglipTokenizer.from_pretrained(directory)
    assert str(caught.value).startswith(
        f"{directory / ADDED}: ids of tokens must be an integer from 0 to 2147483647, got"
    )


def test_a_length_in_the_configuration(directory):
    (directory / "config.json").write_text('{"text_config": {"max_position_embeddings": 9223372036854775808}}')
    with pytest.raises(
        ValueError, match="config.json: max_position_embeddings must be an integer from 1 to 1048576, got"
    ):
        SiglipProcessor.from_pretrained(directory)


def test_options_that_are_passed():
    with pytest.raises(ValueError, match="^rescale_factor must be a finite number, got {}$"):
        SiglipImageProcessorPil(rescale_factor={})
    with pytest.raises(ValueError, match="^image_std must be a number or one per channel, each finite, got nan$"):
        Siglip2ImageProcessor(image_std=float("nan"))


@pytest.mark.parametrize("file", [IMAGES, NESTED, TOKENS, NAMES, ADDED])
def test_whatever_a_field_holds_it_is_read_or_named(directory, file):
    there = json.loads((directory / file).read_text()) if (directory / file).is_file() else {}
    fields = {"eos_token", "additional_special_tokens", "sp_model_kwargs", "crop_size", "pad_size"}
    fields |= set(there.get("image_processor", there))
    before = {path: path.read_bytes() for path in directory.iterdir()}
    refused = 0
    for field in sorted(fields):
        for value in WILD:
            write(directory, file, field, value)
            try:
                SiglipProcessor.from_pretrained(directory)
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                assert str(directory) in str(error), (field, value)
                assert len(str(error)) < 400 and "\n" not in str(error), (field, value)
            for path, contents in before.items():
                path.write_bytes(contents)
            if directory / file not in before:
                (directory / file).unlink()
    assert refused > 50
