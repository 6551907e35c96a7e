"""Files that were damaged or made to do harm: one clear line each, nothing unpickled, nothing read elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import siglip_jax
from siglip_jax.checkpoints.read import read_contents, select
from siglip_jax.params import flatten
from tests.support.damaged_files import read_all, write


def refused(path, *words):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def with_header(path, change):
    """Rewrites the header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def offsets(name, begin, end):
    return lambda header: header[name].update(data_offsets=[begin, end])


@pytest.mark.parametrize(
    "change",
    [
        offsets("logit_scale", 0, 4),
        offsets("logit_scale", 10**9, 10**9 + 4),
        offsets("logit_scale", -4, 0),
        lambda header: header["logit_scale"].update(shape=[2**62]),
        lambda header: header["logit_scale"].update(shape=[-1]),
        lambda header: header["logit_scale"].update(dtype="PICKLE"),
        lambda header: header.update(logit_scale=3),
    ],
    ids=["overlap", "beyond", "negative", "huge", "negative shape", "type", "no tensor"],
)
def test_headers_that_lie(tmp_path, change):
    path = write(tmp_path, "huggingface")
    with_header(path / "model.safetensors", change)
    refused(path, "model.safetensors", "corrupt")


@pytest.mark.parametrize("length", [0, 7, 10**6, 2**40, 2**64 - 1])
def test_absurd_lengths_of_headers(tmp_path, length):
    path = write(tmp_path, "huggingface")
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
    refused(path, "model.safetensors", "corrupt")


def test_shards_that_are_missing_or_hold_more(tmp_path):
    path = write(tmp_path, "huggingface", max_shard_size=1000)
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 2
    shutil.copy(shards[0], tmp_path / "kept")
    shards[0].unlink()
    refused(path, shards[0].name, "no such file")
    shutil.copy(tmp_path / "kept", shards[0])
    extra = np.zeros(1, np.float32)
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(shards[0]) | {"stray": extra}
    safetensors.numpy.save_file(tensors, shards[0])
    refused(path, "1 unexpected (stray)")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_directory_are_not_followed(tmp_path, name):
    path = write(tmp_path, "huggingface")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    refused(path, name, "link out of it")


def test_links_within_the_cache_of_the_hub_are(tmp_path):
    path = write(tmp_path, "huggingface")
    expected = read_all(path)
    snapshot, blobs = tmp_path / "models--o--n" / "snapshots" / "abc", tmp_path / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in path.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert read_all(snapshot) == expected


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path):
    path = write(tmp_path, "big_vision")
    with np.load(path) as stored:
        tensors = dict(stored)
    harm = np.empty(1, object)
    harm[0] = Harm(tmp_path / "harmed")
    np.savez(path, **tensors | {"params/t": harm})
    refused(path, "pickled objects")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("format", ["huggingface", "big_vision"])
def test_a_file_that_is_cut_off_in_place_after_it_was_opened(tmp_path, format):
    """Reading its pages would end the process (SIGBUS)."""
    path = write(tmp_path, format)
    file = path / "model.safetensors" if path.is_dir() else path
    contents = read_contents(path)
    with file.open("rb+") as stream:
        stream.truncate(100)
    with pytest.raises(ValueError, match=f"{file.name}: the file must keep its [0-9]+ bytes, got 100; write it anew"):
        for array in flatten(select(contents, "SiglipModel").params).values():
            np.asarray(array).sum()


def test_archives_that_lie(tmp_path):
    path = write(tmp_path, "big_vision")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(compression=zipfile.ZIP_STORED, **changed):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in (members | changed).items():
                archive.writestr(name, content)

    rewrite(**{"params/bomb.npy": bytes(200_000_000)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 400_000
    refused(path, "unpacked from")
    rewrite(**{"params/t.npy": b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}"})
    refused(path, "x.npz", "corrupt")
    huge = members["params/t.npy"].replace(b"(1,)", b"(9999999999999,)", 1)
    rewrite(**{"params/t.npy": huge})
    refused(path, "x.npz", "corrupt")
    path.write_bytes(data[:-30])
    refused(path, "x.npz", "corrupt")
    path.write_bytes(b"")
    refused(path, "x.npz", "corrupt")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_archives_with_a_wrong_bit(tmp_path, compression):
    path = write(tmp_path, "big_vision")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        first = archive.infolist()[0]
    if compression == zipfile.ZIP_DEFLATED:
        read_all(path)
    data = bytearray(path.read_bytes())
    data[first.header_offset + 30 + len(first.filename) + first.compress_size // 2] ^= 0x10
    path.write_bytes(data)
    refused(path, "x.npz", "corrupt")


def test_names_of_tensors_do_not_break_the_line(tmp_path):
    path = write(tmp_path, "huggingface")
    with_header(path / "model.safetensors", lambda header: header.update({"a\nb": header.pop("logit_scale")}))
    refused(path, "1 missing (logit_scale)", r"1 unexpected ('a\nb')")


@pytest.mark.parametrize(
    ("field", "value"), [("architectures", {"a": 1}), ("architectures", 5), ("model_type", ["x"]), ("model_type", {})]
)
def test_fields_of_the_wrong_type(tmp_path, field, value):
    path = write(tmp_path, "huggingface")
    d = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(d | {field: value}))
    if field == "architectures":
        assert read_all(path)  # a hint and no more
    else:
        refused(path)


@pytest.mark.parametrize("value", [3, [1], "abc"])
def test_a_tower_that_is_no_object(tmp_path, value):
    d = {"model_type": "siglip", "text_config": value, "vision_config": value}
    (tmp_path / "config.json").write_text(json.dumps(d))
    for cls in (siglip_jax.SiglipTextConfig, siglip_jax.SiglipVisionConfig, siglip_jax.SiglipConfig):
        with pytest.raises(ValueError, match="_config"):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("tower", "field", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "hidden_size", 10**12),
        ("vision_config", "patch_size", 10**6),
        ("text_config", "vocab_size", 10**15),
        (None, "num_labels", 10**10),
        (None, "vision_config", 3),
        (None, "id2label", {"x": "y"}),
    ],
)
def test_configurations_that_ask_for_too_much(tmp_path, tower, field, value):
    path = write(tmp_path, "huggingface")
    d = json.loads((path / "config.json").read_text())
    (d[tower] if tower else d)[field] = value
    (path / "config.json").write_text(json.dumps(d))
    start = time.process_time()
    refused(path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "null", "\x00", "1" * 10_000, '{"vision_config": []}']
)
def test_json_that_is_none(tmp_path, text):
    path = write(tmp_path, "huggingface")
    (path / "config.json").write_text(text)
    refused(path)


def run(*arguments):
    """Runs the long ones in a process of their own, which the checks of types at run time do not slow down."""
    command = [sys.executable, "-m", "tests.support.damaged_files", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["huggingface", "big_vision"])
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path, format):
    """Killed 25 times at seeded moments while it writes one checkpoint over another, again and again.

    A directory has no configuration between two renames: then it is refused, and never passes for whole.
    """
    counted = run(tmp_path, format, 25)
    assert counted["old or new"] + counted["refused"] == 25 and counted["old or new"] > 0
    assert counted["refused"] == 0 or format == "huggingface"
