"""Progress of long calls: a line on a terminal, which is removed, and nothing elsewhere."""

import io
import re
import sys
import threading

import numpy as np

import siglip_jax.cli
from siglip_jax import _progress


class Terminal(io.StringIO):
    """A stderr that says that it is a terminal."""

    def isatty(self) -> bool:
        """Returns True."""
        return True


def on_terminal(monkeypatch):
    """Makes stderr a terminal, before which nobody waits; within a test, because pytest sets stderr before each."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_progress, "PATIENCE", 0.0)
    monkeypatch.setattr(_progress, "PAUSE", 0.0)
    monkeypatch.setattr(_progress, "allowed", True)
    return stream


def test_encoding_many_items_shows_progress_on_a_terminal(shared_siglip, monkeypatch):
    terminal = on_terminal(monkeypatch)
    images = np.zeros((5, 8, 8, 3), np.uint8)
    shared_siglip.encode_image(list(images), batch_size=2)
    lines = [re.sub(r"[\d.,]+/s", "N/s", line) for line in terminal.getvalue().split("\r\x1b[K")]
    assert lines == ["", "images: 2 of 5, N/s", "images: 4 of 5, N/s", "images: 5 of 5, N/s", ""]
    terminal.truncate(0)
    shared_siglip.encode_text((text for text in ("a cat", "a dog")), batch_size=1)
    assert "texts: 1 of 2," in terminal.getvalue()
    terminal.truncate(0)
    shared_siglip.encode_image(iter(images), batch_size=2)
    assert "images: 2, " in terminal.getvalue() and " of " not in terminal.getvalue()


def test_nothing_is_shown_of_short_calls_in_threads_without_a_terminal_or_by_commands(shared_siglip, monkeypatch):
    terminal = on_terminal(monkeypatch)
    thread = threading.Thread(target=shared_siglip.encode_text, args=(["a cat"] * 4,), kwargs={"batch_size": 1})
    thread.start()
    thread.join()
    monkeypatch.setattr(_progress, "PATIENCE", 60.0)
    shared_siglip.encode_text(["a cat"] * 4, batch_size=1)
    monkeypatch.setattr(_progress, "PATIENCE", 0.0)
    assert siglip_jax.cli.main(["info"]) == 0
    assert not _progress.allowed
    shared_siglip.encode_text(["a cat"] * 4, batch_size=1)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(_progress, "allowed", True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shared_siglip.encode_text(["a cat"] * 4, batch_size=1)
    assert sys.stderr.getvalue() == ""
