"""Names from the Hub, against a Hub of this machine; the library reads its environment once, so processes ask it."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax import SiglipModel
from siglip_jax.checkpoints.hub import needed, resolve
from tests.support.hub_server import HubServer, Repository
from tests.support.tiny_checkpoint import write_checkpoint

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"
SMALL = {"config.json": b"{}", "model.safetensors": b"weights"}

# Reads one JSON call a line, answers with the path or the error.
WORKER = """
import json, os, sys
from siglip_jax.checkpoints.hub import resolve
for line in sys.stdin:
    call = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(call.pop("environment"))
    try:
        call |= {"token": call.pop("argument")} if "argument" in call else {}
        answer = {"path": str(resolve(**call))}
    except Exception as error:
        answer = {"error": str(error), "type": type(error).__name__}
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """A process that resolves names with one environment; `errors` is what it wrote to standard error."""

    def __init__(self, endpoint: str, home: Path, errors: Path, **environment: str):
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TQDM_", "TRANSFORMERS_"))
        }
        fixed = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        self.errors = errors
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=kept | fixed | environment,
                cwd=errors.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def __call__(self, name: str, *, token: str | None = None, **options: object) -> dict[str, str]:
        environment = {} if token is None else {"HF_TOKEN": token}
        print(json.dumps({"name_or_path": name, "environment": environment, **options}), file=self.process.stdin)
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def path(self, name: str, **options: object) -> Path:
        """Returns where the repository came to lie."""
        answer = self(name, **options)
        assert "path" in answer, answer
        return Path(answer["path"])

    def error(self, name: str, **options: object) -> str:
        """Returns the line that says why it did not come."""
        answer = self(name, **options)
        assert answer.get("type") == "FileNotFoundError", answer
        assert answer["error"].startswith(f"{name}: no such directory here, and ")
        assert "\n" not in answer["error"]
        return answer["error"]

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the cache of this module lies; every test has repositories of its own in it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def worker(tmp_path_factory, server, home):
    """Returns a worker for an environment, one process each for the whole module."""
    workers = {}

    def get(endpoint=server.url, **environment):
        key = (endpoint, *sorted(environment.items()))
        if key not in workers:
            errors = tmp_path_factory.mktemp("worker") / "stderr"
            workers[key] = Worker(endpoint, home, errors, **environment)
        return workers[key]

    yield get
    for each in workers.values():
        each.close()


@pytest.fixture(scope="module")
def online(worker):
    return worker()


def one_commit(files=SMALL, **options):
    return Repository({COMMIT: files}, {"main": COMMIT}, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def fetched(server, online, checkpoint):
    """The checkpoint after its way through the server, which holds other formats of it as well."""
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    others = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "siglip.npz", "open_clip_model.safetensors")
    others += ("README.md", ".gitattributes", "onnx/config.json", "onnx/model.safetensors", "modeling.py")
    junk = dict.fromkeys(others, b"not to be fetched")
    server.repositories["owner/whole"] = one_commit(files | junk, on_cdn=("model.safetensors",))
    return online.path("owner/whole")


@pytest.mark.slow
def test_a_fetched_repository_is_the_checkpoint(fetched, checkpoint):
    names = {file.name for file in checkpoint.iterdir()}
    assert {"config.json", "spiece.model", "preprocessor_config.json", "tokenizer_config.json"} < names
    assert {file.name for file in fetched.iterdir()} == names
    for name in names:
        assert (fetched / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_fetched_repository_loads_with_equal_parameters(fetched, checkpoint):
    (model, params), (expected_model, expected) = map(SiglipModel.from_pretrained, (fetched, checkpoint))
    assert model.config == expected_model.config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.slow
def test_the_name_loads_as_the_directory_does(fetched, checkpoint, home, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve("owner/whole") == fetched
    loaded = siglip_jax.load("owner/whole", local_files_only=True)
    texts = ["a photo of a cat", "two dogs"]
    np.testing.assert_array_equal(loaded.encode_text(texts), siglip_jax.load(checkpoint).encode_text(texts))


def test_only_files_that_are_needed_are_asked_for(server, fetched):
    asked = server.files("owner/whole", "GET") | server.files("owner/whole", "HEAD")
    assert asked == {file.name for file in fetched.iterdir()}


def test_a_second_call_asks_for_no_file(server, online, fetched):
    before = len(server.requests("owner/whole"))
    assert online.path("owner/whole") == fetched
    assert [r.path for r in server.requests("owner/whole")[before:]] == ["/api/models/owner/whole"]


def test_a_file_gone_from_the_cache_is_fetched_again(server, online):
    server.repositories["owner/gone"] = one_commit()
    (online.path("owner/gone") / "config.json").unlink()
    before = len(server.log)
    assert (online.path("owner/gone") / "config.json").read_bytes() == b"{}"
    assert not any("model.safetensors" in r.path for r in server.log[before:])


def test_what_another_program_fetched_in_part_is_completed(server, online, home):
    server.repositories["owner/part"] = one_commit()
    repository = home / "hub" / "models--owner--part"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert online.path("owner/part") == snapshot
    assert server.files("owner/part") == {"model.safetensors"}
    assert (snapshot / "model.safetensors").read_bytes() == b"weights"


SHARDS = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"model.safetensors", "open_clip_model.safetensors", "a.npz"}, {"model.safetensors"}),
        ({"model.safetensors", "model.fp16.safetensors", INDEX, *SHARDS}, {"model.safetensors"}),
        ({INDEX, *SHARDS, "open_clip_model.safetensors", "a.npz"}, {INDEX, *SHARDS}),
        ({"open_clip_model.safetensors", "open_clip_pytorch_model.bin", "a.npz"}, {"open_clip_model.safetensors"}),
        ({"siglip2_b16_224.npz", "README.md"}, {"siglip2_b16_224.npz"}),
        ({"weights.safetensors", "a.npz"}, {"weights.safetensors"}),
        ({"pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "model.ckpt", "model.pkl"}, set()),
        ({"onnx/model.safetensors", "x/a.npz", "x/config.json"}, set()),
        ({"config.json", "vocab.json", "tokenizer.json", "trainer_state.json"}, {"config.json", "tokenizer.json"}),
        (
            {"../a.npz", "/a.npz", "..\\a.npz", "C:a.npz", "*.npz", "[a].npz", ".npz", "..npz", "-a.npz", "a\n.npz"},
            set(),
        ),
    ],
)
def test_one_kind_of_weights_is_needed(held, expected):
    found = needed(held)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_google_s_repositories_of_npz_are_fetched(server, online):
    server.repositories["google/tiny-jax"] = one_commit({"siglip2.npz": b"npz", "README.md": b""})
    assert [file.name for file in online.path("google/tiny-jax").iterdir()] == ["siglip2.npz"]


def test_a_revision_is_a_commit_a_branch_or_a_tag(server, online):
    new, old = SMALL | {"model.safetensors": b"new"}, SMALL | {"model.safetensors": b"old"}
    refs = {"main": COMMIT, "v1": OTHER, "refs/pr/1": OTHER}
    server.repositories["owner/two"] = Repository({COMMIT: new, OTHER: old}, refs)
    for revision, expected in (
        (None, b"new"),
        ("main", b"new"),
        ("v1", b"old"),
        ("refs/pr/1", b"old"),
        (OTHER, b"old"),
    ):
        path = online.path("owner/two", revision=revision)
        assert (path / "model.safetensors").read_bytes() == expected
        assert path == online.path("owner/two", revision=revision, local_files_only=True)
    refs["main"] = OTHER  # the branch moves on
    assert (online.path("owner/two") / "model.safetensors").read_bytes() == b"old"
    assert (online.path("owner/two", revision=COMMIT) / "model.safetensors").read_bytes() == b"new"
    refs.pop("v1")  # not what it once was, silently
    line = online.error("owner/two", revision="v1")
    assert line.endswith(f"revision must be a branch, tag or commit of {server.url}/owner/two, got 'v1'")


def test_a_folder_a_variant_and_a_cache_of_its_own(server, online, tmp_path):
    """A folder of a repository is a checkpoint of its own; a variant is fetched instead of the other weights."""
    inner = {f"deep/siglip/{name}": data for name, data in (SMALL | {"model.fp16.safetensors": b"half"}).items()}
    server.repositories["owner/folders"] = one_commit(SMALL | inner | {"deep/other/config.json": b"{}"})
    found = online.path("owner/folders", subfolder="deep/siglip", cache_dir=str(tmp_path / "cache"))
    assert found.is_relative_to(tmp_path / "cache") and found.name == "siglip"
    assert server.files("owner/folders") == {"deep/siglip/config.json", "deep/siglip/model.safetensors"}
    again = online.path(
        "owner/folders", subfolder="deep/siglip", cache_dir=str(tmp_path / "cache"), local_files_only=True
    )
    assert again == found
    half = online.path("owner/folders", subfolder="deep/siglip", variant="fp16", cache_dir=str(tmp_path / "cache"))
    assert half == found / "model.fp16.safetensors" and half.read_bytes() == b"half"
    line = online.error("owner/folders", variant="fp16")
    assert line.endswith(
        "the Hub repository must hold model.fp16.safetensors for variant='fp16', got none; leave it out"
    )
    assert "no complete copy" in online.error("owner/folders", local_files_only=True)  # nothing lies in the usual cache
    assert "must hold a model.safetensors of SigLIP, got none" in online.error("owner/folders", subfolder="elsewhere")


def test_the_token_may_be_an_argument(server, online):
    server.repositories["owner/argument"] = one_commit(token="hf_right")
    assert "set HF_TOKEN" in online.error("owner/argument", token="hf_other")
    assert online.path("owner/argument", token="hf_other", argument="hf_right").name == COMMIT
    assert {r.token for r in server.requests("owner/argument", "GET")} == {"hf_other", "hf_right"}


def test_the_token_is_sent_to_the_hub_alone(server, online):
    server.repositories["owner/private"] = one_commit(token="hf_right", on_cdn=("model.safetensors",))
    assert "set HF_TOKEN" in online.error("owner/private")
    assert "set HF_TOKEN" in online.error("owner/private", token="hf_other")
    before = len(server.log)
    path = online.path("owner/private", token="hf_right")
    assert (path / "model.safetensors").read_bytes() == b"weights"
    sent = {(r.host, r.token) for r in server.log[before:]}
    assert sent == {("127.0.0.1", "hf_right"), ("localhost", None)}


@pytest.mark.slow
def test_a_cut_download_is_taken_up_where_it_broke(server, online):
    weights = np.random.default_rng(0).bytes(12 << 20)  # the library writes 10 MiB at a time
    files = SMALL | {"model.safetensors": weights}
    server.repositories["owner/cut"] = one_commit(files, cut={"model.safetensors": 11 << 20})
    path = online.path("owner/cut")
    assert hashlib.sha256((path / "model.safetensors").read_bytes()).digest() == hashlib.sha256(weights).digest()
    asked = [r.range for r in server.requests("owner/cut", "GET") if r.path.endswith("model.safetensors")]
    assert asked == [None, f"bytes={10 << 20}-"]


@pytest.mark.slow
def test_without_a_connection_the_cache_serves(server, worker, online):
    server.repositories["owner/kept"] = one_commit()
    path = online.path("owner/kept")
    before = len(server.log)
    offline, unplugged = worker(HF_HUB_OFFLINE="1"), worker("http://127.0.0.1:9")  # discard: nobody listens
    for each, options in ((offline, {}), (unplugged, {}), (online, {"local_files_only": True})):
        for revision in (None, "main", COMMIT):
            assert each.path("owner/kept", revision=revision, **options) == path
    assert len(server.log) == before
    server.repositories.pop("owner/kept")  # as when the Hub is up and the repository is gone
    assert online.path("owner/kept") == path


def test_without_a_connection_what_is_not_whole_is_refused(server, worker, online):
    server.repositories["owner/kept2"] = one_commit()
    (online.path("owner/kept2") / "model.safetensors").unlink()
    offline, unplugged = worker(HF_HUB_OFFLINE="1"), worker("http://127.0.0.1:9")
    for name, revision in (("owner/never", None), ("owner/kept2", None), ("owner/kept2", "v9")):
        line = online.error(name, revision=revision, local_files_only=True)
        assert f"no complete copy of revision {revision or 'main'!r} in the cache" in line
        assert line.endswith("call once without local_files_only to fetch it")
        line = offline.error(name, revision=revision)
        assert f"no complete copy of revision {revision or 'main'!r} in the cache while HF_HUB_OFFLINE is set" in line
        line = unplugged.error(name, revision=revision)
        assert "the download failed (" in line
        assert "refused" in line
        assert "check the connection" in line


def test_errors_say_what_to_do(server, online):
    server.repositories["owner/gated"] = one_commit(gated=True)
    server.repositories["owner/data"] = one_commit({"train.csv": b"", "model.onnx": b""})
    server.repositories["owner/torch"] = one_commit({"config.json": b"{}", "pytorch_model.bin": b""})
    clip = {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b""}
    server.repositories["owner/open"] = one_commit(clip)
    server.repositories["owner/public"] = one_commit()
    page = f"{server.url}/owner"
    for name, options, words in (
        ("owner/none", {}, ["the Hub has no such public repository", "check the name", "HF_TOKEN"]),
        ("owner/gated", {}, [f"the repository is gated: accept its terms at {page}/gated and set HF_TOKEN"]),
        ("owner/gated", {"token": "hf_any"}, [f"accept its terms at {page}/gated and set HF_TOKEN"]),
        ("owner/public", {"revision": "v9"}, [f"revision must be a branch, tag or commit of {page}/public, got 'v9'"]),
        ("owner/public", {"token": "wrong"}, ["the Hub refused the token: set HF_TOKEN to a valid one, or unset it"]),
        ("owner/two--dashes", {}, ["not a Hub name either", "Cannot have --"]),
        ("owner/data", {}, ["the Hub repository must hold a model.safetensors of SigLIP, got none"]),
        ("owner/torch", {}, ["must be model.safetensors, got only pytorch_model.bin, a pickle", "with transformers"]),
        (
            "owner/open",
            {},
            ["must be open_clip_model.safetensors, got only open_clip_pytorch_model.bin", "open_clip and"],
        ),
    ):
        line = online.error(name, **options)
        for word in words:
            assert word in line
    assert not server.files("owner/data") | server.files("owner/torch") | server.files("owner/open")


@pytest.mark.slow
def test_a_full_or_locked_disk_is_told_from_a_bad_connection(server, worker, tmp_path):
    server.repositories["owner/public2"] = one_commit()
    (tmp_path / "file").write_bytes(b"")
    line = worker(HF_HUB_CACHE=str(tmp_path / "file" / "cache")).error("owner/public2")
    assert "it cannot be stored in the cache" in line
    assert "set HF_HOME" in line


def test_names_that_lead_out_of_the_cache_are_never_written(server, online, home):
    out = ("../../../../../evil.safetensors", "/tmp/siglip_jax_evil.npz", "..\\..\\evil.json", "x/../../config.json")
    listed = SMALL | dict.fromkeys(out, b"EVIL!")
    server.repositories["owner/evil"] = one_commit(listed, tree_only=("../config.json", "../../evil.safetensors"))
    before = set(home.rglob("*"))
    path = online.path("owner/evil")
    assert {file.name for file in path.iterdir()} == set(SMALL)
    assert server.files("owner/evil") == set(SMALL)
    assert not any(file.read_bytes() == b"EVIL!" for file in set(home.rglob("*")) - before if file.is_file())
    assert not Path(out[1]).exists()


@pytest.mark.parametrize("commit", ["../../x", "x/../../../y", "main", "0123", COMMIT.upper(), f"{COMMIT}/../../x", ""])
def test_an_answer_whose_commit_is_none_is_refused_before_anything_is_written(server, online, home, commit):
    name = f"owner/hostile{hashlib.sha256(commit.encode()).hexdigest()[:8]}"
    server.repositories[name] = Repository({commit: SMALL}, {"main": commit})
    before = set(home.rglob("*"))
    assert f"the Hub must name a commit by 40 hexadecimal digits, got {commit!r}" in online.error(name)
    assert set(home.rglob("*")) == before
    assert not server.files(name) and not server.files(name, "HEAD")


@pytest.mark.slow
def test_no_bar_of_progress_but_on_a_terminal(server, online, home):
    server.repositories["owner/bar"] = server.repositories["owner/bar2"] = one_commit()
    before = online.errors.read_text()  # the cut download told of itself
    online.path("owner/bar")
    assert online.errors.read_text() == before
    master, terminal = pty.openpty()
    try:
        termios.tcsetwinsize(terminal, (24, 80))
        seen = Worker(server.url, home, Path(os.ttyname(terminal)))
        seen.path("owner/bar2")
        seen.close()
        assert "Fetching 2 files" in os.read(master, 1 << 16).decode()
    finally:
        os.close(master)
        os.close(terminal)


def test_a_name_without_its_owner_is_completed():
    for read in (resolve, siglip_jax.load, siglip_jax.SiglipProcessor.from_pretrained):
        with pytest.raises(FileNotFoundError, match="; did you mean 'google/siglip-base-patch16-224'\\?$"):
            read("siglip-base-patch16-224")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at-all", "/nowhere", "a/b/c", "owner/na me", "owner/x.npz:img"])
def test_what_is_no_hub_name_is_a_missing_path(name):
    with pytest.raises(FileNotFoundError, match="no such file or directory, and not a Hub name"):
        resolve(name)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"^owner/name: .*pip install '?huggingface.hub.* \(the extra 'hub'\)$"):
        resolve("owner/name")


@pytest.mark.slow
def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name").samefile(tmp_path / "owner" / "name")


def sharded(model_type, names):
    """A repository whose index puts each of some tensors into a shard of its own."""
    files = {f"model-{i:05}-of-{len(names):05}.safetensors": name for i, name in enumerate(names, 1)}
    index = {"weight_map": {name: file for file, name in files.items()}}
    made = {file: file.encode() for file in files}
    made |= {"config.json": json.dumps({"model_type": model_type}).encode()}
    return made | {"model.safetensors.index.json": json.dumps(index).encode()}


def test_of_a_larger_model_only_the_shards_of_the_tower_are_fetched(server, worker):
    tower = ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "post_layernorm.weight")
    names = ["language_model.lm_head.weight", *(f"model.vision_tower.{name}" for name in tower), "projector.weight"]
    files = sharded("llava_qwen", names)
    server.repositories["larger/model"] = Repository({COMMIT: files}, {"main": COMMIT})
    path = worker().path("larger/model")
    parts = {f"model-0000{i}-of-00005.safetensors" for i in (2, 3, 4)}
    wanted = {"config.json", "model.safetensors.index.json"} | parts
    assert {file.name for file in path.iterdir()} == wanted == server.files("larger/model")
    assert worker().path("larger/model", local_files_only=True) == path
    assert worker().path("larger/model") == path and server.files("larger/model") == wanted

    server.repositories["whole/model"] = Repository({COMMIT: sharded("siglip", names)}, {"main": COMMIT})
    path = worker().path("whole/model")
    assert {file.name for file in path.iterdir()} == set(files)
