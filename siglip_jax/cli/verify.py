"""Checks a checkpoint: every tensor's name, shape and type, every value, its tokenizer, and its published logits.

Token ids and logits are computed where the checkpoint has the sizes of a released one and something is published. The
pictures for the two models of variable resolution are drawn here; for the others give the published picture, or a .npy
file of its pixel values, with --image. Exit status 0 if all is right, 1 if a check failed, 2 if the files cannot be
read as a checkpoint.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siglip_jax.cli.output import progress, with_progress

HELP = "check that a checkpoint is whole"
EPILOG = """examples:
  siglip-jax verify google/siglip2-base-patch16-naflex
  siglip-jax verify google/siglip-base-patch16-224 --image 000000039769.jpg
  siglip-jax verify webli_en_b16_224_63724782.npz --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="Hub name, directory or file")
    parser.add_argument("--image", metavar="FILE", help="published picture, or a .npy of its pixel values")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Does the job; returns the exit status."""
    from siglip_jax.checkpoints.load import read_contents
    from siglip_jax.checkpoints.verify import Check, directory_of, verify, verify_tokens
    from siglip_jax.cli.facts import released_variant
    from siglip_jax.processing import SiglipTokenizer

    contents = read_contents(arguments.model)
    variant = released_variant(contents.config, contents.architecture)
    answers, left = _answers(variant, arguments.image)
    size = sum(tensor.dtype.itemsize * math.prod(tensor.shape) for tensor in contents.tensors.values())
    with progress(size, "values", in_bytes=True) as advance:
        checks = list(verify(contents, advance))
    home = directory_of(contents)
    comparisons = []
    if any((home / name).is_file() for name in ("spiece.model", "tokenizer.json")):
        tokenizer = SiglipTokenizer.from_pretrained(home)
        checks.append(Check("tokenizer", True, f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} pieces"))
        if variant is not None and variant.token_ids:
            checks += verify_tokens(lambda text: tokenizer(text)["input_ids"], dict(variant.token_ids))
        if answers:
            comparisons = list(_compared(contents, answers, arguments.image))
    elif answers:
        left += [f"{answers[0].kind}: no tokenizer beside the weights"]
    for comparison in comparisons:
        error, tolerance = comparison.error, comparison.answer.tolerance
        said = f"{comparison.expected.size} values, largest difference {error:.1e}, tolerance {tolerance:.0e}"
        differs = "" if comparison.right else "; a fine-tuned model differs here by design"
        checks.append(Check(f"published {comparison.answer.kind}", comparison.right, said + differs))
    facts: dict[str, Any] = {
        "path": str(contents.path),
        "format": contents.format,
        "same_shapes_as": variant and variant.name,
        "checks": [check._asdict() for check in checks],
        "answers": [_facts(comparison) for comparison in comparisons],
        "not_computed": left,
        "right": all(check.right for check in checks),
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0 if facts["right"] else 1


def _answers(variant: Any, image: str | None) -> tuple[list[Any], list[str]]:
    """Returns the published answers that can be computed with what is given, and what the others need."""
    published = variant.answers if variant is not None else ()
    form = None if image is None else "pixels" if Path(image).suffix == ".npy" else "picture"
    found = [answer for answer in published if answer.given in ("drawn", form)]
    if image is not None and not any(answer.given == form for answer in found):
        known = sorted(
            {f"the {answer.given}: {', '.join(answer.images)}" for answer in published if answer not in found}
        )
        drawn = "the published pictures are drawn here" if found else "nothing is published for these sizes"
        raise ValueError(f"--image: expected {' or '.join(known) or f'none, {drawn}'}; found {image}")
    needs = {
        "picture": "pass --image with {}",
        "pixels": "pass --image with a .npy of the pixel values of {} ({})",
    }
    left = [
        f"{answer.kind}: {needs[answer.given].format(', '.join(answer.images), answer.pixels)}"
        for answer in published
        if answer not in found
    ]
    return found, list(dict.fromkeys(left))


def _compared(contents: Any, answers: list[Any], image: str | None) -> Iterator[Any]:
    import numpy as np

    from siglip_jax.inference.answers import compare
    from siglip_jax.inference.loading import load

    given: Any = None
    if image is not None:
        given = [image] if Path(image).suffix != ".npy" else np.load(image, mmap_mode="r")
    siglip = load(contents.path)
    for answer in with_progress(answers, len(answers), "published answers"):
        yield compare(siglip, answer, given)


def _facts(comparison: Any) -> dict[str, Any]:
    answer, found = comparison.answer, comparison.found
    return {
        "kind": answer.kind,
        "images": list(answer.images),
        "texts": list(answer.texts),
        "found": [[x if math.isfinite(x) else None for x in row] for row in found.tolist()],  # JSON knows no NaN
        "published": comparison.expected.tolist(),
        "error": comparison.error if math.isfinite(comparison.error) else None,
        "tolerance": answer.tolerance,
        "source": answer.source,
    }


def _number(x: float | None) -> str:
    return f"{'NaN':>10}" if x is None else f"{x:10.4f}"


def _print(facts: dict[str, Any]) -> None:
    width = max(len(check["name"]) for check in facts["checks"])
    for check in facts["checks"]:
        print(f"{'ok' if check['right'] else 'WRONG':<5}  {check['name']:<{width}}  {check['found']}")
    for answer in facts["answers"]:
        print(f"\n{answer['kind']} found, and in brackets published ({answer['source']}), a column for each picture")
        column = max(map(len, answer["texts"]))
        for i, text in enumerate(answer["texts"]):
            pairs = zip(answer["found"], answer["published"], strict=True)
            print(f"  {text:<{column}}", *(f"{_number(found[i])} ({known[i]:.4f})" for found, known in pairs))
    for line in facts["not_computed"]:
        print(f"not computed: published {line}")
    print(f"{facts['path']}: {'all right' if facts['right'] else 'not right'}")
