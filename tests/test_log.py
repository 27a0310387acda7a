"""The log: it never blocks, ends or spins us, never spoils what COMMAND writes, and every line is one line."""

import contextlib
import fcntl
import os
import re
import select
import shlex
import signal
import socket
import time

import pytest

from helpers import PYTHON, SECONDS, SLACK, STAND_IN, AtOnce, Lines, Namespace, Process, busy_seconds, load_pyinit1, poll

pyinit1 = load_pyinit1()

SIZE = 300000               # bytes that COMMAND writes: more than any pipe, socket or terminal holds


def fill(descriptor):
    """Write to it until nothing more goes in, and leave its flags as they were; -> the number of bytes."""
    flags, size = fcntl.fcntl(descriptor, fcntl.F_GETFL), 0
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    for piece in (b"#" * 65536, b"#" * 512, b"#"):
        with contextlib.suppress(BlockingIOError):
            while True:
                size += os.write(descriptor, piece)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return size


def make(kind, directory):
    """(read end, write end) of a pipe, a socket or a terminal, as integers."""
    if kind == "pipe":
        return os.pipe()
    if kind == "fifo":
        path = os.path.join(directory, "fifo")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        return reader, os.open(path, os.O_WRONLY)
    if kind == "terminal":
        master, slave = os.openpty()
        return master, slave
    family = {"socket": socket.SOCK_STREAM, "datagram-socket": socket.SOCK_DGRAM, "packet-socket": socket.SOCK_SEQPACKET}
    return tuple(end.detach() for end in socket.socketpair(socket.AF_UNIX, family[kind]))


def is_nonblocking(pid, descriptor):
    """Has the open file description O_NONBLOCK set, as /proc/PID/fdinfo shows it?"""
    flags = re.search("^flags:\t([0-7]+)$", Process(pid).read("fdinfo/%d" % descriptor), re.M).group(1)
    return bool(int(flags, 8) & os.O_NONBLOCK)


def live(namespace):
    """A life in which much is logged: signals, a killed server, a soft restart. Its server is heard on stdout."""
    server = namespace.server()
    for number in (signal.SIGUSR2, signal.SIGWINCH, signal.SIGHUP):
        namespace.kill(number)
    os.kill(server.outer, signal.SIGKILL)
    namespace.server()
    namespace.kill(signal.SIGUSR1)
    return namespace.server()


# ---- nobody reads

NO_READER = [(kind, setup, plain) for kind in ("pipe", "fifo", "socket", "datagram-socket", "packet-socket", "terminal")
             for setup, plain in (("", False), ("mount -t tmpfs none /proc", False), ("", True))]


def life_unread(parameter, directory):
    """Live with a standard error that is full; -> what was seen."""
    kind, setup, plain = parameter
    read_end, write_end = make(kind, directory)
    with Namespace(directory) as namespace, contextlib.ExitStack() as stack:
        stack.callback(os.close, read_end)
        stack.callback(os.close, write_end)
        fill(write_end)
        namespace.start("-v", stderr=write_end, ready=None, setup=setup, plain=plain)
        server = live(namespace)
        blocking = [not is_nonblocking(pid, 2) for pid in (namespace.init, server.outer)]
        started = time.monotonic()
        namespace.kill(signal.SIGTERM)
        return {"status": namespace.wait(), "took": time.monotonic() - started, "blocking": blocking, "log": namespace.log.text}


@pytest.fixture(scope="module")
def unread():
    return AtOnce(life_unread, NO_READER, workers=len(NO_READER))


def name_of(parameter):
    kind, setup, plain = parameter
    return kind + "-no-proc" * bool(setup) + "-plain-process" * plain


@pytest.mark.parametrize("parameter", NO_READER, ids=name_of)
def test_a_standard_error_that_is_full_never_blocks_us(unread, parameter):
    seen = unread.result(parameter)
    assert seen["status"] == 0 and seen["took"] < SLACK, seen
    assert "server: asked: system.prepare_restart" in seen["log"] and "server: asked: system.shutdown" in seen["log"]


@pytest.mark.parametrize("parameter", NO_READER, ids=name_of)
def test_what_is_shared_with_command_stays_blocking(unread, parameter):
    assert unread.result(parameter)["blocking"] == [True, True]


# Writes SIZE bytes to stderr as a program does that has never heard of EAGAIN, says so, and waits.
WRITER = """
import os, signal
os.write(1, b"writer: ready: pid %%d\\n" %% os.getpid())
left = %d
while left:
    left -= os.write(2, b"=" * min(left, 512))
os.write(1, b"writer: done\\n")
signal.pause()
""" % SIZE


@pytest.mark.parametrize("respawn", [False, True], ids=["once", "kept"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_commands_own_writes_wait_for_the_reader_and_all_arrive(tmp_path, kind, respawn):
    read_end, write_end = make(kind, tmp_path)
    with Namespace(tmp_path) as namespace:
        size = fill(write_end)
        namespace.start("-v", *["--respawn"] * respawn, "--", *PYTHON, "-c", WRITER, stderr=write_end, ready=None)
        os.close(write_end)
        writer = namespace.pid_said(r"^writer: ready: pid (\d+)")
        poll(lambda: Process(writer.outer).state == "S", SECONDS, "it to wait for the reader")
        assert "writer: done" not in namespace.log.drain()
        got = b""
        while got.count(b"=") < SIZE:
            assert select.select([read_end], [], [], SECONDS)[0], "%d of %d bytes" % (got.count(b"="), SIZE)
            got += os.read(read_end, 65536)
        namespace.wait_for("^writer: done")
        assert got.count(b"#") == size or kind == "terminal"
    os.close(read_end)


def test_what_is_logged_again_when_the_reader_reads_again_is_whole_lines(namespace):
    """Lines were dropped meanwhile, none was cut."""
    read_end, write_end = os.pipe()
    namespace.start("-v", stderr=write_end, ready=None)
    os.close(write_end)
    lines = Lines(read_end, "stderr")
    lines.wait_for("^pyinit1: ready", SECONDS)
    server = namespace.server()
    for count in range(1, 3000):
        namespace.kill(signal.SIGWINCH)
        if count % 100 == 0:            # PID 1 has seen the last one when it has no signal pending any more
            poll(lambda: not int(Process(namespace.init).status["ShdPnd"], 16), SECONDS, "no signal to be pending")
    text = lines.drain()
    namespace.kill(signal.SIGUSR2)
    lines.wait_for("^pyinit1: signal: SIGUSR2", SECONDS)
    for line in text.splitlines():
        assert line.startswith("pyinit1: "), line
    assert Process(server.outer).state != "Z"
    os.close(read_end)


# ---- nobody can read any more

GONE = ["pipe", "fifo", "socket", "datagram-socket", "packet-socket", "terminal", "/dev/full", "closed"]


def life_alone(parameter, directory):
    """Live with a standard error whose reader has gone; -> what was seen."""
    kind, plain = parameter
    setup, write_end = "", None
    if kind == "closed":
        setup = "exec 2>&-"
    elif kind == "/dev/full":
        write_end = os.open(kind, os.O_WRONLY)
    else:
        read_end, write_end = make(kind, directory)
        os.close(read_end)
    with Namespace(directory) as namespace:
        namespace.start("-v", stderr=write_end, ready=None, setup=setup, plain=plain)
        if write_end is not None:
            os.close(write_end)
        live(namespace)
        poll(lambda: Process(namespace.init).state == "S", SECONDS, "PID 1 to sleep")
        before, started = busy_seconds(namespace.init), time.monotonic()
        time.sleep(1)                   # what is tested is that nothing happens
        busy = (busy_seconds(namespace.init) - before) / (time.monotonic() - started)
        namespace.kill(signal.SIGTERM)
        return {"status": namespace.wait(), "busy": busy, "log": namespace.log.text}


@pytest.fixture(scope="module")
def alone():
    return AtOnce(life_alone, [(kind, plain) for kind in GONE for plain in (False, True)], workers=16)


@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
@pytest.mark.parametrize("kind", GONE, ids=lambda kind: kind.replace("/", ""))
def test_a_reader_that_has_gone_neither_ends_nor_spins_us(alone, kind, plain):
    seen = alone.result((kind, plain))
    assert seen["status"] == 0 and "server: asked: system.shutdown" in seen["log"], seen
    assert seen["busy"] < 0.1


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_command_dies_of_a_lost_reader_as_it_would_without_us(tmp_path, kind):
    """SIGPIPE of COMMAND's own, not ignored as Python has it; a terminal that has hung up says EIO."""
    read_end, write_end = make(kind, tmp_path)
    os.close(read_end)
    with Namespace(tmp_path) as namespace:
        namespace.start("--", "sh", "-c", "/bin/echo lost >&2; echo status: $?; exit 7", stderr=write_end, ready=None)
        os.close(write_end)
        assert namespace.wait() == 7
        assert "status: %d\n" % (1 if kind == "terminal" else 128 + signal.SIGPIPE) in namespace.log.text


# ---- files

SCRIBE = "for n in $(seq 500); do echo scribe: line $n of five hundred >&2; done; echo scribe: done; exec sleep 100000"


@pytest.mark.parametrize("mode", ["wb", "ab"], ids=["offset", "O_APPEND"])
@pytest.mark.parametrize("setup", ["", "mount -t tmpfs none /proc"], ids=["proc", "no-proc"])
def test_a_regular_file_is_appended_to_and_commands_lines_stay(namespace, mode, setup):
    path = namespace.directory / "log"
    with open(path, mode) as file:
        file.write(b"before us\n")
        file.flush()
        namespace.start("--respawn", "--", "sh", "-c", SCRIBE, stderr=file, ready=None, setup=setup)
    poll(lambda: "pyinit1: ready" in path.read_text(), SECONDS, "us to be ready")
    namespace.kill(signal.SIGWINCH)
    while "scribe: done" not in namespace.log.drain():
        namespace.kill(signal.SIGWINCH)
    namespace.power_off()
    lines = path.read_text().splitlines()
    assert lines[0] == "before us"
    assert [line for line in lines if line.startswith("scribe: ")] == ["scribe: line %d of five hundred" % n for n in range(1, 501)]
    assert all(line.startswith(("pyinit1: ", "scribe: ")) for line in lines[1:]) and "signal: SIGWINCH" in path.read_text()
    assert lines[-1] == "pyinit1: the end: exit status 0"


@pytest.mark.parametrize("words", [(), ("--", "sleep", "100000")], ids=["server", "once"])
def test_a_file_that_may_not_grow_any_more_ends_nothing_and_sends_nobody_a_signal(namespace, words):
    """RLIMIT_FSIZE: the kernel sends SIGXFSZ to who writes; that is no request from outside, and goes to nobody."""
    path = namespace.directory / "log"
    with open(path, "wb") as file:
        file.write(b"#" * 510 + b"\n")
        file.flush()
        namespace.start("-v", *words, stderr=file, ready=None, setup="ulimit -f 1")
    poll(lambda: signal.SIGTERM in Process(namespace.init).signals("SigCgt"), SECONDS, "us to be ready")
    child = poll(lambda: [each for each in namespace.children() if "pyinit1.py" not in each.words], SECONDS, "the child")[0]
    for _ in range(20):
        namespace.kill(signal.SIGWINCH)
        poll(lambda: not int(Process(namespace.init).status["ShdPnd"], 16), SECONDS, "no signal to be pending")
    before, started = busy_seconds(namespace.init), time.monotonic()
    time.sleep(1)                       # what is tested is that nothing happens
    assert busy_seconds(namespace.init) - before < 0.1 * (time.monotonic() - started)
    poll(lambda: Process(child.outer).state == "S", SECONDS, "the child to sleep, as it did")
    namespace.kill(signal.SIGTERM)
    assert namespace.wait() == (128 + signal.SIGTERM if words else 0)
    assert path.stat().st_size == 512 and path.read_bytes().count(b"\n") == 1


# ---- a terminal in whose background we are

# Takes the terminal argv[1] for its session, with tostop, and starts the rest of its words in a background group with stderr on it.
BACKGROUND = """
import os, sys, termios
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
attributes = termios.tcgetattr(terminal)
attributes[3] |= termios.TOSTOP
termios.tcsetattr(terminal, termios.TCSANOW, attributes)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.dup2(terminal, 2)
    os.execvp(sys.argv[2], sys.argv[2:])
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("words", [(), ("--", "sh", "-c", "echo server: ready: pid $$; exec sleep 100000")], ids=["server", "once"])
def test_in_the_background_of_a_terminal_with_tostop_we_are_neither_stopped_nor_do_we_spin(namespace, words):
    master, slave = os.openpty()
    terminal = Lines(master, "the terminal")
    namespace.start(*words, plain=True, ready=None, prefix=(*PYTHON, "-c", BACKGROUND, os.ttyname(slave)))
    ready = terminal.wait_for(r"^pyinit1: ready: pid (\d+)", SECONDS)
    os.close(slave)
    ours = namespace.by_pid(ready.group(1))
    child = namespace.server()
    for _ in range(5):
        os.kill(ours.outer, signal.SIGUSR2 if not words else signal.SIGWINCH)
        poll(lambda: not int(Process(ours.outer).status["ShdPnd"], 16), SECONDS, "no signal to be pending")
    poll(lambda: Process(child.outer).state == "S", SECONDS, "the child to sleep, not to be stopped")
    assert "TTOU" not in terminal.drain()
    before, started = busy_seconds(ours.outer), time.monotonic()
    time.sleep(1)                       # what is tested is that nothing happens
    assert busy_seconds(ours.outer) - before < 0.1 * (time.monotonic() - started)
    assert Process(ours.outer).state == "S"
    os.kill(ours.outer, signal.SIGTERM)
    terminal.wait_for("^pyinit1: the end: exit status", SECONDS)
    assert namespace.wait() == (128 + signal.SIGTERM if words else 0)
    os.close(master)


# ---- lines

HOSTILE = "one\ntwo\r\x1b[2J\x07\x85\u2028three" + "\u20ac" * 600
RENAMER = """
import os, signal, sys
name, = sys.argv[1:]
os.fork() and os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("/proc/self/comm", "w") as file:
    file.write(name)
os.write(1, b"renamed: ready: pid %d\\n" % os.getpid())
while True:
    signal.pause()
"""


def test_every_line_is_one_line_of_900_bytes_at_most_whatever_names_there_are(namespace):
    """$container, the server's path and answer, its arguments, and processes that had to be killed."""
    path, folder = namespace.directory / "log", namespace.directory / "a\nb\x1b[31m"
    folder.mkdir()
    server = folder / "server"
    script = namespace.script("renamer.py", RENAMER)
    for number in range(60):
        namespace.service("hostile%d" % number, shlex.join([*PYTHON, str(script)]) + " \"$(printf 'a\\nb) \\033[%02d')\"" % number)
    namespace.fault("garbage")
    with open(path, "wb") as file:
        namespace.start("-v", "--grace", "0.5", stderr=file, ready=None, container=HOSTILE, PYINIT1_SERVER=str(server),
                        ZINIT_CONFIG_DIR=str(namespace.services) + "/" + "./" * 600)
        poll(lambda: "not started" in path.read_text(errors="replace"), SECONDS, "the path to be logged")
        server.symlink_to(namespace.directory / "real")
        (namespace.directory / "real").write_text("#!/bin/sh\nexec %s \"$@\"\n" % STAND_IN)
        (namespace.directory / "real").chmod(0o755)
        namespace.server()
        poll(lambda: namespace.log.drain().count("renamed: ready") == 60, SECONDS * 2, "sixty processes")
        namespace.power_off()
    data = path.read_bytes()
    assert data.endswith(b"\n") and all(0x20 <= byte for byte in data.replace(b"\n", b""))
    lines = data.decode().splitlines()
    assert all(line.startswith("pyinit1: ") for line in lines)
    assert max(len(line) for line in data.splitlines(keepends=True)) == 900
    for words in ("mode: container: $container is one\\ntwo", "a\\nb\\x1b[31m/server: not found", "others killed: ", "server not asked: "):
        assert any(words in line for line in lines), words
    killed = next(line for line in lines if "others killed: " in line)
    assert re.search(r"pid \d+ a\\nb\) \\x1b\[\d\d, ", killed)


LEVELS = {"error": "", "warn": "w", "info": "wi", "debug": "wid", "trace": "wid"}
SAMPLES = {"w": "pyinit1: server not asked: ", "i": "pyinit1: signal: SIGTERM: ", "d": "pyinit1: orphan reaped: "}


def life_at_level(parameter, directory):
    """A life with something to say at each level; -> the log."""
    level, how = parameter
    with Namespace(directory) as namespace:
        namespace.service("orphan", "setsid sh -c 'echo orphan: ready' &")
        namespace.fault("garbage")
        words, variables = {"option": (("--log-level", level), {}), "variable": ((), {"ZINIT_LOG_LEVEL": level}),
                            "both": (("--log-level=" + level,), {"ZINIT_LOG_LEVEL": "debug"}),
                            "-v": (("-v",), {"ZINIT_LOG_LEVEL": level})}[how]
        namespace.start(*words, ready=None, **variables)
        namespace.server()
        poll(lambda: "orphan: ready" in namespace.log.drain() and len(namespace.processes()) == 1, SECONDS, "the orphan to be reaped")
        namespace.power_off()
        return namespace.log.text


@pytest.fixture(scope="module")
def levels():
    return AtOnce(life_at_level, [(level, how) for level in [*LEVELS, "nonsense"] for how in ("option", "variable", "both", "-v")
                                  if level in LEVELS or how in ("variable", "-v")])


@pytest.mark.parametrize("how", ["option", "variable", "both", "-v"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_writes_what_it_says_and_nothing_below(levels, level, how):
    log, expected = levels.result((level, how)), "wid" if how == "-v" else LEVELS[level]
    assert "".join(letter for letter, text in SAMPLES.items() if text in log) == expected, log


@pytest.mark.parametrize("how, expected", [("variable", "wi"), ("-v", "wid")])
def test_a_level_that_is_nonsense_in_the_environment_means_info(levels, how, expected):
    log = levels.result(("nonsense", how))
    assert "".join(letter for letter, text in SAMPLES.items() if text in log) == expected, log


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_room_that_another_writer_has_taken_meanwhile_is_not_waited_for(tmp_path, kind):
    """Standard error is COMMAND's, too: between our poll(2) and our write(2) it may have filled it."""
    def too_long(*_):
        raise TimeoutError("write(2) has blocked")
    read_end, write_end = make(kind, tmp_path)
    handler = signal.signal(signal.SIGALRM, too_long)
    try:
        fill(write_end)
        os.set_blocking(write_end, True)
        signal.alarm(int(SECONDS))
        assert pyinit1.write_alone(write_end, b"x" * 100, True) == 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        os.close(read_end)
        os.close(write_end)
