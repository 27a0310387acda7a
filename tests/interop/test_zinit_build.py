"""build_zinit.py, with a cargo that only pretends: what is missing is said, two builds are one, half a build is none."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT, SECONDS, poll

CARGO = r"""#!/bin/sh
[ "$1" = --version ] && { echo "cargo ${RUST:-1.88.0} (of this test)"; exit; }
echo build >> "$PYINIT1_CACHE/builds"
[ -p "$PYINIT1_CACHE/gate" ] && read go < "$PYINIT1_CACHE/gate"
[ -n "$FAIL" ] && { echo "error: it does not compile"; exit 101; }
while [ "$1" != --root ]; do shift; done
mkdir -p "$2/bin"
for name in zinit zinit-pid1 zinit-server; do echo '#!/bin/sh' > "$2/bin/$name"; chmod +x "$2/bin/$name"; done
"""
RUSTC = '#!/bin/sh\necho "rustc ${RUST:-1.88.0} (of this test)"\n'


@pytest.fixture
def build(tmp_path):
    """build(**environment): start build_zinit.py with a cache and a Rust of its own; -> Popen."""
    tools, cache = tmp_path / "tools", tmp_path / "cache"
    for folder in tools, cache:
        folder.mkdir()
    for name, text in (("cargo", CARGO), ("rustc", RUSTC)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def start(**environment):
        environment = {"PATH": "%s:/usr/bin:/bin" % tools, "PYINIT1_CACHE": str(cache), **environment}
        return subprocess.Popen([sys.executable, str(ROOT / "tests/interop/build_zinit.py")], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    start.cache, start.directory = cache, cache / "zinit-0.1.0/bin"
    start.builds = lambda: len((cache / "builds").read_text().splitlines()) if (cache / "builds").exists() else 0
    return start


@pytest.mark.parametrize("environment, why", [({"PATH": "/nowhere"}, "there is no cargo"), ({"RUST": "1.87.0"}, "cargo 1.87.0")])
def test_a_missing_or_old_rust_is_one_line_that_says_what_is_needed(build, environment, why):
    process = build(**environment)
    said, error = process.communicate(timeout=SECONDS)
    assert (process.returncode, said, build.builds()) == (1, "", 0)
    assert error.count("\n") == 1 and "needs cargo and rustc 1.88 or newer" in error and why in error


def test_two_builds_at_once_are_one_and_a_third_finds_it(build):
    os.mkfifo(str(build.cache / "gate"))
    first = build()
    poll(lambda: build.builds() == 1, SECONDS, "the first build")
    second = build()
    assert "waiting for another build" in second.stderr.readline()
    (build.cache / "gate").write_text("go\n")
    for process in first, second, build():
        said, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, said) == (0, "%s\n" % build.directory)
    assert build.builds() == 1


def test_a_killed_build_leaves_nothing_and_the_next_one_waits_for_its_compiler(build):
    os.mkfifo(str(build.cache / "gate"))
    killed = build()
    poll(lambda: build.builds() == 1, SECONDS, "the build")
    killed.kill()
    killed.wait(SECONDS)
    assert not build.directory.exists()
    second = build()
    assert "waiting for another build" in second.stderr.readline()
    with open(str(build.cache / "gate"), "w") as gate:
        (build.cache / "gate").unlink()     # the second one shall not stop there
        gate.write("go\n")
    assert second.communicate(timeout=SECONDS)[0] == "%s\n" % build.directory
    assert build.builds() == 2


def test_a_failed_build_shows_the_end_of_its_log(build):
    process = build(FAIL="1")
    said, error = process.communicate(timeout=SECONDS)
    assert (process.returncode, said, build.directory.exists()) == (1, "", False)
    assert "error: it does not compile" in error and "zinit-0.1.0.log" in error
