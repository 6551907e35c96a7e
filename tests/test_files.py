"""Paths that jobs write to."""

from pathlib import Path

import pytest

from siglip_jax._files import output_path


@pytest.mark.parametrize("given", ["gs://bucket/run", Path("gs://bucket/run"), "s3://bucket/run"])
def test_a_url_is_no_output(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^--out must be a path on this machine, got the URL (gs|s3)://bucket/run; write to"
    ):
        output_path(given, "--out")


@pytest.mark.parametrize("given", ["out", "a/b.c", "C:/out", "x:y", "./gs:/run", "/tmp/gs://x"])
def test_a_path_stays_as_it_is(given):
    assert output_path(given) == Path(given)


def test_the_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_path("~/run") == tmp_path / "run"
    assert output_path("~") == tmp_path
    assert output_path(Path("a/~")) == Path("a/~")
