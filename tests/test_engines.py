"""Engines that start us as their init, and images that have us as ENTRYPOINT: docker --init-path, podman --init-path, real services.

Every engine gets the same image, made of Debian packages: Python, busybox, nginx, redis-server. The one of --init-path has nothing of ours in
it, as pyinit1.py is bind-mounted alone and read-only. docker --init-path is a second daemon, on a network of its own, whose
data is in a temporary directory; podman's, too. Docker collects stdout and stderr by two pipes: no order of lines among them.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
from pathlib import Path

import pytest

from helpers import GUINEA_PIG, PYINIT1, SECONDS, AtOnce, Keyboard, Lines, docker, poll, signals_of, why_no_docker

import image
import packages

NAME = "pyinit1-engines-%d" % os.getpid()       # two runs at once do not remove each other's
PIG = ("python3", "-IS", "/guinea_pig.py")
BLOCKED = ["env", "--block-signal", "python3", "-IS", "/pyinit1.py"]
NGINX = ["nginx", "-g", "daemon off;"]          # whose -g is its own
REDIS = ["redis-server", "--bind", "127.0.0.1", "--dir", "/srv"]
SERVICE_PACKAGES = (
    "libatomic1", "libcap2", "libcrypt1", "libgcrypt20", "libgpg-error0", "libjemalloc2", "liblz4-1", "liblzf1", "liblzma5", "libpcre2-8-0",
    "libssl3", "libstdc++6", "libsystemd0", "libzstd1", "nginx", "nginx-common", "redis-server", "redis-tools")
NGINX_CONF = """
user root;
worker_processes 2;
error_log stderr notice;
pid /run/nginx.pid;
events {}
http {
    access_log off;
    server { listen 127.0.0.1:80; root /srv; location /slow { limit_rate 20k; } }
}
"""
READER = 'while read line; do echo "read: $line"; done'
CTRL_C, CTRL_P, CTRL_Q, CTRL_Z = "\x03", "\x10", "\x11", "\x1a"


# ---- the image

def services_root():
    """Debian's nginx and redis-server with their libraries, unpacked in the cache; fetched at the first call."""
    distribution, release = packages.host_distribution()
    tree = packages.cache_dir() / "packages" / "-".join((distribution, release, packages.host_architecture(), "services"))
    tree.parent.mkdir(exist_ok=True)
    with packages.locked(tree.parent / "services.lock"):
        if not tree.is_dir():
            work = tree.with_name(tree.name + ".partial")
            shutil.rmtree(work, ignore_errors=True)
            (work / "debs").mkdir(parents=True)
            apt = packages.Apt(packages.host_architecture(), tree.with_name("apt-services"))
            apt.update()
            apt.download(SERVICE_PACKAGES, work / "debs")
            for deb in (work / "debs").iterdir():
                packages.run(["dpkg-deb", "-x", deb, work / "tree"])
            (work / "tree").rename(tree)
            shutil.rmtree(work)
    return tree


def write_image(path):
    """The image's tar."""
    tree = image.python_tree(packages.host_architecture())
    image.add_directory(tree, services_root(), ("usr/share", "etc", "var", "lib/systemd"))
    for where, text in (("etc/nginx/nginx.conf", NGINX_CONF), ("srv/index.html", "hello\n"), ("srv/slow", "x" * 60000), ("var/log/nginx/x", ""),
                        ("var/lib/nginx/x", ""), ("guinea_pig.py", GUINEA_PIG)):
        image.add(tree, where, image.file(text))
    image.add(tree, "pyinit1.py", image.file(PYINIT1, 0o755))
    image.add(tree, "usr/local/bin/env", image.file(Path("/usr/bin/env"), 0o755))       # busybox's has no --block-signal
    with open(path, "wb") as stream:
        image.write_tar(tree, stream)


# ---- engines

class Engine:
    """A command line like docker's, run's options that make us the init, and what PID 1's own command line is then."""

    def __init__(self, argv, options, words, image=NAME, before=()):
        self.argv, self.options, self.words, self.image, self.before = argv, options, words, image, before

    def __call__(self, *words, check=True, seconds=120):
        """Run it; -> (exit status, its output, stderr's too)."""
        done = subprocess.run([*self.argv, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=seconds, text=True, errors="replace")
        assert not check or done.returncode == 0, "%s: exit status %d: %s" % (" ".join(words), done.returncode, done.stdout)
        return done.returncode, done.stdout.strip()

    def run_words(self, *words, options=()):
        """The words of `docker run`, with `words` for COMMAND."""
        return ["run", *self.options, *options, self.image, *self.before, *words]


def import_image(argv, path):
    subprocess.run([*argv, "import", str(path), NAME], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=300)


def with_entrypoint(name, *entrypoint):
    """The image with this ENTRYPOINT; -> its name."""
    identity = docker("create", NAME, "true")
    docker("commit", "--change", "ENTRYPOINT " + json.dumps(entrypoint), "--change", "CMD " + json.dumps(NGINX), identity, NAME + ":" + name)
    docker("rm", identity)
    return NAME + ":" + name


class SecondDocker:
    """A dockerd of our own, for its --init-path; use it in a with statement. Without a network of its own it would take the other's."""

    def __init__(self, directory):
        self.socket = "unix://%s/socket" % directory
        (directory / "daemon.json").write_text("{}")
        words = ["--config-file=%s/daemon.json", "--data-root=%s/data", "--exec-root=%s/exec", "--pidfile=%s/pid", "--host=unix://%s/socket"]
        self.log = open(directory / "log", "wb+")
        self.process = subprocess.Popen(
            ["unshare", "--net", "dockerd", *(word % directory for word in words), "--init-path=%s" % PYINIT1, "--storage-driver=vfs",
             "--bridge=none", "--iptables=false", "--ip-masq=false"], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self):
        def answers():
            assert self.process.poll() is None, "dockerd: " + Path(self.log.name).read_text()
            return subprocess.run(["docker", "--host", self.socket, "version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        poll(answers, SECONDS, "the second dockerd")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(SECONDS)
        self.log.close()


def podman_argv(directory):
    """podman with all its state in a directory. crun knows no hybrid cgroups; runc, docker's own, does."""
    return ["podman", "--root=%s/root" % directory, "--runroot=%s/runroot" % directory, "--tmpdir=%s/tmp" % directory, "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=none"]


@pytest.fixture(scope="module")
def engines():
    """{name: Engine}"""
    if why_no_docker():
        pytest.skip(why_no_docker())
    if os.getuid() != 0:
        pytest.skip("a second dockerd needs root")
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    with tempfile.TemporaryDirectory(prefix="pyinit1-") as name:
        directory = Path(name)
        write_image(directory / "image.tar")
        import_image(["docker"], directory / "image.tar")
        podman = podman_argv(directory)
        import_image(podman, directory / "image.tar")
        try:
            with SecondDocker(directory) as second:
                hosted = ["docker", "--host", second.socket]
                import_image(hosted, directory / "image.tar")
                yield {
                    "docker-init": Engine(hosted, ["--init", "--network=none"], ["/usr/bin/python3", "-IS", "/sbin/docker-init", "--"]),
                    "podman-init": Engine(podman, ["--init", "--init-path=%s" % PYINIT1, "--network=none", "--ulimit=nofile=1024:1024",
                                                   "--ulimit=nproc=4096:4096"], ["/usr/bin/python3", "-IS", "/run/podman-init", "--"]),
                    "entrypoint": Engine(["docker"], ["--network=none"], ["python3", "-IS", "/pyinit1.py", "--"],
                                         image=with_entrypoint("dashes", *BLOCKED, "--")),
                    "entrypoint-without-dashes": Engine(["docker"], ["--network=none"], ["python3", "-IS", "/pyinit1.py"],
                                                        image=with_entrypoint("none", *BLOCKED)),
                    "shebang": Engine(["docker"], ["--network=none", "--entrypoint=/pyinit1.py"], ["/usr/bin/python3", "-IS", "/pyinit1.py", "-s", "--"],
                                      before=("-s", "--")),
                }
                for identity in subprocess.run([*hosted, "ps", "-aq"], stdout=subprocess.PIPE, text=True).stdout.split():
                    subprocess.run([*hosted, "rm", "-f", identity], stdout=subprocess.DEVNULL)
        finally:
            subprocess.run([*podman, "rm", "--all", "--force", "--time=0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            subprocess.run(["umount", directory / "root/vfs"], stderr=subprocess.DEVNULL)
            for name in (NAME + ":dashes", NAME + ":none", NAME):
                docker("rm", "--force", *docker("ps", "--all", "--quiet", "--filter", "ancestor=" + name).split(), check=False)
                docker("rmi", "--force", name, check=False)


ENGINES = ("docker-init", "podman-init", "entrypoint", "entrypoint-without-dashes", "shebang")


class Box:
    """A container of an engine, in the background; use it in a with statement."""

    def __init__(self, engine, *words, options=(), ready=None):
        self.engine = engine
        self.identity = engine(*engine.run_words(*words, options=("--detach", *options)))[1].splitlines()[-1]
        if ready:
            self.wait_for(ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.engine("rm", "--force", self.identity, check=False)

    def __call__(self, verb, *words, check=True):
        """docker VERB, about this container; -> its output."""
        return self.engine(verb, *words, self.identity, check=check)[1]

    def logs(self):
        return self("logs")

    def wait_for(self, text, count=1):
        """Wait until it has said this, so many times."""
        def said():
            log = self.logs()
            if log.count(text) < count and self("inspect", "--format={{.State.Running}}") != "true":
                raise AssertionError("it has ended before it said %r:\n%s" % (text, self.logs()))
            return log.count(text) >= count
        poll(said, SECONDS, "the container to say " + text)

    def execute(self, *words):
        """docker exec; -> its output."""
        return self.engine("exec", self.identity, *words)[1]

    def status(self):
        """Wait for its end; -> its exit status."""
        return int(self("wait"))


class EngineKeyboard(Keyboard):
    """A command of an engine on a terminal of ours."""

    def __init__(self, engine, *words):
        super().__init__(*engine.argv, *words)

    def wait_raw(self):
        """Wait until the engine passes every key on."""
        poll(lambda: not termios.tcgetattr(self.master)[3] & termios.ISIG, SECONDS, "the terminal to be raw")

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def detach(self):
        """^P ^Q, until the engine lets go: podman knows them only as two reads, so that they must not come at once."""
        def let_go():
            for key in (CTRL_P, CTRL_Q):
                self.type(key)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)
            return self.process.poll() is not None
        poll(let_go, SECONDS, "the engine to detach")


# ---- scenarios: each with every engine

def statuses(engine):
    """COMMAND's own status, a signal's, not found, a directory; nothing else changes them."""
    for status, words in ((0, ["true"]), (7, ["sh", "-c", "exit 7"]), (137, ["sh", "-c", "kill -9 $$"]), (127, ["no-such-command"]), (126, ["/etc"])):
        assert engine(*engine.run_words(*words, options=("--rm",)), check=False)[0] == status, words


def entry(engine):
    """How we are called, and what COMMAND has: its words, the folder, an environment without anything of ours, no descriptor."""
    script = ("tr '\\0' '|' </proc/1/cmdline; echo; pwd; env; ls -l /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status; "
              "cat /proc/self/stat; grep -o '/usr/s*bin/docker-init.*\\|/run/podman-init.*' /proc/self/mountinfo; echo \"$1|$2\"")
    _, said = engine(*engine.run_words("sh", "-c", script, "sh", "a b", "--", options=("--rm", "--workdir=/srv", "--env=COLOUR=blue")))
    lines = said.splitlines()
    assert "|".join([*engine.words, "sh", "-c", ""]) in said, said
    assert "/srv" in lines and "COLOUR=blue" in lines and "a b|--" in lines
    assert not [line for line in lines if line.startswith(("LC_CTYPE", "PYTHON", "PYINIT1", "ZINIT"))]
    assert set(re.findall(r" (\d+) -> ", said)) == {"0", "1", "2"}
    assert [signals_of(mask) for mask in re.findall(r"Sig(?:Blk|Ign):\t(\w+)", said)] == [set()] * 2
    if "--init" in engine.options:
        assert re.search(r"-init ro,", said), said                                  # the file alone, read-only


def stop(engine):
    """SIGTERM is COMMAND's; what it left in the background and what was exec'ed save their work; the status is COMMAND's."""
    with Box(engine, "sh", "-c", "%s worker 1 & exec %s command 0.2" % (" ".join(PIG), " ".join(PIG))) as box:
        box.wait_for(": ready: pid", 2)
        box.engine("exec", "--detach", box.identity, "sh", "-c", "exec %s guest 0.5 >/proc/1/fd/1 2>&1" % " ".join(PIG))
        box.wait_for("guest: ready")
        started = time.monotonic()
        box("stop", "--time=60")
        took = time.monotonic() - started
        log = box.logs()
        assert box.status() == 0
    for name in ("command", "worker", "guest"):
        assert log.count(name + ": got SIGTERM") == 1 and name + ": saved" in log, log
    assert 1 <= took < 30 and "killed" not in log


def signals(engine):
    """kill --signal: by name and by number, real-time ones too."""
    with Box(engine, *PIG, "command", "0", ready="command: ready") as box:
        for word, name in (("HUP", "SIGHUP"), ("USR1", "SIGUSR1"), ("WINCH", "SIGWINCH"), ("INT", "SIGINT"), ("34", "SIGRTMIN"), ("64", "SIGRTMAX")):
            box("kill", "--signal=" + word)
            box.wait_for("command: got " + name)
        box("kill", "--signal=TERM")
        assert box.status() == 0
        assert box.logs().count("command: got SIG") == 7


def terminal(engine):
    """run -it: what is typed, ^Z, which nobody could undo, a new size, ^C."""
    with EngineKeyboard(engine, *engine.run_words("sh", "-c", READER, options=("--rm", "-it"))) as keyboard:
        keyboard.wait_for("pyinit1: COMMAND started")
        keyboard.type("one\n")
        keyboard.wait_for("^read: one$")
        keyboard.type(CTRL_Z)
        keyboard.wait_for("pyinit1: COMMAND continued")
        keyboard.type("two\n")
        keyboard.wait_for("^read: two$")
        keyboard.type(CTRL_C)
        assert keyboard.wait() == 130


def size(engine):
    """COMMAND gets one SIGWINCH for a new size, and the size."""
    with EngineKeyboard(engine, *engine.run_words(*PIG, "command", "-1", options=("--rm", "-it"))) as keyboard:
        keyboard.wait_for("command: ready")
        keyboard.log.drain()
        before = keyboard.log.text.count("got SIGWINCH")
        keyboard.resize(33, 77)
        poll(lambda: keyboard.log.drain().count("got SIGWINCH") > before, SECONDS, "SIGWINCH")
        keyboard.type(CTRL_C)
        keyboard.wait_for("command: got SIGINT")
        keyboard.process.kill()


def attach(engine):
    """A shell in the background: attach, detach, attach again; it goes on all the while, and its exit is the container's."""
    with Box(engine, "sh", options=("-it",)) as box:
        for number in (3, 4):
            with EngineKeyboard(engine, "attach", box.identity) as keyboard:
                keyboard.type(CTRL_C + "echo is $((%d*%d))\n" % (number, number))
                keyboard.wait_for("is %d$" % (number * number))
                keyboard.type(CTRL_C + "echo again $((1+1))\n")
                keyboard.wait_for("again 2$")
                if number == 3:
                    keyboard.detach()
                    assert box("inspect", "--format={{.State.Running}}") == "true"
                else:
                    keyboard.type("exit 9\n")
                    keyboard.process.wait(SECONDS)
        assert box.status() == 9


def restart(engine):
    """docker restart: ended in order, and there again."""
    with Box(engine, *PIG, "command", "0.2", ready="command: ready") as box:
        box("restart", "--time=60")
        box.wait_for("command: ready", 2)
        assert box.logs().count("command: saved") == 1
        box("stop", "--time=60")
        log = box.logs()
        assert log.count("command: got SIGTERM") == 2 and log.count("pyinit1: the end: exit status 0") == 2


def restricted(engine):
    """Read-only, not root, without capabilities."""
    options = ("--read-only", "--user=1000", "--cap-drop=ALL")
    with Box(engine, "sh", "-c", "%s worker 0.5 & exec %s command 0" % (" ".join(PIG), " ".join(PIG)), options=options) as box:
        box.wait_for(": ready: pid", 2)
        box("stop", "--time=60")
        assert box.status() == 0
        assert "worker: saved" in box.logs()


# A real service: how it is started, what it says when it serves, what it is asked before and after a restart and what it
# answers, and what it says when it ends in order: of SIGTERM, and of ^C.
Service = collections.namedtuple("Service", "words ready asked said_of_sigterm said_of_ctrl_c")
FETCH = (["wget", "-q", "-O", "-", "http://127.0.0.1/"], "hello")
SERVICES = {
    "nginx": Service(NGINX, "start worker processes", (FETCH, FETCH), "signal 15 (SIGTERM) received", "signal 2 (SIGINT) received"),
    # What it was told outlives the restart: it saves its data at SIGTERM.
    "redis": Service(REDIS, "Ready to accept connections", ((["redis-cli", "set", "key", "value"], "OK"), (["redis-cli", "get", "key"], "value")),
                     "Redis is now ready to exit", "Received SIGINT scheduling shutdown"),
}


def serves(service, engine):
    """It serves, ends in order within the patience of the engine, is restarted, and serves again."""
    with Box(engine, *service.words) as box:
        for count, (words, answer) in enumerate(service.asked, 1):
            box.wait_for(service.ready, count)
            assert box.execute(*words) == answer
            box("restart" if count == 1 else "stop")
        log = box.logs()
        assert box.status() == 0
        assert log.count(service.said_of_sigterm) >= 2 and log.count("pyinit1: the end: exit status 0") == 2
        assert "pyinit1: others killed" not in log


def interrupted(service, engine):
    """attach to it, and ^C: its terminal works."""
    with Box(engine, *service.words, options=("-it",), ready=service.ready) as box:
        with EngineKeyboard(engine, "attach", box.identity) as keyboard:
            keyboard.wait_raw()
            keyboard.type(CTRL_C)               # once: a second one is no more in order to redis
            keyboard.wait()
            assert service.said_of_ctrl_c in keyboard.log.text
        assert box.status() == 0


SCENARIOS = {each.__name__: each for each in (statuses, entry, stop, signals, terminal, size, attach, restart, restricted)}
SCENARIOS.update((name + "-" + what.__name__, functools.partial(what, service)) for name, service in SERVICES.items() for what in (serves, interrupted))


@pytest.fixture(scope="module")
def lives(engines):
    pairs = [(name, engine) for name in SCENARIOS for engine in ENGINES]
    all_of_them = AtOnce(lambda pair, _: SCENARIOS[pair[0]](engines[pair[1]]), pairs, workers=4)
    yield all_of_them
    concurrent.futures.wait(all_of_them.futures.values())       # with -k there are some that nobody asked for


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_engine(lives, name, engine):
    lives.result((name, engine))


# ---- what is tried with one engine

def test_nginx_as_the_images_own_cmd_gets_sigquit_for_sigterm_and_finishes_what_it_serves(engines):
    """`-r TERM:QUIT`: nginx's graceful end. The answer takes three seconds, and the container ends when it is complete."""
    engine = Engine(["docker"], ["--network=none", "--entrypoint=/pyinit1.py"], [], before=("-r", "TERM:QUIT", "--"))
    with Box(engine, *NGINX, ready="start worker process") as box:
        client = subprocess.Popen([*engine.argv, "exec", box.identity, "wget", "-q", "-O", "-", "http://127.0.0.1/slow"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE)
        answer = Lines(client.stdout, "wget")
        poll(lambda: answer.drain(), SECONDS, "the beginning of the answer")
        box("stop", "--time=60")
        assert answer.wait_end(SECONDS) == "x" * 60000
        client.wait(SECONDS)
        client.stdout.close()
        assert box.status() == 0 and "signal 3 (SIGQUIT) received" in box.logs()


def test_the_images_own_cmd_is_run_when_no_words_are_given(engines):
    with Box(engines["entrypoint"], ready="start worker process") as box:
        box("stop")
        assert box.status() == 0


# runc itself cannot start a container in which there is room for one process only, not reliably: a shell becomes us when it may.
BECOMES_US = "trap 'exec python3 -IS /pyinit1.py -- sh -c \"exit 7\"' USR1; echo shell: ready; while :; do :; done"


class Full(Box):
    """A container in which there is room for us and for nobody else."""

    def __init__(self, engines):
        super().__init__(Engine(["docker"], ["--network=none"], []), "sh", "-c", BECOMES_US, ready="shell: ready")
        self.room(1)
        self.started = time.monotonic()
        self("kill", "--signal=USR1")

    def room(self, count):
        self("update", "--pids-limit=%d" % count)


def test_fork_that_is_refused_is_tried_for_five_seconds_then_126(engines):
    with Full(engines) as box:
        assert box.status() == 126
        assert 5 <= time.monotonic() - box.started < 5 + SECONDS
        assert "pyinit1: COMMAND not started: fork: Resource temporarily unavailable" in box.logs()


def test_fork_that_is_refused_works_as_soon_as_there_is_room(engines):
    with Full(engines) as box:
        box.wait_for("COMMAND not started: fork")
        box.room(100)
        assert box.status() == 7


def test_sigterm_while_fork_is_refused_ends_it(engines):
    with Full(engines) as box:
        box.wait_for("COMMAND not started: fork")
        box("kill", "--signal=TERM")
        assert box.status() == 126
        _, sigterm, afterwards = box.logs().partition("signal: SIGTERM: power off")
        assert sigterm and "COMMAND not started" not in afterwards          # it did not go on until it gave up


def test_a_command_that_eats_all_memory_is_killed_and_we_end_in_order(engines):
    eater = "data = []\nwhile True: data.append(bytearray(1 << 20))"
    with Box(engines["entrypoint"], "python3", "-IS", "-c", eater, options=("--memory=48m", "--memory-swap=48m")) as box:
        assert box.status() == 137
        assert "pyinit1: the end: exit status 137" in box.logs()
