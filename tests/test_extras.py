"""What works without the extras, and what a missing package is answered with: one line that names the extra."""

import re
import subprocess
import sys

import pytest

import siglip_jax
from siglip_jax._optional import NotInstalledError, import_optional

EXTRAS = (
    "flatbuffers",
    "grain",
    "huggingface_hub",
    "libtpu",
    "matplotlib",
    "optax",
    "pyarrow",
    "qwix",
    "ray",
    "tensorboardX",
    "tokenizers",
    "tyro",
    "usearch",
)
BARE = f"import sys\nfor name in {EXTRAS!r}:\n    sys.modules[name] = None\n"


def python(code, *words):
    return subprocess.run([sys.executable, "-c", BARE + code, *words], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_packages_import_and_the_bundled_model_answers(tmp_path):
    done = python(
        """
import inspect, siglip_jax
for name in siglip_jax.__all__:
    getattr(siglip_jax, name)
inspect.getmembers(siglip_jax.training), inspect.getmembers(siglip_jax.data)  # as help() does
siglip_jax.load().encode_text(["a cat"])
siglip_jax.search.embed(siglip_jax.assets.EXAMPLES / "labels.txt", sys.argv[1] + "/out")
print(sorted(siglip_jax.training.RECIPES)[0])
""",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "acid\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (("embed", str(siglip_jax.assets.EXAMPLES), "--out", "out"), "pyarrow", "data"),
        (("eval", "zero-shot", str(siglip_jax.assets.EXAMPLES)), "pyarrow", "data"),
        (("train", "finetune", "--data", "x", "--model", "y", "--out", "z"), "tyro", "train"),
        (("classify", str(siglip_jax.assets.EXAMPLES), "--labels", "a", "--model", "owner/name"), None, "hub"),
        (("classify", str(siglip_jax.assets.EXAMPLES), "--labels", "a", "--save-plot", "x.png"), "matplotlib", "plot"),
        (("export", "--out", "x"), "flatbuffers", "export"),
        (("bench", "--quantization", "int8"), "qwix", "quant"),
        (("plan", "--topology", "v5e:2x2"), "libtpu", "tpu"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_command_names_the_extra_in_one_line(tmp_path, words, package, extra):
    done = python(f"import os, siglip_jax.cli\nos.chdir({str(tmp_path)!r})\nsys.exit(siglip_jax.cli.main())", *words)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"pip install \S.* \(the extra '{extra}'\)$", done.stderr.splitlines()[-1])
    assert package is None or f"needs {package}, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_needs_no_extra():
    done = python("import siglip_jax.cli\nsys.exit(siglip_jax.cli.main(['train', '--help']))")
    assert done.returncode == 0 and "high-resolution" in done.stdout, done.stderr


def test_a_name_that_needs_a_missing_package_says_so():
    done = python("import siglip_jax\nsiglip_jax.training.train")
    assert "needs" in done.stderr and "pip install " in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("AttributeError: ")


def test_a_package_that_is_there_but_broken_is_not_taken_for_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as raised:
        import_optional("broken_package", "this", "extra")
    assert not isinstance(raised.value, NotInstalledError)


def test_the_error_is_a_users_mistake_and_a_missing_module():
    with pytest.raises(
        NotInstalledError, match=r"^this needs no_such_package, .*: pip install no_such_package \(the extra 'extra'\)$"
    ) as raised:
        import_optional("no_such_package.part", "this", "extra")
    assert isinstance(raised.value, ValueError) and isinstance(raised.value, ModuleNotFoundError)
    assert raised.value.name == "no_such_package"
