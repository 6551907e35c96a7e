"""The builder of the pictograms, on small generated packages; the real ones are a download of 38 MB."""

import contextlib
import io
import json
import subprocess
import tarfile

import numpy as np
import PIL.Image
import pytest

from research.pictograms import build as pictograms
from research.pictograms import sources as sources
from research.pictograms.dataset import Pictograms, load_split
from research.pictograms.examples import draw
from research.pictograms.scores import scores_of, zero_shot

CAT, FLAG, OK, COMPONENT = "1F408", "1F1E8-1F1ED", "1F44C", "1F3FB"


def svg(body: str, size: str = 'width="10" height="10"') -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>'


def icon(colour: str) -> dict:
    return {"body": f'<circle cx="8" cy="8" r="6" fill="{colour}"/>'}


def clip_art_file(title: str, keywords: list[str], colour: str) -> str:
    bag = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    metadata = (
        f"<metadata><dc:title>{title}</dc:title><dc:subject>{bag}</dc:subject>"
        "<dc:creator><dc:title>Nikola Smith</dc:title></dc:creator></metadata>"
    )
    body = f'<rect width="4" height="8" fill="{colour}"/>'
    namespaces = 'xmlns:dc="d" xmlns:rdf="r" width="1in" height="25.4mm"'
    return svg(metadata + body, namespaces)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """A downloads directory in which every package is a few files."""
    concept = {"tags": ["pet"], "group": 1, "subgroup": 5}
    data = [
        {"hexcode": CAT, "label": "cat", "emoji": "\U0001f408"} | concept,
        {"hexcode": FLAG, "label": "flag: Switzerland", "emoji": "\U0001f1e8\U0001f1ed", "group": 9, "subgroup": 6},
        {"hexcode": OK, "label": "OK hand", "emoji": "\U0001f44c"} | concept,
        {"hexcode": COMPONENT, "label": "light skin tone", "emoji": "\U0001f3fb", "group": 2},
        {"hexcode": "1F1E6", "label": "regional indicator A", "emoji": "\U0001f1e6"},
    ]
    messages = {
        "groups": [{"order": i, "message": m} for i, m in ((1, "animals & nature"), (2, "components"), (9, "flags"))],
        "subgroups": [{"order": 5, "message": "mammals"}, {"order": 6, "message": "country flags"}],
    }
    packages = {name: {"icons.json": {"icons": {}}} for name in sources.NPM_PACKAGES}
    packages["emojibase-data"] = {"en/data.json": data, "en/messages.json": messages} | {
        f"en/shortcodes/{table}.json": {OK: "perfect"} if table == "github" else {CAT: ["cat2"]}
        for table in ("joypixels", "iamcal", "emojibase", "github")
    }
    packages["@iconify-json/noto"] = {
        "icons.json": {"width": 16, "height": 16, "icons": {"kitty": icon("red"), "cat": icon("blue")}},
        "chars.json": {"1f408-fe0f": "kitty"},
    }
    packages["@iconify-json/twemoji"] = {
        "icons.json": {"icons": {"flag-of-switzerland": icon("red"), "perfect": icon("green"), "cat-face": icon("tan")}}
    }
    webp = io.BytesIO()
    PIL.Image.new("RGBA", (9, 9), (250, 0, 0, 255)).save(webp, format="WEBP", lossless=True)
    packages["@lobehub/fluent-emoji-3d"] = {f"assets/{code}.webp": webp.getvalue() for code in (CAT.lower(), "2764")}
    (tmp_path / "npm").mkdir()
    (tmp_path / "deb").mkdir()
    (tmp_path / "deb/openclipart-svg_1_all.deb").touch()
    for name, files in packages.items():
        with tarfile.open(sources._archive(tmp_path, name), "w:gz") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(f"package/{path}")
                encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
                member.size = len(encoded)
                archive.addfile(member, io.BytesIO(encoded))

    art = tmp_path / "art"
    for i in range(12):
        path = art / "tools" / f"hammer_{i}_smith_{i:02d}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            clip_art_file("Clipart" if i % 2 else f"Hammer {chr(97 + i)}", ["Hammer", "steel_tool"], f"#{i:x}08")
        )
    (art / "tools/copy.svg").write_text(clip_art_file("A copy", [], "#008"))
    (art / "tools/broken.svg").write_text("<svg")
    (art / "logos").mkdir()
    (art / "logos/brand.svg").write_text(clip_art_file("Brand", [], "red"))

    @contextlib.contextmanager
    def unpacked(_):
        yield art

    monkeypatch.setattr(sources, "_unpacked_clip_art", unpacked)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("nothing should be downloaded"))
    return tmp_path


class TestSources:
    def test_concepts_leave_out_components_and_regional_letters(self, downloads):
        rows = [concept["row"] for concept in sources.emoji_concepts(downloads)]
        assert [row["caption"] for row in rows] == ["cat", "flag of Switzerland", "OK hand"]
        assert rows[0] == {
            "concept": CAT,
            "caption": "cat",
            "tags": ["pet"],
            "group": "animals & nature",
            "sub": "mammals",
        }

    def test_a_vendor_is_matched_by_code_points_before_names(self, downloads):
        concepts = sources.emoji_concepts(downloads)
        (found,) = sources.vendor_images(downloads, "noto", concepts)
        assert found.row["source"] == "noto" and found.row["caption"] == "cat"
        assert 'fill="red"' in found.image and 'viewBox="0 0 16 16"' in found.image

    def test_a_vendor_without_code_points_is_matched_by_label_shortcode_and_flag(self, downloads):
        found = sources.vendor_images(downloads, "twemoji", sources.emoji_concepts(downloads))
        colours = {source.row["caption"]: source.image.split('fill="')[1].split('"')[0] for source in found}
        assert colours == {"cat": "tan", "flag of Switzerland": "red", "OK hand": "green"}

    def test_clip_art_captions_tags_and_skips(self, downloads):
        rows = [source.row for source in sources.clip_art_images(downloads)]
        assert all(row["rel"].startswith("tools/") for row in rows)  # no logos
        by_path = {row["rel"]: row for row in rows}
        assert by_path["tools/copy.svg"]["caption"] == "a copy"
        odd = by_path["tools/hammer_3_smith_03.svg"]  # its title says nothing: name without artist and numbers
        assert (odd["caption"], odd["tags"]) == ("hammer", ["steel tool"])
        assert [row["rel"] for row in rows] == sorted(by_path)

    def test_a_failed_download_is_one_line(self, tmp_path, monkeypatch):
        failed = subprocess.CompletedProcess([], 1, "", "npm error one\nnpm error two\n")
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
        with pytest.raises(ValueError, match=r"^npm pack @iconify-json/noto@1.2.9 failed \(1\): npm error two$"):
            sources.fetch(tmp_path)

    def test_a_missing_program_is_named(self, tmp_path, monkeypatch):
        def missing(*args, **kwargs):
            raise FileNotFoundError

        monkeypatch.setattr(subprocess, "run", missing)
        with pytest.raises(FileNotFoundError, match="npm not found.*install it"):
            sources.fetch(tmp_path)


class TestImages:
    def test_thumbnail_cuts_centres_and_pads(self):
        image = PIL.Image.new("RGBA", (100, 60), (0, 0, 0, 0))
        image.paste((10, 200, 30, 255), (70, 20, 90, 30))  # twice as wide as high
        small = pictograms.thumbnail(image)
        assert small.shape == (64, 64, 4)
        rows, columns = (np.flatnonzero(small[..., 3].max(axis=axis) > 128) for axis in (1, 0))
        assert columns[-1] - columns[0] + 1 == 58  # 64 less two margins
        assert 28 <= rows[-1] - rows[0] + 1 <= 30
        assert abs(rows[0] - (63 - rows[-1])) <= 3 and abs(columns[0] - (63 - columns[-1])) <= 1
        np.testing.assert_array_equal(small[32, 32], [10, 200, 30, 255])

    def test_nothing_drawn_is_no_image(self):
        assert pictograms.thumbnail(PIL.Image.new("RGBA", (5, 5), (255, 0, 0, 8))) is None

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ('width="2in" height="10mm"', 'width="180" height="35.4331" viewBox="0 0 180.0 35.43307"'),
            ('width="100%" viewBox="0 0 30 40"', 'width="30" height="40" viewBox="0 0 30 40"'),
            ("", 'width="1000" height="1000" viewBox="0 0 1000.0 1000.0"'),
        ],
    )
    def test_sizes_in_pixels(self, size, expected):
        rewritten = pictograms.in_pixels(f'<?xml?><svg {size} id="a"><g/></svg>')
        for part in expected.replace("viewBox", "|viewBox").split("|"):
            assert part.strip() in rewritten
        assert rewritten.startswith("<?xml?><svg ") and rewritten.endswith("<g/></svg>") and 'id="a"' in rewritten
        assert rewritten.count("width=") == rewritten.count("viewBox") == 1

    def test_what_cannot_be_drawn_is_none(self):
        assert pictograms.render(sources.Source({"source": "noto"}, "no svg")) is None
        assert pictograms.render(sources.Source({"source": "fluent3d"}, b"no bitmap")) is None

    def test_likeness_finds_copies_and_mirror_images(self):
        images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 4), dtype=np.uint8)
        images[..., 3] = 255
        features = pictograms.likeness_features(images[:2])
        others = np.stack([images[0], images[1][:, ::-1], images[2]])
        near = pictograms.likeness(others, features)
        np.testing.assert_allclose(near[:2], 1.0, rtol=1e-5)
        assert near[2] < 0.3

    def test_clip_art_is_held_out_once(self):
        images = np.zeros((25, 64, 64, 4), np.uint8)
        images[:, 0, 0, 0] = [*range(24), 0]  # the last one is a copy of the first
        found = [sources.Source({"n": i}, "") for i in range(26)]
        train, test = pictograms.split_clip_art(found, [*images, None])
        assert [row["n"] for row, _ in test] == [0, 1]
        assert [row["n"] for row, _ in train] == list(range(2, 24))


@pytest.mark.slow
def test_build_is_whole_and_deterministic(downloads, tmp_path, capsys):
    for out in ("a", "b"):
        pictograms.main([str(tmp_path / out), "--downloads", str(downloads), "--processes", "1"])
    assert "fluent3d          1 images     1 captions" in capsys.readouterr().out
    for split in ("train", "fluent3d", "clipart_test"):
        for suffix in ("npz", "json"):
            name = f"{split}.{suffix}"
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    train = load_split(tmp_path / "a", "train")
    assert [row["source"] for row in train.rows[:4]] == ["noto", "twemoji", "twemoji", "twemoji"]
    assert len(train.rows) == 4 + 11 and not any("near" in row for row in train.rows)  # of 12 different drawings
    assert train.images.dtype == np.uint8 and train.images.shape == (15, 64, 64, 4)
    (row,) = load_split(tmp_path / "a", "fluent3d").rows
    assert row["caption"] == "cat" and 0 <= row["near"] <= 1


class TestSet:
    def test_a_missing_split_says_how_to_make_it(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="train.npz: no such file; build the data with python -m"):
            load_split(tmp_path, "train")

    def test_rows_that_do_not_fit_the_images(self, tmp_path):
        pictograms.write_split(tmp_path, "train", [{"caption": "a"}], np.zeros((2, 64, 64, 4), np.uint8))
        with pytest.raises(ValueError, match="train must have one row per image, got 2 images and 1 rows"):
            load_split(tmp_path, "train")

    def test_zero_shot_ranks(self):
        texts = np.eye(3, dtype=np.float32)
        images = np.array([[0.9, 0.1, 0], [0.5, 0.2, 0.4], [0, 0.3, 0.2]], np.float32)
        assert zero_shot(images, texts, [0, 1, 2], ks=(1, 2, 3)) == {"top1": 33.33, "top2": 66.67, "top3": 100.0}

    def test_scores_share_a_candidate_among_equal_captions(self):
        images = np.zeros((3, 64, 64, 4), np.uint8)
        images[:, 0, 0, 0] = [0, 1, 1]
        split = Pictograms(images, [{"caption": c} for c in ("a", "b", "b")])
        scores = scores_of(
            split,
            lambda images: np.eye(2, dtype=np.float32)[[p[0, 0, 0] for p in images]],
            lambda texts: np.eye(2, dtype=np.float32)[[["<a>", "<b>"].index(t) for t in texts]],
            template="<{}>",
        )
        assert scores == {"rows": 3, "candidates": 2, "top1": 100.0, "top10": 100.0}

    def test_examples_are_drawn_among_the_fit(self):
        rows = [{"caption": c, "group": "objects", "near": 0.5} for c in ("b", "a", "c", "é", "d-e")]
        rows += [{"caption": "f", "group": "objects", "near": 0.96}, {"caption": "g", "group": "symbols", "near": 0.1}]
        split = Pictograms(np.zeros((7, 64, 64, 4), np.uint8), rows)
        assert [row["caption"] for row in draw(split, 3).rows] == ["a", "b", "c"]
        with pytest.raises(ValueError, match="suitable images must be at least 4, got 3; build the data again"):
            draw(split, 4)
