"""What test_hostile.py runs in processes of their own: thousands of mutated files, and writers that are killed."""

import collections
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import siglip_jax
from siglip_jax.params import flatten
from tests.support.scaled_variants import random_checkpoint

TOWER = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 12}


def checkpoint(seed=0):
    text = TOWER | {"vocab_size": 11, "max_position_embeddings": 4}
    config = siglip_jax.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 8, "patch_size": 4})
    made = random_checkpoint(config, np.dtype(np.float32))
    params = {"vision_model": made.params["vision_model"], "text_model": made.params["text_model"]}
    scalars = {"logit_scale": np.full(1, seed, np.float32), "logit_bias": np.full(1, -seed, np.float32)}
    return siglip_jax.Checkpoint(config, params | scalars, "huggingface", "SiglipModel")


def write(directory, format, seed=0, **options):
    path = directory / ("x.npz" if format == "big_vision" else format)
    siglip_jax.write_checkpoint(path, checkpoint(seed), format, **options)
    return path


def read_all(path):
    return {name: np.asarray(x).tobytes() for name, x in flatten(siglip_jax.read_checkpoint(path).params).items()}


def mutated(data, draw):
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data) + 1) if draw.random() < 0.3 else draw.randrange(min(len(data), 2000) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at:at] = draw.randbytes(draw.choice([1, 8, 100]))
        elif kind == 2:
            del data[at : at + draw.choice([1, 8, 500])]
        elif kind == 3:
            data[at : at + 8] = draw.choice([b"\xff" * 8, b"\x00" * 8, b"9" * 8, b"-1", b"[[[[", b'"', b"{}"])
        elif draw.random() < 0.2:
            del data[at:]
        if not data:
            break
    return bytes(data)


def mutate(directory, format, count):
    """Reads `count` mutated files; anything but the two errors that a user is told ends the process."""
    path = write(directory, format)
    if format == "open_clip":
        (path / "config.json").unlink()  # its own configuration is read then: of a model that timm has
        config = path / "open_clip_config.json"
        config.write_text(config.read_text().replace("vit_custom_", "vit_base_"))
        read_all(path)
    files = [path] if path.is_file() else sorted(path.iterdir())
    whole = {file: file.read_bytes() for file in files}
    draw, counted = random.Random(format), collections.Counter(read=0, refused=0)
    for i in range(count):
        file = files[i % len(files)]
        file.write_bytes(mutated(whole[file], draw))
        try:
            read_all(path)
            counted["read"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error), str(error)
            counted["refused"] += 1
        file.write_bytes(whole[file])
    return counted


def kill(directory, format, count):
    """Kills `count` writers; what they leave is the old checkpoint, the new one, or refused."""
    path = write(directory, format, seed=1)
    either = [read_all(path)]
    write(directory, format, seed=2)
    either.append(read_all(path))
    assert either[0] != either[1]
    draw, counted = random.Random(0), collections.Counter({"old or new": 0, "refused": 0})
    for _ in range(count):
        child = os.fork()
        if child == 0:
            for i in range(10**6):
                write(directory, format, seed=1 + i % 2)
        time.sleep(0.02 + 0.1 * draw.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            assert read_all(path) in either
            counted["old or new"] += 1
        except FileNotFoundError:
            counted["refused"] += 1
            write(directory, format, seed=1)
    return counted


if __name__ == "__main__":
    job, directory, format, count = sys.argv[1:]
    print(json.dumps({"mutate": mutate, "kill": kill}[job](Path(directory), format, int(count))))
