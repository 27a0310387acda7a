"""The kept server: how it is started, that it is kept, and what is said when it cannot be."""

import os
import re
import signal
import time

import pytest

from helpers import SECONDS, STAND_IN, Namespace, Process, child_pids, is_alive, poll, signals_of

# A server that says what it was given, then waits. It needs no interpreter that changes what it reports.
REPORTER = """#!/bin/sh
cat /proc/self/status
echo "cwd: $(pwd)"
echo "umask: $(umask)"
ls -l /proc/self/fd
echo "reporter: ready: pid $$"
exec sleep 100000
"""


@pytest.mark.parametrize("user", [False, True], ids=["root", "user-namespace"])
def test_server_gets_exactly_these_arguments(tmp_path, user):
    with Namespace(tmp_path, user) as namespace:
        namespace.start(ZINIT_SOCKET="/run/elsewhere.sock", ZINIT_LOG_LEVEL="warn", ready=None)
        server = namespace.server()
        assert server.argv[2:] == [str(STAND_IN), "-c", str(namespace.services), "-s", "/run/elsewhere.sock", "--log-level", "warn"]
        assert server.parent == namespace.init


def test_server_defaults_are_the_originals(namespace):
    namespace.start(ZINIT_CONFIG_DIR=None)
    assert namespace.server().argv[3:] == ["-c", "/etc/zinit/services", "-s", "/run/zinit.sock", "--log-level", "info"]


@pytest.mark.parametrize("words, variables, level", [
    ((), {"ZINIT_LOG_LEVEL": "nonsense"}, "nonsense"),
    (("--log-level", "debug"), {"ZINIT_LOG_LEVEL": "error"}, "debug"),
    (("--log-level=trace",), {}, "trace"),
])
def test_log_level_goes_to_the_server_as_it_was_given(namespace, words, variables, level):
    namespace.start(*words, ready=None, **variables)
    assert namespace.server().argv[-2:] == ["--log-level", level]


def test_server_gets_our_environment(namespace):
    namespace.start(ready=None, COLOUR="blue with a space", LISTEN_PID="77")
    environment = namespace.server().read("environ").split("\0")
    assert "COLOUR=blue with a space" in environment and "LISTEN_PID=77" in environment


def test_server_is_found_on_the_search_path_in_order(namespace):
    """/sbin before /usr/local/bin: both are put over the real directories in the namespace."""
    bind = "mkdir -p {0}/one && cp {1} {0}/one/zinit-server && mount --bind {0}/one {2}\n"
    setup = "".join(bind.format(namespace.directory, STAND_IN, place) for place in ("/usr/local/bin", "/usr/sbin"))
    namespace.start(PYINIT1_SERVER=None, setup=setup, ready=None)
    assert namespace.server().argv[2] in ("/sbin/zinit-server", "/usr/sbin/zinit-server")


def test_server_starts_clean_whatever_our_own_state(namespace):
    """Our signals are all blocked by env; Python itself ignores two; unshare or sh may have left a descriptor."""
    script = namespace.script("reporter", REPORTER)
    namespace.start(PYINIT1_SERVER=str(script), prefix=("env", "--block-signal", "--ignore-signal"), ready=None)
    namespace.wait_for("^reporter: ready")
    status = dict(re.findall(r"^(Sig\w+|ShdPnd):\s*(\w+)$", namespace.log.text, re.M))
    assert signals_of(status["SigBlk"]) | signals_of(status["SigIgn"]) | signals_of(status["SigPnd"]) == set()
    assert {int(fd) for fd in re.findall(r" (\d+) -> (?!/proc/)", namespace.log.text)} == {0, 1, 2}


def test_no_signal_is_blocked_in_the_server(namespace):
    """The stand-in, for sh unblocks all signals by itself."""
    namespace.start(prefix=("env", "--block-signal"), ready=None)
    for _ in range(2):
        server = namespace.server()
        assert server.signals("SigBlk") == set()
        os.kill(server.outer, signal.SIGKILL)


def test_a_restarted_server_starts_as_clean_as_the_first(namespace):
    script = namespace.script("reporter", REPORTER)
    namespace.start(PYINIT1_SERVER=str(script))
    server = namespace.pid_said(r"^reporter: ready: pid (\d+)")
    os.kill(server.outer, signal.SIGKILL)
    again = namespace.pid_said(r"^reporter: ready: pid (\d+)")
    poll(lambda: Process(again.outer).name == "sleep", SECONDS, "sh, which catches signals of its own, to be gone")
    again = Process(again.outer)
    assert again.signals("SigBlk") | again.signals("SigIgn") | again.signals("SigCgt") == set()
    assert set(again.descriptors()) == {0, 1, 2}
    second = namespace.log.text.rpartition("SigBlk:")[2]
    assert {int(fd) for fd in re.findall(r" (\d+) -> (?!/proc/)", second)} == {0, 1, 2}


def test_server_has_our_working_directory_and_its_own_group_while_we_are_in_the_root(namespace):
    folder = namespace.directory / "start here"
    folder.mkdir()
    namespace.start(cwd=folder)
    server = namespace.server()
    assert server.link("cwd") == str(folder)
    assert server.group == server.pid
    assert Process(namespace.init).link("cwd") == "/"


def test_given_descriptors_go_to_every_server_and_ours_to_none(namespace):
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    # Popen closes what it is not told of, so the shell opens descriptor 7.
    namespace.start(setup="exec 7</dev/null")
    os.close(read_end)
    os.close(write_end)
    for _ in range(2):
        server = namespace.server()
        opened = server.descriptors()
        assert opened[7] == "/dev/null"
        assert not [name for name in opened.values() if name.startswith("pipe:") and name != opened[1]]
        os.kill(server.outer, signal.SIGKILL)


def test_listen_pid_is_made_the_servers_own(namespace):
    namespace.start(LISTEN_PID="1", LISTEN_FDS="1", setup="exec 3</dev/null")
    server = namespace.server()
    assert "LISTEN_PID=%d" % server.pid in server.read("environ").split("\0")


def test_a_killed_server_is_back_a_second_later(namespace):
    namespace.start()
    old = namespace.server()
    killed = time.monotonic()
    os.kill(old.outer, signal.SIGKILL)
    namespace.wait_for(r"^pyinit1: server ended: pid %d: killed by SIGKILL$" % old.pid)
    new = poll(lambda: [pid for pid in child_pids(namespace.init) if pid != old.outer], SECONDS, "a new server")
    waited = time.monotonic() - killed
    assert 0.98 < waited < 3
    assert Process(new[0]).parent == namespace.init


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_exit_status_of_the_server_is_logged_and_it_is_started_again(namespace, status):
    namespace.fault("exit-%d" % status)
    namespace.start()
    namespace.wait_for(r"^pyinit1: server ended: pid \d+: exit status %d$" % status)
    namespace.fault("")
    assert is_alive(namespace.server().outer)


def test_a_server_that_always_fails_is_started_once_a_second(namespace):
    namespace.fault("exit-1")
    namespace.start()
    started = []
    for _ in range(4):
        namespace.wait_for("^pyinit1: server started: ")
        started.append(time.monotonic())
    gaps = [later - earlier for earlier, later in zip(started, started[1:])]
    assert min(gaps) > 0.9 and sorted(gaps)[1] < 3, gaps


def test_no_server_on_the_search_path_says_where_it_looked_once_and_goes_on_trying(namespace):
    namespace.start(PYINIT1_SERVER=None, setup="for d in /usr/sbin /usr/bin /usr/local/bin; do [ ! -e $d/zinit-server ] || exit 98; done")
    line = namespace.wait_for("^pyinit1: server not started: .*$").group()
    for folder in ("/sbin", "/usr/sbin", "/usr/bin", "/usr/local/bin"):
        assert folder + "/zinit-server" in line
    switches = lambda: int(Process(namespace.init).status["voluntary_ctxt_switches"])  # noqa: E731
    before = switches()
    poll(lambda: switches() >= before + 3, SECONDS, "three more tries")
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^pyinit1: signal: SIGUSR2")
    assert namespace.log.drain().count("server not started") == 1
    namespace.power_off()


@pytest.mark.parametrize("kind", ["missing", "not-executable", "directory", "no-interpreter", "no-program"])
def test_a_server_that_cannot_be_started_is_named_and_tried_again_every_second(namespace, kind):
    path = namespace.directory / "the-server"
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_text("touch /run/mark\n" if kind == "no-program" else "#!/no/such/interpreter\n")
        path.chmod(0o644 if kind == "not-executable" else 0o755)
    namespace.start(PYINIT1_SERVER=str(path))
    line = namespace.wait_for("^pyinit1: server not started: (.*)$").group(1)
    assert str(path) in line
    if kind == "no-interpreter":
        assert "/no/such/interpreter" in line
    if kind == "no-program":
        assert "Exec format error" in line
    path.rmdir() if kind == "directory" else path.unlink() if path.exists() else None
    path.symlink_to(STAND_IN)
    namespace.server()
    assert namespace.log.drain().count("server not started: ") == 1
    assert not (namespace.run_directory / "mark").exists(), "sh has run it: a file that is half written, say, is no script"


def test_a_server_that_is_back_is_asked_at_the_end(namespace):
    """The respawned server, not the first one, gets the request."""
    namespace.start()
    os.kill(namespace.server().outer, signal.SIGKILL)
    namespace.server()
    namespace.power_off()
    assert re.search("^server: asked: system.shutdown", namespace.log.text, re.M)


def test_services_of_a_crashed_server_are_not_stopped_but_named_in_one_warning(namespace):
    for name in ("one", "two"):
        namespace.marked_service(name)
    namespace.start()
    server = namespace.server()
    old = namespace.settled()
    os.kill(server.outer, signal.SIGKILL)
    warning = namespace.wait_for("^pyinit1: services may run twice: (.*)$").group(1)
    namespace.server()
    for name in ("one", "two"):
        assert "pid %d " % old[name][0] in warning
        poll(lambda: set(old[name]) < set(namespace.services_running()[name]), SECONDS, name + " to run twice")
    assert namespace.log.drain().count("services may run twice") == 1


def test_orphans_are_reaped_while_the_server_runs_and_their_status_is_logged(namespace):
    namespace.service("one", "setsid sh -c 'echo one: pid $$; exit 7' &")
    namespace.service("two", "setsid sh -c 'echo two: pid $$; kill -9 $$' &")
    namespace.start("-v")
    poll(lambda: namespace.log.drain().count("orphan reaped") >= 2, SECONDS, "two lines")
    pids = dict(re.findall(r"^(one|two): pid (\d+)$", namespace.log.text, re.M))
    assert "pyinit1: orphan reaped: pid %s: exit status 7\n" % pids["one"] in namespace.log.text
    assert "pyinit1: orphan reaped: pid %s: killed by SIGKILL\n" % pids["two"] in namespace.log.text
    assert [child.name for child in namespace.children()] == ["zinit-server"]


def test_thousands_of_zombies_that_come_at_once_are_all_reaped(namespace):
    """They become ours when their parent dies, with one SIGCHLD for all of them, and nothing wakes us afterwards."""
    parent = namespace.script("parent", "#!/usr/bin/python3 -IS\nimport os, signal\nfor _ in range(2500):\n"
                              "    if os.fork() == 0: os._exit(0)\nprint('parent: pid', os.getpid(), flush=True)\nsignal.pause()\n")
    namespace.service("parent", "setsid %s &" % parent)
    namespace.start()
    parent = namespace.pid_said(r"^parent: pid (\d+)$")
    poll(lambda: len(child_pids(parent.outer)) == 2500, SECONDS, "2,500 zombies")
    namespace.kill(signal.SIGSTOP)
    os.kill(parent.outer, signal.SIGKILL)
    poll(lambda: len(child_pids(namespace.init)) > 2500, SECONDS, "the zombies to be ours")
    namespace.kill(signal.SIGCONT)
    poll(lambda: len(child_pids(namespace.init)) == 1, SECONDS, "nothing but the server")


def test_reaped_orphans_are_a_warning_with_w_and_a_debug_line_without(tmp_path):
    for number, (words, said) in enumerate([(("-w", "--log-level", "warn"), True), (("--log-level", "info"), False), (("-v",), True)]):
        with Namespace(tmp_path / str(number)) as namespace:
            namespace.service("maker", "setsid sh -c 'echo orphan: pid $$; exit 7' &")
            namespace.start(*words, ready=None)
            pid = namespace.wait_for(r"^orphan: pid (\d+)").group(1)
            poll(lambda: not namespace.find("orphan: pid"), SECONDS, "the orphan to be reaped")
            namespace.power_off()
            assert ("pyinit1: orphan reaped: pid %s: exit status 7" % pid in namespace.log.text) is said
