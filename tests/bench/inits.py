"""The inits that are compared, and how each is run: as PID 1 of a PID namespace of its own, or as a plain process in one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import PYINIT1, PYTHON, SECONDS, Lines, child_pids, clean_environment, poll  # noqa: E402

from bench.figures import ALONE, US  # noqa: E402

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "interop"))

from build_zinit import bin_directory, is_complete  # noqa: E402

UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
OURS = (*PYTHON, str(PYINIT1), "--container")

# The words before COMMAND: as PID 1, and as a plain process.
AS_PID_1 = {US: (*OURS, "--"), "tini": ("tini", "--"), "dumb-init": ("dumb-init", "--"), "catatonit": ("catatonit", "--"), ALONE: ()}
PLAIN = {**AS_PID_1, "tini": ("tini", "-s", "--")}

# It keeps a server, as pyinit1 does without COMMAND, and looks for it only on the search path: see Kept.
ORIGINAL = "zinit-pid1"


def installed():
    """The columns that can be measured here."""
    there = [name for name in AS_PID_1 if name in (US, ALONE) or shutil.which(name)]
    return there + [ORIGINAL] * is_complete(bin_directory())


def version(name):
    """What `name --version` says, shortened to the number."""
    asked = subprocess.run([name, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
    found = re.search(r"\d+(\.\d+)+", asked.stdout)
    return found[0] if found else "unknown"


class Running:
    """An init with what it started; use it in a with statement, which ends all of it. `pid`: the init's, as we see it.

    `log` has COMMAND's lines. It must say "ready".
    """

    def __init__(self, argv, plain=False, setup="", **environment):
        script = setup + ('"$@"\nexit $?' if plain else 'exec "$@"')
        self.process = subprocess.Popen([*UNSHARE, "sh", "-c", script, "sh", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, env={**clean_environment(), **environment})
        self.log = Lines(self.process.stdout, " ".join(argv))
        try:
            self.log.wait_for(r"\bready\b", SECONDS)
            (self.pid,) = child_pids(self.process.pid)
            if plain:
                (self.pid,) = child_pids(self.pid)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()         # and --kill-child kills its PID 1, which takes all others along
        self.process.wait()
        self.process.stdout.close()

    def sleeps(self):
        """Has it nothing to do?"""
        with open("/proc/%d/stat" % self.pid) as file:
            return file.read().rpartition(")")[2].split()[0] == "S"

    def await_sleep(self):
        poll(self.sleeps, SECONDS, "%s to sleep" % self.log.name)


def kept(name, directory, server):
    """Running: `name` keeps the shell command `server`, which `directory` (empty, and its own) is to hold."""
    program = Path(directory) / "zinit-server"
    program.write_text("#!/bin/sh\n" + server)
    program.chmod(0o755)
    if name == US:
        return Running(OURS, PYINIT1_SERVER=str(program))
    return Running([str(bin_directory() / ORIGINAL), "--container"], setup="mount --bind '%s' /usr/local/bin || exit\n" % directory)
