"""Four points that the original gets wrong. Each claim is also tried on a copy that behaves as the original does.

What each test says is a function of the file under test, so that the copy is judged by the very same claim.
"""

import os
import re
import signal

import pytest

from helpers import PYINIT1, SECONDS, Namespace, child_pids, mutant, poll

# What turns pyinit1.py into the original, one point at a time: (text, replacement).
IGNORES_ZINIT_SOCKET = ('self.connect(connection, os.environ.get("ZINIT_SOCKET", SOCKET), deadline)',
                        "self.connect(connection, SOCKET, deadline)")
REAPS_ONLY_THE_SERVER = ("                pid, status = self.reaped = os.waitpid(-1, os.WNOHANG |", "                "
                         "pid, status = self.reaped = os.waitpid(self.server if self.ending and self.server else -1, os.WNOHANG |")
LEAVES_UNSAVED_SERVICES = ("            self.stop_services(\"state not saved\", list(self.services.values()))", "            self.services = {}")
STARTS_ONE_MORE_SERVER = ("        self.end()\n\n    def tidy",
                          "        if self.server is None:\n            self.start_server()\n"
                          "        self.end()\n\n    def tidy")


@pytest.fixture(params=["pyinit1", "the original's behaviour"])
def judge(request, tmp_path):
    """judge(claim, replacement): the claim holds for pyinit1.py, and fails for the copy with the replacement."""
    def it(claim, *replacements):
        with Namespace(tmp_path) as namespace:
            if request.param == "pyinit1":
                claim(namespace, PYINIT1)
            else:
                with pytest.raises(AssertionError, match="claim"):
                    claim(namespace, mutant(tmp_path, *replacements))
    return it


def requests_go_to_zinit_socket(namespace, init):
    namespace.start("--stop-timeout", "5", init=init, ZINIT_SOCKET="/run/elsewhere/the.sock", setup="mkdir -p /run/elsewhere")
    namespace.server()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    namespace.kill(signal.SIGTERM)
    namespace.wait()
    asked = re.findall(r"^server: asked: (\S+):", namespace.log.text, re.M)
    assert "system.prepare_restart" in asked and "system.shutdown" in asked, "claim: the server was asked at ZINIT_SOCKET"


def test_requests_go_to_zinit_socket_wherever_it_is(judge):
    judge(requests_go_to_zinit_socket, IGNORES_ZINIT_SOCKET)


def adopted_services_are_reaped_while_the_server_stops(namespace, init):
    """A service that is our child since a soft restart takes 0.1 s to stop, or 5 s if its zombie stays."""
    namespace.marked_service("web")
    namespace.start(init=init)
    namespace.server()
    services = namespace.settled()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert namespace.services_running() == services
    namespace.kill(signal.SIGTERM)
    namespace.wait()
    assert namespace.end_phases()["server stopped"] < 4, "claim: the server did not wait for a zombie"


def test_reaping_goes_on_while_the_server_stops(judge):
    judge(adopted_services_are_reaped_while_the_server_stops, REAPS_ONLY_THE_SERVER)


def signals_are_answered_while_the_server_stops(namespace, init):
    namespace.service("slow", "trap 'sleep 2; exit' TERM; while :; do sleep 1000 & wait; done")
    namespace.start(init=init)
    namespace.server()
    namespace.kill(signal.SIGTERM)
    namespace.wait_for("^server: asked: system.shutdown")
    namespace.kill(signal.SIGUSR2)
    namespace.wait()
    first = re.search("^pyinit1: (signal: SIGUSR2|the end: server stopped)", namespace.log.text, re.M).group(1)
    assert first == "signal: SIGUSR2", "claim: the signal was answered while the server stopped"


def test_signals_are_answered_while_the_server_stops(judge):
    deaf = ("self.answer_all(self.pending)", "self.answer_all(self.pending if not self.ending else self.pending.keys() & {signal.SIGCHLD})")
    judge(signals_are_answered_while_the_server_stops, deaf)


def no_service_runs_twice(namespace, init, fault):
    namespace.marked_service("web")
    namespace.fault(fault)
    namespace.start(init=init)
    namespace.server()
    old = namespace.settled()["web"]
    namespace.fault("")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    running = namespace.settled()["web"]
    assert len(running) == 1, "claim: the service runs once"
    assert (running == old) is ("unsaved" not in fault), "claim: it was adopted if it could be"


def test_no_service_runs_twice_after_a_restart_without_a_saved_state(judge):
    judge(lambda namespace, init: no_service_runs_twice(namespace, init, "unsaved"), LEAVES_UNSAVED_SERVICES)


def test_no_service_runs_twice_after_a_restart_that_lost_the_race(judge):
    judge(lambda namespace, init: no_service_runs_twice(namespace, init, "unsaved error-32603"), LEAVES_UNSAVED_SERVICES)


@pytest.mark.parametrize("fault", ["", "close-after", "error-32603"])
def test_no_service_runs_twice_after_a_restart_with_a_saved_state(namespace, fault):
    no_service_runs_twice(namespace, PYINIT1, fault)


def no_server_is_started_only_to_be_stopped(namespace, init):
    namespace.start(init=init)
    os.kill(namespace.server().outer, signal.SIGKILL)
    namespace.wait_for("^pyinit1: server ended")
    namespace.kill(signal.SIGTERM)
    namespace.wait()
    assert namespace.log.text.count("server: ready") == 1, "claim: no server was started during the respawn wait"


def test_a_request_during_the_respawn_wait_starts_no_server(judge):
    judge(no_server_is_started_only_to_be_stopped, STARTS_ONE_MORE_SERVER)


def test_a_signal_during_the_respawn_wait_is_answered_then(namespace):
    namespace.start()
    server = namespace.server()
    os.kill(server.outer, signal.SIGKILL)
    namespace.wait_for("^pyinit1: server ended")
    namespace.kill(signal.SIGHUP)
    namespace.wait_for("^pyinit1: signal: SIGHUP")
    assert not child_pids(namespace.init), "answered only after the wait"
    poll(lambda: child_pids(namespace.init), SECONDS, "the next server")
