"""Trees that other JAX programs save are read wherever they keep the towers, to the last bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import siglip_jax
from siglip_jax import SiglipModel, SiglipVisionModel
from siglip_jax.checkpoints import describe
from siglip_jax.params import flatten, stack_layers
from tests.support import big_vision_modules, jax_neighbours
from tests.support.scaled_variants import random_checkpoint, write_as_released
from tests.support.tiny_checkpoint import tiny_config


@pytest.fixture(scope="module")
def made():
    checkpoint = random_checkpoint(tiny_config(vocab_size=60, text_length=16), np.dtype(np.float32))
    return checkpoint


@pytest.fixture(scope="module", params=[[], ["vision_model", "text_model"]], ids=["one_by_one", "stacked"])
def flat(request, made, tmp_path_factory):
    path = write_as_released(tmp_path_factory.mktemp("released") / "x.npz", made, request.param)
    return dict(np.load(path))


def assert_holds(path, made, *parts, head=True):
    """The checkpoint holds these parts of the parameters, bit for bit."""
    found = siglip_jax.read_checkpoint(path)
    expected = flatten({part: made.params[part] for part in parts})
    if not head:
        expected = {k: x for k, x in expected.items() if not k.startswith("vision_model/head/")}
    found_flat = flatten(found.params)
    assert set(found_flat) == set(expected)
    assert all(np.array_equal(found_flat[k], x) for k, x in expected.items())
    config = getattr(found.config, "vision_config", found.config)
    if "vision_model" in parts:
        assert config == made.config.vision_config.replace(vision_use_head=head)
    return found


def test_state_of_training_in_the_file(tmp_path, made, flat):
    extra = {f"opt/0/mu/{k.removeprefix('params/')}": x for k, x in flat.items()}
    extra |= {"opt/0/count": np.int32(7), "chrono/accum_pause_time": np.float64(0.5)}
    np.savez(tmp_path / "state.npz", **flat, **extra)
    found = assert_holds(tmp_path / "state.npz", made, *made.params)
    siglip_jax.write_checkpoint(tmp_path / "again.npz", found)
    again = dict(np.load(tmp_path / "again.npz"))
    assert set(again) == set(flat) and all(np.array_equal(again[k], x) for k, x in flat.items())


def test_the_optimizer_that_held_the_parameters(tmp_path, made, flat):
    old = {f"opt/target/{k.removeprefix('params/')}": x for k, x in flat.items()}
    np.savez(tmp_path / "old.npz", **old, **{"opt/state/step": np.int32(1)})
    assert_holds(tmp_path / "old.npz", made, *made.params)


@pytest.mark.parametrize(("tower", "part"), [("img", "vision_model"), ("txt", "text_model")])
def test_one_tower_at_the_top(tmp_path, made, flat, tower, part):
    at = f"params/{tower}/"
    alone = {k.removeprefix(at): x for k, x in flat.items() if k.startswith(at)}
    np.savez(tmp_path / "tower.npz", **alone)
    found = assert_holds(tmp_path / "tower.npz", made, part)
    siglip_jax.write_checkpoint(tmp_path / "again.npz", found)
    again = dict(np.load(tmp_path / "again.npz"))
    assert set(again) == set(alone) and all(np.array_equal(again[k], x) for k, x in alone.items())
    with pytest.raises(ValueError, match="the subtree must be :img or :txt and in the file"):
        siglip_jax.read_checkpoint(f"{tmp_path / 'tower.npz'}:{'txt' if tower == 'img' else 'img'}")


def test_paligemma(tmp_path, made, flat):
    tower = {f"params/img/{k}": x for k, x in jax_neighbours.image_tower(flat).items()}
    tower |= {"params/img/head/kernel": np.zeros((32, 48), np.float32), "params/llm/final_norm/scale": np.zeros(48)}
    np.savez(tmp_path / "pt.npz", **tower)
    found = assert_holds(tmp_path / "pt.npz", made, "vision_model", head=False)
    facts = describe(tmp_path / "pt.npz")
    assert facts["part_of"] == "PaliGemma" and facts["parameters"] == {"vision_model": 23_840, "total": 23_840}
    siglip_jax.write_checkpoint(tmp_path / "tower.npz", found)
    assert describe(tmp_path / "tower.npz")["part_of"] is None


def test_the_folder_of_a_training_run(tmp_path, made, flat):
    folder = jax_neighbours.big_vision_run(tmp_path, flat, 1200)
    for path in (folder, tmp_path / "checkpoint.bv-LAST", tmp_path):
        assert_holds(path, made, *made.params)
    assert_holds(f"{folder}:img", made, "vision_model")
    facts = describe(tmp_path)
    assert facts["part_of"] is None and facts["weight_files"] == [folder.name] and facts["bytes"] > 200_000
    with pytest.raises(ValueError, match="the files must have at least 1/20 of the") as caught:
        header = folder / "params~img~embedding~kernel" / ".zarray"
        header.write_text(json.dumps(json.loads(header.read_text()) | {"shape": [1 << 20, 1 << 20]}))
        siglip_jax.read_checkpoint(folder)
    assert str(caught.value).startswith(f"{folder}: ")


def test_the_folder_of_a_training_run_in_bfloat16(tmp_path, made, flat):
    half = {k: x.astype(jnp.bfloat16) for k, x in flat.items()}
    folder = jax_neighbours.big_vision_run(tmp_path, half, 1)
    found = flatten(siglip_jax.read_checkpoint(folder).params)
    for path, x in flatten(made.params).items():
        assert found[path].dtype == jnp.bfloat16 and np.array_equal(found[path], x.astype(jnp.bfloat16))


def test_a_damaged_array_names_its_folder(tmp_path, flat):
    folder = jax_neighbours.big_vision_run(tmp_path, flat, 1)
    entry = folder / "params~t"
    (entry / "0").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="the folder must be a zarr array, got a damaged one") as caught:
        siglip_jax.read_checkpoint(folder)
    assert str(caught.value).startswith(f"{entry}: ") and "\n" not in str(caught.value)
    (entry / ".zarray").write_text("{}")
    with pytest.raises(ValueError, match=r"\.zarray: the file must be the header of a zarr array, got another"):
        siglip_jax.read_checkpoint(folder)


@pytest.mark.parametrize("value", [True, False])
def test_pi0(tmp_path, made, flat, value):
    folder = jax_neighbours.pi0(tmp_path, flat, value)
    for path in (folder, tmp_path):
        assert_holds(path, made, "vision_model", head=False)
        assert describe(path)["part_of"] == "pi0"
    model, params = SiglipVisionModel.from_pretrained(folder, scan_layers=True)
    assert params["vision_model"]["encoder"]["layers"]["mlp"]["fc1"]["kernel"].shape == (2, 32, 64)
    assert not model.config.vision_use_head


@pytest.mark.parametrize("is_flat", [True, False])
def test_gemma(tmp_path, made, flat, is_flat):
    path = jax_neighbours.gemma(tmp_path / "g", flat, is_flat)
    assert_holds(path, made, "vision_model", head=False)
    assert describe(path)["part_of"] == "Gemma 3"


@pytest.mark.slow
@pytest.mark.parametrize("owner", ["pi0", "gemma"])
def test_the_tower_computes_what_the_module_of_its_owner_computes(tmp_path, owner):
    """The formulae of both, which are big_vision's; `benchmarks/layouts.py` compares with their own modules."""
    module = big_vision_modules.Image(
        width=32, depth=2, mlp_dim=77, heads=4, patch=5, scan=owner == "pi0", pool="none", classes=None
    )
    images = np.random.RandomState(1).uniform(-1, 1, (2, 15, 15, 3)).astype(np.float32)
    tree = jax_neighbours.random_values(jax.eval_shape(module.init, jax.random.key(0), images)["params"])
    named = {f"params/img/{k}": x for k, x in flatten(tree).items()}
    path = jax_neighbours.pi0(tmp_path, named) if owner == "pi0" else jax_neighbours.gemma(tmp_path / "g", named, True)
    model, params = SiglipVisionModel.from_pretrained(path, scan_layers=owner == "pi0")
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(module.apply)({"params": tree}, images))
        found = np.asarray(jax.jit(model.apply)({"params": params}, images).last_hidden_state)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("scan", [True, False])
def test_parameters_of_this_package_saved_by_a_user(tmp_path, made, scan):
    params = stack_layers(made.params) if scan else made.params
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "bare", params)
        state = {"params": params, "opt_state": {"mu": params}, "step": np.int32(4)}
        checkpointer.save(tmp_path / "run" / "default", state)
    with pytest.raises(ValueError, match="the width of a tower must be among .* got 32; put the config.json"):
        siglip_jax.read_checkpoint(tmp_path / "bare")
    for folder in ("bare", "run"):
        made.config.save_pretrained(tmp_path / folder)
        found = assert_holds(tmp_path / folder, made, *made.params)
        assert found.config == made.config
    model, found = SiglipModel.from_pretrained(tmp_path / "run", scan_layers=scan)
    assert set(flatten(found)) == set(flatten(params))


def test_the_configuration_follows_from_the_shapes(tmp_path):
    tower = {"num_hidden_layers": 1, "intermediate_size": 16, "hidden_size": 768, "num_attention_heads": 12}
    config = siglip_jax.SiglipConfig(
        text_config=tower | {"vocab_size": 9, "max_position_embeddings": 7, "projection_size": 768},
        vision_config=tower | {"patch_size": 4, "image_size": 8},
    )
    made = random_checkpoint(config, np.dtype(np.float32))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", made.params)
    assert siglip_jax.read_checkpoint(tmp_path / "x").config == config


def test_two_towers_of_a_kind_are_refused(tmp_path, flat):
    twice = {f"{name}/{k.removeprefix('params/')}": x for name in ("teacher", "student") for k, x in flat.items()}
    np.savez(tmp_path / "twice.npz", **twice)
    with pytest.raises(ValueError, match="the tree must hold one txt tower, got 2, at .*student/txt/"):
        siglip_jax.read_checkpoint(tmp_path / "twice.npz")


def test_towers_with_class_tokens_are_named(tmp_path):
    """Names of OpenVision (orbax in a folder called .npz) and of TIPS (flat .npz)."""
    said = r"the image tower must have no class token, as SigLIP's, got one at '{}', as those of OpenVision, TIPS"
    names = [f"params/{tower}/Transformer/encoder_norm/scale" for tower in ("img", "txt", "txt_decoder")]
    tree = jax_neighbours.nested(dict.fromkeys((*names, "params/img/cls"), np.zeros((1, 1, 32))))
    folder = jax_neighbours.save_orbax(tmp_path / "checkpoint.npz" / "7" / "default", tree)
    for path in (folder, folder.parent):
        with pytest.raises(ValueError, match=said.format("img/cls")):
            siglip_jax.read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"got folders of steps up to 7; pass one of them, such as .*npz/7$"):
        siglip_jax.read_checkpoint(folder.parent.parent)
    with pytest.raises(FileNotFoundError, match="the directory must hold .* or an orbax directory, got none of them"):
        siglip_jax.read_checkpoint(tmp_path)
    tips = {"encoder/ToTokenSequence_0/cls": np.zeros((1, 2, 32)), "encoder/encoder_norm/scale": np.ones(32)}
    np.savez(tmp_path / "tips_v2_b14_vision.npz", **tips)
    with pytest.raises(ValueError, match=said.format("encoder/ToTokenSequence_0/cls")):
        describe(tmp_path / "tips_v2_b14_vision.npz")
