"""The registry of released checkpoints: complete, in line with itself, the reference and what is published."""

import dataclasses
import json
import math
import re
from collections import Counter

import pytest

from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig
from siglip_jax.configs.published import ANSWERS, TOKEN_IDS
from siglip_jax.configs.variants import NAFLEX, SIGLIP, SIGLIP2, VARIANTS, VOCABULARIES, find

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.short_name)

# In millions, as big_vision's own modules count them.
MILLIONS = {
    "siglip-base-patch16-224": 203.2,
    "siglip-large-patch16-256": 652.2,
    "siglip-so400m-patch14-384": 878.0,
    "siglip2-base-patch32-256": 376.9,
    "siglip2-base-patch16-224": 375.2,
    "siglip2-large-patch16-256": 881.5,
    "siglip2-so400m-patch16-256": 1135.7,
    "siglip2-giant-opt-patch16-256": 1871.4,
}


def test_there_are_27():
    assert (len(SIGLIP), len(SIGLIP2), len(NAFLEX), len(VARIANTS)) == (10, 15, 2, 27)
    for field in ("name", "npz", "location"):
        assert len({getattr(variant, field) for variant in VARIANTS}) == 27


@every_variant
def test_names_say_what_the_sizes_are(variant):
    """The sizes are typed beside the names: a slip in either shows here."""
    parts = re.fullmatch(
        r"google/(siglip2?)-(base|large|so400m|giant-opt)-patch(\d+)-(\d+|naflex)(-i18n|-multilingual)?", variant.name
    )
    assert parts
    family, size, patch, image, languages = parts.groups()
    heads_of_text = {"base": 12}.get(size, 16)
    widths = {"base": 768, "large": 1024, "so400m": 1152, "giant-opt": 1536}
    assert variant.vision["hidden_size"] == widths[size]
    assert variant.text["hidden_size"] == widths["so400m" if size == "giant-opt" else size]
    assert variant.text["num_attention_heads"] == heads_of_text
    assert variant.vision["patch_size"] == int(patch)
    assert variant.image_size == (None if image == "naflex" else int(image))
    assert variant.model_type == ("siglip2" if image == "naflex" else "siglip")
    assert variant.vocabulary == ("gemma" if family == "siglip2" else "mc4" if languages else "c4_en")
    assert variant.text["vocab_size"] == VOCABULARIES[variant.vocabulary]
    assert variant.text_length == (16 if variant.short_name == "siglip-so400m-patch14-224" else 64)
    assert variant.tokenizer == ("gemma" if family == "siglip2" else "sentencepiece")
    assert variant.resample == ("bilinear" if family == "siglip2" else "bicubic")
    assert variant.text_head == (variant.short_name != "siglip-so400m-patch16-256-i18n")
    assert variant.location == f"gs://big_vision/{family}/{variant.npz}"
    letter = {"base": "b", "large": "l", "so400m": "so400m", "giant-opt": "g-opt"}[size]
    if family == "siglip2":
        assert variant.npz == f"siglip2_{letter}{patch}_{image}.npz"
    else:
        marks = patch if size != "so400m" else "_16" if languages else ""
        stem = f"webli_{'i18n' if languages else 'en'}_{letter}{marks}_{image}"
        assert re.fullmatch(rf"{stem}_\d{{8}}\.npz", variant.npz)


@every_variant
def test_configurations_and_parameters(variant):
    config = SiglipConfig.from_variant(variant.name)
    assert type(config) is (Siglip2Config if variant in NAFLEX else SiglipConfig)
    assert config.extra == config.text_config.extra == config.vision_config.extra == {}
    sizes = [math.prod(row.shape) for row in key_table(config, architecture_of(config))]
    assert sum(sizes) == variant.parameters
    if variant.short_name in MILLIONS:
        assert round(variant.parameters / 1e6, 1) == MILLIONS[variant.short_name]


def test_no_two_configurations_are_alike():
    configs = [SiglipConfig.from_variant(variant.name).to_dict() for variant in VARIANTS]
    assert len({json.dumps(config, sort_keys=True) for config in configs}) == 27


@pytest.mark.slow
@every_variant
def test_the_reference_built_with_these_sizes_has_as_many_parameters(variant):
    torch = pytest.importorskip("torch")
    import transformers

    family = {"siglip": "Siglip", "siglip2": "Siglip2"}[variant.model_type]
    config = getattr(transformers, f"{family}Config")(text_config={**variant.text}, vision_config={**variant.vision})
    with torch.device("meta"):  # shapes without memory
        model = getattr(transformers, f"{family}Model")._from_config(config)
    assert sum(p.numel() for p in model.parameters()) == variant.parameters


@every_variant
def test_published_figures_are_in_bounds(variant):
    # A swap of two columns breaks one of these: no two of the three ranges meet.
    assert 40 < variant.coco_text_to_image < 60 < variant.coco_image_to_text < 73.5 < variant.imagenet < 86
    assert variant.source
    for figure in (variant.imagenet, variant.coco_text_to_image, variant.coco_image_to_text):
        assert figure == round(figure, 1)


def test_a_higher_resolution_is_never_worse_on_imagenet():
    """True of everything published, so a figure on the wrong line would show."""
    series: dict[tuple, list[tuple[int, float]]] = {}
    for variant in SIGLIP + SIGLIP2:
        key = (variant.vocabulary, variant.vision["hidden_size"], variant.vision["patch_size"])
        series.setdefault(key, []).append((variant.image_size, variant.imagenet))
    for points in series.values():
        figures = [figure for _, figure in sorted(points)]
        assert figures == sorted(set(figures))
    assert Counter(map(len, series.values())) == {4: 2, 3: 2, 2: 4, 1: 3}


@every_variant
def test_answers_have_a_row_for_each_image_and_a_column_for_each_text(variant):
    assert bool(variant.answers) == (variant not in SIGLIP2)
    for answer in variant.answers:
        assert len(answer.values) == len(answer.images)
        assert {len(row) for row in answer.values} == {len(answer.texts)}
        assert answer.kind in ("logits", "probabilities")
        assert answer.given == "drawn" if variant in NAFLEX else answer.given in ("image", "pixels")
        if answer.kind == "probabilities":
            assert all(0 <= p <= 1 for row in answer.values for p in row)
        assert 0 < answer.tolerance <= 1e-3
        assert answer.source and answer.pixels


def test_logits_and_probabilities_of_the_cats_agree():
    _, logits, probabilities, _ = find("siglip-base-patch16-224").answers
    assert logits.texts == probabilities.texts
    for z, p in zip(*logits.values, *probabilities.values, strict=True):
        assert 1 / (1 + math.exp(-z)) == pytest.approx(p, rel=2e-4)  # published to four digits after the point


def test_the_discs_prefer_the_truth():
    """Of the texts, "blue circle with green border on red background" fits best, and a dog least."""
    for variant in NAFLEX:
        (answer,) = variant.answers
        for row in answer.values[:2]:
            assert answer.texts[row.index(max(row))] == "blue circle with green border on red background"
        for row in answer.values:
            assert answer.texts[row.index(min(row))] == "a dog"


def test_answers_and_token_ids_are_of_variants():
    assert set(ANSWERS) <= {variant.short_name for variant in VARIANTS}
    assert set(TOKEN_IDS) <= set(VOCABULARIES)
    for vocabulary, texts in TOKEN_IDS.items():
        for ids in texts.values():
            assert ids[-1] == 1 and 1 not in ids[:-1]
            assert max(ids) < VOCABULARIES[vocabulary]
    lengths = [len(ids) for ids in find("siglip-base-patch16-224").token_ids.values()]
    assert lengths == [5, 5, 6, 9, 5, 49]
    assert find("siglip2-base-patch16-224").token_ids == {}


@every_variant
def test_every_name_finds_its_variant(variant):
    stem = variant.npz.removesuffix(".npz")
    for name in (variant.name, variant.short_name, variant.npz, stem, variant.location):
        assert find(name) is variant


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("google/siglip-base-patch16-225", "google/siglip-base-patch16-224"),
        ("siglip2-so400m-patch14-naflex", "google/siglip2-so400m-patch16-naflex"),
        ("SigLIP2-Giant-Opt-patch16-384", "google/siglip2-giant-opt-patch16-384"),
        ("webli_en_b16_224.npz", "google/siglip-base-patch16-224"),
        ("siglip2_l16_385.npz", "google/siglip2-large-patch16-384"),
        ("owner/siglip-base-patch16-224", "google/siglip-base-patch16-224"),
        ("", "google/"),
        ("two\nlines", "google/"),
    ],
)
def test_unknown_names_get_the_closest(name, closest):
    with pytest.raises(ValueError, match="name must be a released SigLIP checkpoint, got") as caught:
        find(name)
    message = str(caught.value)
    assert repr(name) in message and closest in message
    assert "\n" not in message
    assert len(message) < 250
    assert message.count("google/") - repr(name).count("google/") in (1, 2, 3)


def test_the_registry_cannot_be_changed():
    variant = VARIANTS[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        variant.name = "google/other"
    for sizes in (variant.text, variant.vision):
        with pytest.raises(TypeError, match="does not support item assignment"):
            sizes["hidden_size"] = 1


@every_variant
def test_json(variant):
    d = variant.to_dict()
    assert set(json.loads(json.dumps(d))) == set(d)
    assert {field.name for field in dataclasses.fields(variant)} < set(d)
    assert d["text"] == dict(variant.text) and d["vision"] == dict(variant.vision)
    assert d["location"] == variant.location
