"""--respawn COMMAND: any program is kept alive as the server is, and never asked by RPC."""

import os
import re
import signal
import time

import pytest

from helpers import PYTHON, SECONDS, Process, is_alive, poll

KEPT = ("--respawn", "--")


def kept(namespace, *options, seconds=0.0):
    """Start a guinea pig as kept COMMAND; -> its Process."""
    namespace.start(*options, *KEPT, *namespace.guinea_pig("kept", seconds).split())
    return namespace.pid_said(r"^kept: ready: pid (\d+)")


def test_command_is_found_on_path_and_gets_its_words_as_they_are(namespace):
    folder = namespace.directory / "bin"
    folder.mkdir()
    script = namespace.script("bin/frob", '#!/bin/sh\nfor word; do echo "word: <$word>"; done\nexec sleep 100000\n')
    words = ["-g", "daemon off;", "", "--", "--respawn", "*"]
    namespace.start("--respawn", "frob", *words, PATH="%s:%s" % (folder, os.environ["PATH"]))
    poll(lambda: namespace.log.drain().count("word: ") == len(words), SECONDS, "all words of " + str(script))
    assert re.findall("^word: <(.*)>$", namespace.log.text, re.M) == words


def test_command_is_not_the_server(namespace):
    kept(namespace)
    assert [process.words.split()[2:3] for process in namespace.children()] == [[str(namespace.directory / "guinea_pig.py")]]
    assert "zinit-server" not in namespace.log.drain()


@pytest.mark.parametrize("end, said", [
    ("exit 0", "exit status 0"), ("exit 3", "exit status 3"), ("kill -9 $$", "killed by SIGKILL"), ("kill -15 $$", "killed by SIGTERM"),
])
def test_command_that_ended_is_back_a_second_later_however_it_ended(namespace, end, said):
    namespace.start(*KEPT, "sh", "-c", "echo up; %s" % end)
    for _ in range(2):
        ended = namespace.wait_for(r"^pyinit1: COMMAND ended: pid \d+: (.*)$")
        at = time.monotonic()
        assert ended.group(1) == said
        namespace.wait_for("^up$")
        assert 0.8 < time.monotonic() - at < 4


def test_command_that_is_missing_is_tried_again_until_it_is_there(namespace):
    path = namespace.directory / "later"
    namespace.start(*KEPT, str(path))
    namespace.wait_for("^pyinit1: COMMAND not started: .*later")
    namespace.script("later.new", "#!/bin/sh\necho later: pid $$\nexec sleep 100000\n").rename(path)
    assert is_alive(namespace.pid_said(r"^later: pid (\d+)").outer)


def test_command_starts_clean_at_every_start(namespace):
    namespace.start(*KEPT, "sleep", "100000", prefix=("env", "--block-signal", "--ignore-signal"))
    for _ in range(2):
        pid = namespace.wait_for(r"^pyinit1: COMMAND started: pid (\d+)").group(1)
        command = namespace.by_pid(pid)
        assert command.signals("SigBlk") | command.signals("SigIgn") | command.signals("SigCgt") == set()
        poll(lambda: set(command.descriptors()) == {0, 1, 2}, SECONDS, "no descriptor but these")   # its libraries are read first
        assert command.group == command.pid
        os.kill(command.outer, signal.SIGKILL)


def test_script_without_an_interpreter_line_is_run_by_sh(namespace):
    script = namespace.script("plain", "echo plain: pid $$ $1; exec sleep 100000\n")
    namespace.start(*KEPT, str(script), "one")
    assert namespace.wait_for(r"^plain: pid (\d+) (.*)$").group(2) == "one"


@pytest.mark.parametrize("number, action", [
    (signal.SIGTERM, "power off"), (signal.SIGINT, "reboot"), (37, "halt"), (signal.SIGPWR, "power off"),
])
def test_request_to_end_is_sigterm_for_command_and_status_0_for_us(namespace, number, action):
    kept(namespace, seconds=0.5)
    namespace.power_off(number=number)
    text = namespace.log.text
    assert re.findall("^kept: got (.*)$", text, re.M)[0] == "SIGTERM" and "kept: saved" in text
    assert "pyinit1: the end: %s: " % action in text
    assert "not asked" not in text                          # no RPC was even tried
    assert len(re.findall("^kept: ready", text, re.M)) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH, 40, 64])
def test_no_signal_is_forwarded_to_a_kept_command(namespace, number):
    command = kept(namespace)
    namespace.kill(number)
    namespace.wait_for("^pyinit1: signal: ")
    assert is_alive(command.outer) and "kept: got" not in namespace.log.drain()


def test_soft_restart_ends_command_by_sigterm_and_starts_it_at_once(namespace):
    command = kept(namespace, seconds=0.5)
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^kept: saved")
    saved = time.monotonic()
    again = namespace.pid_said(r"^kept: ready: pid (\d+)")
    assert time.monotonic() - saved < 0.9, "it waited as after a crash"
    assert again.pid != command.pid
    assert "not asked" not in namespace.log.drain()
    assert len(namespace.find("guinea_pig.py kept")) == 1


def test_soft_restart_kills_a_command_that_does_not_end_within_stop_timeout(namespace):
    command = kept(namespace, "--stop-timeout", "1", seconds=-1)
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^kept: got SIGTERM")
    at = time.monotonic()
    assert namespace.pid_said(r"^kept: ready: pid (\d+)").pid != command.pid
    assert 0.8 < time.monotonic() - at < 5


def test_a_stopped_command_is_continued_so_that_it_sees_the_request(namespace):
    command = kept(namespace)
    os.kill(command.outer, signal.SIGSTOP)
    poll(lambda: Process(command.outer).state == "T", SECONDS, "COMMAND to stop")
    namespace.power_off()
    assert "kept: got SIGTERM" in namespace.log.text


def test_what_stops_a_kept_command_is_what_r_makes_of_sigterm(namespace):
    namespace.start("-r", "TERM:HUP", *KEPT, *namespace.guinea_pig("kept", 0, "hup").split())
    namespace.wait_ready("kept")
    namespace.power_off()
    assert re.findall("^kept: got (SIGHUP|SIGTERM)$", namespace.log.text, re.M) == ["SIGHUP"]


def test_r_that_drops_sigterm_leaves_a_kept_command_to_sigkill(namespace):
    namespace.start("-r", "TERM:0", "--stop-timeout", "0.5", *KEPT, *namespace.guinea_pig("kept").split())
    namespace.wait_ready("kept")
    assert namespace.power_off() >= 0.5
    assert "kept: got SIGTERM" not in namespace.log.text and "pyinit1: COMMAND killed: pid " in namespace.log.text


@pytest.mark.parametrize("options, first", [((), "COMMAND"), (("-g",), "worker")], ids=["alone", "group"])
def test_with_g_the_whole_group_of_a_kept_command_is_stopped_with_it(namespace, options, first):
    """Else what it started hears of it only when it has ended."""
    namespace.start(*options, *KEPT, "sh", "-c", "%s & exec %s" % (namespace.guinea_pig("worker", 1), namespace.guinea_pig("kept", 0.5)))
    namespace.wait_ready("worker", "kept")
    namespace.power_off()
    assert re.findall("^(?:pyinit1: )?(worker: got SIGTERM|COMMAND ended)", namespace.log.text, re.M)[0].split()[0].rstrip(":") == first


def test_request_during_the_respawn_wait_starts_command_no_more(namespace):
    namespace.start(*KEPT, "sh", "-c", "echo up")
    namespace.wait_for("^pyinit1: COMMAND ended")
    namespace.power_off()
    assert namespace.log.text.splitlines().count("up") == 1


def test_orphans_of_command_are_reaped_while_it_runs(namespace):
    namespace.start("-v", *KEPT, *PYTHON, "-c", "import os, time\nif os.fork() == 0:\n  if os.fork() == 0: os._exit(9)\n  os._exit(0)\n"
                    "os.wait()\ntime.sleep(100000)")
    namespace.wait_for(r"^pyinit1: orphan reaped: pid \d+: exit status 9$")
    assert len(namespace.children()) == 1
