"""COMMAND run once: every signal that can be caught is forwarded, to it or its group, as it comes or rewritten, and none is lost."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest

from helpers import PYINIT1, PYTHON, SECONDS, AtOnce, Process, clean_environment, is_alive, load_pyinit1, mutant, pending, poll

pyinit1 = load_pyinit1()

FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
FORWARDED = sorted(({*range(1, 32), *range(34, 65)} & set(signal.valid_signals()))
                   - FAULTS - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})
# Of SIGCONT and those that stop one sent later takes back the one that waits: the kernel's own rule, signal(7).
INDEPENDENT = [number for number in FORWARDED if number not in (signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)]
everywhere = pytest.mark.parametrize("place", [{}, {"plain": True}], ids=["container", "plain-process"])

# Takes every signal one by one, and says "NAME: got 15: T", T being time.monotonic(). With "child" its child, of the same
# group, does so, too. With "busy" it takes none before there is the file that follows.
CATCHER = r'''
import os, signal, sys, time
name, options = "command", sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
if "child" in options and os.fork() == 0:
    name = "child"
os.write(1, b"%s: ready: pid %d\n" % (name.encode(), os.getpid()))
while "busy" in options and not os.path.exists(options[-1]):
    pass
while True:
    number = signal.sigwaitinfo(signal.valid_signals() - {signal.SIGCHLD}).si_signo
    os.write(1, b"%s: got %d: %.6f\n" % (name.encode(), number, time.monotonic()))
'''


class Catcher:
    """pyinit1.py around CATCHER in a namespace."""

    def __init__(self, namespace, *options, words=(), **more):
        self.namespace = namespace
        namespace.start(*options, "--", *PYTHON, "-c", CATCHER, *words, **more)
        self.process, *self.children = namespace.wait_ready("command", *["child"] * ("child" in words))

    def send(self, *numbers):
        for number in numbers:
            self.namespace.kill(number)

    def got(self, name="command"):
        """The signals that it, or its child, said that it got, in order, so far."""
        return [int(number) for number in re.findall("^%s: got ([0-9]+):" % name, self.namespace.log.drain(), re.M)]

    def wait_for(self, number, name="command"):
        """Wait until it has got this signal."""
        poll(lambda: number in self.got(name), SECONDS, "signal %d to reach %s; got %s" % (number, name, self.got(name)))


# ---- each of them

@everywhere
def test_every_signal_that_can_be_caught_is_forwarded_once(namespace, place):
    catcher = Catcher(namespace, **place)
    for number in FORWARDED:
        catcher.send(number)
        catcher.wait_for(number)
    assert catcher.got() == FORWARDED
    assert "pyinit1: signal" not in namespace.log.text and "the end" not in namespace.log.text


def test_sigchld_and_the_six_of_a_fault_are_not(namespace):
    """The kernel drops the six, as PID 1 has no handler: after a real fault that would be called for ever."""
    catcher = Catcher(namespace)
    for number in sorted(FAULTS | {signal.SIGCHLD}):
        assert namespace.enter("kill", "-%d" % number, "1").wait(SECONDS) == 0
    catcher.send(signal.SIGUSR1)
    catcher.wait_for(signal.SIGUSR1)
    assert catcher.got() == [signal.SIGUSR1]
    assert not FAULTS & Process(namespace.init).signals("SigCgt")


@everywhere
def test_of_all_at_once_none_is_lost(namespace, place):
    """We are stopped meanwhile, so that all come in one wake-up, ten times."""
    catcher = Catcher(namespace, **place)
    for round_number in range(1, 11):
        catcher.send(signal.SIGSTOP)
        poll(lambda: Process(namespace.init).state == "T", SECONDS, "PID 1 to stop")
        catcher.send(*INDEPENDENT, signal.SIGCONT)
        for number in INDEPENDENT:
            poll(lambda: catcher.got().count(number) >= round_number, SECONDS, "signal %d, round %d" % (number, round_number))
    assert [number for number in sorted(catcher.got()) if number != signal.SIGCONT] == sorted(INDEPENDENT * 10)


@everywhere
def test_of_a_burst_of_ten_thousand_the_last_arrives_and_nothing_else_is_lost(namespace, place):
    """Equal signals merge, so few of the burst arrive; but one that was sent after all the others is seen after it."""
    catcher = Catcher(namespace, words=("busy", str(namespace.directory / "go")), **place)
    burst, *others = [signal.SIGUSR1, *(number for number in INDEPENDENT if number != signal.SIGUSR1)]
    among = {100 * index: [number] for index, number in enumerate(others, 10)}
    for count in range(10000):
        if count == 4000:
            (namespace.directory / "go").touch()            # some of them come while it is busy, others while it takes them
        last = time.monotonic()
        catcher.send(burst, *among.get(count, ()))
        if count % 100 == 0:
            namespace.log.drain()

    def seen_after_the_last():
        times = re.findall("^command: got %d: ([0-9.]+)$" % burst, namespace.log.drain(), re.M)
        return times and float(times[-1]) >= round(last, 6)
    poll(seen_after_the_last, SECONDS, "a signal of the burst after the last was sent")
    for number in others:
        catcher.wait_for(number)
    assert {number: catcher.got().count(number) for number in others} == dict.fromkeys(others, 1)


def test_it_is_forwarded_while_ten_thousand_orphans_are_reaped(namespace):
    maker = "import os\nfor _ in range(50):\n  if os.fork() == 0:\n    for _ in range(200):\n      if os.fork() == 0: os._exit(0)\n    os._exit(0)"
    catcher = Catcher(namespace)
    guest = namespace.enter(*PYTHON, "-c", maker, stdin=subprocess.DEVNULL)
    rounds = 0
    while guest.poll() is None or rounds < 10:
        for number in (signal.SIGUSR1, signal.SIGTERM, 40):
            before = catcher.got().count(number)
            catcher.send(number)
            poll(lambda: catcher.got().count(number) > before, SECONDS, "signal %d among the orphans" % number)
        rounds += 1
    poll(lambda: not [process for process in namespace.processes() if process.state == "Z"], SECONDS, "no zombie")


# ---- to whom

@everywhere
@pytest.mark.parametrize("options, who", [((), ["command"]), (("-g",), ["command", "child"]), (("--group",), ["command", "child"])],
                         ids=["alone", "g", "group"])
def test_only_with_g_the_whole_process_group_gets_it(namespace, options, who, place):
    catcher = Catcher(namespace, *options, words=("child",), **place)
    for number in (signal.SIGTERM, signal.SIGWINCH, 40, signal.SIGUSR2):
        catcher.send(number)
        for name in who:
            catcher.wait_for(number, name)
    assert catcher.got() == [signal.SIGTERM, signal.SIGWINCH, 40, signal.SIGUSR2]
    assert catcher.got("child") == (catcher.got() if "child" in who else [])


@pytest.mark.parametrize("options", [(), ("-g",)], ids=["alone", "group"])
def test_between_fork_and_setpgid_nothing_is_lost(namespace, options):
    """tini -g, dumb-init and catatonit -g signal a group that does not exist yet, and take that for success.

    A copy's child waits before its setpgid(2) until we say so, and SIGTERM comes meanwhile.
    """
    waiting = "                while not os.path.exists('/run/go'):\n                    pass\n"
    slow = mutant(namespace.directory, ("                os.setpgid(0, 0)\n", waiting + "                os.setpgid(0, 0)\n"))
    namespace.start(*options, "--", "sleep", "100000", init=slow)
    child, = namespace.children()
    assert child.group != child.pid
    namespace.kill(signal.SIGTERM)
    poll(lambda: signal.SIGTERM in pending(child), SECONDS, "SIGTERM to be forwarded")
    (namespace.run_directory / "go").touch()
    assert namespace.wait() == 128 + signal.SIGTERM


# ---- as what

REWRITES = {
    "to-another": (("TERM:QUIT",), {signal.SIGTERM: signal.SIGQUIT}),
    "by-number": (("15:3",), {signal.SIGTERM: signal.SIGQUIT}),
    "dropped": (("HUP:0",), {signal.SIGHUP: 0}),
    "swapped": (("INT:TERM", "TERM:INT"), {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGINT}),
    "real-time": (("RTMIN+3:TERM", "SIGUSR1:RTMAX"), {37: signal.SIGTERM, signal.SIGUSR1: 64}),
    "terminals": (("TSTP:0", "TTIN:USR2", "CONT:0"), {signal.SIGTSTP: 0, signal.SIGTTIN: signal.SIGUSR2, signal.SIGCONT: 0}),
    "the-last-counts": (("TERM:QUIT", "TERM:HUP"), {signal.SIGTERM: signal.SIGHUP}),
    "many": (tuple("%d:%d" % (number, number + 1) for number in range(40, 64)), {number: number + 1 for number in range(40, 64)}),
}


@everywhere
@pytest.mark.parametrize("name", REWRITES)
def test_r_forwards_another_signal_or_none(namespace, name, place):
    pairs, expected = REWRITES[name]
    catcher = Catcher(namespace, *(word for pair in pairs for word in ("-r", pair)), **place)
    sent = [*expected, signal.SIGUSR1]
    for number in sent:
        count = len(catcher.got())
        catcher.send(number)
        if expected.get(number, number):
            poll(lambda: len(catcher.got()) > count, SECONDS, "what signal %d becomes" % number)
    fence = 35
    catcher.send(fence)
    catcher.wait_for(fence)
    assert catcher.got() == [number for number in (expected.get(number, number) for number in sent) if number] + [fence]


def test_r_to_sigkill_kills(namespace):
    catcher = Catcher(namespace, "-r", "TERM:KILL")
    catcher.send(signal.SIGTERM)
    assert namespace.wait() == 128 + signal.SIGKILL


def test_r_and_g_together(namespace):
    catcher = Catcher(namespace, "-g", "-r", "TERM:40", words=("child",))
    catcher.send(signal.SIGTERM)
    for name in ("command", "child"):
        catcher.wait_for(40, name)
        assert catcher.got(name) == [40]


# ---- when

LEAVER = "%s & until [ -e %s ]; do sleep 0.01; done; exit 5"


@everywhere
@pytest.mark.parametrize("options", [(), ("-g",)], ids=["alone", "group"])
def test_after_command_has_ended_nothing_is_forwarded(namespace, options, place):
    """What it left behind, in its group, gets what the end sends and no more; and the end goes on."""
    go = namespace.directory / "go"
    namespace.start(*options, "--", "sh", "-c", LEAVER % (namespace.guinea_pig("worker", 2), go), **place)
    worker, = namespace.wait_ready("worker")
    go.touch()
    namespace.wait_for("^worker: got SIGTERM")
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGWINCH, 34):
        namespace.kill(number)
    assert is_alive(worker.outer) and namespace.wait() == 5
    assert sorted(re.findall("^worker: got (.*)$", namespace.log.text, re.M)) == ["SIGCONT", "SIGTERM"]


# ---- the start

class Start:
    """The README's ENTRYPOINT around a COMMAND that dies of SIGTERM, as PID 1 of a namespace; use it in a with statement."""

    def __init__(self, *options):
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", *["-Ur"] * (os.getuid() != 0), "env", "--block-signal",
             *PYTHON, str(PYINIT1), *options, "--", "sleep", "100000"],
            env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()             # and --kill-child kills its PID 1
        self.process.wait()

    def blocks(self):
        """Wait until env(1), or python after it, blocks SIGTERM, without the pauses of poll(); -> PID 1's pid."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, IndexError):
                with open("/proc/%d/task/%d/children" % (self.process.pid, self.process.pid)) as file:
                    init = Process(file.read().split()[0])
                # unshare blocks it as well, for a moment. Who looks too late finds a handler: that moment is right, too.
                masks = init.signals("SigBlk") | init.signals("SigCgt")
                if init.words.startswith(("env ", PYTHON[0] + " ")) and signal.SIGTERM in masks:
                    return init.outer
        raise AssertionError("waited %g s in vain for env to block SIGTERM" % SECONDS)


def start_and_signal(parameter, _directory):
    """SIGTERM so many milliseconds after the block; -> the exit status, -1 if it was lost, and none after a loss."""
    milliseconds, run = parameter
    with contextlib.ExitStack() as stack:
        start = None if LOST else stack.enter_context(Start(*["-g"] * (run % 2)))
        if start:
            init, at = start.blocks(), time.monotonic()
            time.sleep(max(0.0, at + milliseconds / 1000 - time.monotonic()))       # not for luck: any moment is right
            os.kill(init, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return start.process.wait(SECONDS)
            LOST.append(parameter)
    return -1


LOST = []                       # the first (milliseconds, run) whose SIGTERM had no effect: the others need not be tried


def test_sigterm_at_every_millisecond_of_the_first_forty_is_never_lost():
    """200 runs with the README's ENTRYPOINT, half of them with -g. Where it is lost, COMMAND outlives our patience."""
    moments = [(milliseconds, run) for milliseconds in range(40) for run in range(5)]
    starts = AtOnce(start_and_signal, moments, workers=3)
    statuses = {moment: starts.result(moment) for moment in moments}
    assert LOST == [] and set(statuses.values()) == {128 + signal.SIGTERM}, statuses


def test_a_stop_that_its_death_overtook_is_nobodys(monkeypatch):
    """Both statuses come in one wake-up: a stop, and before it is answered the death. Nobody is continued, and it ends."""
    statuses = [(7, signal.SIGTSTP << 8 | 0x7F), (7, 3 << 8), (0, 0)]
    monkeypatch.setattr(os, "waitpid", lambda *_: statuses.pop(0))
    monkeypatch.setattr(pyinit1, "kill", lambda *who: pytest.fail(f"signalled: {who}"))
    monkeypatch.setattr(os, "getpid", lambda: 1)  # anybody else would stop as well
    init = pyinit1.Init({"command": ["x"]}, pyinit1.CONTAINER)
    init.server, init.pending = 7, {signal.SIGCHLD: None}
    init.turn()
    assert (init.server, init.status, init.request) == (None, 3, pyinit1.POWER_OFF)
