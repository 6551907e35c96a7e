"""Parameters as they come to lie on devices: types, meshes, formats, and how much memory that takes."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import siglip_jax
from siglip_jax import SiglipModel, make_mesh, shard_params
from siglip_jax.models import place_params
from siglip_jax.parallel.sharding import partition
from siglip_jax.params import flatten
from tests.support import cases

CASE = "giant_like"


@pytest.fixture
def directory(tmp_path):
    return cases.make_checkpoint(tmp_path, CASE)


@pytest.mark.parametrize(
    ("stored", "asked", "placed"),
    [
        ("float16", "float32", "float32"),  # a float16 temperature would not take a small update
        ("float32", "bfloat16", "float32"),
        ("float16", "bfloat16", "bfloat16"),
        ("float16", None, "float16"),
    ],
)
def test_temperature_and_bias_are_never_narrowed_and_widened_with_the_others(stored, asked, placed):
    params = {"logit_scale": np.ones(1, stored), "head": {"bias": np.ones(2, stored)}}
    found = place_params(params, asked)
    assert found["logit_scale"].dtype == placed and found["head"]["bias"].dtype == (asked or stored)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("format", ["huggingface", "big_vision", "open_clip", "orbax"])
def test_onto_a_mesh(directory, tmp_path, format, scan_layers):
    path = tmp_path / ("x.npz" if format == "big_vision" else "x")
    siglip_jax.write_checkpoint(path, siglip_jax.read_checkpoint(directory), format)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, expected = SiglipModel.from_pretrained(directory, scan_layers=scan_layers)
    _, params = SiglipModel.from_pretrained(path, mesh=mesh, scan_layers=scan_layers)
    found, expected = flatten(params), flatten(expected)
    assert set(found) == set(expected)
    for name, x in found.items():
        spec = partition(name, x.shape, mesh)
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim), name
        np.testing.assert_array_equal(x, expected[name], err_msg=name)
    kernel = next(x for name, x in found.items() if name.endswith("mlp/fc1/kernel"))
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.slow
def test_the_sharded_model_computes_the_same(directory):
    inputs = cases.make_inputs(cases.make_config(CASE))
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    model, params = SiglipModel.from_pretrained(directory)
    expected = jax.jit(model.apply)({"params": params}, ids, pixels).logits_per_image
    _, sharded = SiglipModel.from_pretrained(directory, mesh=make_mesh(data=1, fsdp=4, tensor=2))
    found = jax.jit(model.apply)({"params": sharded}, ids, pixels).logits_per_image
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_orbax_directory_written_from_one_mesh_is_restored_onto_another(directory, tmp_path):
    model, params = SiglipModel.from_pretrained(directory, mesh=make_mesh(data=1, fsdp=8))
    checkpoint = siglip_jax.Checkpoint(model.config, params, "orbax", "SiglipModel")
    siglip_jax.write_checkpoint(tmp_path / "orbax", checkpoint)
    siglip_jax.write_checkpoint(tmp_path / "orbax", checkpoint)  # over the first: one folder of parameters stays
    assert len(list((tmp_path / "orbax").glob("params.*"))) == 1
    other = make_mesh(data=4, fsdp=1, tensor=2)
    _, again = SiglipModel.from_pretrained(tmp_path / "orbax", mesh=other)
    for name, x in flatten(again).items():
        assert x.sharding.mesh == other, name
        np.testing.assert_array_equal(x, flatten(params)[name], err_msg=name)


def test_shard_params_with_rules_of_ones_own(directory):
    _, params = SiglipModel.from_pretrained(directory)
    mesh = make_mesh(data=8)
    placed = shard_params(params, mesh, ((".*fc1/kernel", PartitionSpec(None, "data")), (".*", PartitionSpec())))
    kernel = placed["vision_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, ("data",))
    with pytest.raises(ValueError, match="sharding rules must match every parameter, got no rule for logit_bias"):
        shard_params(params, mesh, (("text.*|vision.*|logit_scale", PartitionSpec()),))


def test_meshes_that_cannot_be(directory):
    assert make_mesh().shape == {"data": 8, "fsdp": 1, "tensor": 1}
    assert make_mesh(data=2, fsdp=-1).shape == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(ValueError, match="all 8 devices, got data=3"):
        make_mesh(data=3)
    with pytest.raises(ValueError, match="at most one of them -1, got -1, -1, 1"):
        make_mesh(data=-1, fsdp=-1)
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match="Auto axes"):
        SiglipModel.from_pretrained(directory, mesh=explicit)


MEASURE = """
import sys, jax
import siglip_jax
jax.devices()
def peak(): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
base = peak()
_, params = siglip_jax.SiglipModel.from_pretrained(sys.argv[1])
jax.block_until_ready(params)
print((peak() - base) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident memory from /proc")
def test_loading_takes_little_more_than_the_parameters(tmp_path):
    config = siglip_jax.SiglipConfig(text_config={"vocab_size": 8000}, vision_config={"num_hidden_layers": 6})
    tensors = cases.make_tensors(config, "SiglipModel")
    cases.write_directory(tmp_path, config, tensors, "SiglipModel")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(ran.stdout) < 1.3
