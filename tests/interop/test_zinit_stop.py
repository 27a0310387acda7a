"""The end over the real server: in its order, in its own time, whatever state the server is in."""

import signal
import subprocess

import pytest
from helpers import RPC_LIMIT, SLACK

SERVER_PER_SERVICE = 0.1        # at least: the real server sends SIGTERM, looks every 0.1 s, then goes on to the next
SURPLUS = 0.1                   # what we may add to the server's own time; tests fail at ten times that


def check_time(namespace, figure, what, seconds, count):
    """`seconds` for `count` services: the figure, and what we add to the server's own time."""
    own = namespace.server_time()
    least = count * SERVER_PER_SERVICE
    figure("power-off of " + what, seconds, "s, of which the server took %.3f" % own, "%.1f + %.1f" % (least, SURPLUS))
    assert own >= least
    assert seconds - own < 10 * SURPLUS, namespace.log.text


def test_ten_services_stop_in_order_in_the_servers_own_time(namespace, figure):
    names = ["s%d" % number for number in range(10)]
    for number, name in enumerate(names):
        namespace.saving_service(name, after=names[:number][-1:])
    namespace.start()
    seconds = namespace.power_off()
    check_time(namespace, figure, "ten services", seconds, 10)
    assert namespace.saved_by() == names[::-1]
    assert "pyinit1: server killed" not in namespace.log.text


def test_a_power_off_right_after_an_adopting_restart_takes_no_longer(namespace, figure):
    names = ["s%d" % number for number in range(6)]
    for name in names:
        namespace.saving_service(name)
    namespace.start()
    namespace.adopting_restart()
    namespace.diary.write_text("")
    seconds = namespace.power_off()
    check_time(namespace, figure, "six services that a soft restart adopted", seconds, 6)
    assert sorted(namespace.saved_by()) == names


def test_power_off_asks_the_server_at_ZINIT_SOCKET(namespace, tmp_path):
    namespace.saving_service("web")
    namespace.start(ZINIT_SOCKET=str(tmp_path / "elsewhere.sock"))
    assert namespace.power_off() < SLACK
    assert namespace.saved_by() == ["web"]
    assert "shutdown requested via IPC" in namespace.log.text


def test_a_stopped_server_does_not_cost_its_services_their_time_to_save(namespace):
    for name in "db", "web":
        namespace.saving_service(name, seconds=0.5)
    namespace.start()
    namespace.freeze_server()
    assert namespace.power_off() < RPC_LIMIT + 2 * 0.5 + SLACK
    assert sorted(namespace.saved_by()) == ["db", "web"]


@pytest.mark.parametrize("word, signal_and_action", [("poweroff", "SIGTERM: power off"), ("reboot", "SIGINT: reboot")])
def test_zinits_own_command_ends_the_namespace_in_order(namespace, word, signal_and_action):
    namespace.saving_service("web")
    namespace.start()
    assert namespace.enter("zinit", word, stdout=subprocess.DEVNULL).wait() == 0
    assert namespace.wait() == 0
    assert "pyinit1: signal: %s\n" % signal_and_action in namespace.log.text
    assert namespace.saved_by() == ["web"]


def test_a_power_off_during_a_soft_restart_stops_the_services(namespace):
    namespace.saving_service("web", seconds=0.5)
    namespace.start()
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^pyinit1: server ended")
    assert namespace.power_off() < SLACK
    assert namespace.saved_by()[-1:] == ["web"]


def test_services_of_a_killed_server_have_time_to_save_at_a_power_off(namespace):
    for name in "db", "web":
        namespace.saving_service(name, seconds=0.5)
    namespace.start()
    namespace.kill_server()
    assert namespace.power_off() < SLACK
    assert sorted(namespace.saved_by()) == ["db", "web"]
