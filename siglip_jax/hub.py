"""From a name to files on this disk: local paths as they are, Hugging Face Hub names through `huggingface_hub`."""

import os
import re
from pathlib import Path

# Everything a SigLIP repository needs here; torch pickles, TensorFlow and Flax msgpack files are left on the Hub.
NEEDED = ("*.json", "*.safetensors", "spiece.model")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Returns the local directory or file behind a path or a Hub name such as `google/siglip-base-patch16-224`.

    A path that exists wins. A token is taken from the environment (`HF_TOKEN`), downloads resume, and `HF_HUB_OFFLINE`
    is honoured, as `huggingface_hub` does.

    Raises:
      FileNotFoundError: if it is neither a path here nor a repository that can be had.
      ValueError: if it is a Hub name and the extra `hub` is not installed.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    name = os.fspath(name_or_path)
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(f"{name}: no such file or directory, and not a Hub name of the form owner/name")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"{name}: no such directory; to fetch it from the Hub: pip install 'siglip_jax[hub]'"
        ) from None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, local_files_only=local_files_only, allow_patterns=list(NEEDED)
            )
        )
    except (OSError, ValueError) as error:  # the library's own errors are all one of the two
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileNotFoundError(f"{name}: no such directory here, and the Hub did not give it: {cause}") from error
