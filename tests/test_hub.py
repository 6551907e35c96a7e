"""Names from the Hub, against the layout of the library's own offline cache: no test talks to a network."""

import os
import sys

import pytest

from siglip_jax import SiglipModel
from siglip_jax.hub import resolve
from tests import cases

NAME, COMMIT = "owner/siglip-tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds one repository at one commit, as `huggingface_hub` lays it out."""
    repository = tmp_path / "hub" / "models--owner--siglip-tiny"
    snapshot = cases.make_checkpoint(tmp_path / "in", "base_like")
    (repository / "snapshots").mkdir(parents=True)
    os.rename(snapshot, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / COMMIT


def test_a_cached_repository_loads_without_a_network(cache):
    assert resolve(NAME, local_files_only=True) == cache
    assert resolve(NAME, revision=COMMIT, local_files_only=True) == cache
    model, _ = SiglipModel.from_pretrained(NAME, local_files_only=True)
    assert model.config.vision_config.hidden_size == 64


def test_what_is_not_there_is_one_line(cache):
    for name, kwargs in ((NAME, {"revision": "absent"}), ("owner/other", {"local_files_only": True})):
        with pytest.raises(FileNotFoundError, match="the Hub did not give it") as caught:
            resolve(name, **kwargs)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at-all", "/nowhere", "a/b/c", "owner/na me"])
def test_what_is_no_hub_name_is_a_missing_path(name):
    with pytest.raises(FileNotFoundError, match="no such file or directory, and not a Hub name"):
        resolve(name)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'siglip_jax\[hub\]'"):
        resolve(NAME)


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    (tmp_path / "owner" / "siglip-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(NAME).samefile(tmp_path / "owner" / "siglip-tiny")
