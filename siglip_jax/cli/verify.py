"""Checks a checkpoint: every tensor's name, shape and type, every value, and its tokenizer against published token ids.

Exit status 0 if all is right, 1 if a check failed, 2 if the files cannot be read as a checkpoint.
"""

import argparse
import json
from typing import Any

HELP = "check that a checkpoint is whole"
EPILOG = """examples:
  siglip-jax verify google/siglip-base-patch16-224
  siglip-jax verify webli_en_b16_224_63724782.npz --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="Hub name, directory or file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Does the job; returns the exit status."""
    from siglip_jax.checkpoints.load import read_contents
    from siglip_jax.checkpoints.verify import Check, directory_of, verify, verify_tokens
    from siglip_jax.cli.info import released_variant
    from siglip_jax.processing import SiglipTokenizer

    contents = read_contents(arguments.model)
    checks = list(verify(contents))
    variant = released_variant(contents.config, contents.architecture)
    home = directory_of(contents)
    if any((home / name).is_file() for name in ("spiece.model", "tokenizer.json")):
        tokenizer = SiglipTokenizer.from_pretrained(home)
        checks.append(Check("tokenizer", True, f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} pieces"))
        if variant is not None and variant.token_ids:
            checks += verify_tokens(lambda text: tokenizer(text)["input_ids"], dict(variant.token_ids))
    facts: dict[str, Any] = {
        "path": str(contents.path),
        "format": contents.format,
        "same_shapes_as": variant and variant.name,
        "checks": [check._asdict() for check in checks],
        "right": all(check.right for check in checks),
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok' if check.right else 'WRONG':<5}  {check.name:<{width}}  {check.found}")
        print(f"{contents.path}: {'all right' if facts['right'] else 'not right'}")
    return 0 if facts["right"] else 1
