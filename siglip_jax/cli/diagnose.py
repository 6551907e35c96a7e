"""Looks for what an image tower does whatever the image: the causes of hot spots at fixed places.

Reports outliers of the position table, patches to which the pooling head pays the same attention in every image, and
tokens of very large norm in each layer. Places are row, column of the grid of patches, from 0 at the top left.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from siglip_jax.cli._output import add_max_pixels, print_table, progress, say, whole_number

HELP = "look for fixed hot spots of an image tower"
EPILOG = """examples:
  siglip-jax diagnose google/siglip-so400m-patch14-384 --images photos/
  siglip-jax diagnose run/model --save-plot diagnosis.png
  siglip-jax diagnose paligemma/ --json"""

HEADERS = ("layer", "median norm", "largest / median", "tokens over 3 x median")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "model", nargs="?", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: 64 bundled pictograms)")
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images per batch (default: chosen for the device)"
    )
    add_max_pixels(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save-plot", type=Path, metavar="FILE", help="draw the findings to FILE, such as plot.png")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if arguments.save_plot:
        from siglip_jax.plots.canvas import check_plot

        check_plot(arguments.save_plot, 1, 1)
    images = None if arguments.images is None else _images_in(arguments.images)
    from siglip_jax.inference.diagnose import diagnose

    with progress("images") as on_progress:
        found = diagnose(
            arguments.model,
            images,
            batch_size=arguments.batch_size,
            max_pixels=arguments.max_pixels,
            on_progress=on_progress,
        )
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_table(HEADERS, list(_rows(found)), 0)
        print()
        print("\n".join(found.findings))
    if arguments.save_plot:
        from siglip_jax.plots.diagnosis import plot_diagnosis

        plot_diagnosis(found, arguments.save_plot)
    return 0


def _images_in(folder: Path) -> list[Path]:
    """Returns the images of a folder, in sorted order, and reports what is left out.

    Raises:
      ValueError: if there is no such folder, or it holds no images.
    """
    from siglip_jax.processing.images.listing import list_images

    if not folder.is_dir():
        raise ValueError(f"{folder}: --images must be a folder of images, got no such folder; check the path")
    names, left_out = list_images(folder, recursive=False)
    if not names:
        raise ValueError(f"{folder}: the folder must hold images, got none; name another folder")
    if left_out:
        say(f"{folder}: {left_out}")
    return [folder / name for name in names]


def _rows(found: Any) -> Any:
    for layer, (median, largest, share) in enumerate(
        zip(found.median_norms, found.largest_norms, found.large_shares, strict=True)
    ):
        name = "embeddings" if not layer else str(layer)
        yield name, f"{median:.3g}", f"{largest:.1f}", f"{share:.2%}"
