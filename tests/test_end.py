"""The end: whatever the server and the others do, it comes in order, costs no more than its limits, and gives everybody their time."""

import contextlib
import os
import re
import shlex
import signal
import time

import pytest

from helpers import RPC_LIMIT, SECONDS, SLACK, AtOnce, Lines, Namespace, Process, poll

STOP_TIMEOUT = 11           # of the servers that do not end; more than twice an RPC's limit
BY_REQUEST, BY_SIGTERM, BY_SIGKILL = "exit status 0", "killed by SIGTERM", "killed by SIGKILL"
# What the server does -> (how it ends, seconds that its phase takes at most). Its service needs one second to save its work.
FAULTS = {
    "": (BY_REQUEST, 1), "close-after": (BY_REQUEST, 1),
    "close-first": (BY_SIGTERM, 0), "garbage": (BY_SIGTERM, 0), "endless": (BY_SIGTERM, 0), "huge": (BY_SIGTERM, 0),
    "nested": (BY_SIGTERM, 0), "wrong-id": (BY_SIGTERM, 0), "error-32603": (BY_SIGTERM, 0),
    "no-socket": (BY_SIGTERM, RPC_LIMIT), "refused": (BY_SIGTERM, RPC_LIMIT), "hung": (BY_SIGTERM, RPC_LIMIT),
    "slow": (BY_SIGTERM, RPC_LIMIT), "no-accept": (BY_SIGTERM, RPC_LIMIT), "full": (BY_SIGTERM, RPC_LIMIT),
    "stays": (BY_SIGKILL, STOP_TIMEOUT), "ignore-term hung": (BY_SIGKILL, STOP_TIMEOUT),
    "ignore-term refused": (BY_SIGKILL, STOP_TIMEOUT),
}
# Those that are waited for in any case: a socket that is missing or refuses is final once the server is five seconds old.
SLOW_FAULTS = [fault for fault, (_, limit) in FAULTS.items() if limit >= RPC_LIMIT and fault not in ("no-socket", "refused")]


def got(log, name):
    """The signals that the guinea pig `name` got, in order."""
    return re.findall("^%s: got (SIG[A-Z0-9]+)$" % name, log, re.M)


def by_name(fault):
    return fault.replace(" ", "+") or "none"


# ---- the server

def end_with(fault, directory):
    """SIGTERM over a server with `fault`; meanwhile an orphan dies and SIGUSR2 comes. -> what was seen."""
    with Namespace(directory) as namespace:
        namespace.service("web", "exec " + namespace.guinea_pig("web", 1))
        namespace.service("worker", namespace.guinea_pig("worker", 1, "orphan"))
        namespace.service("victim", "setsid sleep 100000 &")
        namespace.fault(fault)
        namespace.start("-v", *["--stop-timeout", str(STOP_TIMEOUT)] * (FAULTS[fault][0] == BY_SIGKILL))
        namespace.server()
        namespace.wait_ready("web", "worker")
        victim = poll(lambda: [process for process in namespace.children() if "100000" in process.words], SECONDS, "an orphan")[0]
        namespace.kill(signal.SIGTERM)
        namespace.wait_for("^pyinit1: the end: power off")
        with contextlib.suppress(ProcessLookupError):       # a prompt end may be over
            os.kill(victim.outer, signal.SIGKILL)
            namespace.kill(signal.SIGUSR2)
        status = namespace.wait(STOP_TIMEOUT + 10 + SECONDS)
        return {"status": status, "phases": namespace.end_phases(), "log": namespace.log.text, "victim": victim.pid}


@pytest.fixture(scope="module")
def ends():
    return AtOnce(end_with, FAULTS, workers=len(FAULTS))


@pytest.mark.parametrize("fault", FAULTS, ids=by_name)
def test_a_server_with_this_fault_costs_at_most_its_limit_and_ends_like_this(ends, fault):
    seen, (how, limit) = ends.result(fault), FAULTS[fault]
    assert seen["status"] == 0, seen["log"]
    assert re.search(r"^pyinit1: server ended: pid \d+: %s$" % how, seen["log"], re.M), seen["log"]
    assert seen["phases"]["server stopped"] < limit + SLACK, seen["log"]
    assert seen["log"].count("pyinit1: server started") == 1


@pytest.mark.parametrize("fault", FAULTS, ids=by_name)
def test_services_and_others_save_their_work_whatever_the_server_does(ends, fault):
    log = ends.result(fault)["log"]
    assert "web: saved" in log and "worker: saved" in log, log
    assert got(log, "worker") == ["SIGTERM", "SIGCONT"]


@pytest.mark.parametrize("fault", SLOW_FAULTS, ids=by_name)
def test_reaping_and_signals_go_on_while_the_server_is_waited_for(ends, fault):
    seen = ends.result(fault)
    meanwhile = seen["log"].partition("pyinit1: the end: server stopped")[0]
    assert "pyinit1: signal: SIGUSR2: " in meanwhile, seen["log"]
    assert "pyinit1: orphan reaped: pid %d: killed by SIGKILL" % seen["victim"] in meanwhile, seen["log"]


@pytest.mark.parametrize("fault", [fault for fault, (how, _) in FAULTS.items() if how != BY_REQUEST and fault != "stays"], ids=by_name)
def test_a_server_that_could_not_be_asked_is_a_line_of_the_log(ends, fault):
    assert re.search("^pyinit1: server not asked: system.shutdown: .", ends.result(fault)["log"], re.M)


def test_a_server_that_answered_gets_no_sigterm_while_it_stops_its_services(ends):
    log = ends.result("")["log"]
    assert "server: service stopped: web" in log and got(log, "web")[0] == "SIGTERM"
    assert log.index("server: service stopped: web") < log.index("pyinit1: the end: server stopped")


def test_a_stopped_server_is_continued_and_asked(namespace):
    namespace.start()
    server = namespace.server()
    os.kill(server.outer, signal.SIGSTOP)
    poll(lambda: Process(server.outer).state == "T", SECONDS, "the server to stop")
    namespace.power_off()
    assert "server: asked: system.shutdown" in namespace.log.text
    assert re.search(r"^pyinit1: server ended: pid \d+: exit status 0$", namespace.log.text, re.M)


@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
def test_a_request_during_the_respawn_wait_takes_no_second(tmp_path, plain):
    """The best of three: had it waited for the respawn, none could take less than a second."""
    took = []
    for number in range(3):
        with Namespace(tmp_path / str(number)) as namespace:
            namespace.start(plain=plain)
            os.kill(namespace.server().outer, signal.SIGKILL)
            namespace.wait_for("^pyinit1: server ended")
            took.append(namespace.power_off())
            assert namespace.log.text.count("pyinit1: server started") == 1
    assert min(took) < 0.9


# ---- a COMMAND that is kept

@pytest.mark.parametrize("rewrite, signals", [((), ["SIGTERM", "SIGCONT"]), (("-r", "TERM:HUP"), ["SIGHUP", "SIGCONT"])])
def test_a_kept_command_gets_sigterm_as_it_is_rewritten_and_the_time_to_save_its_work(namespace, rewrite, signals):
    command = shlex.split(namespace.guinea_pig("command", 1, "hup"))
    namespace.start(*rewrite, "--respawn", "--", *command, ready=None)
    namespace.wait_for("^command: ready")
    namespace.power_off()
    assert got(namespace.log.text, "command") == signals
    assert "command: saved" in namespace.log.text
    assert 0.9 < namespace.end_phases()["COMMAND stopped"] < 1 + SLACK
    assert "server not asked" not in namespace.log.text


def test_a_kept_command_that_does_not_end_is_killed_after_stop_timeout(namespace):
    command = shlex.split(namespace.guinea_pig("command", -1))
    namespace.start("--respawn", "--stop-timeout", "1", "--", *command, ready=None)
    namespace.wait_for("^command: ready")
    namespace.power_off()
    assert re.search(r"^pyinit1: COMMAND ended: pid \d+: killed by SIGKILL$", namespace.log.text, re.M)
    assert 1 <= namespace.end_phases()["COMMAND stopped"] < 1 + SLACK


# ---- the others

MODES = {"container": {}, "user-namespace": {"user": True}, "plain-process": {"plain": True},
         "container-not-pid-1": {"plain": True, "ZINIT_CONTAINER": "1"}}


def end_of_all(mode, directory):
    """SIGTERM while three guinea pigs need a second each: one with a terminal, one stopped. -> what was seen."""
    master, slave = os.openpty()
    options = dict(MODES[mode])
    with Namespace(directory, options.pop("user", False)) as namespace, contextlib.ExitStack() as stack:
        stack.callback(os.close, master)
        stack.callback(os.close, slave)
        namespace.service("worker", namespace.guinea_pig("worker", 1, "orphan"))
        namespace.service("terminal", namespace.guinea_pig("terminal", 1, "tty=" + os.ttyname(slave)))
        namespace.service("stopped", namespace.guinea_pig("stopped", 1, "orphan stop"))
        unrelated = namespace.guinea_pig("unrelated", 0) + " &\n" if "plain" in options else ""
        namespace.start(setup=unrelated, **options)
        namespace.server()
        namespace.wait_ready("worker", "terminal", "stopped", *["unrelated"] * ("plain" in options))
        poll(lambda: [process for process in namespace.find(" stopped ") if process.state == "T"], SECONDS, "it to stop")
        namespace.kill(signal.SIGTERM)
        return {"status": namespace.wait(), "phases": namespace.end_phases(), "log": namespace.log.text}


@pytest.fixture(scope="module")
def all_ends():
    return AtOnce(end_of_all, MODES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, signals", [("worker", ["SIGCONT", "SIGTERM"]), ("stopped", ["SIGCONT", "SIGTERM"]),
                                           ("terminal", ["SIGCONT", "SIGHUP", "SIGTERM"])])
def test_each_of_the_others_gets_its_signals_exactly_once(all_ends, mode, name, signals):
    log = all_ends.result(mode)["log"]
    assert sorted(got(log, name)) == signals, log


@pytest.mark.parametrize("mode", MODES)
def test_who_needs_a_second_saves_its_work_and_costs_no_more(all_ends, mode):
    seen = all_ends.result(mode)
    for name in ("worker", "terminal", "stopped"):
        assert "%s: saved" % name in seen["log"], seen["log"]
    assert 0.9 < seen["phases"]["others stopped"] < 1 + SLACK
    assert "others killed" not in seen["log"] and "left behind" not in seen["log"]


@pytest.mark.parametrize("mode", [mode for mode in MODES if "plain" in MODES[mode]])
def test_who_is_not_pid_1_ends_its_own_descendants_only(all_ends, mode):
    log = all_ends.result(mode)["log"]
    assert "unrelated: ready" in log and got(log, "unrelated") == [] and "unrelated: saved" not in log


@pytest.mark.parametrize("mode", MODES)
def test_phases_come_in_order_with_their_durations_and_the_status_is_0(all_ends, mode):
    seen = all_ends.result(mode)
    assert list(seen["phases"]) == ["server stopped", "others stopped"]
    lines = re.findall("^pyinit1: the end: (.*)$", seen["log"], re.M)
    assert lines[0].startswith("power off: ") and lines[-1] == "exit status 0"
    assert seen["status"] == 0


def test_who_was_started_from_outside_gets_sigterm_and_the_time_to_save_its_work(namespace):
    """As by `docker exec`: it is never our child, and sends no SIGCHLD."""
    namespace.start()
    namespace.server()
    visitor = namespace.enter("sh", "-c", namespace.guinea_pig("visitor", 1) + " >/proc/1/fd/1")
    namespace.wait_ready("visitor")
    namespace.power_off()
    visitor.wait(SECONDS)
    assert got(namespace.log.text, "visitor") == ["SIGTERM", "SIGCONT"]
    assert "visitor: saved" in namespace.log.text
    assert 0.9 < namespace.end_phases()["others stopped"] < 1 + SLACK


@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
def test_an_interactive_bash_on_a_terminal_costs_no_grace(tmp_path, plain):
    master, slave = os.openpty()
    path, terminal = os.ttyname(slave), Lines(master, "the terminal")
    with Namespace(tmp_path) as namespace:
        namespace.service("shell", "PS1='shell is ready$ ' setsid -c bash --norc --noprofile -i <%s >%s 2>&1 &" % (path, path))
        namespace.start("--grace", "20", plain=plain)
        namespace.server()
        terminal.wait_for("shell is ready", SECONDS, partial=True)
        bash = poll(lambda: namespace.find("bash"), SECONDS, "bash")[-1]
        namespace.power_off()
        assert namespace.end_phases()["others stopped"] < SLACK
        assert "others killed" not in namespace.log.text, bash
    os.close(master)
    os.close(slave)


def test_with_nobody_left_nothing_is_waited_for(namespace):
    namespace.start()
    namespace.server()
    namespace.power_off()
    phases = namespace.end_phases()
    assert phases["server stopped"] < 2 and phases["others stopped"] < 1


# ---- limits

LIMITS = {
    "options": (("--stop-timeout", "2", "--grace", "1.5"), {}, 2, 1.5),
    "variables": ((), {"PYINIT1_STOP_TIMEOUT": "2", "PYINIT1_GRACE": "1.5"}, 2, 1.5),
    "option-beats-variable": (("--stop-timeout=2", "--grace=1"), {"PYINIT1_STOP_TIMEOUT": "20", "PYINIT1_GRACE": "20"}, 2, 1),
    "nothing": (("--stop-timeout", "0", "--grace", "0"), {}, 0, 0),
    "plain-process": (("--stop-timeout", "1", "--grace", "2"), {"plain": True}, 1, 2),
}


def end_of_the_unwilling(name, directory):
    """SIGTERM over a server that stays, and two others, of which one ignores SIGTERM; -> what was seen."""
    words, options, _, _ = LIMITS[name]
    with Namespace(directory) as namespace:
        namespace.service("stubborn", namespace.guinea_pig("stubborn", -1, "orphan"))
        namespace.service("prompt", namespace.guinea_pig("prompt", 0, "orphan"))
        namespace.fault("stays")
        namespace.start(*words, **options)
        server = namespace.server()
        namespace.wait_ready("stubborn", "prompt")
        pid = re.search(r"^stubborn: ready: pid (\d+)", namespace.log.text, re.M).group(1)
        namespace.kill(signal.SIGTERM)
        return {"status": namespace.wait(), "phases": namespace.end_phases(), "log": namespace.log.text, "pid": pid, "server": server.pid}


@pytest.fixture(scope="module")
def unwilling():
    return AtOnce(end_of_the_unwilling, LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_stop_timeout_and_grace_are_kept_to(unwilling, name):
    seen, (_, _, stop_timeout, grace) = unwilling.result(name), LIMITS[name]
    assert stop_timeout <= seen["phases"]["server stopped"] < stop_timeout + SLACK, seen["log"]
    assert grace <= seen["phases"]["others stopped"] < grace + SLACK, seen["log"]
    assert seen["status"] == 0


@pytest.mark.parametrize("name", LIMITS)
def test_who_had_to_be_killed_is_named(unwilling, name):
    seen = unwilling.result(name)
    assert re.search("^pyinit1: server killed: pid %d: " % seen["server"], seen["log"], re.M)
    killed = re.search("^pyinit1: others killed: (.*)$", seen["log"], re.M).group(1)
    assert "pid %s python3" % seen["pid"] in killed
    if name != "nothing":
        assert killed.count("pid ") == 1 and "prompt: saved" in seen["log"]
    assert "left behind" not in seen["log"]


def test_reaping_and_signals_go_on_during_the_grace(namespace):
    namespace.service("stubborn", namespace.guinea_pig("stubborn", -1, "orphan"))
    namespace.service("late", namespace.guinea_pig("late", 1, "orphan"))
    namespace.start("-v", "--grace", "3")
    namespace.server()
    namespace.wait_ready("stubborn", "late")
    late = re.search(r"^late: ready: pid (\d+)", namespace.log.text, re.M).group(1)
    namespace.kill(signal.SIGTERM)
    namespace.wait_for("^stubborn: got SIGTERM")
    namespace.kill(signal.SIGINT)
    namespace.wait_for("^pyinit1: signal: SIGINT: reboot .*too late")
    namespace.wait_for("^pyinit1: orphan reaped: pid %s: exit status 0" % late)
    namespace.wait_for("^pyinit1: others killed: ")
    assert namespace.wait() == 0
    assert got(namespace.log.text, "stubborn") == ["SIGTERM", "SIGCONT"]


# A hundred processes that ignore SIGTERM and are other ones a few milliseconds later: bounded in number and in time.
FORK_BOMB = """#!/usr/bin/python3 -IS
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 60
if os.fork():
    os._exit(0)
os.setsid()
os.write(1, b"bomb: ready: pid %d\\n" % os.getpid())
for _ in range(99):
    if os.fork() == 0:
        break
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
"""


@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
def test_a_fork_bomb_costs_the_grace_only(tmp_path, plain):
    with Namespace(tmp_path) as namespace:
        namespace.service("bomb", str(namespace.script("bomb", FORK_BOMB)))
        namespace.start("--grace", "1", plain=plain)
        namespace.server()
        poll(lambda: "bomb: ready" in namespace.log.drain(), SECONDS, "the bomb")      # its pid is gone already
        namespace.kill(signal.SIGTERM)
        assert namespace.wait() == 0
        assert 1 <= namespace.end_phases()["others stopped"] < 1.5 + SLACK
        assert plain or "left behind" not in namespace.log.text


# ---- no patience any more

@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
def test_seven_interrupts_kill_all_that_is_ours_and_nobody_else(tmp_path, plain):
    """What is left of a container dies with its PID 1; a plain process must kill its descendants itself."""
    setup = ("sleep 100000 & unrelated=$!\n"
             "list() { for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done; }\n"
             # Who was killed takes a moment to go.
             "trap 'for _ in $(seq 100); do list | grep -q -e [g]uinea_pig -e [z]init-server || break; sleep 0.1; done; list; echo over' EXIT\n")
    with Namespace(tmp_path) as namespace:
        namespace.service("stubborn", namespace.guinea_pig("stubborn", -1, "orphan"))
        namespace.fault("stays")
        namespace.start("--stop-timeout", "20", plain=plain, setup=setup * plain)
        namespace.server()
        namespace.wait_ready("stubborn")
        started = time.monotonic()
        for _ in range(7):
            namespace.kill(signal.SIGINT)
            with contextlib.suppress(AssertionError):       # the seventh one's line may be lost with us
                namespace.wait_for("^pyinit1: signal: SIGINT", 5)
        assert namespace.wait() == 1
        assert time.monotonic() - started < 2 + SLACK
        assert "pyinit1: the end: server stopped" not in namespace.log.text
        if plain:
            left = namespace.log.text.partition("ending at once")[2]
            assert "sleep 100000" in left and "guinea_pig" not in left and "zinit-server" not in left and "over" in left
