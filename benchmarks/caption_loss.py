"""Memory of the captioning loss with its gradients, as compilers say, beside the formula that holds all logits.

    python benchmarks/caption_loss.py [--examples 1024] [--tokens 64] [--width 768] [--json]

Nothing runs and no device is needed: programs are compiled for one CPU and for a chip of a TPU (libtpu, `pip install
'siglip_jax[tpu]'`), with states in bfloat16 and a table in float32. Temporaries are what a program needs beside its
arguments and its results, of which the gradient of the table is the largest. The formula is `optax`'s
`softmax_cross_entropy_with_integer_labels` of all logits, differentiated by JAX. Products count 2 x tokens x rows x
width each; cycles are XLA's estimate for a TPU, loops multiplied out, and no measurement. On the chip the formula is
compiled for a fraction of the tokens, which its memory is proportional to: with all of them it is refused.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from siglip_jax.losses import captioning_loss
from siglip_jax.planning.program import read_program
from siglip_jax.planning.topology import open_topology

VOCABULARIES = (32_000, 64_000, 128_000, 256_000)
SMALLER = 64  # the fraction of the tokens for which the formula is compiled


def formula(states: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean of the cross-entropies from all logits."""
    logits = jnp.matmul(states, table.astype(states.dtype).T, preferred_element_type=jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def facts(loss: Any, examples: int, tokens: int, width: int, vocabulary: int, device: Any) -> dict[str, Any]:
    """Returns what the compiler of a device says of a loss with its gradients."""
    mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    given = [
        jax.ShapeDtypeStruct((examples, tokens, width), jnp.bfloat16, sharding=whole),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((examples, tokens), jnp.int32, sharding=whole),
    ]
    program = read_program(jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile(), mesh)
    product = 2 * examples * tokens * vocabulary * width
    return {
        "temporaries": program.temporaries,
        "outputs": program.outputs,
        "products": program.flops / product,
        "cycles": program.cycles,
    }


def rows(device: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of a device."""
    found = []
    for vocabulary in VOCABULARIES:
        sizes = arguments.tokens, arguments.width, vocabulary, device
        ours = facts(functools.partial(captioning_loss, block_size="auto"), arguments.examples, *sizes)
        small = facts(formula, arguments.examples // SMALLER, *sizes)
        theirs = {name: small[name] * SMALLER for name in ("temporaries", "cycles")} | {"products": small["products"]}
        ratio = ours["temporaries"] / theirs["temporaries"]
        found.append({"vocabulary": vocabulary, "ours": ours, "formula": theirs, "ratio": ratio})
    return found


def main() -> None:
    """Compiles all programs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--topology", default="v5e:2x2", help="machine whose first chip the programs are compiled for")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    topology = open_topology(arguments.topology)
    devices = {"CPU": jax.devices("cpu")[0], topology.chip.name: topology.devices[0]}
    table = {name: rows(device, arguments) for name, device in devices.items()}
    if arguments.json:
        print(json.dumps({"versions": topology.versions, "rows": table}, indent=2))
        return
    versions = ", ".join(f"{name} {version}" for name, version in topology.versions.items())
    print(f"{arguments.examples} x {arguments.tokens} tokens of {arguments.width}, one device ({versions})")
    print("temporaries in MiB beside the gradient of the table, which is a result; estimated cycles in millions\n")
    print(f"{'device':<8}{'rows':>9}{'ours':>9}{'formula':>11}{'ratio':>10}", end="")
    print(f"{'of table':>10}{'products':>10}{'cycles':>9}{'formula':>10}{'ratio':>7}")
    for name, lines in table.items():
        for line in lines:
            ours, theirs = line["ours"], line["formula"]
            mib = [x / 2**20 for x in (ours["temporaries"], theirs["temporaries"])]
            of_table = line["vocabulary"] * arguments.width * 4 / 2**20
            print(f"{name:<8}{line['vocabulary']:>9,}{mib[0]:>9,.0f}{mib[1]:>11,.0f}", end="")
            print(f"{'1/' + format(1 / line['ratio'], '.0f'):>10}{of_table:>10,.0f}{ours['products']:>10.2f}", end="")
            if ours["cycles"]:
                cycles = [x / 1e6 for x in (ours["cycles"], theirs["cycles"])]
                print(f"{cycles[0]:>9,.0f}{cycles[1]:>10,.0f}{cycles[0] / cycles[1]:>7.2f}")
            else:
                print(f"{'-':>9}{'-':>10}{'-':>7}")


if __name__ == "__main__":
    main()
