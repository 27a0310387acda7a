"""The pure functions: statuses, signals, the server's words (and how long they may take), other processes, paths, and lines of the log."""

import errno
import os
import random
import signal
import socket
import threading
import time

import pytest

from helpers import load_pyinit1

pyinit1 = load_pyinit1()


# ---- statuses of waitpid(2)

def exited(code):
    return code << 8


def killed(number, core=False):
    return number | 0x80 * core


@pytest.mark.parametrize("status, exit_ok, code", [
    (exited(0), (), 0), (exited(3), (), 3), (exited(255), (), 255), (exited(3), (3,), 0), (exited(3), (4, 143), 3),
    (killed(15), (), 143), (killed(9), (), 137), (killed(11, core=True), (), 139), (killed(34), (), 162),
    (killed(15), (143,), 0), (killed(15), (15,), 143),
])
def test_exit_code(status, exit_ok, code):
    assert pyinit1.exit_code(status, exit_ok) == code


@pytest.mark.parametrize("status, words", [
    (exited(0), "exit status 0"), (exited(3), "exit status 3"), (killed(9), "killed by SIGKILL"), (killed(15), "killed by SIGTERM"),
    (killed(11, core=True), "killed by SIGSEGV"), (killed(40), "killed by signal 40"),
])
def test_how_it_ended(status, words):
    assert pyinit1.how_it_ended(status) == words


@pytest.mark.parametrize("number, code", [
    (errno.ENOENT, 127), (errno.ENOTDIR, 127), (errno.EACCES, 126), (errno.ELIBBAD, 126), (errno.ENOEXEC, 126), (errno.ENOMEM, 126),
])
def test_failure_code(number, code):
    assert pyinit1.failure_code(OSError(number, "why")) == code


# ---- signals

@pytest.mark.parametrize("number, action", [
    (signal.SIGTERM, "power off"), (signal.SIGPWR, "power off"), (38, "power off"), (signal.SIGINT, "reboot"), (39, "reboot"),
    (37, "halt"), (signal.SIGUSR1, "soft restart"), (signal.SIGUSR2, "self-update"), (signal.SIGCHLD, "reap"),
    (signal.SIGTSTP, "ignored: SIG_IGN"), (signal.SIGSEGV, "no handler"), (signal.SIGHUP, "ignored"), (34, "ignored"),
    (36, "ignored"), (40, "ignored"), (64, "ignored"), (signal.SIGPIPE, "ignored"),
])
def test_action(number, action):
    assert pyinit1.action_for(number) == action


def test_every_signal_has_an_action():
    assert all(isinstance(pyinit1.action_for(number), str) for number in range(1, 65))


def test_signals_of_one_wake_up_are_answered_in_the_order_of_the_table():
    """Children first, then the requests to end by their row, whatever their numbers are; what is not listed last."""
    shuffled = [64, signal.SIGUSR2, signal.SIGHUP, 37, 39, signal.SIGINT, 38, signal.SIGPWR, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD]
    wanted = [signal.SIGCHLD, signal.SIGTERM, signal.SIGPWR, 38, signal.SIGINT, 39, 37, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, 64]
    for seed in range(20):
        random.Random(seed).shuffle(shuffled)
        assert pyinit1.in_order(set(shuffled)) == wanted


@pytest.mark.parametrize("number, name", [
    (15, "SIGTERM"), (17, "SIGCHLD"), (30, "SIGPWR"), (6, "SIGABRT"), (29, "SIGIO"), (38, "signal 38"), (40, "signal 40"), (32, "signal 32"),
])
def test_signal_name(number, name):
    assert pyinit1.signal_name(number) == name


@pytest.mark.parametrize("word, number", [
    ("15", 15), ("TERM", 15), ("SIGTERM", 15), ("sigterm", 15), ("term", 15), ("RTMIN", int(signal.SIGRTMIN)),
    ("RTMIN+4", signal.SIGRTMIN + 4), ("SIGRTMIN+4", signal.SIGRTMIN + 4), ("RTMAX", 64), ("64", 64), ("CLD", 17),
])
def test_signal_from_a_word(word, number):
    assert pyinit1.parse_signal(word) == number


# ---- what the server says

@pytest.mark.parametrize("line, result", [
    (b'{"jsonrpc":"2.0","id":1,"result":{"ok":true}}', {"ok": True}),
    (b'{"jsonrpc":"2.0","id":1,"result":{}}', {}),
    (b' {"result":{"ready":true,"state_path":"/x"},"id":1} \r', {"ready": True, "state_path": "/x"}),
])
def test_rpc_result(line, result):
    assert pyinit1.rpc_result(line, dict) == result


def test_rpc_result_can_be_a_list():
    assert pyinit1.rpc_result(b'{"id":1,"result":[1,{}]}', list) == [1, {}]


BAD_ANSWERS = [
    b"", b"\0", b"no JSON", b"\xff\xfe\xfd", b"{", b"[" * 30000, b'{"a":' * 10000, b"null", b"[]", b"1", b'"result"', b"NaN", b"9" * 60000,
    b'{"id":1}', b'{"result":{}}', b'{"id":2,"result":{}}', b'{"id":null,"result":{}}', b'{"id":"1","result":{}}', b'{"id":[1],"result":{}}',
    b'{"id":1,"result":null}', b'{"id":1,"result":[]}', b'{"id":1,"result":"ok"}', b'{"id":1,"result":true}', b'{"id":1,"result":1}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Supervisor dropped response channel"}}',
    b'{"id":1,"result":{}} and more', b'{"id":1,"result":{"\xff":1}}',
]


@pytest.mark.parametrize("line", BAD_ANSWERS, ids=lambda line: repr(line[:40]))
def test_an_answer_that_is_none_is_a_value_error_of_one_short_line(line):
    with pytest.raises(ValueError) as raised:
        pyinit1.rpc_result(line, dict)
    assert str(raised.value).startswith("answered") and len(str(raised.value)) < 300


def test_random_answers_raise_nothing_but_value_error():
    chance, good = random.Random(1), b'{"jsonrpc":"2.0","id":1,"result":{"state_path":"/run/x","ready":true}}'
    for _ in range(2000):
        line = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            line[chance.randrange(len(line))] = chance.choice(b'{}[]",:0123456789truefalsn\\ \xff\0')
        try:
            result = pyinit1.rpc_result(bytes(line), dict)
        except ValueError:
            continue
        pyinit1.state_was_saved(result, None, identity=pyinit1.file_identity)


@pytest.mark.parametrize("services, ours", [
    ([], set()), ([{"name": "web", "state": {"running": True, "pid": 7}}, {"state": {"pid": 8}}], {7, 8}),
    ([1, None, "x", [], {}, {"state": 1}, {"state": []}], set()),
    ([{"state": {"pid": [7]}}, {"state": {"pid": {}}}, {"state": {"pid": "7"}}, {"state": {"pid": 8}}], {8}),
])
def test_listed_pids_whatever_stands_beside_them(services, ours):
    pids = pyinit1.listed_pids(services)
    assert {pid for pid in range(1, 20) if pid in pids} == ours


def test_rpc_request_is_what_the_original_client_sends():
    """FACTS about zinit 0.1.0: the fields in this order, no params, a newline."""
    assert pyinit1.rpc_request("system.ping") == b'{"jsonrpc":"2.0","id":1,"method":"system.ping"}\n'


# ---- how long it may take to say it: Init.receive()

ANSWER_LIMIT = 0.5          # s
ENOUGH = 10.0               # s: far more than that


@pytest.fixture
def server():
    """(Init, its end of a connection to the server, the server's end); the server is somebody, and goes on."""
    init = pyinit1.Init({"command": []}, pyinit1.CONTAINER)
    init.server = os.getpid()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield init, ours, theirs


@pytest.mark.parametrize("said, heard", [
    (b'{"id":1}\n', b'{"id":1}'), (b'{"id":1}\n{"id":2}\n', b'{"id":1}'), (b"\n", b""), (b'{"id":1}', b""), (b"", b""),
    (b"x" * 100000 + b"\n", b"x" * 100000),
])
@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_what_a_server_has_said_is_read_though_it_has_ended(server, said, heard, ended):
    init, ours, theirs = server
    theirs.sendall(said)
    theirs.close()
    init.server = None if ended else init.server
    assert init.receive(ours, time.monotonic() + ENOUGH) == heard


def test_a_server_that_ended_in_the_middle_of_a_word_is_not_waited_for(server):
    """Somebody else, a service say, has its end of the connection open."""
    init, ours, theirs = server
    theirs.sendall(b'{"id":')
    init.server = None
    with pytest.raises(TimeoutError, match="has ended"):
        init.receive(ours, time.monotonic() + ENOUGH)


class Talker:
    """A connection on which more comes as fast as it is read."""

    def __init__(self):
        self.file, self.until = open("/dev/zero", "rb"), time.monotonic() + ENOUGH

    def fileno(self):
        return self.file.fileno()

    def recv(self, _):
        assert time.monotonic() < self.until, "it is heard for ever"
        return b"x"


def given_up(init, connection):
    """How long Init.receive() takes to give up."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        init.receive(connection, began + ANSWER_LIMIT)
    return time.monotonic() - began


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_a_server_that_never_stops_talking_is_given_up_in_time(server, monkeypatch, ended):
    """However much it has said, and though it has ended: who says it then is somebody else."""
    monkeypatch.setattr(pyinit1, "ANSWER_BYTES", 1 << 40)
    init, talker = server[0], Talker()
    init.server = None if ended else init.server
    with talker.file:
        assert ANSWER_LIMIT <= given_up(init, talker) < ENOUGH


def test_a_server_that_says_one_byte_now_and_then_is_given_up_in_time(server):
    init, ours, theirs = server
    over = threading.Event()

    def talk():
        while not over.wait(ANSWER_LIMIT / 20):
            theirs.send(b"x")
    talker = threading.Thread(target=talk)
    talker.start()
    try:
        assert ANSWER_LIMIT <= given_up(init, ours) < ENOUGH
    finally:
        over.set()
        talker.join()


def test_an_answer_of_more_than_4_mb_is_none(server):
    talker = Talker()
    talker.recv = b"x".__mul__
    with talker.file, pytest.raises(ValueError, match="without an end"):
        server[0].receive(talker, time.monotonic() + ENOUGH)


OLD, NEW, PATH = (1, 2, 3), (1, 2, 4), "/run/zinit/state.json"


@pytest.mark.parametrize("result, before, now, saved", [
    ({"ready": True, "state_path": PATH}, None, NEW, True),
    ({"ready": True, "state_path": PATH}, OLD, NEW, True),
    ({"ready": True, "state_path": PATH}, OLD, OLD, True),          # it says so, and there is one
    ({"ready": True, "state_path": PATH}, None, None, False),       # it says so, and there is none
    ({"ready": True}, None, NEW, True),
    ({"ready": False, "state_path": PATH}, None, NEW, True),        # the file tells
    ({"ready": False, "state_path": PATH}, OLD, OLD, False),
    ({"ready": 1, "state_path": PATH}, OLD, OLD, False),            # not the word that was asked for
    ({}, None, NEW, True),                                          # it hung up, or could not be asked: the file tells
    ({}, OLD, NEW, True),
    ({}, OLD, OLD, False),
    ({}, OLD, None, False),
    ({}, None, None, False),
    ({"state_path": 7}, OLD, OLD, False),
    ({"state_path": ["x"], "ready": None}, None, None, False),
])
def test_state_was_saved(result, before, now, saved):
    assert pyinit1.state_was_saved(result, before, identity=lambda path: now if path == PATH else pytest.fail(path)) is saved


@pytest.mark.parametrize("ready, saved", [(True, True), (False, False)])
def test_a_state_elsewhere_counts_only_if_the_server_says_that_it_is_ready(ready, saved):
    """What was there before the request is not known."""
    result = {"ready": ready, "state_path": "/elsewhere"}
    assert pyinit1.state_was_saved(result, None, identity={"/elsewhere": NEW}.get) is saved


def test_file_identity_differs_for_a_new_file_and_a_new_content(tmp_path):
    path = tmp_path / "state"
    assert pyinit1.file_identity(path) is None
    path.write_text("a")
    first = pyinit1.file_identity(path)
    assert first == pyinit1.file_identity(path)
    os.utime(path, ns=(first[2], first[2] + 1))
    second = pyinit1.file_identity(path)
    (tmp_path / "other").write_text("a")
    os.utime(tmp_path / "other", ns=(first[2], first[2] + 1))
    (tmp_path / "other").rename(path)
    assert len({first, second, pyinit1.file_identity(path)}) == 3


def test_a_state_path_that_is_none_is_no_file():
    assert [pyinit1.file_identity(path) for path in ("a\0b", "", "/nowhere/x", "x" * 5000, "\ud800")] == [None] * 5


# ---- what is started

def test_server_argv():
    argv = pyinit1.server_argv("/sbin/zinit-server", {}, "info", pyinit1.CONTAINER)
    assert argv == ["/sbin/zinit-server", "-c", "/etc/zinit/services", "-s", "/run/zinit.sock", "--log-level", "info"]
    assert pyinit1.server_argv("/sbin/zinit-server", {}, "info", pyinit1.PLAIN) == argv
    assert pyinit1.server_argv("/sbin/zinit-server", {}, "info", pyinit1.VM) == argv + ["--pid1-mode"]


def test_server_argv_takes_places_from_the_environment():
    env = {"ZINIT_CONFIG_DIR": "/c d", "ZINIT_SOCKET": "/s.sock"}
    assert pyinit1.server_argv("/x", env, "nonsense", pyinit1.PLAIN) == ["/x", "-c", "/c d", "-s", "/s.sock", "--log-level", "nonsense"]


def programs(tmp_path):
    """Four files: missing, a directory, one that is not executable, two that are."""
    (tmp_path / "folder").mkdir()
    for name, mode in (("plain", 0o644), ("first", 0o755), ("second", 0o755)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    return lambda *names: tuple(str(tmp_path / name) for name in names)


def test_the_first_server_that_exists_is_taken(tmp_path, monkeypatch):
    paths = programs(tmp_path)
    monkeypatch.setattr(pyinit1, "SERVER_PATHS", paths("missing", "second", "first"))
    assert pyinit1.find_server({}) == str(tmp_path / "second")
    assert pyinit1.find_server({"PYINIT1_SERVER": ""}) == str(tmp_path / "second")
    assert pyinit1.find_server({"PYINIT1_SERVER": str(tmp_path / "first")}) == str(tmp_path / "first")


def test_a_missing_server_is_one_error_that_lists_where_it_was_looked_for(tmp_path, monkeypatch):
    paths = programs(tmp_path)
    monkeypatch.setattr(pyinit1, "SERVER_PATHS", paths("missing", "gone"))
    with pytest.raises(FileNotFoundError) as raised:
        pyinit1.find_server({})
    assert raised.value.filename == ", ".join(paths("missing", "gone"))


@pytest.mark.parametrize("name", ["plain", "folder"])
def test_a_server_that_cannot_be_executed_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    paths = programs(tmp_path)
    monkeypatch.setattr(pyinit1, "SERVER_PATHS", paths(name, "first"))
    with pytest.raises(PermissionError) as raised:
        pyinit1.find_server({})
    assert raised.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("name, path, found", [
    ("ls", "/a:/b", ["/a/ls", "/b/ls"]), ("ls", "/a::/b:", ["/a/ls", "./ls", "/b/ls", "./ls"]), ("./ls", "/a", ["./ls"]), ("a/ls", "/a", ["a/ls"]),
    ("/bin/ls", "/a", ["/bin/ls"]), ("", "/a", []), ("ls", "", ["./ls"]),
])
def test_candidates(name, path, found):
    assert pyinit1.candidates(name, {"PATH": path}) == found


def test_candidates_without_path_are_those_of_the_default():
    assert pyinit1.candidates("ls", {}) == [
        folder + "/ls" for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")]


@pytest.mark.parametrize("content, interpreter", [
    (b"#!/nowhere/sh -e\necho", "/nowhere/sh"), (b"#! /nowhere/sh\n", "/nowhere/sh"), (b"#!\n", ""), (b"#!", ""),
    (b"#!/" + b"x" * 1000, "/" + "x" * 253), (b"\x7fELF", "the loader"), (b"", "the loader"), (b"#!/\xff\n", "/\udcff"),
])
def test_interpreter_of(tmp_path, content, interpreter):
    (tmp_path / "script").write_bytes(content)
    assert pyinit1.interpreter_of(tmp_path / "script") == interpreter


@pytest.mark.parametrize("cmdline, wanted", [
    (b"quiet debug=1 ro\n", True), (b"debug=1", True), (b"a zinitdebug=1\n", True), (b"nodebug=1\n", False), (b"debug=10\n", False),
    (b"debug\n", False), (b"debug=0\n", False), (b"x.debug=1", False), (b"\xff debug=1", True), (b"", False),
])
def test_debug_is_wanted_by_a_whole_word_of_the_kernels_command_line(monkeypatch, cmdline, wanted):
    monkeypatch.setattr(pyinit1, "read_file", lambda path: cmdline)
    assert pyinit1.debug_wanted() is wanted


# ---- other processes

def stat_line(pid, name, state="S", ppid=1, group=5, tty=0, flags=0x400000):
    return ("%d (%s) %s %d %d %d %d -1 %d 0 0 0 0 0 0 0 0 20 0 1 0 4711 0\n" % (pid, name, state, ppid, group, group, tty, flags)).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", [
    "sh", "a) b (c", ")", "(", ") S 1 2 3", "", " ", "tmux: server", "(sd-pam)", "a\nb", "é", "\udcff\udcfe", "1 (x) Z 9 9 9 9 9 9",
])
def test_a_process_is_read_whatever_its_name_is(name):
    process = pyinit1.Process(stat_line(7, name, ppid=3, group=6))
    assert (process.pid, process.ppid, process.group, process.zombie) == (7, 3, 6, False)
    assert process.identity == (7, b"4711")
    assert process.name == name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def test_zombies_terminals_and_kernel_threads_are_told_apart():
    plain = pyinit1.Process(stat_line(7, "x"))
    assert (plain.zombie, plain.has_tty, plain.kernel_thread) == (False, False, False)
    assert pyinit1.Process(stat_line(7, "x", state="Z")).zombie
    assert pyinit1.Process(stat_line(7, "x", tty=34816)).has_tty
    assert pyinit1.Process(stat_line(7, "x", flags=0x208040)).kernel_thread


def test_our_own_children_are_read_as_the_kernel_has_them():
    pyinit1.hold("/proc", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    found = [process for process in pyinit1.processes() if process.pid == pid]
    os.waitpid(pid, 0)
    assert len(found) == 1 and found[0].zombie and found[0].ppid == os.getpid() and found[0].group == os.getpgrp()
    assert os.getpid() not in [process.pid for process in pyinit1.processes()]


def family(*pairs, zombies=()):
    """Processes of these (pid, ppid)."""
    return [pyinit1.Process(stat_line(pid, "p%d" % pid, "Z" if pid in zombies else "S", ppid)) for pid, ppid in pairs]


def test_descendants_are_ours_and_come_before_their_children():
    table = family((12, 11), (2, 1), (11, 10), (10, 9), (13, 9), (9, 1), (20, 2), (14, 12))
    found = [process.pid for process in pyinit1.descendants_of(9, table)]
    assert sorted(found) == [10, 11, 12, 13, 14]
    assert found.index(10) < found.index(11) < found.index(12) < found.index(14)
    assert pyinit1.descendants_of(99, table) == []


def test_children_are_those_that_are_alive():
    table = family((10, 9), (11, 9), (12, 10), zombies=(11,))
    assert [process.pid for process in pyinit1.children_of(9, table)] == [10]


def test_names_are_at_most_twenty():
    assert pyinit1.names([]) == "none"
    assert pyinit1.names(family((7, 1), (8, 1))) == "pid 7 p7, pid 8 p8"
    many = pyinit1.names(family(*[(pid, 1) for pid in range(100, 130)]))
    assert many.endswith("pid 119 p119 and 10 more") and many.count("pid ") == 20


# ---- the log

@pytest.mark.parametrize("text, line", [
    ("plain: text, 'quoted' \"twice\" \\", "plain: text, 'quoted' \"twice\" \\"), ("a\nb\r\tc", r"a\nb\r\tc"), ("\x1b[2J\x07", r"\x1b[2J\x07"),
    ("\0", r"\x00"), ("é€😀", "é€😀"), ("\udcff", r"\udcff"), ("\u2028\u202e", r"\u2028\u202e"), ("\xa0", r"\xa0"), ("", ""),
])
def test_one_line(text, line):
    assert pyinit1.one_line(text) == line


def logged(*texts, shared=False, prefix="", level="info", methods=("info",)):
    """What a Log of this level writes to a pipe, in bytes, if each text is given to each of these methods."""
    log = pyinit1.Log()
    read_end, log.fd = os.pipe()
    log.shared, log.prefix, log.level = shared, prefix, pyinit1.LEVELS.index(level)
    for text in texts:
        for method in methods:
            getattr(log, method)(text)
    os.close(log.fd)
    with open(read_end, "rb") as file:
        return file.read()


def test_a_line_of_the_log():
    assert logged("ready: pid 1", "a\nb") == b"pyinit1: ready: pid 1\npyinit1: a\\nb\n"
    assert logged("x", prefix="<6>") == b"<6>pyinit1: x\n"
    assert logged("x", shared=True) == b"pyinit1: x\n"


@pytest.mark.parametrize("prefix", ["", "<6>"])
@pytest.mark.parametrize("text", ["x" * 2000, "\n" * 2000, "\ud800" * 2000, "x" * 890, "x" * 891, "x" * 886])
def test_a_long_line_is_cut_to_900_bytes(text, prefix):
    line = logged(text, prefix=prefix)
    full = len(prefix) + len("pyinit1: ") + len(pyinit1.one_line(text)) + 1
    assert len(line) == min(full, 900) and line.count(b"\n") == 1 and line.endswith(b"\n")


def test_a_long_line_is_cut_between_characters():
    for text in ("€" * 2000, "😀" * 2000, "x" + "é" * 2000, "é" * 2000):
        line = logged(text)
        assert line.decode() and 896 <= len(line) <= 900


def test_a_log_whose_reader_does_not_read_drops_lines_and_never_blocks():
    read_end, write_end = os.pipe()
    log = pyinit1.Log()
    log.fd, log.shared = write_end, True            # a blocking descriptor
    signal.alarm(20)                                # ends us if it does block
    for _ in range(2000):
        log.error("x" * 500)
    signal.alarm(0)
    assert len(os.read(read_end, 1 << 20)) <= 65536
    os.close(read_end)
    log.error("nobody reads any more")              # EPIPE, which Python's own disposition of SIGPIPE makes an error
    os.close(write_end)
    log.error("and the descriptor is closed")


@pytest.mark.parametrize("level, written", [("error", 1), ("warn", 2), ("info", 3), ("debug", 4), ("trace", 4)])
def test_levels_decide_what_is_written(level, written):
    assert logged("x", level=level, methods=("error", "warn", "info", "debug")) == b"pyinit1: x\n" * written


def test_what_is_said_before_the_log_is_open_is_written_then(monkeypatch):
    log = pyinit1.Log()
    log.info("early")
    log.debug("not wanted")
    read_end, write_end = os.pipe()
    monkeypatch.setattr(pyinit1, "open_first", lambda *paths: write_end)
    log.open(vm=True)
    log.info("late")
    os.close(write_end)
    with open(read_end, "rb") as file:
        assert file.read() == b"pyinit1: early\npyinit1: late\n"


def test_what_comes_again_every_second_is_written_once_a_minute(monkeypatch):
    log, lines, now = pyinit1.Log(), [], [5.0]
    monkeypatch.setattr(log, "error", lines.append)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(120):
        log.seldom("server not started: x")
        now[0] += 1.0
    log.seldom("server not started: y")             # another line is no repetition
    assert lines == ["server not started: x"] * 2 + ["server not started: y"]
