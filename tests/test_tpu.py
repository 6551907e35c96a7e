"""What libtpu is told on a machine without a TPU."""

import os
import subprocess
import sys

import pytest

from siglip_jax._tpu import describe_no_tpu


def test_variables_are_set_only_without_a_tpu_and_only_where_they_are_not(tmp_path):
    environment = {"TPU_WORKER_HOSTNAMES": "a,b"}
    describe_no_tpu(environment, [str(tmp_path / "accel*")])
    assert environment["TPU_WORKER_HOSTNAMES"] == "a,b" and environment["TPU_SKIP_MDS_QUERY"] == "1"
    (tmp_path / "accel0").touch()
    untouched: dict[str, str] = {}
    describe_no_tpu(untouched, [str(tmp_path / "accel*")])
    assert untouched == {}


@pytest.mark.slow
def test_the_command_line_is_quiet_where_the_compiler_of_tpus_is_installed():
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS" and not k.startswith("TPU_")}
    code = (
        "import sys, siglip_jax.cli as c; sys.argv[1:] = ['info']; s = c.main(); import jax; jax.devices(); sys.exit(s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
