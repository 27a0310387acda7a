"""Soft restart: whatever the server does, its services run exactly once, and it costs no more than its limits."""

import re
import signal
import time

import pytest

from helpers import RPC_LIMIT, SECONDS, SLACK, AtOnce, Namespace, Process, is_alive, mutant, poll

# What the first server does -> do its services go on with the same pids?
VARIANTS = {
    "": True, "close-after": True, "hung": True, "garbage": True, "endless": True, "slow": True, "huge": True, "nested": True,
    "wrong-id": True, "error-32603": True, "stays": True, "ignore-term stays hung": True,
    "unsaved": False, "close-after unsaved": False, "hung unsaved": False, "garbage unsaved": False, "endless unsaved": False,
    "wrong-id unsaved": False, "error-32603 unsaved": False, "error-32601 unsaved stays": False, "close-first": False,
    "no-socket": False, "refused": False, "no-accept": False, "full": False, "ignore-term refused": False,
}
# The RPC, the server's exit, the services' exit: 5 s each at most; the last two may need a SIGKILL each.
LONGEST = 3 * RPC_LIMIT + 2 + SLACK


def restart(fault, directory):
    """Soft restart over a server with `fault`; -> what was seen, as a dictionary."""
    with Namespace(directory) as namespace:
        for name in ("one", "two"):
            # Half a second to save its work: a second copy that starts meanwhile finds the lock taken.
            namespace.marked_service(name, "exec " + namespace.guinea_pig(name, 0.5, "lock=/run/lock." + name))
        namespace.service("three", namespace.guinea_pig("bystander", options="orphan"))
        namespace.fault(fault)
        namespace.start(ready=None)
        server, before = namespace.server(), namespace.settled()
        bystander = namespace.wait_ready("bystander", "one", "two")[0]
        namespace.fault("")
        started = time.monotonic()
        namespace.kill(signal.SIGUSR1)
        namespace.server()
        took = time.monotonic() - started
        seen = {"before": before, "after": namespace.settled(), "took": took, "old server is gone": not is_alive(server.outer),
                "bystander is there": is_alive(bystander.outer)}
        namespace.power_off()
        return {**seen, "log": namespace.log.text}


@pytest.fixture(scope="module")
def restarts():
    return AtOnce(restart, VARIANTS)


@pytest.mark.parametrize("fault", VARIANTS, ids=lambda fault: fault.replace(" ", "+") or "none")
def test_services_run_exactly_once_after_a_soft_restart_with_this_fault(restarts, fault):
    seen = restarts.result(fault)
    assert {name: len(pids) for name, pids in seen["after"].items()} == {"one": 1, "two": 1}, seen["log"]
    assert (seen["before"] == seen["after"]) is VARIANTS[fault], seen["log"]
    assert "RUNS TWICE" not in seen["log"]
    assert seen["took"] < LONGEST
    assert seen["old server is gone"]


@pytest.mark.parametrize("fault", VARIANTS, ids=lambda fault: fault.replace(" ", "+") or "none")
def test_other_orphans_are_left_alone_by_a_soft_restart_with_this_fault(restarts, fault):
    seen = restarts.result(fault)
    assert seen["bystander is there"], seen["log"]
    assert "bystander: got" not in seen["log"].partition("pyinit1: the end:")[0]


@pytest.mark.parametrize("fault, end", [
    ("no-socket", "killed by SIGTERM"), ("refused", "killed by SIGTERM"), ("no-accept", "killed by SIGTERM"),
    ("full", "killed by SIGTERM"), ("close-first", "killed by SIGTERM"), ("hung", "killed by SIGTERM"),
    ("", "exit status 0"), ("close-after", "exit status 0"), ("stays", "killed by SIGKILL"), ("ignore-term refused", "killed by SIGKILL"),
])
def test_a_server_that_cannot_be_asked_gets_sigterm_and_sigkill_only_if_it_must(restarts, fault, end):
    log = restarts.result(fault)["log"]
    assert re.search(r"^pyinit1: server ended: pid \d+: (.*)$", log, re.M).group(1) == end, log


def test_services_that_outlived_one_restart_do_not_run_twice_after_the_next(namespace):
    """They are our children then, not the server's; its state is lost at the second restart."""
    namespace.marked_service("web", "exec " + namespace.guinea_pig("web", 0.5, "lock=/run/lock"))
    namespace.start()
    namespace.server()
    first = namespace.wait_ready("web")[0]
    namespace.fault("unsaved")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert namespace.settled() == {"web": [first.pid]}
    namespace.fault("")
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^web: saved")
    namespace.wait_for("^web: ready")
    assert len(namespace.settled()["web"]) == 1 and "RUNS TWICE" not in namespace.log.drain()


def test_a_prompt_soft_restart_takes_no_second(namespace):
    """The respawn wait is for servers that died, not for this one: 0.3 s with a busy machine's slack."""
    namespace.start()
    namespace.server()
    started = time.monotonic()
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^pyinit1: server started: ")
    assert time.monotonic() - started < 0.9


def test_the_server_is_asked_with_exactly_these_bytes(namespace):
    """The line of the original's client, byte for byte."""
    server = namespace.script("server", "#!/usr/bin/python3 -IS\nimport os, socket, sys\nlistener = socket.socket(socket.AF_UNIX)\n"
                              "listener.bind(sys.argv[4])\nlistener.listen()\nprint('server: ready: pid', os.getpid(), flush=True)\n"
                              "client = listener.accept()[0]\nprint('bytes:', client.recv(9999), flush=True)\nos.unlink(sys.argv[4])\n")
    namespace.start(PYINIT1_SERVER=str(server))
    for number, method in ((signal.SIGUSR1, b"system.prepare_restart"), (signal.SIGTERM, b"system.shutdown")):
        namespace.server()
        namespace.kill(number)
        expected = b'{"jsonrpc":"2.0","id":1,"method":"%s"}\n' % method
        assert namespace.wait_for("^bytes: (.*)$").group(1) == repr(expected)


def test_a_state_path_elsewhere_is_believed_if_the_server_says_so(namespace):
    namespace.marked_service("web")
    namespace.start(STANDIN_STATE="/run/other/place.json")
    namespace.server()
    before = namespace.settled()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert namespace.settled() == before


@pytest.mark.parametrize("stale", ["yes", "no"])
def test_an_old_state_file_does_not_count_as_saved(namespace, stale):
    """It was there before the request and is the same afterwards: services are stopped, and started once."""
    namespace.marked_service("web")
    namespace.fault("close-after unsaved")
    namespace.start()
    namespace.server()
    before = namespace.settled()
    if stale == "yes":
        namespace.state.parent.mkdir(exist_ok=True)
        namespace.state.write_text("{}")
    namespace.fault("")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    after = namespace.settled()
    assert len(after["web"]) == 1 and after != before


def test_services_that_the_new_server_does_not_adopt_are_stopped(namespace):
    """zinit does not know every saved service again, and starts a second one beside it."""
    namespace.marked_service("web")
    namespace.start()
    namespace.server()
    before = namespace.settled()["web"]
    namespace.fault("forgets")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    poll(lambda: not set(before) & set(namespace.services_running().get("web", before)), SECONDS, "the old one to be stopped")
    assert len(namespace.settled()["web"]) == 1


def test_services_that_ignore_sigterm_are_killed_before_the_new_server_starts(namespace):
    namespace.marked_service("web", "exec " + namespace.guinea_pig("web", -1, "lock=/run/lock"))
    namespace.fault("unsaved")
    namespace.start()
    namespace.server()
    old = namespace.settled()["web"]
    namespace.wait_ready("web")
    namespace.fault("")
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^web: got SIGTERM")
    namespace.wait_for("^web: ready")
    new = namespace.settled()["web"]
    assert len(new) == 1 and new != old
    assert "RUNS TWICE" not in namespace.log.drain()


def test_services_that_are_stopped_have_five_seconds_to_save_their_work(namespace):
    namespace.marked_service("web", "exec " + namespace.guinea_pig("web", 2))
    namespace.fault("unsaved")
    namespace.start()
    namespace.server()
    namespace.wait_ready("web")
    namespace.fault("")
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^web: got SIGTERM")
    namespace.wait_for("^web: saved")
    namespace.server()


@pytest.mark.parametrize("fault, line", [
    ("hung", "^server: asked: system.prepare_restart"), ("stays", "^server: asked: system.prepare_restart"),
    ("no-accept", "^pyinit1: signal: SIGUSR1"), ("full", "^pyinit1: signal: SIGUSR1"),
    ("ignore-term refused", "^pyinit1: server not asked"), ("unsaved", "^web: got SIGTERM"),
])
def test_a_request_to_end_during_a_soft_restart_starts_no_new_server(namespace, fault, line):
    namespace.marked_service("web", "exec " + namespace.guinea_pig("web", 3))
    namespace.fault(fault)
    namespace.start("--stop-timeout", "3")
    namespace.server()
    namespace.wait_ready("web")
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for(line)
    sent = time.monotonic()
    namespace.kill(signal.SIGTERM)
    namespace.wait_for("^pyinit1: the end: power off")
    assert time.monotonic() - sent < 2, "the soft restart went first"
    assert namespace.wait() == 0
    assert time.monotonic() - sent < 3 + 3 + SLACK
    assert namespace.log.text.count("pyinit1: server started") == 1
    assert "web: saved" in namespace.log.text


def test_ten_soft_restarts_keep_every_service_once(namespace):
    for name in ("one", "two", "three"):
        namespace.marked_service(name)
    namespace.start()
    namespace.server()
    before = namespace.settled()
    for number in range(10):
        namespace.kill(signal.SIGUSR1)
        namespace.server()
        assert namespace.services_running() == before, "restart %d" % number
    namespace.power_off()


def test_two_requests_for_a_soft_restart_at_once_are_one_or_two_but_end_well(namespace):
    namespace.marked_service("web")
    namespace.start()
    namespace.server()
    before = namespace.settled()
    for _ in range(2):
        namespace.kill(signal.SIGUSR1)
        namespace.wait_for("^pyinit1: signal: SIGUSR1")
    poll(lambda: namespace.log.drain().count("server: ready") in (2, 3), SECONDS, "the next server")
    namespace.power_off()           # only now it is sure that no third server comes
    started = namespace.log.text.count("pyinit1: server started")
    assert started in (2, 3)
    assert namespace.log.text.count("server: service started: web") == 1
    assert namespace.log.text.count("server: service adopted: web: pid %d" % before["web"][0]) == started - 1


def test_a_soft_restart_during_the_respawn_wait_starts_one_server(namespace):
    namespace.fault("exit-1")
    namespace.start()
    namespace.wait_for("^pyinit1: server ended")
    namespace.fault("")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert len(namespace.find("zinit-server")) == 1


def test_a_stopped_server_is_continued_and_asked(namespace):
    namespace.marked_service("web")
    namespace.start()
    server, before = namespace.server(), namespace.settled()
    import os
    os.kill(server.outer, signal.SIGSTOP)
    poll(lambda: Process(server.outer).state == "T", SECONDS, "the server to stop")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert namespace.settled() == before


def test_a_soft_restart_says_what_it_does(namespace):
    namespace.start()
    namespace.server()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert re.search("^pyinit1: soft restart: ", namespace.log.text, re.M)


# The server dies after PID 1 has answered SIGUSR1 and before it has read which services there are.
READ_FIRST = "        self.note_services()\n        if os.waitid("
DIES_MEANWHILE = (READ_FIRST, "        os.kill(self.server, signal.SIGKILL)\n"
                              "        os.waitid(os.P_PID, self.server, os.WEXITED | os.WNOWAIT)\n" + READ_FIRST)


def test_a_server_that_dies_before_its_services_are_read_is_warned_of_as_any_other_death(namespace, tmp_path):
    namespace.marked_service("web")
    namespace.start(init=mutant(tmp_path, DIES_MEANWHILE))
    namespace.server()
    service, = namespace.settled()["web"]
    namespace.kill(signal.SIGUSR1)
    warning = namespace.wait_for("^pyinit1: services may run twice: the server died and left: (.*)$").group(1)
    assert "pid %d " % service in warning
    namespace.server()
    assert "crashed" not in namespace.log.drain()


# What the server names as its state lies on a disk that is dead: who looks at it never comes back.
NEVER = "/run/never/state.json"
NEVER_ANSWERS = ("    try:\n        status = os.stat(path)\n",
                 "    while path == %r:\n        time.sleep(1000)\n    try:\n        status = os.stat(path)\n" % NEVER)


def test_a_state_on_a_path_that_never_answers_is_not_saved_and_pid_1_answers_meanwhile(namespace, tmp_path):
    namespace.marked_service("web", "exec " + namespace.guinea_pig("web", 0.1, "lock=/run/lock"))
    namespace.start(init=mutant(tmp_path, NEVER_ANSWERS), STANDIN_STATE=NEVER)
    namespace.server()
    before, = namespace.settled()["web"]
    namespace.wait_ready("web")
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^pyinit1: server ended: ")
    asked = time.monotonic()
    namespace.kill(signal.SIGHUP)
    namespace.wait_for("^pyinit1: signal: SIGHUP: ignored", RPC_LIMIT - 1)
    namespace.wait_for("^pyinit1: soft restart: saved state: not done within 5 s", RPC_LIMIT + SLACK)
    assert time.monotonic() - asked > RPC_LIMIT - 1, "given up too early"
    namespace.wait_for("^pyinit1: soft restart: state not saved: stopping: pid %d " % before)
    namespace.server()
    after, = namespace.settled()["web"]
    assert after != before and "RUNS TWICE" not in namespace.log.drain()
