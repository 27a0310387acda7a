"""COMMAND starts clean: mask, dispositions, descriptors, folder and environment are what we were given, and nothing is ours."""

import contextlib
import itertools
import os
import pty
import re
import signal
import socket
import subprocess

import pytest

from helpers import PYTHON, SECONDS, AtOnce, Lines, Namespace, Process, clean_environment, poll

everywhere = pytest.mark.parametrize("place", [{}, {"plain": True}], ids=["container", "plain-process"])
kept_too = pytest.mark.parametrize("options", [(), ("--respawn",)], ids=["once", "respawn"])


def command(namespace, *options, words=("sleep", "100000"), **more):
    """Start pyinit1.py around this COMMAND; -> its Process, when it is that program."""
    namespace.start(*options, "--", *words, **more)
    return started(namespace)


def started(namespace):
    """The Process of the COMMAND that is started next."""
    return namespace.by_pid(namespace.wait_for(r"^pyinit1: COMMAND started: pid (\d+)")[1])


def kill_and_wait(namespace, process):
    """Under --respawn: kill COMMAND; -> the Process of the next one."""
    os.kill(process.outer, signal.SIGKILL)
    return started(namespace)


# ---- signals

# What is around us before we start. Python itself ignores SIGPIPE and SIGXFSZ.
DIRTY = {"as-it-comes": (), "all-blocked": ("env", "--block-signal"), "all-ignored": ("env", "--ignore-signal"),
         "both": ("env", "--block-signal", "--ignore-signal")}


@everywhere
@kept_too
@pytest.mark.parametrize("name", DIRTY)
def test_no_signal_is_blocked_ignored_or_waits(namespace, name, options, place):
    process = command(namespace, *options, prefix=DIRTY[name], **place)
    for _ in range(2 if options else 1):
        for kind in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"):
            assert process.signals(kind) == set(), kind
        process = kill_and_wait(namespace, process) if options else process


def test_a_writer_whose_reader_has_gone_dies_of_sigpipe(namespace):
    """What ignoring it does to programs: they go on writing, or say "Broken pipe"."""
    namespace.start("--", "bash", "-c", "yes | head -1 >/dev/null; exit ${PIPESTATUS[0]}", ready=None)
    assert namespace.wait() == 128 + signal.SIGPIPE
    assert "Broken pipe" not in namespace.log.text


# ---- descriptors

def settled(process, expected):
    """Wait until it has just these descriptors, for it opens its libraries first; -> Process.descriptors()."""
    def look():
        with contextlib.suppress(OSError):              # closed while we looked
            found = process.descriptors()
            return found if set(found) == expected else None
    return poll(look, SECONDS, "descriptors %s of %r" % (expected, process))


OPEN_3_AND_7 = "exec 3</etc/passwd 7>/dev/null 9<&3; exec 9<&-"


@everywhere
@kept_too
def test_what_we_were_given_goes_to_command_at_every_start_and_nothing_of_ours(namespace, options, place):
    process = command(namespace, *options, setup=OPEN_3_AND_7, **place)
    for _ in range(3 if options else 1):
        found = settled(process, {0, 1, 2, 3, 7})
        assert (found[3], found[7]) == ("/etc/passwd", "/dev/null")
        process = kill_and_wait(namespace, process) if options else process


@everywhere
@kept_too
def test_run_once_we_close_our_copies_and_kept_alive_we_hold_them(namespace, options, place):
    command(namespace, *options, setup=OPEN_3_AND_7, **place)
    namespace.kill(signal.SIGWINCH)                     # of which it has done nothing but answer it
    held = {"/etc/passwd"} if options else set()
    poll(lambda: {"/etc/passwd"} & set(Process(namespace.init).descriptors().values()) == held, SECONDS, "our copy to be %s" % held)


@everywhere
def test_the_other_end_of_a_pipe_sees_commands_close(namespace, place):
    """A readiness pipe, say: a copy that we kept would hold it open as long as COMMAND runs."""
    fifo = namespace.directory / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    namespace.start("--", "sh", "-c", "echo ready >&5; exec 5>&-; exec sleep 100000",
                    prefix=("sh", "-c", 'exec 5>"$0"; exec "$@"', str(fifo)), **place)
    lines = Lines(reader, "descriptor 5")
    poll(lambda: lines.read(0.1) is False and "ready" in lines.text, SECONDS, "the end of descriptor 5")
    os.close(reader)
    assert [process.words for process in namespace.children()] == ["sleep 100000"]


# A server that is given its socket, as sd_listen_fds(3) says; it ends after one connection.
LISTENER = r"""
import os, socket
mine = os.environ.get("LISTEN_PID") == str(os.getpid())
os.write(1, b"listener: %s %s\n" % (os.environ["LISTEN_FDS"].encode(), b"mine" if mine else b"not mine"))
with socket.socket(fileno=3) as listening:
    connection, _ = listening.accept()
    connection.sendall(b"pid %d, %s" % (os.getpid(), os.environ["LISTEN_FDNAMES"].encode()))
"""

# Binds the socket that its first word names, puts it on descriptor 3, and becomes the rest: an activator, as systemd is one.
ACTIVATOR = r"""
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
if listening.fileno() == 3:
    os.set_inheritable(3, True)
else:
    os.dup2(listening.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def ask(path):
    """What the listener says to a connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))
        return connection.makefile().read()


@everywhere
@kept_too
def test_an_activated_socket_is_commands_at_every_start(namespace, options, place):
    path = namespace.directory / "socket"
    namespace.start(*options, "--", *PYTHON, "-c", LISTENER, prefix=(*PYTHON, "-c", ACTIVATOR, str(path)), **place)
    for _ in range(3 if options else 1):
        process = started(namespace)
        namespace.wait_for("^listener: 1 mine$")
        assert ask(path) == "pid %d, web" % process.pid
    if not options:
        assert namespace.wait() == 0


def test_a_listen_pid_that_is_not_ours_is_left_alone(namespace):
    """The descriptors are not for us then, and not for COMMAND."""
    process = command(namespace, LISTEN_PID="4711", LISTEN_FDS="1")
    assert {"LISTEN_PID=4711", "LISTEN_FDS=1"} <= set(process.read("environ").split("\0"))


# ---- the flags of 0, 1 and 2

def is_nonblocking(process, descriptor):
    """Has its open file description O_NONBLOCK set? proc(5), fdinfo."""
    return bool(int(re.search("^flags:\t([0-7]+)$", process.read("fdinfo/%d" % descriptor), re.M)[1], 8) & os.O_NONBLOCK)


ENDS = {"pipe": os.pipe, "terminal": pty.openpty, "socket": lambda: [end.detach() for end in socket.socketpair()]}


@everywhere
@pytest.mark.parametrize("nonblocking", [False, True], ids=["blocking", "nonblocking"])
@pytest.mark.parametrize("kind", ENDS)
def test_o_nonblock_of_0_1_and_2_is_as_it_came(namespace, kind, nonblocking, place):
    """It belongs to the open file description, which is COMMAND's and our parent's as much as ours."""
    pairs = [ENDS[kind]() for _ in range(3)]
    if kind == "pipe":
        pairs[0] = pairs[0][::-1]                       # we hold the end for writing, it the one for reading
    for _, theirs in pairs:
        os.set_blocking(theirs, not nonblocking)
    namespace.start("-v", "--", "sleep", "100000", stdin=pairs[0][1], stdout=pairs[1][1], stderr=pairs[2][1], ready=None, **place)
    said = Lines(pairs[2][0], "standard error")
    said.wait_for("^pyinit1: COMMAND started", SECONDS)
    process, = namespace.children()
    namespace.kill(signal.SIGWINCH)
    assert [is_nonblocking(process, fd) for fd in (0, 1, 2)] == [nonblocking] * 3
    os.kill(process.outer, signal.SIGKILL)
    said.wait_for("^pyinit1: the end: exit status 137", SECONDS)
    assert [os.get_blocking(theirs) for _, theirs in pairs] == [not nonblocking] * 3
    for fd in itertools.chain(*pairs):
        os.close(fd)


# ---- the folder, the environment, and the rest of what a process inherits

@everywhere
def test_its_working_directory_is_the_one_we_were_started_in_and_ours_is_the_root(namespace, place):
    folder = namespace.directory / "a folder"
    folder.mkdir()
    assert command(namespace, cwd=folder, **place).link("cwd") == str(folder)
    assert Process(namespace.init).link("cwd") == "/"


@everywhere
def test_a_relative_command_is_found_from_there(namespace, place):
    (namespace.directory / "bin").mkdir()
    namespace.script("bin/tool", "#!/bin/sh\nexit 12\n")
    namespace.start("--", "bin/tool", cwd=namespace.directory, ready=None, **place)
    assert namespace.wait() == 12


@everywhere
def test_a_working_directory_that_is_gone_is_no_reason_not_to_start(namespace, place):
    gone = namespace.directory / "gone"
    namespace.start("--", "sh", "-c", "exit 13", setup="mkdir %s; cd %s; rmdir %s" % (gone, gone, gone), ready=None, **place)
    assert namespace.wait() == 13


# Our environment, as env(1) is told. In the second and third Python would put its own LC_CTYPE (PEP 538).
ENVIRONMENTS = {
    "ordinary": ["LANG=C.UTF-8", "PATH=/usr/bin:/bin", "HOME=/root", "A=1"],
    "empty": [],
    "C": ["LC_CTYPE=C"],
    "POSIX": ["LC_CTYPE=POSIX", "PATH=/usr/bin"],
    "UTF-8": ["LC_CTYPE=C.UTF-8"],
    "LC_ALL": ["LC_ALL=C"],
    "another": ["LC_CTYPE=de_DE", "LANG=C"],
    "odd": ["EMPTY=", "SPACE= a  b ", "LINES=a\nb\n", "EQUALS==a=b=", "BYTES=\udcff\udc80", "lower.dot-dash=1", "LANG=C"],
    "of-pythons": ["PYTHONPATH=/nowhere", "PYTHONHOME=/nowhere", "PYTHONUTF8=0", "PYTHONWARNINGS=error", "PYTHONSAFEPATH=1"],
    "ours": ["PYINIT1_GRACE=3", "PYINIT1_STOP_TIMEOUT=2", "ZINIT_LOG_LEVEL=debug", "ZINIT_CONTAINER=1", "container=docker"],
    "big": ["BIG%d=%s" % (number, "x" * 1000) for number in range(200)],
}


@everywhere
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_its_environment_is_ours_as_we_were_given_it(namespace, name, place):
    given = ENVIRONMENTS[name]
    process = command(namespace, words=("/usr/bin/sleep", "100000"), prefix=("/usr/bin/env", "-i", *given), **place)
    assert sorted(process.read("environ").split("\0")[:-1]) == sorted(given)


@kept_too
def test_without_proc_it_gets_its_environment_too(namespace, options):
    process = command(namespace, *options, setup="mount -t tmpfs none /proc", A="1", LANG="C.UTF-8")
    assert {"A=1", "LANG=C.UTF-8"} <= set(process.read("environ").split("\0"))


INHERITED = """
import os, resource
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print("umask %o" % os.umask(0))
print("nice %d" % os.getpriority(os.PRIO_PROCESS, 0))
print("limits", [resource.getrlimit(number) for number in range(16)])
print("capabilities", [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")])
print("ids", [status[name].split() for name in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp")])
print("scheduler", os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)))
print("oom", open("/proc/self/oom_score_adj").read(), open("/proc/self/timerslack_ns").read() if os.getuid() == 0 else "")
"""
SETUP = "umask 027; ulimit -n 500; ulimit -c 0; ulimit -s 4096; echo 500 >/proc/self/oom_score_adj; "


def test_limits_umask_niceness_and_all_the_rest_are_as_without_us(namespace):
    script = namespace.directory / "inherited.py"
    script.write_text(INHERITED)
    expected = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", *["-Ur"] * namespace.user, "sh", "-c", SETUP + 'exec "$@"', "sh",
                               "nice", "-n", "5", *PYTHON, str(script)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              env=clean_environment(), text=True, timeout=SECONDS, check=True).stdout
    namespace.start("--", *PYTHON, str(script), setup=SETUP, prefix=("nice", "-n", "5"), ready=None)
    assert namespace.wait() == 0
    assert expected in namespace.log.text and "umask 27\nnice " in expected and "500" in expected, (expected, namespace.log.text)


@everywhere
def test_it_leads_a_group_of_its_own_in_our_session_and_is_our_child(namespace, place):
    process, ours = command(namespace, **place), Process(namespace.init)
    assert process.group == process.pid != ours.group
    assert process.session == ours.session and process.parent == namespace.init


def test_its_words_are_as_they_were_given(namespace):
    words = ["a b", "", "*", "$HOME", "-g", "--", "\\", "'\"", "\n", "\udcff", "ä"]
    script = namespace.script("words", '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >$RESULT\n')
    result = namespace.directory / "result"
    namespace.start("--", str(script), *words, ready=None, RESULT=str(result))
    assert namespace.wait() == 0
    assert os.fsdecode(result.read_bytes()).split("\0")[:-1] == words


# ---- many starts

def start_at_once(number, directory):
    """COMMAND is a pipeline of the shell; -> (exit status, did it say all that it had to say?)."""
    with Namespace(directory) as namespace:
        namespace.start("--", "sh", "-c", "seq 1 2000 | sort -n | tail -1; exit %d" % number, ready=None)
        return namespace.wait(), "2000" in namespace.log.lines


def test_a_hundred_short_commands_all_come_through(tmp_path):
    """COMMAND has often ended before our handlers are in: its SIGCHLD, or its status, must not be lost."""
    starts = AtOnce(start_at_once, range(100), workers=4)
    assert [starts.result(number) for number in range(100)] == [(number, True) for number in range(100)]
