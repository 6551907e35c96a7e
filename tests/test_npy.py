"""Headers of .npy files: read as numpy reads them, without the parser that is not safe over threads, within bounds."""

import ast
import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import siglip_jax
from siglip_jax._npy import load_npy, read_header
from siglip_jax.checkpoints.npz_file import read_npz
from siglip_jax.search import parts
from siglip_jax.training import precomputed

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.float64(3.5),
    np.zeros((0, 4), np.float16),
    np.arange(4) > 1,
    np.arange(3, dtype=np.uint8),
    np.arange(3, dtype=np.complex64),
    np.array(["ab", "c"]),
    np.ones((1,) * 32, np.int8),
]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda x: f"{x.dtype}{x.shape}"[:20])
def test_what_numpy_writes_is_read_as_numpy_reads_it(tmp_path, array, version):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, np.asarray(array), version)
    found, expected = load_npy(tmp_path / "x.npy"), np.load(tmp_path / "x.npy")
    assert (found.dtype, found.shape, found.flags.f_contiguous) == (
        expected.dtype, expected.shape, expected.flags.f_contiguous,
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected)


def test_the_other_byte_order_is_converted(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3, dtype=">f4"))
    found = load_npy(tmp_path / "x.npy")
    assert found.dtype == np.float32 and found.dtype.isnative and found.tolist() == [0, 1, 2]
    np.savez(tmp_path / "x.npz", a=np.arange(3, dtype=">f4"))
    np.savez_compressed(tmp_path / "y.npz", a=np.arange(3, dtype=">f4"))
    for name in ("x.npz", "y.npz"):
        stored = read_npz(tmp_path / name)[0]["a"]
        assert stored.dtype.isnative and stored.view().dtype.isnative and stored.view().tolist() == [0, 1, 2]


def test_no_reader_parses_a_header_with_ast(tmp_path, monkeypatch):
    """On Python 3.11 the parser behind `ast.literal_eval` fails at random when several threads use it."""
    np.save(tmp_path / "part-00000.npy", np.ones((2, 3), np.float32))
    np.savez(tmp_path / "x.npz", a=np.ones((2, 3), np.float32).astype(ml_dtypes.bfloat16))

    def fail(text):
        raise SystemError("AST constructor recursion depth mismatch (before=25, after=28)")

    monkeypatch.setattr(ast, "literal_eval", fail)
    readers = [
        lambda: load_npy(tmp_path / "part-00000.npy"),
        lambda: precomputed._mapped.__wrapped__(tmp_path / "part-00000.npy"),
        lambda: parts._mapped(tmp_path / "part-00000.npy"),
        lambda: read_npz(tmp_path / "x.npz")[0]["a"].view(),
    ]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: readers[i % len(readers)](), range(400)))
    assert all(np.array_equal(x, np.ones((2, 3))) for x in found)


def npy(header, data=b"", version=b"\x01\x00"):
    text = header.encode() if isinstance(header, str) else header
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little") + text + data


FINE = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
DAMAGED = {
    "nothing": (b"", "begins with"),
    "a zip": (b"PK\x03\x04" * 20, "begins with"),
    "cut magic": (b"\x93NUM", "begins with"),
    "version 9": (b"\x93NUMPY\x09\x00" + b"\0" * 60, "version of the header"),
    "cut header": (npy(FINE)[:30], "must have 57 bytes, got 20"),
    "a header of 4 GB": (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b"\0" * 50, "at most 65536 bytes, got 4294967295"),
    "brackets": (npy("(" * 60_000), "must name a dtype of numbers, an order and a shape"),
    "a null": (npy("{\0}"), "must name a dtype of numbers, an order and a shape"),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}"), "must name a dtype"),
    "a shape of nines": (npy(FINE.replace("2,", "9" * 30)), "must name a shape"),
    "a negative shape": (npy(FINE.replace("2,", "-1,")), "must name a dtype"),
    "a shape of 33": (npy(FINE.replace("2,", "1," * 65)), "must name a shape"),
    "more than there is": (npy(FINE.replace("2,", "10000000000,"), b"\0" * 8), "must have 40000000000 bytes, got 8"),
    "less than there is": (npy(FINE, b"\0" * 9), "must have 8 bytes, got 9"),
    "a dtype that is none": (npy(FINE.replace("<f4", "<f3")), "must name a dtype of numpy"),
    "structures": (npy(FINE.replace("'<f4'", "[('a', '<f4')]"), b"\0" * 8), "must name a dtype of numbers"),
    "objects": (npy(FINE.replace("<f4", "|O"), b"\0" * 8), "got pickled objects, which are never opened"),
    "bytes that are no text": (npy(bytes(range(256))), "must name a dtype of numbers"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused_with_their_name_in_one_short_line_and_little_memory(tmp_path, kind):
    data, words = DAMAGED[kind]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            load_npy(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert line.startswith(f"{path}: the file must be an array of numpy, got another") and words in line
    assert line.isprintable() and len(line) < 300 + len(str(path))


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_archive_with_such_a_header_is_refused_too(tmp_path, kind):
    import zipfile

    data, _ = DAMAGED[kind]
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("params/img/embedding/kernel.npy", data)
    with pytest.raises(ValueError) as caught:
        siglip_jax.read_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "params/img/embedding/kernel.npy" in line
    assert line.isprintable() and len(line) < 350 + len(str(path))


def test_a_header_of_python_2_is_read():
    data = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }         \n")
    assert read_header(io.BytesIO(data)).shape == (3, 4)
