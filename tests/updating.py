"""What the tests of updates, crashes and faults share: a folder that only root can write, and pyinit1.py in generations."""

import os
import re
import shutil
import subprocess

from helpers import PYINIT1, PYTHON, SECONDS, Process, pending, poll

from injection import with_statements

LET_GO = 5.0                # s: then strace waits for what will never come
# Is this a trial start, and not the PID 1 that we know?
ON_TRIAL = '(os.getpid() != 1 or os.readlink("/proc/self/ns/pid") != os.readlink("/proc/1/ns/pid"))'

# A new file that waits, all signals being blocked, until /run/go is there; not in the trial start.
HOLD = """
if __name__ == "__main__" and not %s:
    os.write(2, b"held\\n")
    while not os.path.exists("/run/go"):
        time.sleep(0.01)
""" % ON_TRIAL

# Words in front of others that are started by them: with a variable that has no name, which only execve(2) itself can give.
NAMELESS = (*PYTHON, "-c", r"""
import os, sys
from ctypes import CDLL, c_char_p
def strings(each):
    return (c_char_p * (len(each) + 1))(*map(os.fsencode, each))
CDLL(None).execve(os.fsencode(sys.argv[1]), strings(sys.argv[1:]), strings(["=x", *map("=".join, os.environ.items())]))
sys.exit("execve(2) failed")
""")

SAYS = """
if __name__ == "__main__":
    try:
        if select.select([], [2], [], 0)[1]:
            os.write(2, b"generation: %d\\n")
    except OSError:
        pass        # there is no such descriptor, or the disk is full
"""


def generation(number, early="", late=""):
    """pyinit1.py's text that says "generation: N" when it starts.

    `early` is put behind its first constant, where nothing is defined yet, `late` before its last statement.
    """
    says = SAYS % number
    text, count = re.subn("(?m)^VERSION = .*$", lambda match: match[0] + says + early, PYINIT1.read_text())
    assert count == 1
    return with_statements(text, late + "\n")


class Updatable:
    """A file in /run/FOLDER of a namespace, which only root can write, all the way up."""

    def __init__(self, namespace, content=None, folder="init", name="pyinit1.py"):
        self.namespace, self.inside = namespace, "/run/%s/%s" % (folder, name)
        self.path = namespace.run_directory / folder / name
        self.path.parent.mkdir(parents=True)
        for path in (namespace.run_directory, *self.path.parents):
            if namespace.run_directory in (path, *path.parents):
                path.chmod(0o755)
        self.path.write_text(content or generation(1))
        self.path.chmod(0o755)

    def beside(self, suffix):
        return self.path.with_name(self.path.name + suffix)

    def offer(self, content):
        """Put a new file there, and its sum as sha256sum writes it."""
        self.beside(".new").write_text(content)
        with open(self.beside(".new.sha256"), "w") as file:
            subprocess.run(["sha256sum", self.path.name + ".new"], cwd=self.path.parent, stdout=file, check=True)

    def files(self):
        """{name: what it is} of all files in the folder."""
        return {path.name: (path.lstat().st_ino, path.lstat().st_mode, path.read_bytes() if path.is_file() else "")
                for path in self.path.parent.iterdir()}

    def names(self):
        """The endings of the files in the folder: "" for the file itself, ".old", ..."""
        return {path.name[len(self.path.name):] for path in self.path.parent.iterdir()}


def from_here(namespace):
    """What is waited for from now on is not yet said."""
    namespace.log.drain()
    namespace.log.position = len(namespace.log.text)


def quiet(namespace):
    """Wait until PID 1 has nothing under way: it sleeps, blocks no signal, asks nobody, and has no child that is itself or that ends."""
    def idle():
        try:
            return look()
        except FileNotFoundError:                   # a descriptor that was closed, a child that has ended: it does something
            if namespace.log and namespace.log.drain() and namespace.log.ended:
                raise
            return False

    def look():
        before = Process(namespace.init)
        busy = before.signals("SigBlk") | pending(before) or "socket:" in str(before.descriptors().values()) \
            or {before.words, ""} & {child.words for child in namespace.children() if child.state != "Z"}     # none: one that ends just now
        after = Process(namespace.init)             # it did not wake up between two of these looks
        return not busy and before.state == after.state == "S" and switches(before) == switches(after)

    def switches(process):
        return process.status["voluntary_ctxt_switches"], process.status["nonvoluntary_ctxt_switches"]
    poll(idle, SECONDS, "PID 1 to have nothing under way")


def nested(namespace):
    """The processes of PID namespaces that were made inside of this one's, and of none that we know."""
    ours = {os.readlink("/proc/%s/ns/pid" % pid) for pid in ("self", namespace.init)}
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            process = Process(name)
            if os.readlink("/proc/%s/ns/pid" % name) not in ours and str(namespace.run_directory) in process.read("mountinfo"):
                found.append(process)
        except OSError:
            pass
    return found


def inject(pid, what, *options):
    """strace that injects `what` into a process's system calls; -> Popen, attached. Without strace there is no such test."""
    assert shutil.which("strace"), "strace is not installed"
    tracer = subprocess.Popen(["strace", "-p", str(pid), "-o", "/dev/null", *options, *what], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    poll(lambda: Process(pid).status["TracerPid"].strip() == str(tracer.pid), SECONDS, "strace to attach")
    return tracer


def let_go(tracer):
    """End an inject(): strace lets go of all at SIGTERM; SIGKILL, where it waits for a PID 1 that waits for its child, which
    strace alone could reap."""
    tracer.terminate()
    try:
        tracer.wait(LET_GO)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()
