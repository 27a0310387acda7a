"""Signals with a kept server: every row of the table, none lost, none obeyed twice."""

import contextlib
import os
import signal
import time

import pytest

from helpers import PYTHON, SECONDS, Namespace, Process, is_alive, poll

ENDINGS = [(signal.SIGTERM, "power off"), (signal.SIGPWR, "power off"), (38, "power off"),
           (signal.SIGINT, "reboot"), (39, "reboot"), (37, "halt")]
STOPS = [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU]
FAULTS = [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS]
NOT_CAUGHT = [signal.SIGKILL, signal.SIGSTOP]
MEANT = [number for number, _ in ENDINGS] + STOPS + FAULTS + NOT_CAUGHT + [signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD]
OTHERS = sorted(set(signal.valid_signals()) - set(MEANT))


def name_of(number):
    """How the log names a signal: SIGTERM, or "signal 38" where signal(7) has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal %d" % number


def ids(number):
    return name_of(number).replace(" ", "-") if isinstance(number, int) else number.replace(" ", "-")


@pytest.mark.parametrize("number, action", ENDINGS, ids=ids)
def test_this_signal_ends_the_container_in_order_with_status_0(namespace, number, action):
    namespace.marked_service("web")
    namespace.start()
    namespace.server()
    namespace.power_off(number=number)
    for line in ("pyinit1: signal: %s: %s" % (name_of(number), action), "pyinit1: the end: %s: " % action,
                 "server: asked: system.shutdown: ", "server: service stopped: web", "pyinit1: the end: server stopped: "):
        assert line in namespace.log.text


def test_sigusr1_restarts_the_server_and_leaves_its_services(namespace):
    namespace.marked_service("web")
    namespace.start()
    old, services = namespace.server(), namespace.settled()
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^pyinit1: signal: SIGUSR1: soft restart")
    assert namespace.server().pid != old.pid
    assert namespace.services_running() == services


def test_sigusr2_says_that_there_is_no_update(namespace):
    namespace.start()
    server = namespace.server()
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^pyinit1: signal: SIGUSR2: self-update")
    namespace.wait_for("^pyinit1: .*update")
    assert is_alive(server.outer)


def test_sigchld_without_a_dead_child_is_harmless(namespace):
    namespace.start()
    server = namespace.server()
    for _ in range(10):
        namespace.kill(signal.SIGCHLD)
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^pyinit1: signal: SIGUSR2")
    assert is_alive(server.outer)


def test_terminal_stop_signals_do_not_stop_us(namespace):
    namespace.start()
    for number in STOPS:
        namespace.kill(number)
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^pyinit1: signal: SIGUSR2")
    assert Process(namespace.init).state not in "Tt"


@pytest.mark.parametrize("user", [False, True], ids=["root", "user-namespace"])
def test_faults_have_no_handler_and_are_dropped_by_the_kernel(tmp_path, user):
    with Namespace(tmp_path, user) as namespace:
        namespace.start()
        status = Process(namespace.init)
        assert not set(FAULTS) & (status.signals("SigCgt") | status.signals("SigIgn") | status.signals("SigBlk"))
        for number in FAULTS:
            namespace.enter("kill", "-%d" % number, "1").wait(SECONDS)
        namespace.kill(signal.SIGUSR2)
        namespace.wait_for("^pyinit1: signal: SIGUSR2")


def test_nothing_is_blocked_once_we_are_ready_and_all_that_can_be_is_caught(namespace):
    namespace.start(prefix=("env", "--block-signal"))
    namespace.server()
    status = Process(namespace.init)
    poll(lambda: Process(namespace.init).signals("SigBlk") == set(), SECONDS, "nothing to be blocked")   # but what write(2) raises, while it writes a line
    expected = set(signal.valid_signals()) - set(FAULTS) - set(NOT_CAUGHT)
    assert status.signals("SigCgt") | status.signals("SigIgn") >= expected


def test_every_other_signal_is_logged_and_ignored(namespace):
    namespace.start()
    server = namespace.server()
    for number in OTHERS:
        namespace.kill(number)
        namespace.wait_for("^pyinit1: signal: %s: ignored$" % name_of(number))
    assert is_alive(server.outer)


def test_first_request_to_end_wins_and_the_later_one_is_logged(namespace):
    namespace.service("slow", "trap 'sleep 1; exit' TERM; while :; do sleep 1000 & wait; done")
    namespace.start()
    namespace.server()
    namespace.kill(signal.SIGINT)
    namespace.wait_for("^server: asked: system.shutdown")
    namespace.kill(signal.SIGTERM)
    namespace.wait_for("^pyinit1: signal: SIGTERM: power off")
    assert namespace.wait() == 0
    assert "pyinit1: the end: reboot: " in namespace.log.text and "pyinit1: the end: power off: " not in namespace.log.text
    assert namespace.log.text.count("server: asked: system.shutdown") == 1


@pytest.mark.parametrize("together, wins", [
    ((signal.SIGINT, signal.SIGTERM), "power off"), ((37, 39), "reboot"), ((39, 38, 37), "power off"),
    ((37, signal.SIGINT), "reboot"), ((signal.SIGUSR1, 37), "halt"),
])
def test_of_several_in_one_wakeup_the_first_of_the_table_wins(namespace, together, wins):
    namespace.start()
    namespace.server()
    namespace.kill(signal.SIGSTOP)
    poll(lambda: Process(namespace.init).state == "T", SECONDS, "PID 1 to stop")
    for number in together:
        namespace.kill(number)
    namespace.kill(signal.SIGCONT)
    assert namespace.wait() == 0
    assert "pyinit1: the end: %s: " % wins in namespace.log.text
    assert "soft restart: " not in namespace.log.text


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04, 0.08])
def test_a_request_before_the_loop_is_up_is_not_lost(namespace, delay):
    namespace.start(prefix=("env", "--block-signal"), ready=None)
    # unshare and sh block signals for a moment, too; what counts is env, or python after it.
    poll(lambda: Process(namespace.init).words.startswith(("env ", PYTHON[0] + " "))
         and signal.SIGTERM in Process(namespace.init).signals("SigBlk"), SECONDS, "env to block SIGTERM")
    time.sleep(delay)           # not for luck: any moment is right
    namespace.kill(signal.SIGTERM)
    assert namespace.wait() == 0
    assert "pyinit1: signal: SIGTERM: power off" in namespace.log.text


def test_ten_thousand_signals_of_all_kinds_while_ten_thousand_children_exit(namespace):
    """In bursts of all kinds, the log read all the while; afterwards each kind was answered, and no zombie is left."""
    maker = namespace.script("maker", "#!/usr/bin/python3 -IS\nimport os\nfor _ in range(50):\n  if os.fork() == 0:\n"
                             "    for _ in range(200):\n      if os.fork() == 0: os._exit(0)\n    os._exit(0)\n")
    namespace.service("maker", "setsid %s; echo maker: done" % maker)
    kinds = OTHERS + STOPS + [signal.SIGUSR2, signal.SIGCHLD]
    namespace.start(ready=None)
    namespace.wait_for("^pyinit1: ready")
    for burst in range(10000 // len(kinds) + 1):
        for number in kinds:
            namespace.kill(number)
        namespace.log.drain()
    namespace.wait_for("^maker: done")
    for number in OTHERS:
        poll(lambda: "pyinit1: signal: %s: ignored" % name_of(number) in namespace.log.drain(), SECONDS, name_of(number))
    poll(lambda: not namespace.log.drain() or not [p for p in namespace.processes() if p.state == "Z"], SECONDS, "no zombie")
    namespace.power_off()


def test_a_signal_is_never_lost_in_a_storm_of_others(namespace):
    """PID 1 is stopped meanwhile, so that all come at once, 20 times."""
    namespace.start()
    namespace.server()
    for round_number in range(20):
        namespace.kill(signal.SIGSTOP)
        poll(lambda: Process(namespace.init).state == "T", SECONDS, "PID 1 to stop")
        for number in OTHERS + [signal.SIGUSR2]:
            namespace.kill(number)
        namespace.kill(signal.SIGCONT)
        for number in OTHERS + [signal.SIGUSR2]:
            text = "pyinit1: signal: %s: " % name_of(number)
            poll(lambda: namespace.log.drain().count(text) > round_number, SECONDS, "%s, round %d" % (text, round_number))


def hurry_test(namespace, count):
    """With a server that never ends: send `count` SIGINT, each after the last one was answered."""
    namespace.fault("stays")
    namespace.start("--stop-timeout", "8")
    namespace.server()
    for _ in range(count):
        namespace.kill(signal.SIGINT)
        with contextlib.suppress(AssertionError):           # the seventh one's line may be the last thing before the end
            namespace.wait_for("^pyinit1: signal: SIGINT", 5)
    return time.monotonic()


def test_seven_interrupts_within_two_seconds_end_at_once(namespace):
    sent = hurry_test(namespace, 7)
    namespace.wait()
    assert time.monotonic() - sent < 4
    assert "the end: server stopped" not in namespace.log.text


def test_six_interrupts_do_not(namespace):
    sent = hurry_test(namespace, 6)
    assert namespace.wait() == 0
    assert time.monotonic() - sent > 6
    assert "the end: server stopped" in namespace.log.text


def test_seven_interrupts_in_more_than_two_seconds_do_not(namespace):
    hurry_test(namespace, 6)
    time.sleep(2.1)             # what is tested is that time passes
    namespace.kill(signal.SIGINT)
    assert namespace.wait() == 0
    assert "the end: server stopped" in namespace.log.text


@pytest.mark.parametrize("user", [False, True], ids=["root", "user-namespace"])
def test_a_request_while_the_server_waits_to_be_started_again_ends_at_once(tmp_path, user):
    with Namespace(tmp_path, user) as namespace:
        namespace.start()
        os.kill(namespace.server().outer, signal.SIGKILL)
        namespace.wait_for("^pyinit1: server ended")
        assert namespace.power_off() < 1 + 3
        assert namespace.log.text.count("pyinit1: server started") == 1
