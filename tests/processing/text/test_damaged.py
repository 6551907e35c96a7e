"""Vocabulary files that the native libraries do not survive: one line with the file, in this process or another."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from siglip_jax import Siglip2Tokenizer, SiglipTokenizer
from siglip_jax.processing.text import _tokenizer_trial, siglip2
from tests.support import gemma_tokenizer as gemma


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "siglip_jax" / "tokenizers"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return gemma.train(tmp_path_factory.mktemp("gemma") / "tokenizer.json")


@pytest.fixture
def file(trained, tmp_path):
    return Path(shutil.copy(trained, tmp_path / "tokenizer.json"))


def change(file: Path, *keys: str, value: Any) -> None:
    """Sets an entry of a JSON file."""
    whole = part = json.loads(file.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    file.write_text(json.dumps(whole))


def instead(monkeypatch, tmp_path: Path, code: str) -> None:
    """Replaces the program that tries a file."""
    script = tmp_path / "trial.py"
    script.write_text(code)
    monkeypatch.setattr(_tokenizer_trial, "__file__", str(script))


REFUSED = "file must be a tokenizer of the library tokenizers, got other contents"


def test_a_panic_of_the_library_is_a_value_error(file):
    change(file, "model", "continuing_subword_prefix", value="▁")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: {REFUSED} \(range end index [^\n]*\)$"):
        Siglip2Tokenizer(file)


def test_an_id_that_occupies_the_library_without_end(file):
    change(file, "model", "vocab", "▁cat", value=2**31)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: {REFUSED} \(ids must be below 2147483648\)$"):
        Siglip2Tokenizer(file)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_contents_that_end_the_process(file, tmp_path, monkeypatch, number):
    instead(monkeypatch, tmp_path, f"import os; os.kill(os.getpid(), {int(number)})")
    with pytest.raises(
        ValueError, match=rf"tokenizer.json: {REFUSED} \(the library does not survive it, signal {number}\)"
    ):
        Siglip2Tokenizer(file)


def test_contents_that_take_for_ever(file, tmp_path, monkeypatch):
    instead(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(siglip2, "_PATIENCE", 0.5)
    with pytest.raises(ValueError, match=rf"tokenizer.json: {REFUSED} \(the library did not read it within 0.5 s\)"):
        Siglip2Tokenizer(file)


def test_a_file_that_has_passed_is_not_tried_again(file, cache, tmp_path, monkeypatch):
    Siglip2Tokenizer(file)
    assert len(list(cache.iterdir())) == 1
    instead(monkeypatch, tmp_path, "import os; os.abort()")
    assert Siglip2Tokenizer(file)("a cat")["input_ids"][-1] == 1
    change(file, "model", "vocab", "▁cat", value=0)
    with pytest.raises(ValueError, match=f"signal {int(signal.SIGABRT)}"):
        Siglip2Tokenizer(file)


@pytest.mark.parametrize("status", [1, 0])
def test_where_it_cannot_be_tried_it_is_used(file, tmp_path, monkeypatch, status):
    instead(monkeypatch, tmp_path, f"raise SystemExit({status})")
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert Siglip2Tokenizer(file).tokenize("CAT") == ["cat"]


def test_a_panic_during_use_is_a_value_error(file):
    class PanicException(BaseException):
        pass

    class Broken:
        def encode(self, *args: Any, **kwargs: Any) -> Any:
            raise PanicException("no entry found for key")

        encode_batch_fast = decode = encode

    tokenizer = Siglip2Tokenizer(file)
    whole, tokenizer._tokenizer = tokenizer._tokenizer, Broken()
    tokenizer._token = str  # type: ignore[method-assign]
    for call in (lambda: tokenizer("a"), lambda: tokenizer.tokenize("a"), lambda: tokenizer.decode([5])):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: {REFUSED} \(no entry found for key\)$"):
            call()
    tokenizer._tokenizer = whole


def test_a_piece_that_is_not_unicode(spiece, tmp_path):
    file = tmp_path / "spiece.model"
    file.write_bytes(spiece.read_bytes().replace("▁cat".encode(), b"\xff\xfe\xfdcat", 1))
    with pytest.raises(ValueError, match="^[^\n]*spiece.model: file must be a SentencePiece model, got"):
        SiglipTokenizer(file)
