"""The zero-shot pipeline against that of `transformers`."""

import io

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.inference import load, pipeline
from tests.support.tiny_checkpoint import picture, write_checkpoint

LABELS = ["cat", "2 dogs", "a plane", "remote", "Caf\u00e9!", "cat"]
TASK = "zero-shot-image-classification"


@pytest.fixture(scope="module")
def pictures() -> list[PIL.Image.Image]:
    gray = PIL.Image.fromarray(picture(5)).convert("L")
    return [*(PIL.Image.fromarray(picture(seed, (25 + 20 * seed, 64))) for seed in range(5)), gray]


@pytest.fixture(scope="module")
def reference(checkpoint):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = transformers.SiglipImageProcessorPil.from_pretrained(checkpoint)
    return transformers.pipeline(TASK, str(checkpoint), image_processor=processor, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the reference emits warnings
@pytest.mark.parametrize("template", [{}, {"hypothesis_template": "{}"}, {"hypothesis_template": "a drawing of {}!"}])
def test_same_as_the_reference(checkpoint, reference, pictures, template):
    ours = pipeline(TASK, checkpoint)
    expected = reference(pictures, candidate_labels=LABELS, **template)
    found = ours(pictures, candidate_labels=LABELS, **template)
    compare(found, expected)
    assert any(row[0]["score"] - row[-1]["score"] > 1e-3 for row in found), "all scores alike: nothing was tested"
    compare([ours(pictures[0], candidate_labels=LABELS, **template)], expected[:1])
    compare(ours(images=pictures[:1], candidate_labels=LABELS, **template), expected[:1])


def compare(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [set(entry) for entry in ours] == [{"score", "label"}] * len(LABELS)
        scores = {entry["label"]: entry["score"] for entry in theirs}
        assert sorted(entry["label"] for entry in ours) == sorted(entry["label"] for entry in theirs)
        np.testing.assert_allclose([e["score"] for e in ours], [scores[e["label"]] for e in ours], rtol=0, atol=1e-5)
        ranked = [e["score"] for e in ours]
        assert ranked == sorted(ranked, reverse=True)


@pytest.mark.slow
def test_models_are_loaded_as_load_does(checkpoint, pictures):
    mesh = siglip_jax.make_mesh(data=8)
    over = pipeline(TASK, checkpoint, quantization="int4", mesh=mesh)
    assert (
        over.siglip.model.mesh == mesh and over.siglip.choices.image_batch == 8 * load(checkpoint).choices.image_batch
    )
    expected = pipeline(TASK, load(checkpoint, quantization="int4"))(pictures, LABELS)
    compare(over(pictures, LABELS), expected)


def test_paths(checkpoint, shared_siglip, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    pipe = pipeline(TASK, model=shared_siglip, batch_size=2)
    found = pipe([str(tmp_path / "a.png"), tmp_path / "a.png"], candidate_labels=LABELS)
    assert found[0] == found[1]
    assert pipe(str(tmp_path / "a.png"), candidate_labels=LABELS, top_k=2) == pipe(pictures[0], LABELS)[:2]


def test_transparency_is_white_however_it_arrives(shared_siglip, tmp_path):
    """The reference drops the alpha channel and sees the red below it."""
    clear = PIL.Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    pipe = pipeline(model=shared_siglip)
    white = pipe(PIL.Image.new("RGB", (32, 32), "white"), candidate_labels=LABELS)
    assert pipe(clear, candidate_labels=LABELS) == white
    assert pipe(tmp_path / "clear.png", candidate_labels=LABELS) == white


@pytest.mark.slow
def test_models_of_16_positions(tmp_path, pictures):
    """The reference pads to 64 tokens for every model, and fails."""
    checkpoint = write_checkpoint(tmp_path, text_length=16)
    prompts = [f"This is a photo of {label}." for label in LABELS]
    with pytest.warns(UserWarning, match="more than the 16 of max_length, and is cut"):
        found = pipeline(TASK, checkpoint)(pictures[0], candidate_labels=LABELS)
        scores = load(checkpoint).similarity(pictures[0], prompts)[0]
    assert [entry["score"] for entry in found] == sorted(scores.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe: pipe(candidate_labels=["a"]), "image must be an image"),
        (lambda pipe: pipe(picture(0)), "candidate_labels must name at least one label, got None"),
        (lambda pipe: pipe(picture(0), candidate_labels=[]), "labels must name at least one label"),
        (lambda pipe: pipe(picture(0), ["a"], hypothesis_template="a photo"), "template must have {}"),
    ],
)
def test_mistakes(shared_siglip, call, words):
    with pytest.raises(ValueError) as caught:
        call(pipeline(model=shared_siglip))
    assert words in str(caught.value)


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="'zero-shot-image-classification', got 'text-generation'"):
        pipeline("text-generation")


@pytest.mark.filterwarnings("default")  # the reference emits warnings
def test_a_pil_image_is_turned_as_its_exif_orientation_says_as_by_the_reference(reference, shared_siglip):
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture(3, (20, 60))).save(buffer, "PNG", exif=exif)
    stored = PIL.Image.open(buffer)
    found = pipeline(model=shared_siglip)(stored, candidate_labels=LABELS)
    compare([found], [reference(stored, candidate_labels=LABELS)])
    as_stored = shared_siglip.encode_image(np.asarray(stored))
    assert (shared_siglip.encode_image(stored) * as_stored).sum() < 0.999
    np.testing.assert_array_equal(shared_siglip.encode_image(stored), shared_siglip.encode_image(buffer.getvalue()))
