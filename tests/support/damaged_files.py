"""What test_hostile.py runs in processes of their own: writers that are killed."""

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
    directory, format, count = sys.argv[1:]
    print(json.dumps(kill(Path(directory), format, int(count))))
