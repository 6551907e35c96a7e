"""What XLA estimates for towers with its own attention and with the fused kernel, on TPUs that are not there.

    python benchmarks/tpu_attention.py [--chip v5e] [--models So400m/14-384 B/16-224]

Prints millions of cycles of a forward pass on one chip, bfloat16: with XLA's attention, everything outside the kernel,
and the kernel, of which XLA estimates nothing. `siglip_jax.plan` takes a kernel to run at a quarter of the peak, by the
operations that it says of itself. Needs the extras `tpu` and `train`.
"""

import argparse

from tpu import HOSTS, MODELS, forward


def main() -> None:
    """Compiles each tower twice and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=HOSTS, default="v5e")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["So400m/14-384", "B/16-224"])
    options = parser.parse_args()
    titles = ("XLA's attention", "outside the kernel", "kernel", "outside / XLA")
    print(f"{options.chip:<16}{'images':>7}" + "".join(f"{title:>20}" for title in titles))
    versions = {}
    for name in options.models:
        # With a loop over the layers XLA estimates a tenth more.
        ours = forward(MODELS[name], options.chip, scan_layers=False, attn_implementation="pallas")
        theirs = forward(MODELS[name], options.chip, scan_layers=False, attn_implementation="xla")
        versions |= theirs.versions
        clock = theirs.cycles / (theirs.seconds - theirs.exposed_seconds)  # there is no kernel in it
        kernel = (ours.seconds - ours.exposed_seconds) * clock - ours.cycles
        cycles = "".join(f"{x / 1e6:>20.1f}" for x in (theirs.cycles, ours.cycles, kernel))
        print(f"{name:<16}{MODELS[name].images:>7}{cycles}{ours.cycles / theirs.cycles:>20.2f}", flush=True)
    print(f"\nMillions of cycles, estimated by XLA ({', '.join(' '.join(x) for x in versions.items())}).")


if __name__ == "__main__":
    main()
