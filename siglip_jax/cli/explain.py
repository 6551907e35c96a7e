"""Shows which parts of an image speak for each text, and where the model looks.

Prints the place that the map of each text points to, in percent of the image's width and height from its top left;
--save-plot draws the maps, and --json prints them. Occlusion covers parts of the image and measures how far the
similarity drops; the value path needs a single pass. Where both agree, a map can be trusted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from siglip_jax._checks import QUANTIZATIONS
from siglip_jax.cli._output import (
    add_max_pixels,
    percent,
    print_table,
    progress,
    whole_number,
)

HELP = "show which parts of an image speak for a text"
EPILOG = """examples:
  siglip-jax explain kitchen.jpg "a red kettle" "a plant" --save-plot maps.png
  siglip-jax explain kitchen.jpg "a red kettle" --model google/siglip2-base-patch16-naflex --json
  siglip-jax explain panorama.jpg "a boat" --own-aspect --no-occlusion --save-plot maps.png"""

METHODS = ("occlusion", "value", "attention", "raw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("image", metavar="IMAGE", help="image, or URL of an image")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="texts to find in the image")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="number format of the weights (default: none)")
    parser.add_argument("--method", choices=METHODS, help="maps that the places are of (default: occlusion)")
    parser.add_argument(
        "--no-occlusion", action="store_true", help="leave occlusion out: one pass; the places are of the value path"
    )
    parser.add_argument(
        "--own-aspect",
        action="store_true",
        help="keep the image's proportions in a model of fixed resolution, by resizing its position table",
    )
    parser.add_argument(
        "--window", type=whole_number, metavar="N", help="patches a side that occlusion covers (default: an eighth)"
    )
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="covered images per batch (default: chosen for the device)"
    )
    add_max_pixels(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with all maps")
    parser.add_argument("--save-plot", type=Path, metavar="FILE", help="draw the maps to FILE, such as maps.png")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    method = arguments.method or ("value" if arguments.no_occlusion else "occlusion")
    if arguments.no_occlusion and method == "occlusion":
        raise ValueError("--method must be one that is computed, got occlusion; leave out --no-occlusion")
    if arguments.save_plot:
        from siglip_jax.plots.canvas import check_plot

        check_plot(arguments.save_plot, len(arguments.texts), 1)
    from siglip_jax.inference.explain import explain
    from siglip_jax.inference.load import load

    siglip = load(arguments.model, quantization=arguments.quantization, max_pixels=arguments.max_pixels)
    with progress("covered images") as on_progress:
        found = explain(
            arguments.image,
            arguments.texts,
            siglip,
            method=method,
            occlusion=not arguments.no_occlusion,
            own_aspect=arguments.own_aspect,
            window=arguments.window,
            batch_size=arguments.batch_size,
            on_progress=on_progress,
        )
    if arguments.json:
        print(json.dumps({"image": arguments.image, **found.to_dict()}, indent=2))
    else:
        print_table(("text", "probability", "cosine", "x", "y"), list(_rows(found)), 1, _caption(found))
    if arguments.save_plot:
        from siglip_jax.plots.explanation import plot_explanation

        plot_explanation(arguments.image, found, arguments.save_plot)
    return 0


def _rows(found: Any) -> Any:
    for text, score, cosine, (y, x) in zip(found.texts, found.scores, found.similarity, found.centres(), strict=True):
        yield text, percent(float(score)), f"{cosine:.3f}", f"{x:.0%}", f"{y:.0%}"


def _caption(found: Any) -> str:
    _, rows, columns = found.maps.shape
    return f"x and y: the place in the image that the map points to; {found.method}, {rows} x {columns} patches"
