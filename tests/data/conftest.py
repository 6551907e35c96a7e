"""The processor of a tiny model."""

import pytest

from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor, SiglipTokenizer
from tests.support.tiny_checkpoint import write_vocabulary


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> SiglipProcessor:
    """Images of 32 x 32, texts of 16 tokens."""
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    write_vocabulary(path)
    return SiglipProcessor(SiglipImageProcessorPil(size=(32, 32)), SiglipTokenizer(path), max_length=16)
