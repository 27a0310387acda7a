"""Every Python from 3.9 on that this machine has: the same short life with each, as COMMAND's init and as the server's."""

import functools
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from helpers import PYINIT1, SECONDS, AtOnce, Namespace, Process, clean_environment, poll

VERSIONS = range(9, 14)         # 3.9 to 3.13
CI_NEEDS = 4                    # of them at least


def interpreters():
    """{"3.9": path, ...}: one for each version, the machine's own before those of pyenv."""
    folders = [*os.environ["PATH"].split(":"), "/usr/bin", "/usr/local/bin"]
    for root in (os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"):
        folders += sorted(Path(root, "versions").glob("3.*/bin")) if root else []
    found = {}
    for version in VERSIONS:
        paths = [Path(folder, "python3.%d" % version) for folder in folders]
        # pyenv's shims are shell scripts, which say that a version is not chosen.
        working = [path for path in paths if "shims" not in path.parts and runs(path)]
        if working:
            found["3.%d" % version] = str(working[0])
    return found


@functools.lru_cache(maxsize=None)
def runs(path):
    """Is it an interpreter that works?"""
    return os.access(path, os.X_OK) and subprocess.run([path, "-IS", "-c", ""], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


INTERPRETERS = interpreters()
with_each = pytest.mark.parametrize("version", INTERPRETERS)


def test_this_machine_has_enough_of_them():
    if os.environ.get("CI") != "true" and len(INTERPRETERS) < CI_NEEDS:
        pytest.skip("of Python 3.9 to 3.13 only %s is here: python3.N on PATH, or in pyenv's versions" % ", ".join(INTERPRETERS))
    assert len(INTERPRETERS) >= CI_NEEDS, INTERPRETERS


@with_each
def test_it_is_the_version_that_it_is_called(version):
    said = subprocess.run([INTERPRETERS[version], "-V"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith("Python %s." % version)


# ---- lives; each is over in a second or two, all of them run at once

def python_of(version):
    return {"python": (INTERPRETERS[version], "-IS")}


def command_ends(namespace, version, place):
    """COMMAND's own status, a worker that it leaves, an orphan, and nothing in the log that does not belong there."""
    namespace.start("-v", "--", "sh", "-c", "%s & until [ -e %s ]; do sleep 0.01; done; exit 5" % (
        namespace.guinea_pig("worker", 0.5), namespace.directory / "go"), **python_of(version), **place)
    namespace.wait_ready("worker")
    (namespace.directory / "go").touch()
    assert namespace.wait() == 5
    assert "worker: saved" in namespace.log.text


def command_is_clean(namespace, version, place):
    """No signal blocked or ignored, no descriptor, group, folder and environment."""
    namespace.start("--", "/usr/bin/sleep", "100000", **python_of(version), prefix=("env", "-i", "A=1"), cwd=namespace.directory, **place)
    process = namespace.by_pid(namespace.wait_for(r"^pyinit1: COMMAND started: pid (\d+)")[1])
    assert process.signals("SigBlk") | process.signals("SigIgn") | process.signals("SigCgt") == set()
    assert process.group == process.pid and process.link("cwd") == str(namespace.directory)
    poll(lambda: set(process.descriptors()) == {0, 1, 2}, SECONDS, "three descriptors")
    assert process.read("environ") == "A=1\0"
    namespace.kill(signal.SIGTERM)
    assert namespace.wait() == 143


def command_gets_signals(namespace, version, place):
    """Forwarded, rewritten, dropped, real-time ones; all at once."""
    namespace.start("-r", "USR1:USR2", "-r", "HUP:0", "--", *namespace.guinea_pig("command").split(), **python_of(version), **place)
    namespace.wait_ready("command")
    namespace.kill(signal.SIGSTOP)
    poll(lambda: Process(namespace.init).state == "T", SECONDS, "us to stop")
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGWINCH, 64, signal.SIGCONT):
        namespace.kill(number)
    for name in ("SIGUSR2", "SIGINT", "SIGWINCH", "SIGRTMAX"):
        poll(lambda: "command: got %s\n" % name in namespace.log.drain(), SECONDS, name)
    namespace.kill(signal.SIGTERM)
    assert namespace.wait() == 0
    assert "command: got SIGHUP" not in namespace.log.text and "command: got SIGUSR1" not in namespace.log.text


def command_is_not_there(namespace, version, place):
    namespace.start("--", "no-such-command", ready=None, **python_of(version), **place)
    assert namespace.wait() == 127
    assert "pyinit1: COMMAND not started: no-such-command: not found\n" in namespace.log.text


def server_is_kept(namespace, version, place):
    """It is started again, restarted softly, asked to stop; its services and an orphan."""
    namespace.marked_service("web")
    namespace.service("orphan", namespace.guinea_pig("orphan", 0.2, "orphan"))
    namespace.start(**python_of(version), **place)
    os.kill(namespace.server().outer, signal.SIGKILL)
    namespace.server()
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^pyinit1: soft restart: state saved")
    namespace.server()
    namespace.power_off()
    assert "server: asked: system.shutdown" in namespace.log.text and "orphan: saved" in namespace.log.text


def bad_option(namespace, version, place):
    namespace.start("--frobnicate", ready=None, **python_of(version), **place)
    assert namespace.wait() == 2
    assert namespace.log.text.startswith("pyinit1: bad option: --frobnicate: ")


def check_says(namespace, version, place):
    namespace.start("--check", ready=None, **python_of(version), **place)
    assert namespace.wait() == 0, namespace.log.text
    assert "would start: " in namespace.log.text and "problem" not in namespace.log.text


LIVES = {life.__name__: life for life in (
    command_ends, command_is_clean, command_gets_signals, command_is_not_there, server_is_kept, bad_option, check_says)}
PLACES = {"container": {}, "plain-process": {"plain": True}}


def live(parameter, directory):
    """Live; nothing that Python itself says may be in the log: -> the log."""
    version, name, place = parameter
    with Namespace(directory) as namespace:
        LIVES[name](namespace, version, PLACES[place])
        return namespace.log.text


@pytest.fixture(scope="module")
def lives():
    return AtOnce(live, [(version, name, place) for version in INTERPRETERS for name in LIVES for place in PLACES], workers=4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", LIVES)
@with_each
def test_the_same_life_with_each(lives, version, name, place):
    text = lives.result((version, name, place))
    assert not re.search("Traceback|Warning|crashed|Error:", text), text


@with_each
def test_it_compiles_without_a_warning(version):
    done = subprocess.run([INTERPRETERS[version], "-IS", "-W", "error", "-c", "import sys; compile(sys.stdin.read(), 'pyinit1.py', 'exec')"],
                          input=PYINIT1.read_text(), stderr=subprocess.PIPE, text=True, env={**clean_environment(), "LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr) == (0, "")


@with_each
def test_it_imports_nothing_that_a_minimal_python_lacks_before_the_child_runs(version):
    """Debian's python3-minimal has no ctypes, json, shutil, resource: a container needs none of them to run COMMAND as PID 1."""
    wanted = {"_signal", "sys", "errno", "fcntl", "os", "select", "stat", "time"}
    done = subprocess.run([INTERPRETERS[version], "-IS", "-X", "importtime", str(PYINIT1), "--version"], stderr=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, env=clean_environment(), check=True)
    bare = subprocess.run([INTERPRETERS[version], "-IS", "-X", "importtime", "-c", "import " + ", ".join(sorted(wanted))],
                          stderr=subprocess.PIPE, text=True, env=clean_environment(), check=True)
    ours, theirs = (set(re.findall(r"^import time:.*\| +(\S+)$", text.stderr, re.M)) for text in (done, bare))
    assert ours <= theirs


# ---- the shebang

def test_the_shebang_names_debians_python_with_one_word_of_options():
    """`-I -S` would come as one option; README: python:slim has its python3 in /usr/local/bin."""
    assert PYINIT1.read_text().split("\n", 1)[0] == "#!/usr/bin/python3 -IS"


@pytest.mark.skipif(not shutil.which("python3", path="/usr/bin"), reason="there is no /usr/bin/python3 for the shebang")
def test_as_a_program_it_runs_by_its_shebang(tmp_path):
    with Namespace(tmp_path) as namespace:
        copy = namespace.script("docker-init", PYINIT1.read_text())
        namespace.start("--", "sh", "-c", "exit 5", python=(), init=copy, ready=None)
        assert namespace.wait() == 5
