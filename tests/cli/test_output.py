"""Lines on stderr."""

import warnings

from siglip_jax.cli import verify


def test_a_warning_is_one_line_without_source_code(run, monkeypatch):
    def warns(arguments):
        warnings.warn_explicit("3 images\nare left out", UserWarning, "open.py", 7, module="siglip_jax.data.open")
        return 0

    monkeypatch.setattr(verify, "run", warns)
    ran = run("verify", "x")
    assert (ran.status, ran.out, ran.err) == (0, "", "siglip-jax: 3 images are left out\n")
