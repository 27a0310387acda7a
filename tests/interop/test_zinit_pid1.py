"""The original zinit-pid1 beside pyinit1, over the same server, where the original goes wrong.

Each test holds pyinit1 to what it promises, and the original to what the figures at the end of the run say of it.
"""

import os
import signal

import pytest
from helpers import SECONDS, poll
from zinit import ORIGINAL, PYINIT1

BOTH = pytest.mark.parametrize("kind", [PYINIT1, ORIGINAL], ids=lambda kind: kind.name)
GIVES_UP = 30           # seconds after which the original kills the server


@pytest.fixture
def eight(namespace):
    """Eight services: after a soft restart the original gives up before the last two are asked to stop."""
    for number in range(8):
        namespace.saving_service("s%d" % number)
    return namespace


def twins(namespace):
    """{service: groups beside the one that the server knows}, once the server has started all."""
    def complete():
        says = namespace.server_says()
        return says and all(says.values()) and says
    known = poll(complete, SECONDS, "the server to have started all services")
    return {name: groups - {known[name]} for name, groups in namespace.running().items() if groups != {known[name]}}


def adopt(namespace):
    """Soft restarts until the services were adopted; what runs twice meanwhile is killed, as an administrator would."""
    for _ in range(40):
        before = namespace.running()
        namespace.replace_server()
        doubled = twins(namespace)
        for service, process in namespace.processes_of_services():
            if process.group in doubled.get(service, ()):
                os.kill(process.outer, signal.SIGKILL)
        if namespace.wait_until_all_run_once() == before:
            return
    raise AssertionError("40 soft restarts, and none adopted the services")


def check_power_off(namespace, figure, what, original_saves):
    """Power off eight services: pyinit1 lets all of them save, promptly; the original needs over 30 s for `original_saves`."""
    namespace.diary.write_text("")
    seconds = namespace.power_off(GIVES_UP + SECONDS)
    saved = len(namespace.saved_by())
    figure("%s: power-off %s" % (namespace.kind.name, what), seconds, "s, %d services saved" % saved, "0.9, 8")
    assert (seconds > GIVES_UP, saved) == ((True, original_saves) if namespace.kind is ORIGINAL else (False, 8))


@BOTH
def test_power_off_with_ZINIT_SOCKET_elsewhere(eight, figure, tmp_path, kind):
    eight.start(kind, ZINIT_SOCKET=str(tmp_path / "elsewhere.sock"), HOME=str(tmp_path))
    check_power_off(eight, figure, "with ZINIT_SOCKET elsewhere", original_saves=0)


@BOTH
def test_power_off_of_adopted_services(eight, figure, kind):
    eight.start(kind)
    adopt(eight)
    check_power_off(eight, figure, "of adopted services", original_saves=6)


@BOTH
def test_services_after_a_soft_restart_that_saved_nothing(eight, figure, kind):
    eight.start(kind)
    eight.forbid_state()
    eight.replace_server()
    doubled = len(twins(eight))
    figure("%s: after a soft restart that saved nothing" % kind.name, doubled, "of 8 services run twice", "0")
    assert doubled == (8 if kind is ORIGINAL else 0)


@BOTH
def test_a_power_off_in_the_second_before_a_respawn(namespace, figure, kind):
    namespace.service("web")
    namespace.start(kind)
    namespace.kill_server()
    namespace.power_off(GIVES_UP + SECONDS)     # on a busy machine the original's new server is not there yet when it is asked
    started = bool(namespace.log.find(kind.started))
    figure("%s: servers started by a power-off before a respawn" % kind.name, started, "", "0")
    assert started == (kind is ORIGINAL)
