"""Evaluates a model on a data set, and records how images and texts were prepared.

TASK is one of:
  zero-shot     classify images by the nearest class name
  retrieval     find the image of each text, and the texts of each image
  linear-probe  classify images by a linear classifier trained on --train
  knn           classify images by the nearest images of --train
  segmentation  classify the pixels of images by the class name nearest to their patches

DATA is a folder of class folders, images with a .txt beside each, or captions and labels in JSON lines, CSV, COCO's
.json, Parquet, Arrow or tar files. For segmentation it is a folder with images/NAME.jpg, and masks/CLASS/NAME.png of
zero and other pixels, or masks/NAME.png of indices (0 none, 255 ignored) with classes.txt. Unreadable images are
reported on stderr, counted and skipped; the exit status is 2 only if none can be read.
"""

import argparse
import functools
import json
from collections.abc import Callable
from typing import Any

from siglip_jax._checks import DTYPES, QUANTIZATIONS
from siglip_jax.cli._data import (
    add_data_arguments,
    add_key_arguments,
    add_wording_arguments,
    column_names,
    say_left_out,
    wording_of,
)
from siglip_jax.cli._output import (
    add_max_pixels,
    percent,
    print_table,
    progress,
    report_unreadable,
    whole_number,
)

HELP = "evaluate a model on a data set"
EPILOG = f"""examples:
  siglip-jax eval zero-shot imagenet/val --classes names.txt --templates clip --model google/siglip-base-patch16-224
  siglip-jax eval retrieval captions.jsonl --limit 5000 --json
  siglip-jax eval linear-probe flowers/test --train flowers/train --shots 10 --probe ridge
  siglip-jax eval knn flowers/test --train flowers/train --k 20 --save-plot confusions.png
  siglip-jax eval segmentation voc/val --templates clip --background background

{column_names("image", "text", "label")}"""

TASKS = {
    "zero-shot": "Classifies images by the nearest class name.",
    "retrieval": "Finds the image of each text, and the texts of each image.",
    "linear-probe": "Classifies images by a linear classifier trained on --train.",
    "knn": "Classifies images by the nearest images of --train.",
    "segmentation": "Classifies the pixels of images by the class name nearest to their patches; needs masks.",
}
_WHOLE = ("zero-shot", "retrieval", "linear-probe", "knn")  # tasks that read whole images
_NAMED = ("zero-shot", "segmentation")
OWN = {  # options that only some tasks accept
    **dict.fromkeys(("split", "image_key", "text_key", "label_key", "kind", "root", "save_plot"), _WHOLE),
    **dict.fromkeys(("templates", "classes", "keep_punctuation", "first_name_only"), _NAMED),
    "background": ("segmentation",),
    "background_threshold": ("segmentation",),
    "train": ("linear-probe", "knn"),
    "train_split": ("linear-probe", "knn"),
    "probe": ("linear-probe",),
    "strength": ("linear-probe",),
    "shots": ("linear-probe",),
    "seed": ("linear-probe",),
    "k": ("knn",),
    "temperature": ("knn",),
}
SHOWN = 5  # classes


class _Help(argparse.Action):
    """Prints the help; after a task it has the options of that task only."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        task = namespace.task
        if task is not None:
            for action in parser._actions:
                if action.dest == "task" or task not in OWN.get(action.dest, (task,)):
                    action.help = argparse.SUPPRESS
            parser.prog += f" {task}"
            parser.description = TASKS[task] + "\n\nDATA" + (__doc__ or "").partition("\n\nDATA")[2]
            lines = EPILOG.splitlines()
            parser.epilog = "\n".join(line for line in lines if line == lines[0] or f" {task} " in line)
        parser.print_help()
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="print this page, or that of TASK")
    parser.add_argument("task", choices=tuple(TASKS), metavar="TASK", help=f"evaluation: {', '.join(TASKS)}")
    parser.add_argument("data", metavar="DATA", help="folder or file of the images to evaluate on")
    parser.add_argument("--train", metavar="DATA", help="folder or file to train on (linear-probe, knn)")
    parser.add_argument("--split", metavar="NAME", help="split of DATA, if it has splits (default: train)")
    parser.add_argument(
        "--train-split", metavar="NAME", help="split of the data of --train, if it has splits (default: train)"
    )
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument("--dtype", choices=DTYPES, help="compute dtype (default: float32)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="number format of the weights (default: none)")
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images per batch (default: chosen for the device)"
    )
    parser.add_argument("--limit", type=whole_number, metavar="N", help="evaluate on N images, evenly spaced in DATA")
    add_max_pixels(parser)
    add_key_arguments(parser, "image", "text", "label")
    add_data_arguments(parser, "DATA")
    parser.add_argument("--json", action="store_true", help="print JSON, with the metrics of every class")
    parser.add_argument(
        "--save-plot", metavar="FILE", help="draw the worst classes, or the images that texts find, to FILE"
    )
    add_wording_arguments(parser.add_argument_group("zero-shot, segmentation"))
    segmentation = parser.add_argument_group("segmentation")
    segmentation.add_argument(
        "--background", metavar="TEXT", help="name of what pixels of no class show (default: they are not counted)"
    )
    segmentation.add_argument(
        "--background-threshold", type=_cosine, metavar="X", help="cosine below which a pixel is background"
    )
    probe = parser.add_argument_group("linear-probe")
    probe.add_argument("--probe", choices=("logistic", "ridge"), help="regression (default: logistic)")
    probe.add_argument(
        "--strength", type=_positive, metavar="X", help="L2 penalty (default: the best on a fifth of --train)"
    )
    probe.add_argument("--shots", type=whole_number, metavar="N", help="training examples per class (default: all)")
    probe.add_argument("--seed", type=int, metavar="N", help="seed for the choice of examples (default: 0)")
    knn = parser.add_argument_group("knn")
    knn.add_argument("--k", type=whole_number, metavar="N", help="number of neighbours (default: 20)")
    knn.add_argument(
        "--temperature", type=_positive, metavar="X", help="weight votes by exp(cosine / X) (default: equal votes)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    _refuse_other_tasks(arguments)
    if arguments.save_plot:
        from siglip_jax.plots.canvas import check_plot

        check_plot(arguments.save_plot, 1, 1)
    from siglip_jax.data.open import open_source
    from siglip_jax.data.sources.masks import open_masks
    from siglip_jax.evaluation.result import Options
    from siglip_jax.inference.load import load

    keys = {name: getattr(arguments, name) for name in ("image_key", "text_key", "label_key", "kind", "root")}
    if arguments.task == "segmentation":
        source: Any = open_masks(arguments.data)
    else:
        source = open_source(arguments.data, split=arguments.split, **keys)
    train = open_source(arguments.train, split=arguments.train_split, **keys) if arguments.train else None
    evaluate = _evaluation(arguments)
    siglip = load(
        arguments.model,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        max_pixels=arguments.max_pixels,
    )
    name = arguments.model or "the bundled model"
    with progress("images") as on_progress:
        options = Options(arguments.limit, arguments.batch_size, name, report_unreadable, on_progress)
        result = evaluate(siglip, source, *([] if train is None else [train]), options=options)
    say_left_out(arguments.data, source)
    if train is not None:
        say_left_out(arguments.train, train)
    where = {name: getattr(arguments, name) for name in ("data", "split", "train", "train_split")}
    facts = {**where, **result.to_dict()}
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    if arguments.save_plot:
        from siglip_jax.plots.evaluation import plot_evaluation

        plot_evaluation(result, source, arguments.save_plot)
    return 0


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"the value must be a number above 0, got {text!r}")
    return number


def _cosine(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"the value must be a cosine from -1 to 1, got {text!r}")
    return number


def _refuse_other_tasks(arguments: argparse.Namespace) -> None:
    """Raises a `ValueError` for an option that the task does not accept, or a missing training set."""
    for name, tasks in OWN.items():
        if getattr(arguments, name) not in (None, False) and arguments.task not in tasks:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} must be used with {' or '.join(tasks)}, got {arguments.task}; leave it out")
    if arguments.task in OWN["train"] and arguments.train is None:
        raise ValueError(
            f"--train must name the training set of {arguments.task}, got none; add --train FOLDER_OR_FILE"
        )


def _evaluation(a: argparse.Namespace) -> Callable[..., Any]:
    """Returns the evaluation function of the task, with its options bound."""
    from siglip_jax import evaluation

    if a.task == "zero-shot":
        return functools.partial(evaluation.evaluate_zero_shot, **wording_of(a))
    if a.task == "segmentation":
        options = {"background": a.background, "threshold": a.background_threshold}
        return functools.partial(evaluation.evaluate_segmentation, **options, **wording_of(a))
    if a.task == "retrieval":
        return evaluation.evaluate_retrieval
    if a.task == "knn":
        return functools.partial(evaluation.knn, k=a.k or 20, temperature=a.temperature)
    options = {"strength": a.strength, "shots": a.shots, "seed": a.seed or 0}
    return functools.partial(evaluation.linear_probe, probe=a.probe or "logistic", **options)


def _print(facts: dict[str, Any]) -> None:
    from siglip_jax.inference.preprocessing import lines_of

    read = f"{facts['examples']:,}"
    if facts["unreadable"]:
        read += f", {facts['unreadable']:,} more unreadable"
    where = " ".join(filter(None, (facts["data"], facts["split"])))
    rows = [("task", facts["task"]), ("data", where), ("images", read)]
    if facts["train"]:
        rows.append(("train", " ".join(filter(None, (facts["train"], facts["train_split"])))))
    if order := _class_order(facts):
        rows.append(("class order", order))
    rows += [(name.replace("_", " "), percent(share)) for name, share in facts["metrics"].items()]
    rows += [
        (name.replace("_", " "), _words(value)) for name, value in facts["settings"].items() if _shown(name, value)
    ]
    print_table(None, rows + [(f"prepared: {name}", text) for name, text in lines_of(facts["preprocessing"])], 2)
    if facts["task"] == "segmentation":
        print()
        shares = [
            (r["class"], f"{r['pixels']:,}", *(_share(r[name]) for name in ("iou", "recall"))) for r in facts["classes"]
        ]
        print_table(("class", "pixels", "IoU", "recall"), shares, 1)
    elif worst := _worst(facts):
        print()
        print_table(("lowest recall", "mostly taken for", "images", "right"), worst, 2)


def _class_order(facts: dict[str, Any]) -> str:
    """Returns the order of the classes: the first ones and the last, with their names in the data."""
    from siglip_jax.evaluation.prompts import brief

    names = [row["class"] for row in facts.get("classes", [])]
    if in_data := facts["settings"].get("classes_in_data"):
        names = [f"{own} = {name}" for own, name in zip(in_data, names, strict=True)]
    return brief(names)


def _share(share: float | None) -> str:
    """Returns a share as a percentage; a dash where there are no pixels."""
    return "-" if share is None else percent(share)


def _shown(name: str, value: Any) -> bool:
    return (
        value is False if name == "converged" else value not in (None, 0) and name not in ("tried", "classes_in_data")
    )


def _words(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "no" if value is False else str(value)


def _worst(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row for each of the classes with the lowest recall, among those with errors."""
    taken: dict[str, str] = {}
    for confusion in facts.get("confusions", []):
        taken.setdefault(confusion["class"], confusion["taken_for"])  # most images first
    rows = [row for row in facts.get("classes", []) if row["examples"] and row["recall"] < 1]
    rows = sorted(rows, key=lambda row: (row["recall"], -row["examples"]))[:SHOWN]
    return [(row["class"], taken[row["class"]], f"{row['examples']:,}", percent(row["recall"])) for row in rows]
