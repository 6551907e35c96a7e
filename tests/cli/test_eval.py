"""`siglip-jax eval`: its results for the bundled model and the example images, and its mistakes."""

import functools
import json
import re
import shutil
import sys
from pathlib import Path

import PIL.Image
import pytest

from siglip_jax.assets import EXAMPLES
from siglip_jax.inference import load
from tests.support.masks import write_masks

LABELS = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()
FEW = ["church", "horse", "lemon", "pizza"]  # which it names right
PREPARED = ("resized to 64 x 64 pixels, bicubic", "lower case, no punctuation, padded to 16 with </s> (1)")


def class_folders(folder: Path, labels: list[str]) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True)
        shutil.copy(EXAMPLES / f"{label}.png", folder / label)
    return folder


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """Every call of `load` with the same arguments gives the same model, so that little is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["siglip_jax.inference.load"], "load", functools.cache(load))
        yield


@pytest.fixture(scope="module")
def pictograms(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("data") / "pictograms", LABELS)


@pytest.fixture
def few(tmp_path) -> Path:
    return class_folders(tmp_path / "few", FEW)


@pytest.fixture
def captions(tmp_path) -> Path:
    """An image with two captions, two with one each."""
    rows = []
    for label in LABELS[:3]:
        shutil.copy(EXAMPLES / f"{label}.png", tmp_path)
        rows.append({"image": f"{label}.png", "caption": f"a drawing of {label}"})
    rows[0]["caption"] = [LABELS[0], f"one {LABELS[0]}"]
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def facts_of(out: str) -> dict[str, str]:
    return {name: said.strip() for name, said in (line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())}


@pytest.mark.slow
def test_the_bundled_model_reaches_the_accuracy_of_its_card(run, pictograms):
    ran = run("eval", "zero-shot", pictograms, "--json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert round(64 * found["metrics"]["top1"]) == 51
    assert found["metrics"]["top5"] > found["metrics"]["top1"]
    assert (found["examples"], found["unreadable"]) == (64, 0)
    assert len(found["classes"]) == 64
    assert sum(confusion["examples"] for confusion in found["confusions"]) == 13
    text = found["preprocessing"]["text"]
    assert (text["templates"], text["length"], text["pad_id"], text["canonical"]) == (["{}"], 16, 1, True)
    assert found["preprocessing"]["model"] == "the bundled model"


@pytest.mark.slow
def test_in_words(run, few):
    (few / FEW[3] / "zero.png").write_bytes(b"")
    shutil.copy(EXAMPLES / f"{FEW[0]}.png", few / FEW[1])  # wrong by design
    ran = run("eval", "zero-shot", few, "--templates", "photo")
    assert ran.status == 0
    assert ran.err.count("\n") == 1
    assert ran.err.startswith(f"siglip-jax: {FEW[3]}/zero.png")
    facts = facts_of(ran.out)
    assert facts["images"] == "5, 1 more unreadable"
    assert facts["top1"] == "80.0 %"
    assert facts["mean per class"] == "87.5 %"
    assert PREPARED[0] in facts["prepared: images"]
    assert PREPARED[1] in facts["prepared: texts"]
    assert facts["prepared: templates"] == "This is a photo of {}., first name only"
    assert facts["class order"] == ", ".join(FEW)
    worst = ran.out.split("\n\n")[1].splitlines()
    assert worst[0].split() == ["lowest", "recall", "mostly", "taken", "for", "images", "right"]
    assert worst[1].split() == [FEW[1], FEW[0], "2", "50.0", "%"]
    assert len(worst) == 2


@pytest.mark.slow
def test_on_a_terminal(run_on_terminal, few):
    ran = run_on_terminal("eval", "zero-shot", few, columns=50)
    assert ran.status == 0
    assert "\x1b[36mimages" in ran.out
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in ran.out.splitlines()) <= 50


def test_retrieval(run, captions, tmp_path):
    ran = run("eval", "retrieval", captions, "--save-plot", tmp_path / "found.png")
    assert (ran.status, ran.err) == (0, "")
    facts = facts_of(ran.out)
    assert (facts["texts"], facts["images"]) == ("4", "3")
    assert facts["image to text r5"] == "100.0 %"
    assert PREPARED[1] in facts["prepared: texts"]
    with PIL.Image.open(tmp_path / "found.png") as drawn:
        assert drawn.width > 300


def test_nearest_and_linear(run, few, tmp_path):
    for task, *options in (("knn", "--k", 1), ("linear-probe", "--probe", "ridge", "--strength", "1", "--shots", 1)):
        plot = tmp_path / f"{task}.png"
        ran = run("eval", task, few, "--train", few, *options, "--json", "--save-plot", plot)
        assert (ran.status, ran.err) == (0, "")
        found = json.loads(ran.out)
        assert found["metrics"]["top1"] == 1
        assert found["settings"]["train_examples"] == 4
        assert plot.stat().st_size > 1000
    assert found["settings"]["strength"] == 1


def test_names_from_a_file_and_a_limit(run, pictograms, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{label}, so called\n" for label in LABELS), encoding="utf-8")
    options = ("--classes", names, "--first-name-only", "--limit", 32, "--json")
    found = json.loads(run("eval", "zero-shot", pictograms, *options).out)
    assert (found["examples"], found["settings"]) == (
        32,
        {"limit": 32, "classes": 64, "other_names": 64, "classes_in_data": LABELS},
    )
    assert found["metrics"]["top1"] > 0.6
    assert found["classes"][0]["class"] == f"{LABELS[0]}, so called"
    assert [row["examples"] for row in found["classes"]] == [1, 0] * 32


def test_images_that_no_class_folder_holds_are_not_ignored(run, tmp_path):
    class_folders(tmp_path, FEW[:1])
    shutil.copy(EXAMPLES / "lemon.png", tmp_path)
    ran = run("eval", "zero-shot", tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert (
        "images must be in a folder of their class or split, got 1 beside the folders 'church': 'lemon.png'" in ran.err
    )
    (tmp_path / "lemon.png").unlink()
    ran = run("eval", "zero-shot", tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert "classes must be two or more, got only 'church', which would be right for every image" in ran.err


def test_texts_beside_images_and_a_table_with_images_elsewhere(run, tmp_path):
    for label in FEW:
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / f"{label}.png", tmp_path / "images")
        (tmp_path / "images" / f"{label}.txt").write_text(label)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "pairs.csv"
    table.write_text("image,caption\n" + "".join(f"../images/{label}.png,{label}\n" for label in FEW))
    found = [
        run("eval", "retrieval", *words, "--json") for words in ([tmp_path / "images"], [table, "--root", tmp_path])
    ]
    assert [ran.status for ran in found] == [0, 0]
    metrics = [json.loads(ran.out)["metrics"] for ran in found]
    assert metrics[0] == metrics[1] and set(metrics[0].values()) == {1.0}
    ran = run("eval", "retrieval", table)
    assert ran.status == 2 and "name the folder that holds the images with root (--root DIR)" in ran.err


def test_nothing_that_can_be_read(run, few):
    for file in few.rglob("*.png"):
        file.write_bytes(b"no image")
    ran = run("eval", "zero-shot", few)
    assert (ran.status, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 5
    assert "one or more images must be readable, got none among 4" in ran.err.splitlines()[-1]


MISTAKES = {
    "no data": (["zero-shot"], "DATA"),
    "unknown task": (["detection", "x"], "'detection'"),
    "no such folder": (["zero-shot", "nowhere"], "nowhere: no such file or folder"),
    "no training set": (["knn", "{few}"], "--train must name the training set of knn, got none; add --train"),
    "training set of zero-shot": (
        ["zero-shot", "{few}", "--train", "x"],
        "--train must be used with linear-probe or knn, got zero-shot; leave it out",
    ),
    "k of a probe": (
        ["linear-probe", "{few}", "--train", "{few}", "--k", "3"],
        "--k must be used with knn, got linear-probe",
    ),
    "templates of retrieval": (
        ["retrieval", "{few}", "--templates", "photo"],
        "--templates must be used with zero-shot or segmentation, got retrieval",
    ),
    "unknown templates": (["zero-shot", "{few}", "--templates", "imagenet"], "one of names, photo, clip"),
    "too many neighbours": (["knn", "{few}", "--train", "{few}"], "k must be from 1"),
    "one image a class": (["linear-probe", "{few}", "--train", "{few}"], "a class must have two images or more"),
    "no captions": (["retrieval", "{few}"], "images must have texts for retrieval"),
    "temperature of zero": (["knn", "{few}", "--temperature", "0"], "the value must be a number above 0, got '0'"),
    "unknown plot": (["zero-shot", "{few}", "--save-plot", "plot.txt"], "the ending of a plot must be one of .png"),
    "names that are too few": (
        ["zero-shot", "{few}", "--classes", "{few}/one.txt"],
        "names must be one for each of 4 classes, got 1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(run, few, mistake):
    argv, message = MISTAKES[mistake]
    (few / "one.txt").write_text("a name\n")
    ran = run("eval", *(argument.format(few=few) for argument in argv))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("siglip-jax: ") and ran.err.count("\n") == 1
    assert message in ran.err


def test_without_what_reads_data_sets(run, few, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("siglip_jax.data.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = run("eval", "zero-shot", few)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert re.search(r"which is not installed: pip install .*pyarrow.* \(the extra 'data'\)$", ran.err)


def test_help_of_a_task_is_its_own_page(run):
    ran = run("eval", "knn", "--help")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("usage: siglip-jax eval knn")
    assert "--k N" in ran.out and "--train" in ran.out and "nearest images of --train" in ran.out
    for other in ("--classes", "--shots", "zero-shot", "TASK DATA"):
        assert other not in ran.out
    assert "--shots" in run("eval", "linear-probe", "-h").out


def test_help_has_examples(run):
    ran = run("eval", "--help")
    assert ran.status == 0
    assert "siglip-jax eval knn flowers/test --train flowers/train" in ran.out


@pytest.mark.slow
def test_segmentation(run, tmp_path):
    data = write_masks(tmp_path / "drawn", [("horse", "lemon"), ("lemon",)])
    ran = run("eval", "segmentation", data, "--json", "--templates", "photo")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["task"] == "segmentation" and list(found["metrics"]) == ["mean_iou", "pixel_accuracy"]
    assert [row["class"] for row in found["classes"]] == ["horse", "lemon"]
    assert found["preprocessing"]["text"]["templates"] == ["This is a photo of {}."]
    assert found["settings"]["maps"] == "pooling head on each patch alone, cosines, bilinear to the mask"

    names = tmp_path / "names.txt"
    names.write_text("a horse\na lemon\n")
    (data / "images" / "1.png").write_bytes(b"")
    ran = run("eval", "segmentation", data, "--background-threshold", "-1", "--classes", names)
    assert ran.status == 0
    assert ran.err.startswith("siglip-jax: images/1.png: ") and ran.err.count("\n") == 1
    said, table = ran.out.split("\n\n")
    assert facts_of(ran.out)["images"] == "1, 1 more unreadable"
    assert facts_of(ran.out)["pixels of no class"] == "background"
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["class", "pixels", "IoU", "recall"]
    assert rows[1][0] == "background" and rows[1][-2:] == ["0.0", "%"]
    assert [row[:2] for row in rows[2:]] == [["a", "horse"], ["a", "lemon"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("segmentation", "--save-plot", "a.png"),
            "--save-plot must be used with zero-shot or retrieval or linear-probe",
        ),
        (("segmentation", "--split", "val"), "--split must be used with zero-shot or retrieval"),
        (("zero-shot", "--background", "wall"), "--background must be used with segmentation, got zero-shot"),
        (("segmentation", "--background-threshold", "2"), "the value must be a cosine from -1 to 1, got '2'"),
        (("segmentation",), "images: a data set with masks must be images/NAME.jpg"),
    ],
)
def test_mistakes_of_segmentation(run, tmp_path, options, words):
    task, *rest = options
    ran = run("eval", task, tmp_path, *rest)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert words in ran.err
