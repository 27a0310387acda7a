"""Not PID 1: a child subreaper that ends its own descendants and nobody else, and that can go with its parent (-p)."""

import contextlib
import os
import re
import signal

import pytest

from helpers import PYTHON, SECONDS, AtOnce, Namespace, Process, is_alive, poll

# An orphan with a child of its own; the first exits with 9 when a file is there, so that the second is an orphan, too.
FAMILY = r"""
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        os.write(1, b"grandchild: ready: pid %d\n" % os.getpid())
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        os._exit(7)
    os.write(1, b"child: ready: pid %d\n" % os.getpid())
    os._exit(9)
while True:
    time.sleep(3600)
"""


@pytest.mark.parametrize("words", [(), ("-s",), ("-c",), ("--respawn",)], ids=["bare", "s", "c", "respawn"])
def test_orphans_of_command_come_to_us_and_are_reaped(namespace, words):
    go = namespace.directory / "go"
    namespace.start("-v", *words, "--", *PYTHON, "-c", FAMILY, str(go), plain=True)
    orphan = namespace.pid_said(r"^grandchild: ready: pid (\d+)")
    # The child is COMMAND's and not yet waited for: what it leaves comes to us, not to PID 1.
    poll(lambda: Process(orphan.outer).parent == namespace.init, SECONDS, "the orphan to be ours")
    go.touch()
    namespace.wait_for(r"^pyinit1: orphan reaped: pid %d: exit status 7$" % orphan.pid)


def test_an_orphan_that_stops_is_nobodys_business(namespace):
    """Were it taken for COMMAND we would stop, too."""
    namespace.start("--", "sh", "-c", "%s; exec %s" % (namespace.guinea_pig("orphan", 0, "orphan stop"), namespace.guinea_pig("command")), plain=True)
    orphan, _ = namespace.wait_ready("orphan", "command")
    poll(lambda: Process(orphan.outer).state == "T" and Process(orphan.outer).parent == namespace.init, SECONDS, "our orphan to stop")
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        namespace.kill(number)
        namespace.wait_for("^command: got %s$" % number.name)
    assert Process(namespace.init).state == "S"


@pytest.mark.parametrize("words", [(), ("-c",), ("-g",)], ids=["bare", "c", "g"])
def test_it_ends_its_own_descendants_and_nobody_else(namespace, words):
    """A process beside us, one of our own group, outlives us, and hears of nothing."""
    go, leaver = namespace.directory / "go", "%s & setsid %s & until [ -e %s ]; do sleep 0.01; done; exit 5"
    after = '%s & pig=$!; "$@"; status=$?; kill -0 $pig && echo beside: alive; exit $status' % namespace.guinea_pig("beside")
    namespace.start(*words, "--grace", "1", "--", "sh", "-c", leaver % (namespace.guinea_pig("worker"), namespace.guinea_pig("stubborn", -1), go),
                    python=("sh", "-c", after, "sh", *PYTHON), ready=None)
    namespace.wait_ready("beside", "worker", "stubborn")
    go.touch()
    assert namespace.wait() == 5
    text = namespace.log.text
    assert "worker: got SIGTERM" in text and "stubborn: got SIGTERM" in text and "pyinit1: others killed" in text
    assert "beside: alive" in text and "beside: got" not in text


# ---- -p: with our parent

# PID 1 of these namespaces is a shell that stays; its child, our parent, is to be killed.
STAYS = ("sh", "-c", '"$@"; exec sleep 100000', "sh")
PARENT = ("sh", "-c", 'echo "parent: pid $$"; "$@" & wait', "sh")


def orphaned(namespace, *words):
    """Start pyinit1.py with these words, and kill its parent; -> its Process as it was before that."""
    namespace.start(*words, prefix=(*STAYS, *PARENT), ready=None)
    parent = namespace.pid_said(r"^parent: pid (\d+)$")
    ours = namespace.pid_said(r"^pyinit1: mode: plain process: PID (\d+)")
    namespace.wait_for("^pyinit1: ready")
    namespace.log.position = 0
    namespace.wait_ready("command")
    os.kill(parent.outer, signal.SIGKILL)
    return ours


@pytest.mark.parametrize("word, number", [("TERM", signal.SIGTERM), ("SIGHUP", signal.SIGHUP), ("10", signal.SIGUSR1), ("RTMIN+3", 37)])
def test_p_is_our_own_signal_when_our_parent_dies_and_so_commands(namespace, word, number):
    orphaned(namespace, "-p", word, "--", *PYTHON, "-c", "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
             "os.write(1, b'command: ready: pid %d\\n' % os.getpid())\n"
             "os.write(1, b'command: got %d\\n' % signal.sigwait(signal.valid_signals()))\nos._exit(3)")
    assert namespace.wait_for(r"^command: got (\d+)$")[1] == str(int(number))
    namespace.wait_for("^pyinit1: the end: exit status 3$")


def test_p_is_rewritten_as_any_other(namespace):
    orphaned(namespace, "-p", "USR1", "-r", "USR1:TERM", "--", *namespace.guinea_pig("command").split())
    namespace.wait_for("^command: got SIGTERM$")
    namespace.wait_for("^pyinit1: the end: exit status 0$")


def test_p_kill_ends_us_at_once(namespace):
    ours = orphaned(namespace, "-p", "KILL", "--", *namespace.guinea_pig("command").split())
    poll(lambda: not is_alive(ours.outer), SECONDS, "our end")
    assert "the end" not in namespace.log.drain()


def test_without_p_our_parents_death_is_nothing_to_us(namespace):
    ours = orphaned(namespace, "--", *namespace.guinea_pig("command").split())
    poll(lambda: Process(ours.outer).parent != ours.parent, SECONDS, "another parent")
    os.kill(ours.outer, signal.SIGUSR1)
    namespace.wait_for("^command: got SIGUSR1$")
    assert re.findall("^command: got (.*)$", namespace.log.text, re.M) == ["SIGUSR1"]


# Starts its words, and dies so many milliseconds after they have blocked SIGTERM, which is their first statement, or later if we
# were not looking: they catch it then. (fork(3) blocks it for a moment, too, before there are such words.)
HASTY = r"""
import os, sys, time
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
def read(pid, name):
    with open("/proc/%s/%s" % (pid, name)) as file:
        return file.read()
def blocks_or_catches():
    status = read(pid, "status")
    return [kind for kind in ("SigBlk:", "SigCgt:") if int(status.partition(kind)[2].split()[0], 16) >> 14 & 1]
while read(pid, "cmdline") == read("self", "cmdline") or not blocks_or_catches():
    pass
end = time.monotonic() + float(sys.argv[1]) / 1000
while time.monotonic() < end:
    pass
os._exit(0)
"""


def die_early(milliseconds, directory):
    """Let our parent die so early; -> whether COMMAND has got SIGTERM. After a loss it is not tried any more."""
    if LOST:
        return False
    with Namespace(directory) as namespace:
        namespace.start("-p", "TERM", "--", "sleep", "100000", prefix=(*STAYS, *PYTHON, "-c", HASTY, str(milliseconds)), ready=None)
        with contextlib.suppress(AssertionError):
            namespace.wait_for("^pyinit1: the end: exit status 143$")
        LOST.extend([milliseconds] * ("killed by SIGTERM" not in namespace.log.text))
        return not LOST


LOST = []


def test_p_is_kept_when_our_parent_dies_before_we_have_asked_for_it():
    """prctl(2) comes milliseconds after our start: who has lost its parent by then would wait for ever."""
    moments = [number / 4 for number in range(40)]
    deaths = AtOnce(die_early, moments, workers=3)
    assert all([deaths.result(moment) for moment in moments]), LOST
