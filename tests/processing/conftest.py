"""SentencePiece models in the two layouts that exist."""

from pathlib import Path

import pytest

from tests.support.spiece import train


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP's layout: `<pad>` 0, `</s>` 1, `<unk>` 2."""
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    return train(path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>")


@pytest.fixture(scope="session")
def spiece_other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SentencePiece's own layout, `<unk>` 0, `<s>` 1, `</s>` 2, and a normaliser that changes nothing."""
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    return train(path, normalization_rule_name="identity")
