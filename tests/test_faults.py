"""Faults of the system: calls that fail, once in a while or always, limits, and what a poor environment lacks.

strace injects the errors into PID 1 and its children before exec. While they last PID 1 may not get much done; it must live,
and when they are over everything must be as if they had never been. What needs a machine is vm-test's.
"""

import itertools
import os
import re
import signal
import time

import pytest

from helpers import PYTHON, SECONDS, SLACK, AtOnce, Namespace, Process, is_alive, pending, poll
from updating import Updatable, from_here, generation, inject, let_go, quiet

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="not root: every folder has an owner who is neither root nor us")

ALWAYS, SOMETIMES = "1+1", "1+3"        # strace's when=FIRST+STEP, counted for each process and call
ONCE = "1"                              # in PID 1 alone: nobody's start survives it
STOP_TIMEOUT, GRACE = 2, 1
LIMIT = STOP_TIMEOUT + GRACE + SLACK    # what the end may take

FORK, OPEN, WAIT = "clone,clone3,fork,vfork", "open,openat", "wait4,waitid"
WRITE_LOG = "write,pwritev2"            # where the log goes, and nowhere else: a pipe of our own, that wakes us, does not fail
FAULTS = [
    # call, error, when
    *((FORK, error, when) for error in ("EAGAIN", "ENOMEM") for when in (ALWAYS, SOMETIMES)),
    *(("execve", error, when) for error in ("ENOMEM", "EIO", "EPERM") for when in (ALWAYS, SOMETIMES)),
    *((OPEN, error, when) for error in ("EMFILE", "ENFILE", "ENOMEM", "EIO", "EACCES") for when in (ALWAYS, SOMETIMES)),
    *(("pipe2", error, when) for error in ("EMFILE", "ENFILE") for when in (ALWAYS, SOMETIMES)),
    *(("socket", error, when) for error in ("EMFILE", "ENFILE", "ENOMEM") for when in (ALWAYS, SOMETIMES)),
    *(("connect,sendto,recvfrom", error, when) for error in ("ECONNREFUSED", "EAGAIN", "EPERM", "EINTR") for when in (SOMETIMES,)),
    ("read", "EINTR", SOMETIMES), *(("read", error, ONCE) for error in ("EIO", "ENOMEM", "EAGAIN")),
    ("write", "EINTR", SOMETIMES), *((WRITE_LOG, error, ALWAYS) for error in ("EAGAIN", "ENOSPC", "EIO", "EPERM")),
    (WAIT, "EINTR", SOMETIMES), *((WAIT, error, ONCE) for error in ("ENOMEM", "EPERM", "ENOSYS")),
    *(("kill", error, when) for error in ("EPERM", "ESRCH") for when in (ALWAYS, SOMETIMES)),
    ("poll", "EINTR", SOMETIMES), *(("poll", error, ONCE) for error in ("ENOMEM", "EAGAIN")),
    *(("getdents64", error, ALWAYS) for error in ("EIO", "ENOENT")),
    *(("setpgid", error, ALWAYS) for error in ("EPERM", "EACCES")), ("chdir", "ENOENT", ALWAYS),
    ("unshare", "ENOSYS", ALWAYS), ("memfd_create", "ENOSYS", ALWAYS), ("memfd_create", "EMFILE", ALWAYS), ("prctl", "ENOSYS", ALWAYS),
    ("fsync", "EIO", ALWAYS), ("fchmod,chmod", "EPERM", ALWAYS), ("link,linkat", "EPERM", ALWAYS), ("rename,renameat,renameat2", "EIO", ALWAYS),
]


def name_of(fault):
    call, error, when = fault
    return "%s-%s-%s" % (call.partition(",")[0], error, {ALWAYS: "always", SOMETIMES: "sometimes", ONCE: "once"}[when])


def taken(namespace):
    """Wait until no signal waits for PID 1 any more, or it blocks them."""
    poll(lambda: not pending(Process(namespace.init)) - {signal.SIGCHLD}, SECONDS, "PID 1 to take the signal")


def live(fault, directory):
    """A server that dies, an orphan, a soft restart and a self-update, all while this call fails, and afterwards; -> the log."""
    call, error, when = fault
    with Namespace(directory) as namespace:
        home = Updatable(namespace)
        namespace.marked_service("web")
        namespace.start("--stop-timeout", str(STOP_TIMEOUT), "--grace", str(GRACE), init=home.inside)
        server = namespace.server()
        namespace.settled()
        quiet(namespace)
        options = ["-f"] * (when != ONCE) + ["-P", os.readlink("/proc/%d/fd/2" % namespace.init)] * (call == WRITE_LOG)
        tracer = inject(namespace.init, [*options, "-e", "trace=" + call, "-e", "inject=%s:error=%s:when=%s" % (call, error, when)])
        try:
            namespace.kill(signal.SIGHUP)
            taken(namespace)
            namespace.enter("sh", "-c", "sleep 0 &").wait()
            os.kill(server.outer, signal.SIGKILL)
            for web in namespace.find("sleep 100000"):
                os.kill(web.outer, signal.SIGKILL)
            poll(lambda: not is_alive(server.outer), SECONDS, "the server to end")
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                home.offer(generation(2))
                namespace.kill(number)
                taken(namespace)
        finally:
            let_go(tracer)
        # It is over: one server, one service, and whatever was asked for can be asked for again.
        poll(lambda: [each.state for each in namespace.children() if "zinit-server" in each.words] in (["S"], ["R"]), SECONDS, "one server")
        quiet(namespace)
        poll(lambda: len(namespace.settled()["web"]) == 1, SECONDS, "one web")
        for content in (3, 4):
            home.offer(generation(content))
            from_here(namespace)
            namespace.kill(signal.SIGUSR2)
            namespace.wait_for("^generation: %d$" % content)
            namespace.wait_for("^pyinit1: ready")
        quiet(namespace)
        assert {each.state for each in namespace.processes()} <= {"S", "R"}
        assert home.names() == {"", ".old"}
        began = time.monotonic()
        namespace.power_off()
        assert time.monotonic() - began < LIMIT
        return namespace.log.text


@pytest.fixture(scope="module")
def lives():
    return AtOnce(live, FAULTS, workers=4)


@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
def test_pid_1_lives_and_everything_works_again_after_this_call_failed(lives, fault):
    assert "the end: exit status 0" in lives.result(fault)


ENDS = [
    *((FORK, error, ALWAYS) for error in ("EAGAIN",)),
    *((OPEN, error, ALWAYS) for error in ("EMFILE", "ENFILE", "EIO")),
    ("socket", "EMFILE", ALWAYS), ("connect,sendto,recvfrom", "EAGAIN", SOMETIMES), ("connect", "EPERM", ALWAYS),
    ("read", "EINTR", SOMETIMES), (WAIT, "EINTR", SOMETIMES),
    ("kill", "EPERM", ALWAYS), ("kill", "EPERM", SOMETIMES), ("kill", "ESRCH", SOMETIMES), ("poll", "EINTR", SOMETIMES),
    ("getdents64", "EIO", ALWAYS), ("ioctl", "ENOTTY", ALWAYS),
]


def end(fault, directory):
    """A request to end while this call fails; -> (exit status, seconds, log)."""
    call, error, when = fault
    with Namespace(directory) as namespace:
        home = Updatable(namespace)
        namespace.service("web", "exec " + namespace.guinea_pig("web", 0.1))
        namespace.service("left", namespace.guinea_pig("left", 0.1, "orphan"))
        namespace.start("--stop-timeout", str(STOP_TIMEOUT), "--grace", str(GRACE), init=home.inside)
        namespace.server()
        namespace.wait_ready("web", "left")
        quiet(namespace)
        tracer = inject(namespace.init, ["-e", "trace=" + call, "-e", "inject=%s:error=%s:when=%s" % (call, error, when)])
        began = time.monotonic()
        try:
            namespace.kill(signal.SIGTERM)
            return namespace.wait(), time.monotonic() - began, namespace.log.text
        finally:
            let_go(tracer)


@pytest.fixture(scope="module")
def ends():
    return AtOnce(end, ENDS, workers=4)


@pytest.mark.parametrize("fault", ENDS, ids=name_of)
def test_the_end_is_finished_in_time_though_this_call_fails(ends, fault):
    status, took, log = ends.result(fault)
    assert status == 0 and took < LIMIT, log
    assert log.count("server: ready") == 1
    if fault[0] != "kill":                  # whom we may not signal has no time to save its work
        assert "web: saved" in log and "left: saved" in log, log




# ---- what is missing, full, or scarce: a start, a self-update, a crash and the end

CRASHES_ONCE = """
answer_well = Init.answer
def answer(self, number):
    if number == signal.SIGHUP and not self.crashes:
        raise MemoryError("on purpose")
    answer_well(self, number)
Init.answer = answer
"""

# What is wrong -> (shell commands before the start, can our file be replaced?, can the log be read?)
POOR = {
    "no /proc": ("mount -t tmpfs none /proc", True, True),
    "an empty /dev": ("mount -t tmpfs none /dev", True, True),
    "no ctypes": ("mount -t tmpfs none $(%s -c 'import ctypes, os; print(os.path.dirname(ctypes.__file__))')" % " ".join(PYTHON), True, True),
    "stderr is closed": ("exec 2>&-", True, False),
    "stderr is full": ("exec 2>/dev/full", True, False),
    "nobody reads stderr": ("mkfifo /run/fifo; exec 3<>/run/fifo 2>/run/fifo 3<&-", True, False),
    "stderr is a pipe that is full": ("mkfifo /run/fifo; sleep 100000 3<>/run/fifo & exec 2>/run/fifo; timeout 1 cat /dev/zero >/run/fifo", True, False),
    "96 MB of address space": ("ulimit -v 98304", True, True),
    "24 descriptors": ("ulimit -n 24", True, True),
    "a full disk": ("mkdir /run/small; mount -t tmpfs -o size=300k none /run/small; cp -a /run/init/. /run/small; mount --move /run/small /run/init", False, True),
    "files of at most 50 kB": ("ulimit -f 50", False, True),
    "the largest clock": ("", True, True),
}


def live_poor(name, directory):
    """-> (the reason of the refused update, or "", log)."""
    setup, replaceable, readable = POOR[name]
    with Namespace(directory) as namespace:
        home = Updatable(namespace, generation(1, late=CRASHES_ONCE))
        home.offer(generation(2, late=CRASHES_ONCE))
        namespace.marked_service("web")
        prefix = ("unshare", "--time", "--monotonic", str(9 * 10**8)) if name == "the largest clock" else ()
        namespace.start("--stop-timeout", str(STOP_TIMEOUT), "--grace", str(GRACE), init=home.inside, setup=setup, ready=None, prefix=prefix)
        server, services = namespace.server(), namespace.settled()
        quiet(namespace)
        for number, done in (
            (signal.SIGUSR2, lambda: not replaceable or "--adopt-server" in Process(namespace.init).argv),
            (signal.SIGHUP, lambda: not replaceable or "generation: 1" in home.path.read_text()),       # a crash on probation
            (signal.SIGHUP, lambda: True),
        ):
            namespace.kill(number)
            taken(namespace)
            poll(done, SECONDS, signal.Signals(number).name + " to be answered")
            quiet(namespace)
        assert is_alive(server.outer) and namespace.services_running() == services
        assert "generation: 1" in home.path.read_text()
        began = time.monotonic()
        namespace.power_off()
        assert time.monotonic() - began < LIMIT
        return namespace.log.text


@pytest.fixture(scope="module")
def poor():
    return AtOnce(live_poor, POOR, workers=4)


@pytest.mark.parametrize("name", POOR)
def test_an_update_a_crash_and_the_end_go_well_with(poor, name):
    log = poor.result(name)
    assert log.count("server: ready") == 1 and log.count("server: asked: system.shutdown") == 1, log
    if POOR[name][2]:
        assert log.count("pyinit1: crashed: MemoryError") == 1, log
        assert re.search("self-update: (refused: .*(space|large)|re-exec)", log), log


def test_a_server_that_gets_the_pid_of_the_one_before_it_is_not_taken_for_it(namespace):
    """Small pid_max: pids come again soon."""
    home = Updatable(namespace, generation(1, late=CRASHES_ONCE))
    namespace.start(init=home.inside)
    first = namespace.server()
    os.kill(first.outer, signal.SIGKILL)
    namespace.wait_for("^pyinit1: server ended")
    assert namespace.enter("sh", "-c", "echo %d >/proc/sys/kernel/ns_last_pid" % (first.pid - 1)).wait() == 0
    second = namespace.server()
    assert second.pid == first.pid
    quiet(namespace)
    for number in (2, 3):
        home.offer(generation(number))
        from_here(namespace)
        namespace.kill(signal.SIGUSR2)
        namespace.wait_for("^generation: %d$" % number)
        namespace.wait_for("^pyinit1: ready")
    quiet(namespace)
    assert [each.outer for each in namespace.children()] == [second.outer]


# ---- a disk that is dead holds whoever looks up a path on it: so PID 1 itself does not

STATE_PATH = "/run/zinit/state.json"        # in memory: what was there before the server was asked


def looked_up(trace):
    """The paths that strace -y has seen in system calls, up to an execve(2)."""
    paths = set()
    for line in itertools.takewhile(lambda line: not line.startswith("execve("), trace.splitlines()):
        folder, path = re.match(r'(?:\w+\((?:\w+<(.*?)>, )?"(.*?)"|[-+]{3} )', line).groups()
        if path:
            paths.add(os.path.join(folder or "/", path))
    return paths


def die_and_be_updated(home):
    """The server dies, a soft restart, an update that is refused, and one that is not."""
    namespace = home.namespace
    os.kill(namespace.find("zinit-server")[0].outer, signal.SIGKILL)
    namespace.server()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    quiet(namespace)
    for text, said in (("1 / 0\n", "^pyinit1: self-update: refused"), (generation(2), "^generation: 2$")):
        home.offer(text)
        namespace.kill(signal.SIGUSR2)
        namespace.wait_for(said)
    namespace.wait_for("^pyinit1: ready")


def crash(home):
    home.namespace.kill(signal.SIGHUP)
    home.namespace.wait_for("^generation: 1$")
    home.namespace.wait_for("^pyinit1: ready")


def power_off(home):
    home.namespace.power_off()


@pytest.mark.parametrize("live, may", [(die_and_be_updated, {STATE_PATH}), (crash, set()), (power_off, set())], ids=["alive", "crash", "end"])
def test_pid_1_itself_looks_at_nothing_but_proc(namespace, live, may):
    home, trace = Updatable(namespace, generation(1, late=CRASHES_ONCE)), namespace.directory / "trace"
    namespace.service("left", namespace.guinea_pig("left", 0.1, "orphan"))
    namespace.start(init=home.inside, STANDIN_STATE="/run/elsewhere/state.json")
    namespace.server()
    namespace.wait_ready("left")
    quiet(namespace)
    from_here(namespace)
    tracer = inject(namespace.init, ["-y", "-e", "trace=%file", "-o", str(trace)])
    try:
        live(home)
    finally:
        let_go(tracer)
    text = trace.read_text()
    assert {path for path in looked_up(text) if not path.startswith("/proc/")} == may
    assert "execve(" in text or '/stat", ' in text, "strace has seen nothing"
