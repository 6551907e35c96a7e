"""Exported encoders: their results, their platforms, running without this package, and refused models."""

import collections
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import PIL.Image
import pytest

from siglip_jax import SiglipProcessor, load
from siglip_jax.inference import Siglip
from siglip_jax.inference.export import export, read_encoder
from siglip_jax.models import products
from tests.support.tiny_checkpoint import SENTENCES, picture, tiny_config

TEXTS = [*SENTENCES, "", "Hello,  World!", " a  blank before", "a ▁ mark", "long " * 70]


@pytest.fixture(scope="module")
def exported(shared_siglip, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "out"
    export(shared_siglip, directory)
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A colour image, a partly transparent one, a grey one, one with an EXIF orientation, and one of 16 bits."""
    folder = tmp_path_factory.mktemp("pictures")
    colour, turned = (PIL.Image.fromarray(picture(i)) for i in range(2))
    transparent = colour.copy()
    transparent.putalpha(PIL.Image.fromarray(picture(2)[..., 0]))
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    turned.save(folder / "d.png", exif=exif)
    for name, image in (("a", colour), ("b", transparent), ("c", colour.convert("L"))):
        image.save(folder / f"{name}.png")
    PIL.Image.fromarray(picture(3)[..., 0].astype(np.uint16) * np.uint16(257)).save(folder / "e.png")
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_any_number_of_rows_equals_the_model(exported, shared_siglip):
    images, texts = [picture(i) for i in range(8)], TEXTS[:8]
    inputs = SiglipProcessor.from_pretrained(exported)(images=images, text=texts)
    for name, values, expected, numbers in (
        ("image", inputs["pixel_values"], shared_siglip.encode_image(images), (1, 3, 8)),
        ("text", inputs["input_ids"], shared_siglip.encode_text(texts, batch_size=8), (3,)),
    ):
        encode = read_encoder(exported, name)
        for rows in numbers:
            np.testing.assert_allclose(encode(values[:rows]), expected[:rows], atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:text has .* tokens:UserWarning")  # one of them is cut, which is said once
def test_run_py_needs_nothing_of_this_package(exported, shared_siglip, pictures, tmp_path):
    code = f"""
import runpy, sys
import numpy as np
sys.modules["siglip_jax"] = sys.modules["flax"] = None  # importing one would raise
run = runpy.run_path({str(exported / "run.py")!r})
np.save("images.npy", run["encoder"]("image")(run["pixel_values"]({[str(p) for p in pictures]!r})))
np.save("texts.npy", run["encoder"]("text")(run["input_ids"]({TEXTS!r})))
sys.argv = ["run.py", {str(pictures[0])!r}, *{SENTENCES[:3]!r}]
runpy.run_path({str(exported / "run.py")!r}, run_name="__main__")
"""
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 0, ran.stderr
    images, texts = (np.load(tmp_path / f"{name}.npy", allow_pickle=False) for name in ("images", "texts"))
    np.testing.assert_allclose(
        images, shared_siglip.encode_image([*pictures, *pictures[:3]])[: len(pictures)], atol=1e-6
    )
    np.testing.assert_allclose(texts, shared_siglip.encode_text(TEXTS, batch_size=8), atol=1e-6)
    ranked = shared_siglip.classify(pictures[0], SENTENCES[:3])
    assert ran.stdout.splitlines() == [f"{entry['score']:9.3g}  {entry['label']}" for entry in ranked]


def test_run_py_says_which_jax_it_needs(exported, pictures):
    code = f"""
import runpy, sys
import jax
from jax import export
def fail(self):
    raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Failed to deserialize StableHLO")
export.Exported.mlir_module = fail  # as an older jax does
sys.argv = ["run.py", {str(pictures[0])!r}, "a cat"]
runpy.run_path({str(exported / "run.py")!r}, run_name="__main__")
"""
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and ran.stdout == ""
    message = (
        f"image_encoder.jaxexport: jax must be at least {jax.__version__}, got {jax.__version__}; pip install 'jax>="
    )
    assert ran.stderr.splitlines() == [f"{message}{jax.__version__}'"]


def test_the_manifest_says_what_is_there(exported, shared_siglip):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"] and manifest["jax_version"] == jax.__version__
    promise = (
        f"jax {jax.__version__} and its releases of the six months after it run this; for later ones, export again"
    )
    assert manifest["promise"] == f"{promise} from the checkpoint"
    assert f"What jax promises: {promise}" in (exported / "README.md").read_text()
    assert manifest["temperature"] == shared_siglip.temperature and manifest["logit_bias"] == shared_siglip.logit_bias
    assert set(manifest["files"]) == {file.name for file in exported.iterdir()} - {"manifest.json"}
    for name, shape in (("image", [32, 32, 3]), ("text", [64])):
        said = manifest["encoders"][name]
        program = jax.export.deserialize(bytearray((exported / said["program"]).read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert program.calling_convention_version == said["calling_convention_version"]
        assert (
            [str(n) for n in program.in_avals[-1].shape]
            == [str(n) for n in said["input"]]
            == ["batch", *map(str, shape)]
        )
        assert said["output"] == ["batch", 32] and program.in_avals[-1].dtype.name == said["input_dtype"]


@pytest.mark.slow
def test_a_narrow_type_is_multiplied_as_suits_each_platform(checkpoint, tmp_path, monkeypatch):
    """A CPU without bfloat16 instructions gets float32 products, whichever exports; an accelerator does not."""
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: False)
    siglip = load(checkpoint, dtype="bfloat16")
    counts = {}
    for platforms in (("cuda",), ("tpu", "cpu")):
        directory = tmp_path / "-".join(platforms)
        assert export(siglip, directory, platforms=platforms)["dtype"] == "bfloat16"
        program = jax.export.deserialize(bytearray((directory / "image_encoder.jaxexport").read_bytes()))
        operands = re.findall(r"dot_general.*: \(tensor<[^>]*x(\w+)>", program.mlir_module())
        counts[platforms] = collections.Counter(operands)
    assert set(counts["cuda",]) == {"bf16"} and counts["cuda",].total() > 20
    assert counts["tpu", "cpu"]["bf16"] == counts["tpu", "cpu"]["f32"] == counts["tpu", "cpu"].total() / 2
    pixels = siglip.processor(images=[picture(0)])["pixel_values"]
    found = read_encoder(tmp_path / "tpu-cpu", "image")(pixels)
    np.testing.assert_allclose(found, siglip.encode_image(picture(0)), atol=1e-6)


def damage_program(directory):
    data = bytearray((directory / "text_encoder.jaxexport").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "text_encoder.jaxexport").write_bytes(data)


def cut_params(directory):
    file = directory / "text_encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove_params(directory):
    (directory / "text_encoder.safetensors").unlink()


def another_manifest(directory):
    (directory / "manifest.json").write_text('{"format": "another"}')


def no_manifest(directory):
    (directory / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            damage_program,
            "text_encoder.jaxexport: the contents must match manifest.json, got other bytes; export or copy it again",
        ),
        (
            cut_params,
            "text_encoder.safetensors: the contents must match manifest.json, got other bytes; export or copy it again",
        ),
        (remove_params, "text_encoder.safetensors: no such file; export again"),
        (another_manifest, "manifest.json: format must be 'siglip_jax export 1', got 'another'; export again"),
        (no_manifest, "manifest.json: no such file; it records what was exported"),
    ],
)
def test_damage_is_noticed(exported, tmp_path, damage, message):
    directory = shutil.copytree(exported, tmp_path / "damaged")
    damage(directory)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        read_encoder(directory, "text")


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(shared_siglip, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="the destination must not exist yet, got an existing one"):
        export(shared_siglip, tmp_path)
    for platforms in ((), ("cpu", "cpu"), ("gpu",)):
        with pytest.raises(ValueError, match="platforms must be some of cpu, cuda, rocm, tpu, each once"):
            export(shared_siglip, tmp_path / "x", platforms=platforms)
    processor, config = shared_siglip.processor, tiny_config(60, flexible=True)
    flexible = Siglip(shared_siglip.model, shared_siglip.params, processor, config)
    with pytest.raises(ValueError, match="must be a model of fixed resolution, got one of variable resolution"):
        export(flexible, tmp_path / "x")
    with monkeypatch.context() as patched:
        patched.setitem(shared_siglip.processor.image_processor._options, "do_pad", True)
        with pytest.raises(ValueError, match="image processor must resize to 32 x 32, .*, got {.*'do_pad': True"):
            export(shared_siglip, tmp_path / "x")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "flatbuffers", None)
        with pytest.raises(ValueError, match=r"pip install 'flatbuffers>=\d+' \(the extra 'export'\)$"):
            export(shared_siglip, tmp_path / "x")
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError("disk full")

        patched.setattr(sys.modules["siglip_jax.inference.export"], "write_safetensors", full)
        with pytest.raises(OSError, match="disk full"):
            export(shared_siglip, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
