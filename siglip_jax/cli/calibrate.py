"""Fits temperature and bias to the labels of DATA, and the threshold for a precision.

Tiny probabilities are no failure of a model: it learned them where one text in tens of thousands matches an image.
Half of the images are fitted to; the others, which are held out, give the errors before and after. Neither the order of
the labels of an image nor the accuracy changes.

DATA is a folder of class folders, or labels in JSON lines, CSV, Parquet, Arrow or tar files. Unreadable images are
reported on stderr, counted and skipped. siglip-jax classify --calibration FILE uses the file of --out.
"""

import argparse
import json
from typing import Any

from siglip_jax._checks import DTYPES, QUANTIZATIONS
from siglip_jax.cli._data import (
    add_data_arguments,
    add_key_arguments,
    add_wording_arguments,
    column_names,
    opened,
    wording_of,
)
from siglip_jax.cli._output import (
    add_max_pixels,
    percent,
    print_table,
    progress,
    report_unreadable,
    say,
    whole_number,
)

HELP = "fit probabilities to a set of labels"
EPILOG = f"""examples:
  siglip-jax calibrate flowers/val --out flowers.json --model google/siglip-base-patch16-224
  siglip-jax calibrate flowers/val --precision 0.99 --save-plot reliability.png
  siglip-jax classify new/ --calibration flowers.json --model google/siglip-base-patch16-224

{column_names("image", "label")}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("data", metavar="DATA", help="folder or file of images with labels")
    parser.add_argument("--split", metavar="NAME", help="split of DATA, if it has splits (default: train)")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument("--dtype", choices=DTYPES, help="compute dtype (default: float32)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="number format of the weights (default: none)")
    parser.add_argument(
        "--precision",
        type=_share,
        default=0.9,
        metavar="P",
        help="share of accepted labels that should be right, for the threshold (default: 0.9)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split into halves (default: 0)")
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images per batch (default: chosen for the device)"
    )
    parser.add_argument("--limit", type=whole_number, metavar="N", help="use N images, evenly spaced in DATA")
    add_max_pixels(parser)
    add_key_arguments(parser, "image", "label")
    add_data_arguments(parser, "DATA")
    add_wording_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="write the calibration to FILE, such as calibration.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--save-plot", metavar="FILE", help="draw probabilities beside shares of right labels, before and after"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if arguments.save_plot:
        from siglip_jax.plots.canvas import check_plot

        check_plot(arguments.save_plot, 1, 1)
    from siglip_jax.evaluation import Options, calibrate
    from siglip_jax.inference.load import load

    keys = {name: getattr(arguments, name) for name in ("split", "image_key", "label_key", "kind", "root")}
    source = opened(arguments.data, **keys)
    wording = wording_of(arguments)
    siglip = load(
        arguments.model, dtype=arguments.dtype, quantization=arguments.quantization, max_pixels=arguments.max_pixels
    )
    name = arguments.model or "the bundled model"
    with progress("images") as on_progress:
        options = Options(arguments.limit, arguments.batch_size, name, report_unreadable, on_progress)
        found = calibrate(
            siglip, source, precision=arguments.precision, seed=arguments.seed, options=options, **wording
        )
    if arguments.out:
        found.calibration.save(arguments.out)
    facts = {"data": arguments.data, "split": arguments.split, **found.to_dict(), "out": arguments.out}
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    if found.separable:
        say(
            "matching pairs and others do not overlap, so that the temperature says little more than how many images"
            " there are; add images, above all hard ones"
        )
    if arguments.save_plot:
        from siglip_jax.plots.reliability import plot_reliability

        plot_reliability(found, arguments.save_plot)
    return 0


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"the value must be above 0 and up to 1, got {text!r}")
    return number


def _print(facts: dict[str, Any]) -> None:
    """Prints what was fitted, and the errors of both halves before and after."""
    from siglip_jax.inference.preprocessing import lines_of

    held_out, fitted = facts["held_out"], facts["fitted"]
    read = f"{fitted['examples']:,} fitted, {held_out['examples']:,} held out"
    if facts["unreadable"]:
        read += f", {facts['unreadable']:,} more unreadable"
    rows = [("data", " ".join(filter(None, (facts["data"], facts["split"])))), ("images", read)]
    rows += [("labels", f"{len(facts['labels']):,}")]
    rows += [(name, "{before:.3f} before, {after:.3f} after".format(**facts[name])) for name in ("temperature", "bias")]
    wanted = percent(facts["precision"])
    if facts["threshold"] is None:
        rows.append(("threshold", f"none reaches a precision of {wanted} on the fitted images"))
    else:
        rows.append(("threshold", f"{percent(facts['threshold'])}, for a precision of {wanted} over pairs"))
    rows += [("out", facts["out"])] if facts["out"] else []
    print_table(None, rows + [(f"prepared: {name}", text) for name, text in lines_of(facts["preprocessing"])], 2)
    print()
    before, after, seen = held_out["before"], held_out["after"], fitted["after"]
    table = [
        (f"ECE, all pairs, {before['ece_bins']} equal-mass bins", *_percents("ece", before, after, seen)),
        (
            f"ECE, best label, {before['ece_best_label_bins']} equal-mass bins",
            *_percents("ece_best_label", before, after, seen),
        ),
        ("log loss of a pair", *(f"{half['log_loss']:.4f}" for half in (before, after, seen))),
        ("right labels above one half", *_percents("matches_above_half", before, after, seen)),
    ]
    if facts["threshold"] is not None:
        for name in ("precision", "recall"):
            at = [half["at_threshold"][name] for half in (held_out, fitted)]
            shares = ("none accepted" if share is None else percent(share) for share in at)
            table.append((f"{name} at the threshold", "", *shares))
    print_table(("", "held out, before", "held out, after", "fitted, after"), table, 1)


def _percents(name: str, *halves: dict[str, Any]) -> list[str]:
    return [percent(half[name]) for half in halves]
