"""Every helper of rings 1 and 2: PID 1 in namespaces of its own, guinea pigs, mutants, Docker.

Waiting is vm-test/waiting.py's: poll() and Lines. No test sleeps for luck.
"""

import concurrent.futures
import contextlib
import importlib.machinery
import importlib.util
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "vm-test"))

from waiting import Lines, poll  # noqa: E402

PYINIT1 = Path(os.environ.get("PYINIT1_FILE") or ROOT / "pyinit1.py")      # another file: to see the tests fail
STAND_IN = ROOT / "vm-test/guest/zinit-server"
PYTHON = (os.environ.get("PYINIT1_PYTHON") or "/usr/bin/python3", "-IS")    # another one: to try its version
SECONDS = 30.0              # for an event that should come soon: the machine may be busy
RPC_LIMIT = 5.0             # SPEC.md 7: what one request to the server may take in all
SLACK = 4.0                 # what a busy machine may add to a limit


# ---- processes, as /proc shows them

def signals_of(mask):
    """The set of signal numbers in a mask of /proc/PID/status.

    Without 32 and 33: they are glibc's, nobody can change them by sigaction(3), and posix_spawn(3), by which make starts us,
    leaves them ignored.
    """
    return {number for number in range(1, 65) if number not in (32, 33) and int(mask, 16) >> (number - 1) & 1}


class Process:
    """One process: `pid` as its own namespace numbers it, `outer` as we do. OSError when it is gone."""

    def __init__(self, outer):
        self.outer = int(outer)
        with open("/proc/%d/status" % self.outer) as file:
            self.status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.name, self.state = self.status["Name"], self.status["State"][0]
        self.pid, self.group, self.session = (int(self.status[key].split()[-1]) for key in ("NSpid", "NSpgid", "NSsid"))
        self.parent = int(self.status["PPid"])
        self.argv = self.read("cmdline").split("\0")[:-1]

    def read(self, name):
        """The text of /proc/PID/NAME."""
        with open("/proc/%d/%s" % (self.outer, name), errors="surrogateescape") as file:
            return file.read()

    def link(self, name):
        return os.readlink("/proc/%d/%s" % (self.outer, name))

    def signals(self, kind):
        """The set of signal numbers in SigBlk, SigIgn, SigCgt, ... of /proc/PID/status."""
        return signals_of(self.status[kind])

    def descriptors(self):
        """{descriptor: what it is open on}."""
        return {int(fd): self.link("fd/" + fd) for fd in os.listdir("/proc/%d/fd" % self.outer)}

    @property
    def words(self):
        return " ".join(self.argv)

    def __repr__(self):
        return "<%d %s %s>" % (self.pid, self.state, self.words or self.name)


def is_alive(outer):
    """Is there such a process, and not as a zombie?"""
    try:
        return Process(outer).state not in "ZX"
    except OSError:
        return False


def busy_seconds(pid):
    """The processor time that the process has used."""
    fields = Process(pid).read("stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_terminal():
    """Have we a controlling terminal? Then PID 1 must get a session without one: it would be told about it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    except OSError:
        return False


# ---- PID 1 in namespaces of its own

class Namespace:
    """pyinit1.py as PID 1 of a PID namespace, with a /run of its own; use it in a with statement.

    Its files are in `directory`: run/ (its /run), services/ (ZINIT_CONFIG_DIR). `log` has the lines of everybody in it,
    the stand-in's and the guinea pigs' too. `init` is PID 1's pid as we see it (the plain process's, with plain=True).
    """

    def __init__(self, directory, user_namespace=False):
        self.directory = Path(directory)
        self.user = user_namespace or os.getuid() != 0
        self.services, self.run_directory = self.directory / "services", self.directory / "run"
        self.socket, self.state = self.run_directory / "zinit.sock", self.run_directory / "zinit/state.json"
        for path in (self.services, self.run_directory):
            path.mkdir(parents=True, exist_ok=True)
        self.marked = set()
        self.process = self.log = self.init = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()             # and --kill-child kills its PID 1, which takes all others along
            self.process.wait()
            if self.log:
                self.log.descriptor.close()

    # -- before the start

    def service(self, name, command):
        """Configure a service of the stand-in: a shell command."""
        quoted = command.replace("\\", "\\\\").replace('"', '\\"')
        (self.services / (name + ".toml")).write_text('[service]\nname = "%s"\nexec = "%s"\n' % (name, quoted))

    def fault(self, words):
        """How the servers that are started from now on misbehave; "" for not at all. See the stand-in's docstring."""
        (self.services / "fault").write_text(words)

    def script(self, name, text):
        """An executable file of this text; -> its path."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def guinea_pig(self, name, seconds=0.0, options=""):
        """A shell command that starts GUINEA_PIG; it says "NAME: ready: pid N" and "NAME: got SIGTERM"."""
        path = self.directory / "guinea_pig.py"
        if not path.exists():
            path.write_text(GUINEA_PIG)
        return "%s %s %s %g %s" % (" ".join(PYTHON), shlex.quote(str(path)), name, seconds, options)

    def marked_service(self, name, command="exec sleep 100000"):
        """Configure a service that services_running() finds; `command` must stay one process."""
        self.marked.add(name)
        self.service(name, "export SERVICE=%s; exec /bin/sh -c %s" % (name, shlex.quote(command)))

    # -- the start

    def start(self, *words, ready="^pyinit1: ready", init=None, python=PYTHON, prefix=(), setup="", plain=False, user=None,
              stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=None, **environment):
        """Start PID 1 with `words` and wait until its log has a line that matches `ready` (None: do not wait).

        `setup`: shell commands that run before it as PID 1; `prefix`: words before the interpreter; `python`: the
        interpreter's; `plain`: not as PID 1, but as a child of it. Variables of `environment` that are None are unset.
        """
        argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"] + ["-Ur"] * self.user
        script = "mount --bind %s /run || exit 99\n%s\n" % (shlex.quote(str(self.run_directory)), setup)
        script += '"$@"\nstatus=$?\nexit $status' if plain else 'exec "$@"'
        variables = {"ZINIT_CONFIG_DIR": str(self.services), "PYINIT1_SERVER": str(STAND_IN), **environment}
        variables = {name: value for name, value in {**clean_environment(), **variables}.items() if value is not None}
        self.process = subprocess.Popen(
            argv + ["sh", "-c", script, "sh", *prefix, *python, str(init or PYINIT1), *words], env=variables, cwd=cwd,
            stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=has_terminal())
        if stdout is subprocess.PIPE:
            self.log = Lines(self.process.stdout, "the namespace")
        self.init = self.find_init(str(init or PYINIT1) if plain else "")
        if ready and self.log:
            self.wait_for(ready)
            self.log.position = 0       # the server may have said something before it
        return self

    def find_init(self, plain):
        """The pid of PID 1, or of its child that has the path `plain` in its command line, as we see it."""
        def only_child(pid, word):
            """The child of `pid` that has `word` in its command line, or True when `pid` has ended already."""
            ours = Process(pid).words                   # and our child's, until it has become another program
            children = [child for child in child_pids(pid) if word in Process(child).words != ours]
            return children[0] if children else self.process.poll() is not None

        def look():
            try:
                first = only_child(self.process.pid, "")
                return only_child(first, plain) if plain and first is not True else first
            except OSError:
                return False
        found = poll(look, SECONDS, "PID 1 of the namespace")
        return None if found is True else found

    # -- what is there

    def wait_for(self, pattern, seconds=SECONDS):
        """Wait for the next line of the log that matches; -> the match."""
        return self.log.wait_for(pattern, seconds)

    def processes(self):
        """All processes in the namespace but pyinit1's own."""
        ours, found = os.readlink("/proc/%d/ns/pid_for_children" % self.process.pid), []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and int(name) != self.init and os.readlink("/proc/%s/ns/pid" % name) == ours:
                    found.append(Process(name))
        return found

    def children(self):
        """The children of pyinit1's process."""
        return [process for process in self.processes() if process.parent == self.init]

    def find(self, word):
        """The processes that have `word` in their command line."""
        return [process for process in self.processes() if word in process.words]

    def by_pid(self, pid):
        """The Process that its namespace calls `pid` (a number or its digits)."""
        return next(process for process in self.processes() if process.pid == int(pid))

    def wait_ready(self, *names):
        """Wait until each of these guinea pigs has said that it is ready, in any order; -> their Processes."""
        said = [poll(lambda: re.search(r"^%s: ready: pid (\d+)$" % name, self.log.drain(), re.M), SECONDS, name + " to be ready")
                for name in names]
        return [self.by_pid(match[1]) for match in said]

    def pid_said(self, pattern):
        """Wait for a line with one group that is a pid; -> its Process."""
        pid = self.wait_for(pattern).group(1)
        return poll(lambda: [process for process in self.processes() if process.pid == int(pid)], SECONDS, "pid " + pid)[0]

    def server(self):
        """Wait until a server says that its socket listens; -> its Process."""
        return self.pid_said(r"^server: ready: pid (\d+)")

    def services_running(self):
        """{service: [pids of its processes that are alive]} of those that marked_service() configured."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(OSError):
                name = re.search("(?:^|\0)SERVICE=([^\0]+)", process.read("environ"))
                if name and process.state != "Z":
                    found.setdefault(name[1], []).append(process.pid)
        return found

    def settled(self):
        """Wait until every marked service runs; -> services_running()."""
        def all_there():
            running = self.services_running()
            return running if set(running) == self.marked else None
        return poll(all_there, SECONDS, "services %s to run" % self.marked)

    def end_phases(self):
        """{phase: seconds} of the lines "pyinit1: the end: PHASE: 0.123 s" so far."""
        return {name: float(value) for name, value in re.findall(r"^pyinit1: the end: (.*): ([0-9.]+) s$", self.log.text, re.M)}

    # -- what happens to it

    def kill(self, number):
        """Send a signal to pyinit1's process."""
        os.kill(self.init, number)

    def enter(self, *argv, **options):
        """Start a program in the namespace from outside, as `docker exec` does: its parent is not in there. -> Popen."""
        kinds = ["--user", "--preserve-credentials"] * self.user + ["--mount", "--pid"]
        target = child_pids(self.process.pid)[0]
        return subprocess.Popen(["nsenter", "--target", str(target), *kinds, *argv], **options)

    def wait(self, seconds=SECONDS):
        """Wait until the namespace has ended; -> its exit status (of pyinit1.py: unshare hands it on)."""
        self.log.wait_end(seconds)
        return self.process.wait(seconds)

    def power_off(self, seconds=SECONDS, number=signal.SIGTERM):
        """SIGTERM, and wait for the end; -> how long it took, in seconds. AssertionError unless it exits with 0."""
        started = time.monotonic()
        self.kill(number)
        status = self.wait(seconds)
        assert status == 0, "exit status %d:\n%s" % (status, self.log.text)
        return time.monotonic() - started


def clean_environment():
    """Our environment without what would change pyinit1's mind."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("ZINIT", "PYINIT1", "STANDIN", "PYTHON")) and name != "container"}


def child_pids(pid):
    """The children of our process `pid`, zombies too, as we see them. OSError when it is gone."""
    with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
        return [int(word) for word in file.read().split()]


# A process that takes every signal one by one, and needs SECONDS after SIGTERM to save its work (-1: it never ends).
# Options: orphan (its parent ends: it becomes PID 1's child, in a group of its own), tty=PATH (in a session of its own,
# with that terminal), stop (it stops itself when it is ready), hup (it ends at SIGHUP too), exit=N (with this status), lock=PATH (it says
# "NAME: RUNS TWICE" if another one with that option is alive).
GUINEA_PIG = r'''
import fcntl, os, signal, sys, time
name, seconds, options = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
def say(text):
    os.write(1, ("%s: %s\n" % (name, text)).encode())
if "orphan" in options:
    if os.fork():
        os._exit(0)
    os.setpgid(0, 0)
for option in options:
    if option.startswith("tty="):
        if os.fork():
            os._exit(0)
        os.setsid()
        os.open(option[4:], os.O_RDWR)
    if option.startswith("lock="):
        try:
            fcntl.lockf(os.open(option[5:], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("RUNS TWICE")
signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
say("ready: pid %d" % os.getpid())
if "stop" in options:
    os.kill(os.getpid(), signal.SIGSTOP)
end = None
while end is None or time.monotonic() < end:
    got = signal.sigtimedwait(signals, 3600 if end is None else max(0, end - time.monotonic()))
    if got:
        say("got " + signal.Signals(got.si_signo).name)
        if seconds >= 0 and end is None and got.si_signo in ((signal.SIGTERM, signal.SIGHUP) if "hup" in options else (signal.SIGTERM,)):
            end = time.monotonic() + seconds
say("saved")
sys.exit(sum(int(option[5:]) for option in options if option.startswith("exit=")))
'''

# Makes COUNT orphans as fast as it can, says when all are reaped and how long that took; then it waits.
ORPHAN_MAKER = r'''
import os, sys, time
count, batch = int(sys.argv[1]), 200
started = time.monotonic()
for _ in range(count // batch):
    pid = os.fork()
    if pid == 0:
        for _ in range(batch):
            if os.fork() == 0:
                os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
made = time.monotonic()
def waiting():
    with open("/proc/1/task/1/children") as file:
        children = set(file.read().split())
    zombies = 0
    for pid in children:
        try:
            with open("/proc/%s/stat" % pid) as file:
                zombies += file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            pass
    return zombies
while waiting():
    time.sleep(0.001)
os.write(1, b"orphans: made %d in %.3f s: reaped after %.3f s\n" % (count, made - started, time.monotonic() - started))
while True:
    time.sleep(3600)
'''


# ---- mutants: copies of pyinit1.py that behave otherwise

def mutant(directory, *replacements):
    """A copy of pyinit1.py in `directory` with each (old, new) replaced; AssertionError unless `old` stands there once."""
    text = PYINIT1.read_text()
    for old, new in replacements:
        assert text.count(old) == 1, "%d times in pyinit1.py, should be once: %r" % (text.count(old), old)
        text = text.replace(old, new)
    path = Path(directory) / "pyinit1.py"
    path.write_text(text)
    return path


# ---- many at once: what only waits for limits costs the time of the longest

class AtOnce:
    """Runs scenario(parameter, directory) for all parameters at once at the first question, then answers for each."""

    def __init__(self, scenario, parameters, workers=8):
        self.scenario, self.parameters, self.workers = scenario, list(parameters), workers
        self.futures = {}

    def result(self, parameter):
        """What the scenario returned for `parameter`; raises what it raised."""
        if not self.futures:
            pool = concurrent.futures.ThreadPoolExecutor(self.workers)
            self.futures = {each: pool.submit(self.run, each) for each in self.parameters}
        return self.futures[parameter].result()

    def run(self, parameter):
        with tempfile.TemporaryDirectory(prefix="pyinit1-") as directory:
            return self.scenario(parameter, directory)


# ---- Docker

IMAGE = "pyinit1-test-%d" % os.getpid()     # two runs at once do not remove each other's


def docker(*words, seconds=120, check=True):
    """Run docker; -> its standard output, stripped."""
    done = subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds, text=True)
    assert not check or done.returncode == 0, "docker %s: exit status %d: %s" % (" ".join(words), done.returncode, done.stderr)
    return done.stdout.strip()


def why_no_docker():
    """Why the Docker tests cannot run here; "" if they can."""
    if not shutil.which("docker"):
        return "docker is not installed"
    asked = subprocess.run(["docker", "version"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return "the Docker daemon does not answer: " + asked.stderr.strip() if asked.returncode else ""


def build_image():
    """Make IMAGE from Debian packages: Python, busybox, /pyinit1.py, and the stand-in as /sbin/zinit-server."""
    import image
    import packages
    tree = image.python_tree(packages.host_architecture())
    image.add(tree, "pyinit1.py", image.file(PYINIT1, 0o755))
    image.add(tree, "sbin/zinit-server", image.file(STAND_IN, 0o755))
    image.add(tree, "etc/zinit/services", image.directory())
    image.add(tree, "guinea_pig.py", image.file(GUINEA_PIG, 0o755))
    with tempfile.TemporaryFile() as tar:
        image.write_tar(tree, tar)
        tar.seek(0)
        subprocess.run(["docker", "import", "-", IMAGE], stdin=tar, stdout=subprocess.DEVNULL, check=True, timeout=300)


class Container:
    """A Docker container of IMAGE that runs pyinit1.py; use it in a with statement."""

    def __init__(self, *options, words=("--container",), ready="^pyinit1: ready"):
        """`options` are docker run's, `words` pyinit1's. Waits for `ready` (None: does not)."""
        self.identity = docker("run", "--detach", *options, IMAGE, "python3", "-IS", "/pyinit1.py", *words)
        self.logs = subprocess.Popen(["docker", "logs", "--follow", self.identity], stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.log = Lines(self.logs.stdout, "the container")
        if ready:
            self.wait_for(ready)
            self.log.position = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        docker("rm", "--force", self.identity)
        self.logs.kill()
        self.logs.wait()
        self.logs.stdout.close()

    def wait_for(self, pattern, seconds=SECONDS):
        return self.log.wait_for(pattern, seconds)

    def stop(self, *options):
        """docker stop; -> how long it took, in seconds."""
        started = time.monotonic()
        docker("stop", *options, self.identity)
        return time.monotonic() - started

    def status(self):
        """Wait until it has ended; -> its exit status."""
        return int(docker("wait", self.identity))

    def start_exec(self, *argv):
        """docker exec in the background; -> Popen with its output as a pipe."""
        return subprocess.Popen(["docker", "exec", self.identity, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)


class Keyboard:
    """A command, an engine's say, on a terminal of ours, as somebody at a keyboard has it; use it in a with statement."""

    def __init__(self, *argv):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.log = Lines(self.master, "the terminal")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, pattern):
        return self.log.wait_for(pattern, SECONDS)

    def wait(self):
        """Wait until the command has ended; -> its exit status."""
        self.log.wait_end(SECONDS)
        return self.process.wait(SECONDS)


# ---- pyinit1.py as a module: ring 1

def load_pyinit1(path=PYINIT1):
    """pyinit1.py imported as a module of its own, so that its functions can be called; nothing runs at its import."""
    loader = importlib.machinery.SourceFileLoader("pyinit1", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("pyinit1", loader))
    loader.exec_module(module)
    return module


# ---- signals that wait

def pending(process):
    """The signals that wait for a Process now: SigPnd is its first thread's, ShdPnd the whole process's."""
    now = Process(process.outer)
    return now.signals("SigPnd") | now.signals("ShdPnd")
