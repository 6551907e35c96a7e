"""Zero-shot accuracy of the bundled model on the held-out pictograms.

    python -m research.pictograms.build DATA
    python -m research.pictograms.other_styles DATA --photographs DIR    # optional: other styles
    python benchmarks/bundled_model.py DATA [--model NAME_OR_PATH] [--json]

Prints the results of the model card beside those of chance. Top-k is the share of images whose own name is among the
k most similar of all names.
"""

import argparse
import json
from pathlib import Path

import siglip_jax
from research.pictograms.scores import report


def main() -> None:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Evaluate the bundled model on the held-out pictograms.")
    parser.add_argument("data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("--model", help="Hub name or directory of another model (default: the bundled model)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    siglip = siglip_jax.load(options.model)
    results = report(options.data, siglip.encode_image, siglip.encode_text)
    for scores in results.values():
        scores["chance_top1"] = round(100 / scores["candidates"], 2)
        scores["chance_top10"] = round(min(100.0, 1000 / scores["candidates"]), 2)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{'':45} {'rows':>5} {'names':>5} {'top-1':>7} {'(chance)':>8} {'top-10':>7} {'(chance)':>8}")
    for name, s in results.items():
        print(
            f"{name:45} {s['rows']:5d} {s['candidates']:5d} {s['top1']:6.1f}% {s['chance_top1']:7.2f}%"
            f" {s['top10']:6.1f}% {s['chance_top10']:7.2f}%"
        )


if __name__ == "__main__":
    main()
