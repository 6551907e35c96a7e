"""Resolution of names to local files: local paths unchanged, Hugging Face Hub names through `huggingface_hub`.

Differs from `huggingface_hub.snapshot_download`: only the files that this library reads are fetched, with one kind of
weights per repository; a progress bar is shown on a terminal only; errors are one line that says what to do.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from siglip_jax._checks import shown
from siglip_jax._requirements import install

Needed = Callable[[Iterable[str]], list[str]]

TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SIDE_FILES = (
    *TOKENIZER_FILES,
    *PROCESSOR_FILES,
    "added_tokens.json",
    "config.json",
    "open_clip_config.json",
    "adapter_config.json",
)
TIMEOUT = 10  # seconds until the first response
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WITHOUT_OWNER = re.compile(r"siglip2?-[\w-]+")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PLAIN_FOLDER = re.compile(r"\w[\w.-]*")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    needed: Needed | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Returns the local directory or file of a path or a Hub name such as "google/siglip-base-patch16-224".

    An existing path takes precedence. A Hub name is looked up on every call, and only files that are not in the cache
    are fetched; without a connection the cached copy is used. As in `huggingface_hub`, the token is that of `HF_TOKEN`,
    interrupted downloads are resumed, and `HF_HUB_OFFLINE` is respected.

    Args:
      name_or_path: local path or Hub name.
      needed: function from the paths of all files of a repository to those that are fetched; None: `side_files`.
      revision: branch, tag or commit of a Hub repository; None: `main`. Ignored for local paths.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.
      subfolder: folder of the directory or repository to use instead of its top.
      cache_dir: folder of the cache; None: that of `huggingface_hub`.
      token: token for the Hub, False for none; None: that of `HF_TOKEN` or of the login.

    Returns:
      A local path.

    Raises:
      FileNotFoundError: if the name is neither an existing path nor a repository that can be fetched, or the folder is
        not there.
      ValueError: if it is a Hub name and the extra `hub` is not installed, or the name of the folder is invalid.
    """
    path = Path(name_or_path)
    inner = _inner(subfolder)
    if path.exists():
        if inner and not (path / inner).is_dir():
            raise FileNotFoundError(f"{path}: subfolder must be a folder in it, got {subfolder!r}; leave it out")
        return path / inner
    name = os.fspath(name_or_path)
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        hint = f"; did you mean 'google/{name}'?" if _WITHOUT_OWNER.fullmatch(name) else ""
        raise FileNotFoundError(f"{name}: no such file or directory, and not a Hub name of the form owner/name{hint}")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        command = install("hub", "huggingface_hub")
        raise ValueError(f"{name}: no such directory; to fetch it from the Hub: {command} (the extra 'hub')") from None
    try:
        choose = _within(inner, needed or side_files)
        cache = _Cache(name, revision, None if cache_dir is None else os.fspath(cache_dir))
        found = _cached(cache, choose) if local_files_only else _fetched(cache, choose, token)
    except Exception as error:  # the library's own errors and those of its transport: requests, httpx or hf_xet
        raise FileNotFoundError(f"{name}: no such directory here, and {_reason(error, name, revision)}") from error
    if found is None:
        raise FileNotFoundError(
            f"{name}: no such directory here, and no complete copy of revision {revision or 'main'!r} in the cache:"
            " call once without local_files_only to fetch it"
        )
    if inner and not (found / inner).is_dir():
        raise FileNotFoundError(
            f"{name}: subfolder must be a folder of the repository, got {subfolder!r}; leave it out"
        )
    return found / inner


def _inner(subfolder: str | None) -> str:
    """Returns a folder as the beginning of a path in a repository: "" for the top.

    Raises:
      ValueError: if it leads out of the repository.
    """
    parts = [part for part in (subfolder or "").split("/") if part]
    if any(not _PLAIN_FOLDER.fullmatch(part) for part in parts):
        raise ValueError(f"subfolder must be the name of a folder such as 'siglip' or 'a/b', got {subfolder!r}")
    return "/".join(parts)


def _within(inner: str, needed: Needed) -> Needed:
    """Returns `needed` for the files of a folder."""
    if not inner:
        return needed

    def choose(files: Iterable[str]) -> list[str]:
        prefix = f"{inner}/"
        found = needed(file.removeprefix(prefix) for file in files if file.startswith(prefix))
        return [prefix + file for file in found]

    return choose


def side_files(files: Iterable[str]) -> list[str]:
    """Selects the files of the configuration and the processor of a repository.

    Args:
      files: paths of all files of the repository.

    Returns:
      Names of the files in its top folder that this library reads, sorted, without weights.
    """
    return sorted(set(files).intersection(SIDE_FILES))


class _Cache(NamedTuple):
    """A revision of a repository and the folder that its copies are kept in; None: the library's."""

    name: str
    revision: str | None
    folder: str | None


def _cached(cache: _Cache, needed: Needed) -> Path | None:
    """Returns the copy in the cache; None if there is none, or if it is known to lack files."""
    import huggingface_hub

    where: dict[str, Any] = {"revision": cache.revision, "cache_dir": cache.folder}
    try:
        path = huggingface_hub.snapshot_download(cache.name, local_files_only=True, allow_patterns=[], **where)
    except huggingface_hub.errors.LocalEntryNotFoundError:
        return None
    listed = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if listed is not None:  # older versions do not keep the list of a repository's files
        try:
            files = needed(file.path for file in listed(cache.name, **where))
        except huggingface_hub.errors.CachedRepoTreeNotFoundError:
            files = []  # fetched file by file, or by an older version
        if not _all_there(Path(path), files):
            return None
    return Path(path)


def _all_there(directory: Path, files: Iterable[str]) -> bool:
    """Returns whether a directory holds all of some files."""
    return all((directory / file).is_file() for file in files)


def _fetched(cache: _Cache, needed: Needed, token: str | bool | None) -> Path:
    """Returns the cached copy of a revision, updated from the Hub unless the Hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    try:
        api = huggingface_hub.HfApi(token=token)
        info = api.model_info(cache.name, revision=cache.revision, timeout=TIMEOUT)
    except (HFValidationError, RevisionNotFoundError):
        raise
    except Exception:
        copy = _cached(cache, needed)
        if copy is None:
            raise
        return copy
    # It becomes part of a path in the cache.
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise LookupError(
            f"the Hub must name a commit by 40 hexadecimal digits, got {shown(info.sha)}; check HF_ENDPOINT"
        )
    files = needed(file.rfilename for file in info.siblings or ())
    if not files:
        raise LookupError("the Hub repository must hold a model.safetensors of SigLIP, got none; use another one")
    copy = _cached(cache, needed)
    if copy is not None and copy.name == info.sha and _all_there(copy, files):
        return copy
    return Path(
        # By name of the revision, not by commit, so that the cache can resolve the name without a connection.
        huggingface_hub.snapshot_download(
            cache.name,
            revision=cache.revision,
            cache_dir=cache.folder,
            token=token,
            allow_patterns=files,
            tqdm_class=_bar_on_terminal(),
        )
    )


def _bar_on_terminal() -> type[Any]:
    """Returns the progress bar of `huggingface_hub`, disabled unless standard error is a terminal."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("disable", None)  # None: disabled unless on a terminal; the library's default is False
            super().__init__(*args, **kwargs)

    return Bar


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """Returns one line that says why a repository could not be fetched and what to do."""
    import huggingface_hub
    from huggingface_hub import errors

    page = f"{huggingface_hub.HfApi().endpoint}/{name}"
    cause = next((line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()), "no answer")
    if isinstance(error, errors.HFValidationError):
        return f"not a Hub name either: {cause}"
    if isinstance(error, errors.GatedRepoError):  # before its base class
        return f"the repository is gated: accept its terms at {page} and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the Hub has no such public repository: check the name, or set HF_TOKEN to a token that may read it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"revision must be a branch, tag or commit of {page}, got {revision!r}"
    if getattr(getattr(error, "response", None), "status_code", None) == 401:
        return "the Hub refused the token: set HF_TOKEN to a valid one, or unset it for a public repository"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"no complete copy of revision {revision or 'main'!r} in the cache while HF_HUB_OFFLINE is set: unset it"
            " once to fetch it from the Hub"
        )
    if type(error) is LookupError:  # raised by `_fetched`
        return cause
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return f"it cannot be stored in the cache ({cause}): free space, or set HF_HOME to another directory"
    return f"the download failed ({cause}): check the connection and call again; complete files are kept"
