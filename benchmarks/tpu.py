"""What XLA estimates for TPUs that are not there: images per second and chip, share of the peak, bytes. No measurement.

    python benchmarks/tpu.py --out benchmarks/results/tpu-estimates [--models B/16-224] [--chips v5e] [--work forward]

Writes FILE.txt, the table, and FILE.json, after every row; rows of other models, chips or kinds of work that are in
FILE.json already stay. A forward pass is that of the image tower on one chip. A training step is that of both towers on
the four chips of a host, parameters and optimizer sharded over them (FSDP), with AdamW and the ring loss. All is
bfloat16 with scanned layers, since each then compiles in a minute or so. The time is the number of cycles that the
compiler estimates, loops multiplied out, at the chip's clock, and what of the collectives nothing hides
(`siglip_jax.plan`); the share of the peak counts the operations of the model, without those that remat repeats.

Needs the extras `tpu` and `train`.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

HOSTS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # four chips each
WORKS = ("forward", "training")


class Model(NamedTuple):
    """A row of the table, for each chip.

    Attributes:
      name: name of the released checkpoint.
      images: images of a forward pass on a chip.
      pairs: pairs of a training step for each chip; 0: it is not trained, as NaFlex, which recipes do not take.
      remat: what a training step computes again.
    """

    name: str
    images: int
    pairs: int
    remat: str | None


MODELS = {
    "B/16-224": Model("siglip-base-patch16-224", 64, 64, None),
    "L/16-384": Model("siglip-large-patch16-384", 16, 16, "full"),
    "So400m/14-384": Model("siglip-so400m-patch14-384", 8, 8, "full"),
    "g-opt/16-384": Model("siglip2-giant-opt-patch16-384", 8, 8, "full"),
    "NaFlex So400m/16": Model("siglip2-so400m-patch16-naflex", 32, 0, None),
}


def forward(model: Model, chip: str, *, scan_layers: bool = True, **fields: Any) -> Any:
    """Returns the plan of a forward pass of the image tower, with fields of its module, on one chip of a host."""
    import jax.numpy as jnp

    from siglip_jax.configs.configuration import Siglip2VisionConfig, SiglipConfig
    from siglip_jax.models import Siglip2VisionModel, SiglipVisionModel
    from siglip_jax.planning.plan import FORWARD, planned
    from siglip_jax.planning.topology import open_topology
    from siglip_jax.planning.work import forward_pass
    from siglip_jax.training.prepare import mesh_of

    machine = open_topology(HOSTS[chip])
    machine = dataclasses.replace(machine, devices=machine.devices[:1])
    recipe = dataclasses.replace(FORWARD, batch_size=model.images)
    mesh = mesh_of(recipe, machine.devices)
    assert mesh is not None
    config = SiglipConfig.from_variant(model.name).vision_config
    module = Siglip2VisionModel if isinstance(config, Siglip2VisionConfig) else SiglipVisionModel
    # Weights are stored in the dtype of the products, as `load` places them.
    tower = module(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, scan_layers=scan_layers, **fields)
    return planned(model.name, "forward pass", recipe, machine, mesh, forward_pass(tower, model.images, mesh))


def training(model: Model, chip: str) -> Any:
    """Returns the plan of a training step on a host."""
    import siglip_jax
    from siglip_jax.training import MeshShape, Recipe

    how: Any = {"dtype": "bfloat16", "scan_layers": True, "remat": model.remat, "mesh": MeshShape(data=1, fsdp=4)}
    return siglip_jax.plan(model.name, HOSTS[chip], recipe=Recipe(batch_size=4 * model.pairs, **how))


def row_of(name: str, chip: str, work: str, plan: Any) -> dict[str, Any]:
    """Returns the facts of a plan that the table shows."""
    keys = ("fits", "needed", "memory", "arguments", "temporaries", "cycles", "seconds", "exposed_seconds", "mfu")
    rate = None if plan.examples_per_second is None else plan.examples_per_second / plan.chips
    facts = {"model": name, "chip": chip, "work": work, "chips": plan.chips, "batch": plan.recipe.batch_size}
    facts |= {"remat": plan.recipe.remat, "images_per_second_per_chip": rate, "model_flops": plan.model_flops}
    return facts | {key: getattr(plan, key) for key in keys} | {"versions": plan.versions}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as text."""
    versions = sorted({", ".join(f"{name} {version}" for name, version in row["versions"].items()) for row in rows})
    lines = [
        f"Estimated by XLA, not measured ({'; '.join(versions)}).",
        "forward: the image tower, one chip; training: both towers, four chips, FSDP, AdamW. bfloat16, layers scanned.",
        "share: operations of the model without repeated ones, of the published peak. GB: what a chip needs, and has.",
        "Kernels of Pallas, of which XLA estimates no time, are taken to run at a quarter of the peak.",
        "",
        f"{'':<28}{'chip':<6}{'a chip':>7} {'repeated':<10}{'ms':>9}{'images/s/chip':>15}{'share':>7}{'GB':>15}",
    ]
    for row in rows:
        batch, memory = row["batch"] // row["chips"], f"{row['needed'] / 1e9:.1f} / {row['memory'] / 1e9:.1f}"
        head = f"{row['model']:<18}{row['work']:<10}{row['chip']:<6}{batch:>7} {row['remat'] or 'nothing':<10}"
        if row["seconds"] is None:
            lines.append(f"{head}{'does not fit' if not row['fits'] else 'no estimate':>31}{memory:>15}")
            continue
        rate = f"{1000 * row['seconds']:>9.2f}{row['images_per_second_per_chip']:>15,.1f}{row['mfu']:>7.0%}"
        lines.append(f"{head}{rate}{memory:>15}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles the programs one by one and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="path of both files, without suffix")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--chips", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    options = parser.parse_args()
    text, data = (options.out.with_name(f"{options.out.name}.{suffix}") for suffix in ("txt", "json"))
    order = [(name, work, chip) for name in MODELS for work in WORKS for chip in HOSTS]
    rows = {}
    if data.exists():
        rows = {(row["model"], row["work"], row["chip"]): row for row in json.loads(data.read_text())}
    for name, work, chip in order:
        model = MODELS[name]
        chosen = name in options.models and work in options.work and chip in options.chips
        if not chosen or (work == "training" and not model.pairs):
            continue
        start = time.perf_counter()
        plan = {"forward": forward, "training": training}[work](model, chip)
        rows[name, work, chip] = row_of(name, chip, work, plan)
        sorted_rows = [rows[key] for key in order if key in rows]
        data.write_text(json.dumps(sorted_rows, indent=1) + "\n")
        text.write_text(table(sorted_rows))
        print(f"{name}, {work}, {chip}: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    print(text.read_text())


if __name__ == "__main__":
    main()
