"""`siglip-jax convert`: every format, dry runs, changes, mistakes."""

import io
import json
import runpy
import sys
from pathlib import Path

import jax
import pytest

import siglip_jax
from siglip_jax import SiglipModel, cli
from siglip_jax._checks import QUANTIZATIONS
from siglip_jax.checkpoints import convert
from siglip_jax.cli import _output as output

CONVERT = Path(__file__).parents[2] / "convert"


@pytest.mark.slow
def test_there_and_back(run, checkpoint, tmp_path):
    for format, name in (("big_vision", "a.npz"), ("open_clip", "b"), ("orbax", "c"), ("huggingface", "d")):
        ran = run("convert", checkpoint, tmp_path / name, "--to", format)
        assert ran.status == 0 and "tensors equal to the last bit" in ran.out
        back = run("convert", tmp_path / name, tmp_path / f"{name}.back", "--to", "huggingface", "--json")
        facts = json.loads(back.out)
        assert facts["different"] == [] and facts["from"] == format
        written = (tmp_path / f"{name}.back" / "model.safetensors").read_bytes()
        assert written == (checkpoint / "model.safetensors").read_bytes()
    # Tokenizer and image processor came along: the copy classifies as the original does.
    assert siglip_jax.load(tmp_path / "d").encode_text("a cat").shape == (1, 32)


def test_dry_run_prints_every_parameter_and_writes_nothing(run, checkpoint, tmp_path):
    facts = json.loads(run("convert", checkpoint, tmp_path / "x.npz", "--to", "big_vision", "--dry-run", "--json").out)
    row = next(r for r in facts["rows"] if r["parameter"] == "vision_model/encoder/layers_1/self_attn/q_proj/kernel")
    assert row == {
        "parameter": "vision_model/encoder/layers_1/self_attn/q_proj/kernel",
        "shape": [32, 32],
        "dtype": "float32",
        "from": "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "to": "params/img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel",
    }
    out = run("convert", checkpoint, tmp_path / "x.npz", "--to", "big_vision", "--dry-run").out
    assert out.splitlines()[-1] == f"{len(facts['rows'])} parameters, nothing written"
    assert not (tmp_path / "x.npz").exists()


def test_changes_on_the_way(run, checkpoint, tmp_path):
    out = run(
        "convert", checkpoint, tmp_path / "x", "--to", "huggingface", "--resolution", 64, "--dtype", "bfloat16"
    ).out
    assert "position table 4 x 4 resized to 8 x 8" in out and "converted to bfloat16" in out
    siglip = siglip_jax.load(tmp_path / "x")
    assert siglip.config.vision_config.image_size == 64
    assert siglip.encode_image(checkpoint.parent / "missing.png", on_unreadable=lambda i, e: None).shape == (1, 32)
    size = json.loads((tmp_path / "x" / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 64, "width": 64}
    run("convert", checkpoint, tmp_path / "image.npz", "--to", "big_vision", "--tower", "image", "--stacked")
    read = siglip_jax.read_checkpoint(tmp_path / "image.npz")
    assert read.architecture == "SiglipVisionModel" and read.layout["stacked"] == ["vision_model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("x.bin", "--to", "big_vision"),
            "x.bin: the destination must be an .npz file for big_vision, got suffix '.bin'",
        ),
        (("x", "--to", "torch"), "invalid choice"),
        (("x", "--to", "huggingface", "--resolution", "4"), "patch_size must be at most image_size"),
        (
            ("x", "--to", "huggingface", "--labels-from", "nowhere.txt"),
            "nowhere.txt: no such file; pass a text file of labels, one per line",
        ),
        ((".", "--to", "huggingface"), "the destination must not be the source, got the same path"),
    ],
)
def test_mistakes_are_told_in_one_line(run, checkpoint, arguments, words, monkeypatch):
    monkeypatch.chdir(checkpoint)
    before = sorted(checkpoint.iterdir())
    ran = run("convert", checkpoint, *arguments)
    assert ran.status == 2 and words in ran.err and ran.err.count("\n") == 1
    assert sorted(checkpoint.iterdir()) == before


WHOLE = ("big_vision", "huggingface", "open_clip", "orbax")  # formats of whole models; timm has image towers only


def test_there_is_a_script_for_each_direction():
    pairs = [f"{a}_to_{b}.py" for a in WHOLE for b in WHOLE if a != b]
    assert sorted(path.name for path in CONVERT.glob("*.py")) == sorted(pairs)


@pytest.mark.parametrize("script", sorted(path.name for path in CONVERT.glob("*.py")))
def test_the_scripts_are_the_command(script, monkeypatch, capsys):
    source, destination = script.removesuffix(".py").split("_to_")
    given = []

    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(CONVERT / script), *words])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(CONVERT / script), run_name="__main__")
        return done.value.code

    assert run("--help") == 0
    assert "--dry-run" in capsys.readouterr().out
    monkeypatch.setattr(cli, "main", lambda words: given.append(words) or 7)
    assert run("a", "b", "--dry-run") == 7
    assert given == [["convert", "--to", destination, "a", "b", "--dry-run"]]
    text = (CONVERT / script).read_text(encoding="utf-8")
    assert f"python convert/{source}_to_{destination}.py SRC DST" in text
    assert text.splitlines()[0].endswith(f": `siglip-jax convert SRC DST --to {destination}`.")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["huggingface", "big_vision", "open_clip", "orbax"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_every_byte_is_followed_twice(checkpoint, tmp_path, format, dtype):
    told = []
    out = tmp_path / ("x.npz" if format == "big_vision" else "x")
    done = convert(checkpoint, out, format, dtype=dtype, on_progress=lambda *seen: told.append(seen))
    assert done.written and done.different == ()
    parameters = sum(x.size for x in jax.tree.leaves(SiglipModel.from_pretrained(checkpoint)[1]))
    total = 2 * (2 * (parameters - 2) + 8 if dtype else 4 * parameters)
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert [seen for seen, _ in told] == sorted(seen for seen, _ in told)


def test_a_bar_on_a_terminal_only(run, checkpoint, tmp_path, monkeypatch):
    """On a terminal, with no patience, the bar is drawn on stderr and wiped away."""
    assert run("convert", checkpoint, tmp_path / "quiet", "--to", "huggingface").err == ""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(output, "PATIENCE", -1.0)
    for name in ("TERM", "COLUMNS"):
        monkeypatch.setenv(name, {"TERM": "xterm-256color", "COLUMNS": "100"}[name])
    assert run("convert", checkpoint, tmp_path / "seen", "--to", "huggingface").status == 0
    assert "written and read back" in screen.getvalue() and "kB" in screen.getvalue()
    assert run("verify", checkpoint).status == 0
    assert "values" in screen.getvalue()


@pytest.mark.slow
def test_quantization_says_what_it_saves_and_costs(run, checkpoint, images, tmp_path):
    facts = json.loads(run("convert", checkpoint, tmp_path / "small", "--quantization", "int8", "--json").out)
    weights = tmp_path / "small" / "quantized.safetensors"
    assert facts["bytes"] == weights.stat().st_size < facts["bytes_before"]
    assert facts["bytes_before"] == (checkpoint / "model.safetensors").stat().st_size
    for kind in ("images", "labels"):
        assert 0.99 < facts["cosine"][kind]["least"] <= facts["cosine"][kind]["mean"] < 1

    said = json.loads(run("info", tmp_path / "small", "--json").out)
    whole = json.loads(run("info", checkpoint, "--json").out)
    assert (said["format"], said["quantization"]) == ("quantized", "int8") and whole["quantization"] is None
    same = ("parameters", "vision", "text", "architecture", "temperature", "bias")
    assert [said[name] for name in same] == [whole[name] for name in same]
    assert said["weight_files"] == ["quantized.safetensors"] and said["bytes"] == weights.stat().st_size
    assert "quantized to int8" in run("info", tmp_path / "small").out
    ran = run("classify", images / "a.jpg", "--labels", "a cat", "a dog", "--model", tmp_path / "small")
    assert ran.status == 0 and "a cat" in ran.out
    for command in ("verify", "info --mesh data=2"):
        name, *options = command.split()
        ran = run(name, tmp_path / "small", *options)
        assert ran.status == 2 and "got a quantized one" in ran.err and len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--to must be one of"),
        (("--quantization", "int8", "--to", "orbax"), "--quantization must be used alone, got --to too"),
        (("--quantization", "int3"), "int3"),
    ],
)
def test_quantization_goes_alone(run, checkpoint, tmp_path, options, said):
    ran = run("convert", checkpoint, tmp_path / "x", *options)
    assert ran.status == 2 and said in ran.err and not (tmp_path / "x").exists()


def test_schemes_of_the_command_line_are_those_of_load():
    from siglip_jax.quantization.schemes import SCHEMES

    assert tuple(SCHEMES) == QUANTIZATIONS
