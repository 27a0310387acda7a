#!/usr/bin/env python3
"""Build the real zinit once, and print the directory that holds it.

    python3 tests/interop/build_zinit.py        -> .../zinit-0.1.0/bin

In that directory are zinit-server (what pyinit1 keeps alive), zinit (its client) and zinit-pid1 (the original that pyinit1
re-creates). They are built by cargo into the cache, which takes some minutes the first time and nothing afterwards. Only
the directory's name goes to stdout.

Two builds at once are one: the second waits for the first one's lock. An interrupted build leaves nothing that looks
finished (the result appears by rename), and the next one goes on from what it had compiled.

Exit status: 0, or 1 with one line that says what is missing, or where the log of a failed build is.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vm-test"))
from packages import cache_dir  # noqa: E402

VERSION = "0.1.0"
PROGRAMS = ("zinit-server", "zinit-pid1", "zinit")
OLDEST_RUST = (1, 88)           # what the dependencies in the crate's lock file need


def bin_directory():
    """Where the programs are, or will be."""
    return cache_dir() / ("zinit-" + VERSION) / "bin"


def is_complete(directory):
    """Are all the programs there, and executable?"""
    return all(os.access(directory / name, os.X_OK) for name in PROGRAMS)


def rust_version(text):
    """(1, 88) from "rustc 1.88.0 (...)" or "cargo 1.88.0 (...)"; None from anything else."""
    found = re.match(r"\w+ (\d+)\.(\d+)", text)
    return found and (int(found[1]), int(found[2]))


def missing():
    """What keeps us from building, as one line; None if nothing does."""
    need = "needs cargo and rustc %d.%d or newer (Debian 12's are too old; rustup has newer ones)" % OLDEST_RUST
    for tool in "cargo", "rustc":
        if not shutil.which(tool):
            return "%s: there is no %s" % (need, tool)
        asked = subprocess.run([tool, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        version = rust_version(asked.stdout)
        if asked.returncode or not version or version < OLDEST_RUST:
            return "%s: `%s --version` says: %s" % (need, tool, asked.stdout.strip().split("\n")[0])
    return None


def build(root, lock):
    """cargo install into a root of its own, then rename it to ROOT; an error's text, or None."""
    unfinished, target, log = (root.with_name(root.name + end) for end in (".unfinished", ".target", ".log"))
    shutil.rmtree(unfinished, ignore_errors=True)
    argv = ["cargo", "install", "zinit", "--version", VERSION, "--locked", "--features", "full", "--root", str(unfinished)]
    print("build_zinit: building zinit %s, some minutes: log: %s" % (VERSION, log), file=sys.stderr)
    with open(log, "w") as output:
        # The compiler holds our lock as well: if we alone are killed, the next build waits for it instead of running beside it.
        status = subprocess.call(argv, env=dict(os.environ, CARGO_TARGET_DIR=str(target)), stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=output, pass_fds=[lock.fileno()])
    if status or not is_complete(unfinished / "bin"):
        end = log.read_text().splitlines()[-15:]
        return "\n".join(end + ["build_zinit: %s failed: exit status %d: log: %s" % (argv[0], status, log)])
    shutil.rmtree(root, ignore_errors=True)
    unfinished.rename(root)
    shutil.rmtree(target, ignore_errors=True)
    return None


def main():
    root = bin_directory().parent
    with open(root.with_name(root.name + ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("build_zinit: waiting for another build to finish", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_complete(root / "bin"):
            why = missing()
            error = "build_zinit: zinit %s %s" % (VERSION, why) if why else build(root, lock)
            if error:
                sys.exit(error)
    print(root / "bin")


if __name__ == "__main__":
    main()
