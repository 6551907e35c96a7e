"""Sources of the pictograms: packages of the npm and Debian registries, read into (row, image source) pairs.

Five emoji vendors and Open Clip Art are for training; a sixth vendor (Fluent 3D) is held out. The card of the bundled
model lists the licences. `npm pack` and `apt-get download` fetch the packages.
"""

import collections
import html
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

VENDORS = ("noto", "noto-v1", "twemoji", "emojione", "fxemoji")  # vendors in the training split
NPM_PACKAGES = {  # pinned, because other drawings or captions would be another data set
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "emojibase-data": "17.0.0",
}
OTHER_STYLES = {  # drawings for evaluation only: outlines, and glyphs of one colour
    "openmoji": "1.2.29",
    "emojione-monotone": "1.2.1",
    "fluent-emoji-high-contrast": "1.2.6",
    "tabler": "1.2.41",
}
CLIP_ART_PACKAGE = "openclipart-svg"

# Maps, icons, playing cards and the like, which do not show the thing that their title names.
CLIP_ART_SKIPPED = (
    "shapes/",
    "special/",
    "computer/icons",
    "computer/buttons",
    "computer/folders",
    "computer/diagrams",
    "signs_and_symbols/led",
    "recreation/games/cards",
    "unsorted/duplicates",
    "people/stickmen",
    "signs_and_symbols/map_symbols",
    "signs_and_symbols/flags",
    "logos/",
)
FILE_NAME_NOISE = {"aiga", "nicu", "bucu", "ganson", "architetto", "francesco", "archi", "benji", "park"}  # artists
KEYWORD_NOISE = {"", "hash", "unsorted", "clip art", "clipart"}
TITLE_NOISE = {"various cliparts", "clipart", "people", "new image"}


class Source(NamedTuple):
    """An image before rendering: its row of the data set, and SVG text or the bytes of a bitmap."""

    row: dict[str, Any]
    image: str | bytes


def _run(command: list[str], directory: Path) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{command[0]} not found, which fetches {command[-1]}; install it") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{' '.join(command)} failed ({done.returncode}): {reason}")


def fetch_styles(downloads: Path) -> None:
    """Downloads the missing drawings of `OTHER_STYLES` to `downloads`/npm, 4 MB in all.

    Raises:
      FileNotFoundError: if npm is not installed.
      ValueError: if a download failed.
    """
    _fetch_npm(downloads, {f"@iconify-json/{style}": version for style, version in OTHER_STYLES.items()})


def _fetch_npm(downloads: Path, packages: dict[str, str]) -> None:
    (downloads / "npm").mkdir(parents=True, exist_ok=True)
    for name, version in packages.items():
        if not _archive(downloads, name).is_file():
            _run(["npm", "pack", f"{name}@{version}"], downloads / "npm")


def fetch(downloads: Path) -> None:
    """Downloads missing packages to `downloads`/npm and `downloads`/deb, 38 MB in all.

    Raises:
      FileNotFoundError: if npm or apt-get is not installed.
      ValueError: if a download failed.
    """
    _fetch_npm(downloads, NPM_PACKAGES)
    (downloads / "deb").mkdir(parents=True, exist_ok=True)
    if not list((downloads / "deb").glob(f"{CLIP_ART_PACKAGE}_*.deb")):
        _run(["apt-get", "download", CLIP_ART_PACKAGE], downloads / "deb")


def _archive(downloads: Path, name: str) -> Path:
    version = NPM_PACKAGES.get(name) or OTHER_STYLES[name.removeprefix("@iconify-json/")]
    return downloads / "npm" / f"{name.replace('@', '').replace('/', '-')}-{version}.tgz"


def package_files(downloads: Path, name: str, pattern: str) -> dict[str, bytes]:
    """Returns the files of a downloaded npm package whose full path in it matches `pattern`."""
    with tarfile.open(_archive(downloads, name)) as archive:
        inside = ((member, member.name.partition("/")[2]) for member in archive if member.isfile())
        return {path: archive.extractfile(m).read() for m, path in inside if re.fullmatch(pattern, path)}  # type: ignore[union-attr]


def _slug(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.lower().replace("&", "and").replace("ß", "ss"))
    return re.sub(r"[^a-z0-9]", "", text)


def _code_points(hexcode: str) -> str:
    """Removes the variation selector, which only some vendors write."""
    return re.sub(r"-?fe0f", "", hexcode.lower())


def emoji_concepts(downloads: Path) -> list[dict[str, Any]]:
    """Returns every emoji of emojibase except components: `row` (without `source`), `label`, `emoji`, `shortcodes`."""
    files = package_files(downloads, "emojibase-data", r"en/(data|messages|shortcodes/\w+)\.json")
    read = {path: json.loads(content) for path, content in files.items()}
    messages = read["en/messages.json"]
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    shortcodes = collections.defaultdict(list)
    for table in ("joypixels", "iamcal", "emojibase", "github"):
        for hexcode, names in read[f"en/shortcodes/{table}.json"].items():
            shortcodes[hexcode] += names if isinstance(names, list) else [names]
    components = next(order for order, message in groups.items() if message == "components")
    concepts = []
    for entry in read["en/data.json"]:
        if entry.get("group") in (None, components):
            continue
        row = {
            "concept": entry["hexcode"],
            "caption": entry["label"].replace("flag: ", "flag of "),
            "tags": entry.get("tags", []),
            "group": groups[entry["group"]],
            "sub": subgroups.get(entry.get("subgroup"), ""),
        }
        concepts.append(
            {"row": row, "label": entry["label"], "emoji": entry["emoji"], "shortcodes": shortcodes[entry["hexcode"]]}
        )
    return concepts


def _icon_names(concept: dict[str, Any]) -> Iterator[str]:
    """Yields slugs under which a vendor may file a concept, the most specific first."""
    names = [concept["label"]]
    if len(concept["emoji"].replace("\ufe0f", "")) == 1:
        names.append(unicodedata.name(concept["emoji"][0], ""))
    names += concept["shortcodes"]
    if concept["row"]["group"] == "flags":
        country = concept["label"].replace("flag: ", "")
        names += [f"flag for {country}", f"{country} flag", f"flag of {country}"]
    for slug in map(_slug, names):
        yield from filter(None, (slug, f"{slug}face", slug.replace("face", "")))


def _svg(icons: dict[str, Any], name: str) -> str:
    """Returns one icon of a set as an SVG document."""
    icon = icons["icons"][name]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    box = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" width="{width}" height="{height}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {spaces} {box}>{icon['body']}</svg>"


def vendor_images(downloads: Path, vendor: str, concepts: list[dict[str, Any]]) -> list[Source]:
    """Returns a vendor's drawings of the concepts as SVG text, matched by code points or else by name."""
    files = package_files(downloads, f"@iconify-json/{vendor}", r"(icons|chars)\.json")
    icons = json.loads(files["icons.json"])
    by_code = {_code_points(code): name for code, name in json.loads(files.get("chars.json", b"{}")).items()}
    by_slug = {_slug(name): name for name in icons["icons"]}

    found = []
    for concept in concepts:
        name = by_code.get(_code_points(concept["row"]["concept"]))
        if name not in icons["icons"]:
            name = next((by_slug[slug] for slug in _icon_names(concept) if slug in by_slug), None)
        if name is not None:
            found.append(Source({"source": vendor} | concept["row"], _svg(icons, name)))
    return found


def line_icons(downloads: Path, name: str, concepts: list[dict[str, Any]]) -> list[Source]:
    """Returns the line icons with the name of an emoji, with or without "face", except filled ones."""
    icons = json.loads(package_files(downloads, f"@iconify-json/{name}", r"icons\.json")["icons.json"])
    by_slug = {_slug(icon): icon for icon in icons["icons"] if not icon.endswith(("-filled", "-off"))}
    found = []
    for concept in concepts:
        label = _slug(concept["label"])
        icon = by_slug.get(label) or by_slug.get(label.removesuffix("face"))
        if icon is not None:
            found.append(Source({"source": name} | concept["row"], _svg(icons, icon)))
    return found


def held_out_images(downloads: Path, concepts: list[dict[str, Any]]) -> list[Source]:
    """Returns the Fluent 3D images (WebP) of the concepts, without flags."""
    files = package_files(downloads, "@lobehub/fluent-emoji-3d", r"assets/[^/]+\.webp")
    by_code: dict[str, bytes] = {}
    for path in sorted(files):  # two emoji occur with and without variation selectors; the first is used
        by_code.setdefault(_code_points(Path(path).stem), files[path])
    return [
        Source({"source": "fluent3d"} | concept["row"], by_code[code])
        for concept in concepts
        if (code := _code_points(concept["row"]["concept"])) in by_code and concept["row"]["group"] != "flags"
    ]


@contextmanager
def _unpacked_clip_art(downloads: Path) -> Iterator[Path]:
    package = next(iter(sorted((downloads / "deb").glob(f"{CLIP_ART_PACKAGE}_*.deb"))))
    with tempfile.TemporaryDirectory() as directory:
        _run(["dpkg-deb", "-x", str(package), directory], Path(directory))
        yield Path(directory) / "usr/share/openclipart/svg"


def _metadata(text: str) -> tuple[str, list[str], str]:
    """Returns title, keywords and artist of an Open Clip Art file."""
    block = re.search(r"<metadata.*?</metadata>", text, re.DOTALL)
    metadata = block[0] if block else ""

    def first(pattern: str) -> str:
        match = re.search(pattern, metadata, re.DOTALL)
        return html.unescape(match[1]) if match else ""

    keywords = [
        html.unescape(word).strip().lower().replace("_", " ")
        for word in re.findall(r"<rdf:li>(.*?)</rdf:li>", metadata, re.DOTALL)
    ]
    title = first(r"<dc:title>(.*?)</dc:title>").strip()
    artist = first(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>").lower()
    return title, [word for word in keywords if word not in KEYWORD_NOISE and len(word) < 24], artist


def _file_name_caption(path: str, artist: str) -> str:
    """Returns a caption from the name of a file, without running numbers and names of artists."""
    artists = [word for word in re.split(r"\W+", artist) if len(word) > 2]
    words = []
    for word in Path(path).name[: -len(".svg")].lower().replace("-", " ").replace("_", " ").split():
        numbered = re.fullmatch(r"\d+\w?", word)
        of_artist = len(word) > 2 and any(name.startswith(word) for name in artists)
        if not numbered and not of_artist and word not in FILE_NAME_NOISE:
            words.append(re.sub(r"\d+$", "", word))
    return " ".join(filter(None, words))


def clip_art_images(downloads: Path) -> list[Source]:
    """Returns Open Clip Art drawings as SVG text, sorted by path, captioned by title or else by file name."""
    with _unpacked_clip_art(downloads) as root:
        paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.svg"))
        paths = [path for path in paths if not path.startswith(CLIP_ART_SKIPPED)]
        texts = {path: (root / path).read_text(encoding="utf-8", errors="replace") for path in paths}
    metadata = {path: _metadata(text) for path, text in texts.items()}
    uses = collections.Counter(title.lower() for title, _, _ in metadata.values())
    found = []
    for path, (title, keywords, artist) in metadata.items():
        name = re.sub(r"^clipart by [^-]*- *", "", title, flags=re.IGNORECASE)
        says_nothing = uses[title.lower()] > 4 or not name or len(name) > 60 or name.lower() in TITLE_NOISE
        caption = (_file_name_caption(path, artist) if says_nothing else name).lower()
        for noise, instead in ((r"[_\-]+", " "), (r"\s*\d+$", ""), (r"\.svg$", "")):
            caption = re.sub(noise, instead, caption)
        caption = caption.strip()
        if len(caption) < 3 or not re.search("[a-z]", caption):
            continue
        tags = [word for word in dict.fromkeys(keywords) if word not in caption][:6]
        group = path.partition("/")[0]
        row = {"source": "openclipart", "concept": None, "caption": caption, "tags": tags, "group": group, "rel": path}
        found.append(Source(row, texts[path]))
    return found
