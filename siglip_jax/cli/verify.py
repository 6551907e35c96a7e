"""Checks a checkpoint: every tensor's name, shape and type, every value, its tokenizer, and its published logits.

Token ids and logits are computed where the checkpoint has the sizes of a released one and something is published. The
images for the two models of variable resolution are drawn here; for the others give the published image, or a .npy
file of its pixel values, with --image. Exit status 0 if all is right, 1 if a check failed, 2 if the files cannot be
read as a checkpoint.
"""

import argparse
import json
from typing import Any

from siglip_jax.cli._output import progress

HELP = "check that a checkpoint is whole"
EPILOG = """examples:
  siglip-jax verify google/siglip2-base-patch16-naflex
  siglip-jax verify google/siglip-base-patch16-224 --image 000000039769.jpg
  siglip-jax verify webli_en_b16_224_63724782.npz --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="Hub name, directory or file")
    parser.add_argument("--image", metavar="FILE", help="published image, or a .npy of its pixel values")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from siglip_jax.inference.verify import verify_model

    with progress("values", in_bytes=True) as on_progress, progress("published answers") as on_answer:
        found = verify_model(arguments.model, arguments.image, on_progress=on_progress, on_answer=on_answer)
    facts = found.to_dict()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0 if found.right else 1


def _number(x: float | None) -> str:
    return f"{'NaN':>10}" if x is None else f"{x:10.4f}"


def _print(facts: dict[str, Any]) -> None:
    width = max(len(check["name"]) for check in facts["checks"])
    for check in facts["checks"]:
        print(f"{'ok' if check['right'] else 'WRONG':<5}  {check['name']:<{width}}  {check['found']}")
    for answer in facts["answers"]:
        print(f"\n{answer['kind']} found, and in brackets published ({answer['source']}), a column for each image")
        column = max(map(len, answer["texts"]))
        for i, text in enumerate(answer["texts"]):
            pairs = zip(answer["found"], answer["published"], strict=True)
            print(f"  {text:<{column}}", *(f"{_number(found[i])} ({known[i]:.4f})" for found, known in pairs))
    for line in facts["not_computed"]:
        print(f"not computed: published {line}")
    print(f"{facts['path']}: {'all right' if facts['right'] else 'not right'}")
