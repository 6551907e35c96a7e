"""`siglip-jax doctor`: a page for people, JSON for reports, and a status that says whether something is wrong."""

import json

import pytest

from siglip_jax import environment
from siglip_jax.environment import Examination

FOUND = Examination(
    versions={"python": "3.12.1", "jax": "0.10.2"},
    backend="cpu",
    devices=[{"kind": "cpu", "count": 2, "memory": None}],
    extras={"hub": ["huggingface_hub>=0.30"], "quant": []},
    caches=[
        {"name": "Hub", "path": None, "files": 0, "bytes": 0},
        {"name": "siglip_jax", "path": "/home/a/.cache/siglip_jax", "files": 1200, "bytes": 3 << 20},
    ],
    settings={"JAX_PLATFORMS": "cpu"},
    checks=[{"name": "jax", "right": True, "found": "0.10.2 on cpu"}],
    problems=[],
)
PAGE = """python  3.12.1
jax     0.10.2

backend  cpu
devices  2 x cpu

extra hub    pip install 'huggingface_hub>=0.30'
extra quant  installed

cache: Hub         not in use
cache: siglip_jax  /home/a/.cache/siglip_jax, 1,200 files, 3.00 MiB

JAX_PLATFORMS  cpu

ok     jax  0.10.2 on cpu
"""


@pytest.mark.parametrize("problems", [[], ["jax runs on the CPU of a machine that has a TPU; do\x1b so"]])
def test_the_page(run, monkeypatch, problems):
    found = Examination(**{**vars(FOUND), "problems": problems})
    monkeypatch.setattr(environment, "examine", lambda: found)
    ran = run("doctor")
    rest = (
        "\njax runs on the CPU of a machine that has a TPU; do\\x1b so\n\nnot healthy\n" if problems else "\nhealthy\n"
    )
    assert (ran.status, ran.out, ran.err) == (int(bool(problems)), PAGE + rest, "")
    ran = run("doctor", "--json")
    assert (ran.status, json.loads(ran.out)) == (int(bool(problems)), found.to_dict())
