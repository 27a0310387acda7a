"""The real server under pyinit1 as /init of a booted machine: the scenarios of vm-test/run that need it."""

import subprocess
import sys

import pytest

from helpers import PYINIT1, ROOT


@pytest.mark.parametrize("name", ["zinit", "zinit-crash"])
def test_a_machine_boots_into_the_real_server_and_powers_off(programs, name):
    done = subprocess.run([sys.executable, str(ROOT / "vm-test/run"), "--zinit", str(programs), "--init", str(PYINIT1), name],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    print(done.stdout)
    assert done.returncode == 0
    assert "1 passed, 0 failed" in done.stdout
