"""The test sets of other drawing styles, on small generated packages; the real ones are a download of 4 MB."""

import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest

from research.pictograms import other_styles as styles
from research.pictograms import sources as sources
from research.pictograms.build import write_split
from research.pictograms.dataset import Pictograms, load_split
from research.pictograms.scores import report

CAT, FLAG = "1F408", "1F1E8-1F1ED"
LINE = '<path d="M2 8h12" fill="none" stroke="currentColor" stroke-width="2"/>'
CONCEPTS = [
    {"hexcode": CAT, "label": "cat face", "emoji": "\U0001f408", "group": 1, "tags": ["pet"]},
    {"hexcode": FLAG, "label": "flag: Switzerland", "emoji": "\U0001f1e8\U0001f1ed", "group": 9},
]


def split(captions: list[str]) -> tuple[list[dict], np.ndarray]:
    groups = ("animals & nature", "food & drink")
    rows = [{"caption": c, "group": groups[i % 2], "near": 0.1} for i, c in enumerate(captions)]
    images = np.zeros((len(rows), 64, 64, 4), np.uint8)
    images[:, 16:48, 16:48] = [200, 0, 0, 255]
    return rows, images


@pytest.fixture
def data(tmp_path):
    """A directory of data with its downloads, as the builders leave it."""
    for name, captions in (("train", ["a", "b"]), ("fluent3d", ["a", "c"]), ("clipart_test", ["a", "d"])):
        write_split(tmp_path, name, *split(captions))
    messages = {"groups": [{"order": i, "message": m} for i, m in ((1, "animals"), (2, "components"), (9, "flags"))]}
    shortcodes = {f"en/shortcodes/{t}.json": {} for t in ("joypixels", "iamcal", "emojibase", "github")}
    packages = {
        "emojibase-data": {"en/data.json": CONCEPTS, "en/messages.json": messages | {"subgroups": []}} | shortcodes
    }
    drawings = {"width": 16, "height": 16, "icons": {"cat": {"body": LINE}, "flag-of-switzerland": {"body": LINE}}}
    for style in sources.OTHER_STYLES:
        packages[f"@iconify-json/{style}"] = {"icons.json": drawings, "chars.json": {CAT.lower(): "cat"}}
    icons = drawings["icons"] | {"cat-face-filled": {"body": "<g/>"}, "cat-off": {"body": "<g/>"}}
    packages["@iconify-json/tabler"] = {"icons.json": drawings | {"icons": icons}}
    (tmp_path / "downloads/npm").mkdir(parents=True)
    for name, files in packages.items():
        with tarfile.open(sources._archive(tmp_path / "downloads", name), "w:gz") as archive:
            for path, content in files.items():
                member, encoded = tarfile.TarInfo(f"package/{path}"), json.dumps(content).encode()
                member.size = len(encoded)
                archive.addfile(member, io.BytesIO(encoded))
    return tmp_path


class TestStyles:
    def test_lines_are_black_and_flags_are_left_out(self, data):
        concepts = sources.emoji_concepts(data / "downloads")
        for style in sources.OTHER_STYLES:
            (found,) = styles.style_images(data / "downloads", style, concepts)
            assert found.row["caption"] == "cat face" and found.row["source"] == style
            assert 'stroke="black"' in found.image and "currentColor" not in found.image

    @pytest.mark.slow
    def test_build_writes_every_style_and_the_report_has_it(self, data):
        photographs = data / "photographs"
        photographs.mkdir()
        PIL.Image.new("RGB", (120, 160), (0, 90, 0)).save(photographs / "grass.png")
        (photographs / "notes.txt").touch()
        styles.main([str(data), "--photographs", str(photographs), "--processes", "1"])
        (row,) = load_split(data, "openmoji").rows
        assert row["caption"] == "cat face" and row["near"] <= 1

        def encode(inputs):
            return np.ones((len(inputs), 2), np.float32)

        metrics = report(data, encode, encode)
        assert [*metrics][-5:] == [*sources.OTHER_STYLES, "on_photographs"]
        assert metrics["on_photographs"]["rows"] == 2 and metrics["tabler"]["candidates"] == 1

    def test_what_is_not_there_is_not_reported(self, data):
        metrics = report(data, lambda x: np.ones((len(x), 2)), lambda x: np.ones((len(x), 2)))
        assert not {*sources.OTHER_STYLES, "on_photographs"} & set(metrics)


class TestPhotographs:
    def test_images_stand_whole_on_the_photograph(self):
        rows, images = split(["a"] * 8)
        placed = styles.on_photographs(Pictograms(images, rows), [PIL.Image.new("RGB", (120, 200), (0, 90, 0))])
        assert placed.rows == rows and placed.images.shape == images.shape
        assert (placed.images[..., 3] == 255).all()
        red = (placed.images[..., 0] > 100).sum(axis=(1, 2))
        assert (red > 20**2).all() and (red < 32**2).all() and len(set(red)) > 1
        np.testing.assert_array_equal(placed.images[0, 0, 0], [0, 90, 0, 255])

    @pytest.mark.parametrize(("size", "found"), [([], "none"), ([(90, 300)], r"\[\(90, 300\)\]")])
    def test_no_fit_photograph(self, size, found):
        rows, images = split(["a"])
        with pytest.raises(ValueError, match=f"must be of more than 100 pixels, got {found}; pass others"):
            styles.on_photographs(Pictograms(images, rows), [PIL.Image.new("RGB", s) for s in size])
