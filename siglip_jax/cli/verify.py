"""Checks a checkpoint: the name, shape and dtype of every tensor, every value, the tokenizer, published logits.

Of a directory that siglip-jax embed wrote, it compares every file with its checksum.

Token ids and logits are computed if the checkpoint has the sizes of a released one with published values. The images
for the two models of variable resolution are generated; for the others, pass the published image, or a .npy file of
its pixel values, with --image. The exit status is 0 if all checks pass, 1 if one fails, and 2 if the files cannot be
read as a checkpoint.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from siglip_jax.cli._output import progress, shown

HELP = "check that a checkpoint, or a directory of embeddings, is complete and correct"
EPILOG = """examples:
  siglip-jax verify google/siglip2-base-patch16-naflex
  siglip-jax verify google/siglip-base-patch16-224 --image 000000039769.jpg
  siglip-jax verify webli_en_b16_224_63724782.npz --json
  siglip-jax verify photos-embedded"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="Hub name, directory or file, or directory of embeddings")
    parser.add_argument("--image", metavar="FILE", help="published image, or .npy file of its pixel values")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if Path(arguments.model).is_dir():
        from siglip_jax.search.verify import is_collection

        if is_collection(Path(arguments.model)):
            return _verify_embeddings(arguments)
    from siglip_jax.inference.verify import verify_model

    with progress("values", in_bytes=True) as on_progress, progress("published answers") as on_answer:
        found = verify_model(arguments.model, arguments.image, on_progress=on_progress, on_answer=on_answer)
    facts = found.to_dict()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0 if found.right else 1


def _verify_embeddings(arguments: argparse.Namespace) -> int:
    from siglip_jax.search.verify import verify_collection

    if arguments.image is not None:
        raise ValueError(f"{arguments.model}: --image is for checkpoints, got a directory of embeddings; leave it out")
    faults = verify_collection(arguments.model)
    if arguments.json:
        print(
            json.dumps(
                {"path": arguments.model, "format": "embeddings", "right": not faults, "faults": faults}, indent=2
            )
        )
    else:
        for fault in faults:
            print(f"WRONG  {shown(fault, sys.stdout.encoding)}")
        print(f"{arguments.model}: {'not right' if faults else 'all right'}")
    return 1 if faults else 0


def _number(x: float | None) -> str:
    return f"{'NaN':>10}" if x is None else f"{x:10.4f}"


def _print(facts: dict[str, Any]) -> None:
    width = max(len(check["name"]) for check in facts["checks"])
    for check in facts["checks"]:
        print(f"{'ok' if check['right'] else 'WRONG':<5}  {check['name']:<{width}}  {check['found']}")
    for answer in facts["answers"]:
        print(f"\n{answer['kind']} computed, and in brackets published ({answer['source']}); one column per image")
        column = max(map(len, answer["texts"]))
        for i, text in enumerate(answer["texts"]):
            pairs = zip(answer["found"], answer["published"], strict=True)
            print(f"  {text:<{column}}", *(f"{_number(found[i])} ({known[i]:.4f})" for found, known in pairs))
    for line in facts["not_computed"]:
        print(f"not computed: published {line}")
    print(f"{facts['path']}: {'all right' if facts['right'] else 'not right'}")
