"""Small programs that the TPU compiler compiles in tests, and what it said of them: `python -m tests.support.plans`.

The command compiles them with the jax that runs it and rewrites the facts of its version in `tests/golden/plans.json`.
"""

import functools
import json
from pathlib import Path
from typing import Any

from siglip_jax import SiglipConfig, SiglipModel, SiglipVisionModel
from siglip_jax.planning import Plan, plan

FILE = Path(__file__).parents[1] / "golden" / "plans.json"

# Heads of 36, an MLP that is not four times as wide, 16 text positions, 3 layers: no size is another by accident.
TOWER = {"hidden_size": 144, "intermediate_size": 544, "num_attention_heads": 4, "num_hidden_layers": 3}
CONFIG = SiglipConfig(
    text_config=TOWER | {"vocab_size": 1000, "max_position_embeddings": 16},
    vision_config=TOWER | {"patch_size": 8, "image_size": 56},
)
TRAINED = 8 * 40  # pairs of a training step
FORWARD = 4 * 24  # images of a forward pass
TRAINING = {"mesh": {"data": 2, "fsdp": 4}, "optimizer.name": "adamw", "remat": None}


@functools.cache
def compiled(name: str) -> Plan:
    """Returns the plan of a program, compiled once in a process."""
    if name == "step":
        return plan(SiglipModel(CONFIG), "v5e:2x4", TRAINED, "scratch-b16", **TRAINING)
    stacked = name == "stacked"
    tower = SiglipVisionModel(CONFIG.vision_config, dtype="bfloat16", scan_layers=stacked)
    return plan(tower, "v5e:2x2", FORWARD)


PROGRAMS = ("step", "stacked", "separate")


def facts_of(found: Plan) -> dict[str, Any]:
    """Returns what is held fixed of a program, for JSON."""
    traffic = {}
    for row in found.traffic():
        way = "asynchronous" if row["asynchronous"] else "synchronous"
        each = traffic.setdefault(f"{row['kind']} over {row['over']}, {way}", {"count": 0, "bytes": 0})
        each["count"] += row["count"]
        each["bytes"] += row["bytes"]
    return {
        "arguments": found.arguments,
        "temporaries": found.temporaries,
        "flops": found.flops,
        "cycles": found.cycles,
        "collectives": dict(sorted(traffic.items())),
    }


def versions_of(found: Plan) -> str:
    """Returns the key of the facts of a version."""
    return ", ".join(f"{name} {version}" for name, version in found.versions.items())


if __name__ == "__main__":
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for program in PROGRAMS:
        made = compiled(program)
        known.setdefault(program, {})[versions_of(made)] = facts_of(made)
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
