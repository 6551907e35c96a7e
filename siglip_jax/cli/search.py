"""Finds the images or texts of a collection that are nearest to a text or an image.

DIR is a directory that siglip-jax embed wrote. Prints rank, name and cosine of each match, and, between a text and an
image, the probability that the text describes the image. The search compares all embeddings; --approximate builds an
index in DIR once and searches that instead.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from siglip_jax.cli._output import percent, print_table, progress, whole_number

HELP = "find the nearest images or texts in a directory of embeddings"
EPILOG = """examples:
  siglip-jax search photos-embedded "two dogs on a beach"
  siglip-jax search photos-embedded --image dog.jpg --top-k 20 --save-plot dogs.png
  siglip-jax search photos-embedded "a red car" --approximate --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("directory", metavar="DIR", help="directory that siglip-jax embed wrote")
    parser.add_argument("query", nargs="?", metavar="TEXT", help="text to search for")
    parser.add_argument("--image", metavar="FILE", help="image to search for")
    parser.add_argument("--top-k", type=whole_number, default=10, metavar="N", help="number of matches (default: 10)")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="current location of the model of DIR, if it has moved")
    parser.add_argument("--approximate", action="store_true", help="search an index, which the first search builds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save-plot", metavar="FILE", help="draw the matches to FILE, such as matches.png")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if (arguments.query is None) == (arguments.image is None):
        found = "none" if arguments.query is None else "both"
        raise ValueError(f'the query must be a text or --image FILE, got {found}; write one, such as "a cat"')
    sheet = None if arguments.save_plot is None else Path(arguments.save_plot)
    if sheet is not None:
        from siglip_jax.plots.canvas import IMAGE_FORMATS, check_file

        check_file(sheet, IMAGE_FORMATS)
    from siglip_jax.search.collection import open_collection
    from siglip_jax.search.items import IMAGES, TEXTS
    from siglip_jax.search.search import load_for, open_source_of, search

    collection = open_collection(arguments.directory)
    items = None if sheet is None else open_source_of(collection)
    kind = TEXTS if arguments.image is None else IMAGES
    siglip = load_for(collection, arguments.model, kinds=[kind])
    approximate = None
    if arguments.approximate:
        from siglip_jax.search.approximate import open_index

        with progress("embeddings indexed", rate=True) as on_progress:
            approximate = open_index(collection, on_progress=on_progress)
    asked = arguments.query if arguments.image is None else arguments.image
    matches = search(
        siglip,
        collection,
        asked,
        top_k=arguments.top_k,
        kind=kind,
        approximate=approximate,
    )
    recall = None if approximate is None else approximate.recall
    if arguments.json:
        query = {"text" if arguments.image is None else "image": asked}
        facts = {"directory": arguments.directory, "query": query, "embeddings": len(collection), "recall": recall}
        print(json.dumps(facts | {"matches": [match._asdict() for match in matches]}, indent=2))
    else:
        _print(matches, recall)
    if sheet is not None and items is not None:
        _draw(matches, items, asked, sheet)
    return 0


def _print(matches: list[Any], recall: float | None) -> None:
    columns = list(matches[0].metadata)
    headers, rows = ["rank", "name", *columns, "cosine"], []
    for match in matches:
        known = (match.metadata.get(name) for name in columns)
        words = ("" if value is None else value if isinstance(value, str) else json.dumps(value) for value in known)
        rows.append([str(match.rank), match.id, *words, f"{match.score:.4f}"])
        if match.probability is not None:
            rows[-1].append(percent(match.probability))
    if matches[0].probability is not None:
        headers.append("probability")
    caption = None
    if recall is not None:
        caption = (
            f"approximate: the index finds {percent(recall)} of the 10 nearest, measured on a sample of its embeddings"
        )
    print_table(headers, rows, 2 + len(columns), caption)


def _draw(matches: list[Any], items: Any, query: str, path: Path) -> None:
    from siglip_jax.plots.contact_sheet import contact_sheet, save_contact_sheet

    images = []
    for match in matches:
        if match.position >= len(items) or items.name(match.position) != match.id:
            raise ValueError(
                f"{items.path}: images must be those embedded, got others in place of {match.id}; embed again"
            )
        images.append(items.read(match.position))
    captions = []
    for match in matches:
        chance = "" if match.probability is None else f", {percent(match.probability)}"
        captions.append((f"{match.rank}: {match.score:.4f}{chance}", match.id))
    save_contact_sheet(contact_sheet(images, captions, title=query), path)
