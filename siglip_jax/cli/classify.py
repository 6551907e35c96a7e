"""Ranks labels for images without training (zero-shot); each label has a probability of its own.

Without labels a model that was trained to classify (train classification, linear-probe) ranks its own.
Prints a bar for each label; --json prints [{"image", "scores": [{"label", "score"}, ...]}, ...] instead, with
"accepted" where a calibration has a threshold. Unreadable images are reported on stderr and skipped; the exit status is
then 2.
"""

import argparse
import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip_jax._callbacks import naming
from siglip_jax._checks import QUANTIZATIONS
from siglip_jax._files import read_lines
from siglip_jax.cli._output import (
    add_max_pixels,
    bar,
    blocks,
    percent,
    printable,
    say,
    shown,
    whole_number,
    with_progress,
)
from siglip_jax.processing.images.listing import list_images

if TYPE_CHECKING:
    from siglip_jax.inference.calibration import Calibration
    from siglip_jax.inference.engine import Siglip

NO_LABELS = 'labels must not be empty, got none; add --labels "a cat" "a dog" or --labels-from FILE'
HELP = "rank labels for images"
EPILOG = """examples:
  siglip-jax classify cat.png --labels "a cat" "a dog"
  siglip-jax classify holidays/ --labels-from labels.txt --top-k 3 --json
  siglip-jax classify a.png b.png --labels cat dog --model google/siglip-base-patch16-224 --save-plot plot.png
  siglip-jax classify holidays/ --model run/model  # of train classification, with its own labels
  siglip-jax classify holidays/ --calibration calibration.json --top-k 3

Probabilities of right labels are often tiny, which is no failure: the order counts. siglip-jax calibrate fits them to
a set of labels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="image, URL of an image, or folder of images")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="labels to choose from")
    parser.add_argument("--labels-from", metavar="FILE", help="text file with one label per line")
    parser.add_argument(
        "--calibration", metavar="FILE", help="labels, temperature, bias and threshold, from siglip-jax calibrate"
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="number format of the weights (default: none)")
    parser.add_argument(
        "--template", metavar="TEXT", help='sentence around each label, such as "This is a photo of {}."'
    )
    parser.add_argument(
        "--top-k", type=whole_number, metavar="N", help="number of labels to show for each image (default: all)"
    )
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images per batch (default: chosen for the device)"
    )
    add_max_pixels(parser)
    parser.add_argument("--recursive", action="store_true", help="include the folders inside a folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--save-plot", metavar="FILE", help="write a heat map of images x labels to FILE, such as plot.png"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    calibration = read_calibration(arguments)
    given = arguments.labels or arguments.labels_from
    if not (given or calibration or may_have_labels(arguments.model)):
        raise ValueError(NO_LABELS)
    labels = read_labels(arguments) if given else None
    found, failures = find_images(arguments)
    if not found:
        return 2
    from siglip_jax.inference.labels import check_labels, fill_template, own_labels, own_scores, rank
    from siglip_jax.inference.load import load

    open_model = functools.partial(
        load, arguments.model, quantization=arguments.quantization, max_pixels=arguments.max_pixels
    )
    siglip = prompts = None
    if calibration:
        names = calibration.labels
    elif given:
        names = check_labels(labels)
        prompts = fill_template(arguments.template, names)
    else:  # only the model knows
        siglip = open_model()
        check_classifier(siglip, arguments.template)
        names = own_labels(siglip.config)
    if arguments.save_plot:
        from siglip_jax.plots.canvas import check_plot

        check_plot(arguments.save_plot, len(found), len(names))
    siglip = siglip or open_model()

    def unreadable(position: int, error: Exception) -> None:
        nonlocal failures
        failures += 1
        say(printable(naming(os.fspath(found[position]), error)))

    stream = with_progress(found, "images")
    options: dict[str, Any] = {"batch_size": arguments.batch_size, "on_unreadable": unreadable}
    if calibration or given:
        scores = siglip.similarity(stream, prompts, calibration=calibration, **options)
    else:
        scores = own_scores(siglip.label_logits(stream, **options), siglip.config)
    read = [i for i, row in enumerate(scores) if row[0] == row[0]]
    threshold = calibration.threshold if calibration else None
    ranked = {i: rank(scores[i], names, arguments.top_k, threshold) for i in read}
    results = [{"image": os.fspath(found[i]), "scores": entries} for i, entries in ranked.items()]
    if arguments.json:
        print(json.dumps(results, indent=2))
    elif results:
        print_bars(results)
        if calibration:
            print(f"\n{_caption(calibration)}")
    if arguments.save_plot and results:
        from siglip_jax.plots.heatmap import plot_similarity

        plot_similarity([found[i] for i in read], names, scores[read], arguments.save_plot)
    return 2 if failures else 0


def read_calibration(arguments: argparse.Namespace) -> "Calibration | None":
    """Returns the calibration of `--calibration`; None without this option.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it is damaged, or labels are given too.
    """
    if not arguments.calibration:
        return None
    from siglip_jax.inference.calibration import Calibration

    for name in ("labels", "labels_from", "template"):
        if getattr(arguments, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} must be left out with --calibration, whose file has its own labels and prompts, got both;"
                " leave one of them out"
            )
    return Calibration.read(arguments.calibration)


def may_have_labels(model: str | None) -> bool:
    """Returns whether a model may have labels of its own: the bundled and the released ones do not, fetched or not."""
    from siglip_jax.configs.variants import NAMES

    return model is not None and (model not in NAMES or Path(model).exists())


def check_classifier(siglip: "Siglip", template: str | None) -> None:
    """Checks that a model has labels of its own.

    Raises:
      ValueError: if it is no image classifier, or a template is given.
    """
    from siglip_jax.models.classifier import ImageClassifier

    if not isinstance(siglip.model, ImageClassifier):
        raise ValueError(NO_LABELS)
    if template:
        raise ValueError(f"--template must be left out for a classifier, whose labels are no texts, got {template!r}")


def _caption(calibration: "Calibration") -> str:
    """Returns the line below the bars that says which labels are accepted."""
    wanted = f"a precision of {percent(calibration.precision)}"
    if calibration.threshold is None:
        return f"calibrated; no threshold reaches {wanted}, so none is accepted"
    return f"calibrated; * accepted: {percent(calibration.threshold)} or more, the threshold for {wanted}"


def read_labels(arguments: argparse.Namespace) -> list[str]:
    """Returns the labels of `--labels` and of the file of `--labels-from`, without its blank lines.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if the file is not text.
    """
    labels = list(arguments.labels or [])
    if arguments.labels_from:
        labels += read_lines(arguments.labels_from, "labels")
    return labels


def find_images(arguments: argparse.Namespace) -> tuple[list[str | Path], int]:
    """Returns the images at the paths, those of a folder in sorted order, and the number of paths without images.

    Reports such paths on stderr, and what is left out of each folder.

    Raises:
      ValueError: if no paths are given.
    """
    if not arguments.paths:
        swallowed = [label for label in arguments.labels or [] if Path(label).exists()]
        hint = f"put {swallowed[0]} before --labels" if swallowed else "name files or folders before --labels"
        raise ValueError(f"images must not be empty, got none; {hint}")
    chosen: list[str | Path] = []
    failures = 0
    for path in arguments.paths:
        folder = Path(path)
        if path.startswith(("http://", "https://")) or folder.is_file():
            chosen.append(path)
            continue
        if not folder.is_dir():
            say(f"{path}: the path must be an image or a folder, got no such file; check the path")
            failures += 1
            continue
        found, left_out = list_images(folder, recursive=arguments.recursive)
        if not found:
            say(f"{path}: the folder must hold images, got none among {len(left_out)} files; name another folder")
            failures += 1
        elif left_out:
            say(f"{path}: {left_out}")
        chosen += [folder / name for name in found]
    return chosen, failures


def print_bars(results: list[dict[str, Any]]) -> None:
    """Prints a bar for each label: in colour and within its width on a terminal, as plain text elsewhere."""
    from rich.cells import cell_len

    terminal, encoding = sys.stdout.isatty(), sys.stdout.encoding
    longest = max(cell_len(shown(entry["label"], encoding)) for result in results for entry in result["scores"])
    columns = shutil.get_terminal_size().columns if terminal else 80
    columns -= 2 * any("accepted" in entry for result in results for entry in result["scores"])
    name_width = min(longest, max(columns // 2 - 8, 12)) if terminal else longest
    bar_width = max(10, min(40, columns - name_width - 16))
    lines = _lines(results, name_width, bar_width, encoding)
    if not terminal:
        print("\n".join("".join(parts) for parts in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for name, drawn, number in lines:
        text = Text.assemble((name, "" if number else "bold"), (drawn, "cyan"), (number, "bold"))
        console.print(text, soft_wrap=True)


def _lines(
    results: list[dict[str, Any]], name_width: int, bar_width: int, encoding: str
) -> Iterator[tuple[str, str, str]]:
    """Yields (name, bar, number) for each line; the line of an image has only a name."""
    from rich.cells import cell_len, set_cell_size

    fine = blocks(encoding)
    for i, result in enumerate(results):
        if i:
            yield "", "", ""
        yield shown(result["image"], encoding), "", ""
        for entry in result["scores"]:
            label = shown(entry["label"], encoding)
            if cell_len(label) > name_width:
                label = set_cell_size(label, name_width - 1) + ("…" if fine else "~")
            drawn = bar(entry["score"], bar_width, fine)
            gap = " " * (bar_width - len(drawn))
            yield (
                f"  {set_cell_size(label, name_width)}  ",
                drawn,
                f"{gap} {percent(entry['score']):>9}" + " *" * entry.get("accepted", False),
            )
