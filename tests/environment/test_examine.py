"""What `siglip-jax doctor` finds, in this environment and in broken ones."""

import json
import os
import subprocess
import sys

import pytest

from siglip_jax._version import __version__
from siglip_jax.environment import Examination, examine, problems
from siglip_jax.environment.caches import caches

VERSIONS = {"python": "3.12.1", "jax": "0.10.2", "jaxlib": "0.10.2"}
RIGHT = [{"name": "jax", "right": True, "found": "0.10.2 on cpu"}]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without accelerators, whose installation is right: a test breaks one thing of it."""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(problems, "_NVIDIA", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(problems, "_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(problems, "_GOOGLE", tmp_path / "pci")
    monkeypatch.setattr(problems, "has_tpu", lambda: False)
    monkeypatch.setattr(problems, "plugins", list)
    monkeypatch.setattr(problems, "compiled_folder", lambda: tmp_path)
    monkeypatch.setattr(problems._requirements, "missing", lambda extra="": [])
    monkeypatch.setattr(problems._requirements, "versions", lambda *names: {"siglip_jax": __version__})
    return tmp_path


def test_nothing_is_wrong_with_a_machine_that_has_only_a_cpu(machine):
    assert problems.found(VERSIONS, "cpu", RIGHT) == []


@pytest.mark.parametrize(
    ("driver", "extra"), [("535.104.05", "cuda12"), ("580.65.06", "cuda13"), (None, "cuda13")], ids=str
)
def test_a_gpu_that_jax_has_no_plugin_for(machine, driver, extra):
    (machine / "nvidia0").touch()
    if driver:
        (machine / "driver").write_text(
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed 2026\nGCC 13.2\n"
        )
    line = f"jax runs on the CPU of a machine that has an NVIDIA GPU; pip install 'jax[{extra}]==0.10.2'"
    assert problems.found(VERSIONS, "cpu", RIGHT) == [line]


@pytest.mark.parametrize(("name", "value"), [("JAX_PLATFORMS", "cpu"), ("CUDA_VISIBLE_DEVICES", "")])
def test_a_gpu_that_was_left_out_on_purpose_is_no_problem(machine, monkeypatch, name, value):
    (machine / "nvidia0").touch()
    monkeypatch.setenv(name, value)
    assert problems.found(VERSIONS, "cpu", RIGHT) == []


def test_a_gpu_that_is_in_use_is_no_problem(machine):
    (machine / "nvidia0").touch()
    assert problems.found(VERSIONS, "gpu", RIGHT) == []


def test_a_plugin_of_an_older_jax(machine, monkeypatch):
    monkeypatch.setattr(problems, "plugins", lambda: ["jax-cuda12-pjrt", "jax-cuda12-plugin"])
    versions = VERSIONS | {"jax-cuda12-plugin": "0.9.0", "jax-cuda12-pjrt": "0.10.2"}
    (line,) = problems.found(versions, "cpu", RIGHT)
    assert line.startswith(
        "jax-cuda12-plugin must have the version of jaxlib, 0.10.2, got 0.9.0, which jax does not use"
    )
    assert line.endswith("; pip install 'jax[cuda13]==0.10.2'")


def test_a_plugin_that_finds_no_gpu_says_why(machine, monkeypatch):
    (machine / "nvidia0").touch()
    monkeypatch.setattr(problems, "_why", lambda platform: f"no {platform} device: the driver is too old")
    line = "jax must find the NVIDIA GPU of this machine, got only the CPU: no cuda device: the driver is too old"
    assert problems.found(VERSIONS | {"jax-cuda13-plugin": "0.10.2"}, "cpu", RIGHT) == [line]


def test_a_platform_that_is_not_there_has_a_reason():
    assert "rocm" in problems._why("rocm")
    assert problems._why("cpu") == "it is not the default"


def test_a_tpu_without_libtpu(machine, monkeypatch):
    monkeypatch.setattr(problems, "has_tpu", lambda: True)
    assert problems.found(VERSIONS, "cpu", RIGHT) == []  # /dev/vfio of another virtual machine
    (machine / "pci" / "0000:00:05.0").mkdir(parents=True)
    (machine / "pci" / "0000:00:05.0" / "vendor").write_text("0x1ae0\n")
    line = "jax runs on the CPU of a machine that has a TPU; pip install 'jax[tpu]==0.10.2'"
    assert problems.found(VERSIONS, "cpu", RIGHT) == [line]
    assert problems.found(VERSIONS, "tpu", RIGHT) == []
    monkeypatch.setattr(problems, "_why", lambda platform: f"the {platform} is in use by process 7")
    line = "jax must find the TPU of this machine, got only the CPU: the tpu is in use by process 7"
    assert problems.found(VERSIONS | {"libtpu": "0.0.42"}, "cpu", RIGHT) == [line]


def test_a_jaxlib_that_jax_refuses(machine):
    said = "RuntimeError: jaxlib is version 0.9.0, but this version of jax requires version >= 0.10.1."
    checks = [{"name": "jax", "right": False, "found": said}, {"name": "matrix product", "right": False, "found": said}]
    line = f"The check of jax fails: {said}; pip install jax==0.10.2"
    assert problems.found(VERSIONS, None, checks) == [line]


def test_a_platform_that_a_variable_asks_for(machine, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    said = "RuntimeError: Unable to initialize backend 'cuda'"
    checks = [{"name": "jax", "right": False, "found": said}]
    line = f"The check of jax fails: {said}; unset JAX_PLATFORMS, which is 'cuda'"
    assert problems.found(VERSIONS, None, checks) == [line]


def test_an_installation_of_another_version_and_what_it_lacks(machine, monkeypatch):
    monkeypatch.setattr(problems._requirements, "versions", lambda *names: {"siglip_jax": "0.0.1"})
    monkeypatch.setattr(problems._requirements, "missing", lambda extra="": ["flax>=0.12.8", "rich>=13"])
    other, lacks = problems.found(VERSIONS, "cpu", RIGHT)
    assert other.startswith("The installed siglip_jax must be the one that is imported, got 0.0.1 installed and")
    assert lacks == (
        "The package needs flax>=0.12.8, rich>=13, which is not installed: pip install 'flax>=0.12.8' 'rich>=13'"
    )


def test_a_cache_that_others_can_write_to(machine, monkeypatch):
    import jax

    monkeypatch.setattr(problems, "compiled_folder", lambda: None)
    was = jax.config.jax_enable_compilation_cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine))
    try:
        jax.config.update("jax_enable_compilation_cache", True)
        (line,) = problems.found(VERSIONS, "cpu", RIGHT)
        jax.config.update("jax_enable_compilation_cache", False)
        assert problems.found(VERSIONS, "cpu", RIGHT) == []
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
    assert f"got {machine / 'siglip_jax'}; make it so (chmod -R go-w)" in line


def test_caches_have_sizes_and_links_are_not_counted_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "siglip_jax" / "checked"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"12345")
    (folder / "b").symlink_to(folder / "a")
    (found,) = [cache for cache in caches() if cache["name"] == "siglip_jax"]
    assert found == {"name": "siglip_jax", "path": str(tmp_path / "siglip_jax"), "files": 1, "bytes": 5}


def test_secrets_are_not_shown(monkeypatch):
    from siglip_jax.environment.examine import _settings

    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("HOME_OF_ANOTHER", "x")
    settings = _settings()
    assert (settings["HF_TOKEN"], settings["JAX_PLATFORMS"]) == ("set", "cpu")
    assert "HOME_OF_ANOTHER" not in settings


def test_a_failing_check_is_what_was_asked_for():
    found = Examination({}, None, [], {}, [], {}, [{"name": "jax", "right": False, "found": "x"}], [])
    assert not found.healthy
    assert found.to_dict()["healthy"] is False


@pytest.mark.slow
def test_this_environment_is_healthy():
    found = examine()
    assert found.problems == [] and found.healthy
    assert [check["right"] for check in found.checks] == [True, True, True]
    assert found.versions["siglip_jax"] == __version__ and found.versions["jax"]
    assert found.backend and sum(device["count"] for device in found.devices) >= 1
    assert json.loads(json.dumps(found.to_dict()))["checks"][2]["found"].startswith("horse.png is 'a horse'")


BROKEN = "import sys\nsys.modules['jax'] = None\nfrom siglip_jax.cli._main import run\nsys.exit(run(sys.argv[1:]))"


def test_the_command_works_where_jax_does_not_import():
    def ran(*words):
        environment = {**os.environ, "HF_TOKEN": "hf_abc"}
        command = [sys.executable, "-c", BROKEN, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)

    done = ran("doctor", "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "") and "hf_abc" not in done.stdout
    assert facts["backend"] is None and not facts["healthy"]
    assert facts["problems"][-1].startswith("The check of jax fails: ModuleNotFoundError: import of jax halted")
    other = ran("info")
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert other.stderr.startswith("siglip-jax: siglip_jax must import, got ModuleNotFoundError: ")
    assert other.stderr.endswith("siglip-jax doctor says what to do\n")
