"""Fixtures of the tests over the real zinit. tests/conftest.py has figures in the summary, and the rule about skips."""

import os
from pathlib import Path

import pytest

import build_zinit
from zinit import ZinitNamespace


@pytest.fixture(scope="session")
def programs():
    """The directory of zinit-server, zinit and zinit-pid1."""
    directory = Path(os.environ.get("ZINIT") or build_zinit.bin_directory())
    assert build_zinit.is_complete(directory), "no zinit in %s: build it with tests/interop/build_zinit.py" % directory
    return directory


@pytest.fixture
def namespace(programs, tmp_path):
    """A ZinitNamespace that is not started yet."""
    with ZinitNamespace(tmp_path, programs) as it:
        yield it
