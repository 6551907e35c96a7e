"""What each remat policy keeps and repeats: temporaries and operations of a gradient, by the compiler. No measurement.

    python benchmarks/remat.py h100 --out benchmarks/results/remat [--policies none full]
    python benchmarks/remat.py v5e --out benchmarks/results/remat

Compiles the gradient of the B/16 image tower in bfloat16, with stacked layers and parameters in float32, for one device
that need not be there, and writes FILE.txt, the table, and FILE.json, after every policy; rows of the other device that
are in FILE.json already stay. `repeated` is what a policy computes again, as a share of the operations of the gradient
that repeats nothing: matrix products and attention, loops multiplied out. The time is the number of cycles that XLA
estimates for a TPU; it estimates none for a GPU.

`v5e` needs the extra `tpu`; `h100` needs jax's CUDA plug-in: see `benchmarks/gpu.py`.
"""

import argparse
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import gpu_h100

NAME = "siglip-base-patch16-224"
IMAGES = {"h100": 256, "v5e": 128}  # 256 need more than the memory of a v5e if nothing is repeated
FORWARD, BACKWARD = 2, 5  # products of an attention kernel
_PRODUCT = re.compile(r'"lhs_contracting_dimensions":\["(\d+)"\]')


def gradient(device: Any, policy: str | None, images: int) -> Any:
    """Returns the compiled gradient of the image tower.

    Args:
      device: device to compile for.
      policy: value of `remat`.
      images: number of images.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from siglip_jax import SiglipConfig, SiglipVisionModel

    config = SiglipConfig.from_variant(NAME).vision_config
    module = SiglipVisionModel(config, dtype=jnp.bfloat16, scan_layers=True, remat=policy)
    where = NamedSharding(Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec())
    shape = (images, config.image_size, config.image_size, 3)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape[1:])))["params"])
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=where), params)
    pixels = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)

    def loss(params: Any, pixels: Any) -> Any:
        out: Any = module.apply({"params": params}, pixels)
        return jnp.sum(out.pooler_output.astype(jnp.float32) ** 2)

    return jax.jit(jax.grad(loss)).lower(params, pixels).compile()


def facts(compiled: Any, tokens: int) -> dict[str, Any]:
    """Returns bytes, operations and estimated cycles of a program.

    Args:
      compiled: the compiled program.
      tokens: tokens of the attention kernels.
    """
    from siglip_jax.planning.hlo import Module

    module = Module.parse(compiled.as_text())
    operations, cycles = _total(module, module.entry, tokens)
    return {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "operations": operations,
        "cycles": cycles or None,
    }


def _total(module: Any, computation: str, tokens: int) -> tuple[int, int]:
    """Returns operations and estimated cycles of a computation, libraries' products and kernels of GPUs among them."""
    operations = cycles = 0
    for i in module.computations[computation]:
        cycles += i.cycles
        if i.opcode in ("dot", "convolution"):
            operations += module.flops_of(computation, i)
        elif i.opcode == "custom-call":
            first = module.names[computation][i.operands[0]].shapes[0].dims if i.operands else ()
            if "__cublas" in i.rest and (found := _PRODUCT.search(i.rest)):
                operations += 2 * math.prod(i.shapes[0].dims) * first[int(found[1])]
            elif "__cudnn$fmha" in i.rest:
                operations += 2 * (BACKWARD if "Backward" in i.rest else FORWARD) * math.prod(first) * tokens
        else:
            times = module.iterations(computation, i) if i.opcode == "while" else 1
            for name in i.called:
                if name in module.computations:
                    inside = _total(module, name, tokens)
                    operations, cycles = operations + times * inside[0], cycles + times * inside[1]
    return operations, cycles


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as text."""
    versions = sorted({f"{row['device']}: {row['versions']}" for row in rows})
    lines = [
        f"Gradient of the image tower of {NAME}, bfloat16, stacked layers, one device; no measurement.",
        f"By the compilers of {'; '.join(versions)}.",
        "repeated: share of the operations of the gradient that repeats nothing; ms: estimated by XLA.",
        "",
        f"{'':<8}{'images':>8}  {'remat':<28}{'temporaries GB':>15}{'operations':>13}{'repeated':>10}{'ms':>9}",
    ]
    for row in rows:
        whole = next((r["operations"] for r in rows if r["device"] == row["device"] and r["remat"] == "none"), None)
        repeated = "" if whole is None else f"{row['operations'] / whole - 1:.1%}"
        shown = "" if row["cycles"] is None else f"{1000 * row['cycles'] / row['clock']:.1f}"
        lines.append(
            f"{row['device']:<8}{row['images']:>8}  {row['remat']:<28}{row['temporaries'] / 1e9:>15.2f}"
            f"{row['operations']:>13.3e}{repeated:>10}{shown:>9}"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    """Compiles the programs one by one and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=IMAGES)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="path of both files, without suffix")
    parser.add_argument("--policies", nargs="+", help="policies to compile (default: all)")
    options = parser.parse_args()
    if options.device == "h100":
        os.environ.update(gpu_h100.ENVIRONMENT)
    import jax

    from siglip_jax.models.encoder import REMAT_POLICIES

    clock: float | None = None
    if options.device == "h100":
        device, versions = gpu_h100.device(), f"jax and CUDA plug-in {jax.__version__}"
    else:
        from siglip_jax.planning.topology import open_topology

        machine = open_topology("v5e:2x2")
        device, clock = machine.devices[0], machine.chip.clock
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    text, data = (options.out.with_name(f"{options.out.name}.{suffix}") for suffix in ("txt", "json"))
    order = [(device, policy) for device in IMAGES for policy in ("none", *REMAT_POLICIES)]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if data.exists():
        rows = {(row["device"], row["remat"]): row for row in json.loads(data.read_text())}
    for policy in options.policies or ["none", *REMAT_POLICIES]:
        start = time.perf_counter()
        images = IMAGES[options.device]
        compiled = gradient(device, None if policy == "none" else policy, images)
        row = {"device": options.device, "images": images, "remat": policy, "versions": versions, "clock": clock}
        rows[options.device, policy] = row | facts(compiled, tokens=196)
        found = [rows[key] for key in order if key in rows]
        data.write_text(json.dumps(found, indent=1) + "\n")
        text.write_text(table(found))
        print(f"{options.device}, {policy}: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    print(text.read_text())


if __name__ == "__main__":
    main()
