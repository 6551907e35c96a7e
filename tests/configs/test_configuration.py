import json
import subprocess
import sys
import tracemalloc

import pytest

from siglip_jax import Siglip2VisionConfig, SiglipConfig, SiglipTextConfig, SiglipVisionConfig


def test_defaults_are_the_reference_s():
    import transformers

    reference = transformers.SiglipConfig()
    for ours, theirs in (
        (SiglipTextConfig(), reference.text_config),
        (SiglipVisionConfig(), reference.vision_config),
    ):
        fields = {k: v for k, v in ours.to_dict().items() if k != "model_type"}
        assert fields == {k: getattr(theirs, k) for k in fields}
        assert ours.model_type == theirs.model_type
    assert SiglipConfig().num_labels == reference.num_labels == 2


@pytest.mark.parametrize("labels", [{}, {"num_labels": 5}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"num_labels": 0}])
def test_the_reference_reads_what_is_written(tmp_path, labels):
    import transformers

    config = SiglipConfig(
        {"hidden_size": 96, "num_attention_heads": 4, "projection_size": 48}, {"hidden_size": 48}, **labels
    )
    config.save_pretrained(tmp_path)
    reference = transformers.SiglipConfig.from_pretrained(tmp_path)
    assert reference.num_labels == config.num_labels
    assert reference.id2label == config.id2label
    assert reference.text_config.projection_size == 48
    reference.save_pretrained(tmp_path)
    again = SiglipConfig.from_pretrained(tmp_path)
    assert again.id2label == config.id2label
    assert again.text_config.replace(extra={}) == config.text_config


def test_towers_come_out_of_a_whole_model_s_file(tmp_path):
    config = SiglipConfig({"vocab_size": 77}, {"image_size": 64})
    config.save_pretrained(tmp_path)
    assert SiglipTextConfig.from_pretrained(tmp_path) == config.text_config
    assert SiglipVisionConfig.from_pretrained(tmp_path) == config.vision_config
    config.text_config.save_pretrained(tmp_path)
    assert SiglipTextConfig.from_pretrained(tmp_path) == config.text_config
    with pytest.raises(ValueError, match="model_type must be 'siglip', got 'siglip_text_model'.*SiglipTextConfig"):
        SiglipConfig.from_pretrained(tmp_path)


def test_a_json_file_of_another_name_is_read_itself(tmp_path):
    SiglipConfig().save_pretrained(tmp_path)
    other = SiglipConfig({"vocab_size": 77}, {"image_size": 64})
    (tmp_path / "mine.json").write_text(other.to_json_string())
    assert SiglipConfig.from_pretrained(tmp_path / "mine.json") == other
    assert SiglipVisionConfig.from_pretrained(tmp_path / "mine.json").image_size == 64
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    assert SiglipConfig.from_pretrained(index) == SiglipConfig.from_pretrained(tmp_path) == SiglipConfig()


def test_published_style_json_resolves_to_defaults(tmp_path):
    d = {
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model"},
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(d))
    assert SiglipConfig.from_pretrained(tmp_path) == SiglipConfig()


def test_unknown_keys_survive():
    d = SiglipConfig().to_dict() | {"a": 1}
    d["text_config"]["b"] = {"c": None}
    assert SiglipConfig.from_dict(d).to_dict() == d


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SiglipTextConfig(hidden_size=100, num_attention_heads=3), ["100", "3"]),
        (lambda: SiglipVisionConfig(hidden_size=100), ["100", "12"]),
        (lambda: SiglipConfig({"projection_size": 96}, {"hidden_size": 48}), ["96", "48"]),
        (lambda: SiglipConfig({"hidden_size": 24}, {"hidden_size": 48}), ["24", "48"]),
        (lambda: SiglipVisionConfig(patch_size=300), ["300", "224"]),
        (lambda: SiglipVisionConfig(num_channels=0), ["num_channels", "0"]),
        (lambda: SiglipTextConfig(vocab_size=-1), ["vocab_size", "-1"]),
        (lambda: SiglipTextConfig(hidden_act="swiglu"), ["gelu_pytorch_tanh", "swiglu"]),
        (lambda: SiglipTextConfig(attention_dropout=1.0), ["attention_dropout", "1.0"]),
        (lambda: SiglipConfig(problem_type="ranking"), ["regression", "ranking"]),
        (lambda: SiglipConfig(num_labels=3, id2label={0: "a"}), ["num_labels=3", "1"]),
        (lambda: SiglipConfig(num_labels=-1), ["-1"]),
        (lambda: SiglipConfig.from_dict({"model_type": "clip"}), ["'siglip'", "'clip'"]),
        (lambda: SiglipConfig.from_dict({"model_type": "siglip2"}), ["'siglip2'", "Siglip2Config"]),
        (lambda: SiglipConfig(text_config={"model_type": "clip_text_model"}), ["siglip_text_model", "clip_text_model"]),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_with_what_was_found(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("config_class", [SiglipVisionConfig, Siglip2VisionConfig])
def test_null_is_off(config_class):
    config = config_class.from_dict({"vision_use_head": None})
    assert config.vision_use_head is False and config == config_class(vision_use_head=False)
    assert config.to_dict()["vision_use_head"] is False


def test_null_is_unset():
    fields = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    text = SiglipTextConfig.from_dict(fields | {"projection_size": None})
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id, text.embedding_size) == (None, None, None, 768)
    names = ("text_config", "vision_config", "id2label", "label2id", "problem_type", "num_labels")
    assert SiglipConfig.from_dict(dict.fromkeys(names)) == SiglipConfig()


@pytest.mark.parametrize(
    ("d", "words"),
    [
        ({"model_type": "siglip", "text_config": {"hidden_act": "x" * 10_000}}, "hidden_act must be one of"),
        ({"model_type": "siglip", "id2label": {"x": "y" * 10_000}}, "id2label must be a dict of names by integer"),
        ({"model_type": ["x" * 10_000]}, "model_type must be a string, got"),
        ({"model_type": "x" * 10_000}, "model_type must be 'siglip', got"),
        ({"model_type": "siglip", "vision_config": {"num_hidden_layers": 10**3000}}, "num_hidden_layers must be at"),
    ],
)
def test_an_error_of_a_file_names_it_and_is_short(tmp_path, d, words):
    (tmp_path / "config.json").write_text(json.dumps(d))
    with pytest.raises(ValueError) as caught:
        SiglipConfig.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {words}")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("text", ["[" + "[]," * 3_000_000 + "[]]", '{"x": ' * 600_000, " " * (9 << 20) + "{}"])
def test_json_that_would_take_much_memory_is_refused_before_it_is_parsed(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="config.json: the file must"):
            SiglipConfig.from_pretrained(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()


def test_configurations_are_immutable_and_comparable():
    config = SiglipConfig()
    with pytest.raises(AttributeError):
        config.initializer_factor = 2.0
    assert config == SiglipConfig() and hash(config.text_config) == hash(SiglipTextConfig())
    assert config.replace(num_labels=7).id2label[6] == "LABEL_6"
    assert config.replace(id2label={0: "only"}).num_labels == 1


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: the file must hold a JSON object, got"):
        SiglipConfig.from_pretrained(tmp_path)


@pytest.mark.slow
def test_values_of_the_wrong_type_are_refused():
    # In a process of its own: here the checker of annotations would speak first.
    code = """
from siglip_jax import SiglipConfig
for d in (
    {"vision_config": {"image_size": "big"}},
    {"vision_config": {"image_size": [224, 224]}},
    {"text_config": {"attention_dropout": None}},
    {"text_config": [1]},
    {"id2label": ["a"]},
    {"id2label": {"first": "a"}},
    {"num_labels": 2.5},
    {"label2id": ["a"]},
    {"initializer_factor": None},
    {"vision_config": {"vision_use_head": "yes"}},
    ["text_config"],
):
    try:
        SiglipConfig.from_dict(d)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "image_size must be an integer of at least 1, got 'big'",
        "image_size must be an integer of at least 1, got [224, 224]",
        "attention_dropout must be a number in [0, 1.0), got None",
        "text_config must be a SiglipTextConfig or a dict, got list",
        "id2label must be a dict of names by integer index, got ['a']",
        "id2label must be a dict of names by integer index, got {'first': 'a'}",
        "num_labels must be an integer of at least 0, got 2.5",
        "label2id must be a dict of indices by name, got ['a']",
        "initializer_factor must be a number, got None",
        "vision_use_head must be True or False, got 'yes'",
        "a siglip configuration must be a dict of its fields, got list",
    ]
