"""Speed and size, as figures in the summary: "figure: WHAT: VALUE UNIT (goal GOAL)". Each fails only at ten times its goal.

What is compared is measured in turns, in one run; every figure is a median. The machine may be busy, a figure of ours may not.
"""

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time

import pytest

from helpers import ORPHAN_MAKER, PYINIT1, PYTHON, SECONDS, Namespace, Process, poll

FAR = 10                    # times the goal: then a test fails
IDLE_SECONDS = 10.0         # at least
RPC_GOAL = 0.005            # s: from SIGTERM to the server's having the request
BACK_GOAL = 0.05            # s: from the server's death to the next one's first statement, beyond the delay of 1 s
ORPHANS_GOAL = 1.2          # times tini's time
ORPHANS, ROUNDS = 20000, 8  # made in so many rounds, in turns with tini
MEMORY_GOAL = 4.5           # MB beyond an idle python3 -IS
WHOLE_GOALS = {"PID 1": 2.5, "no PID 1": 2.75}      # times python3 -IS -c pass

# Says for COUNT turns how many seconds each of the COMMANDs took: words of argv, COMMANDs parted by "+". As PID 1 each
# runs in a PID namespace of its own, whose making is not counted; its end is, as for every process.
WHOLE_RUNS = r'''
import ctypes, os, sys, time
CLONE_NEWPID = 0x20000000
place, count, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
one = words.index("+")
def run(argv):
    if os.fork() == 0:
        if place == "PID 1" and ctypes.CDLL(None).unshare(CLONE_NEWPID):
            os._exit(1)
        started = time.monotonic()
        status = os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)[1]
        os.write(1, b"%.6f " % (time.monotonic() - started))
        os._exit(status != 0)
    if os.wait()[1]:
        sys.exit("failed: %s" % argv)
for _ in range(count):
    run(words[:one])
    run(words[one + 1:])
'''


def switches(pid):
    """How often our process `pid` was woken, or interrupted, since its start."""
    status = Process(pid).status
    return int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"])


def asleep(namespace):
    """Wait until pyinit1.py has nothing left to do; -> its pid."""
    poll(lambda: Process(namespace.init).state == "S", SECONDS, "PID 1 to sleep")
    return namespace.init


def start_kept(namespace):
    namespace.service("web", "exec sleep 100000")
    namespace.start()
    namespace.server()
    namespace.log.position = 0
    namespace.wait_for("^pyinit1: server started")


def start_restarted(namespace):
    start_kept(namespace)
    namespace.kill(signal.SIGUSR1)
    for pattern in ("^pyinit1: soft restart: state saved", "^pyinit1: server started", "^server: asked: service.list_full"):
        namespace.wait_for(pattern)


def start_command(namespace):
    namespace.start("--log-level", "debug", "--", "sleep", "100000")
    namespace.wait_for("^pyinit1: memory given back")


class Idle:
    """A kept server, one after a soft restart, and COMMAND run once; from `since` on (monotonic) nothing happens to them."""

    def __init__(self, directory, stack):
        kinds = {"a kept server": start_kept, "a kept server after a soft restart": start_restarted, "COMMAND": start_command}
        self.pids = {}
        for number, (kind, start) in enumerate(kinds.items()):
            namespace = stack.enter_context(Namespace(directory / str(number)))
            start(namespace)
            self.pids[kind] = asleep(namespace)
        self.before = {kind: switches(pid) for kind, pid in self.pids.items()}
        self.since = time.monotonic()


@pytest.fixture(scope="module", autouse=True)
def idle(tmp_path_factory):
    """Idle: it sleeps while the other tests of this file run, so that its time costs none; its own test comes last."""
    with contextlib.ExitStack() as stack:
        yield Idle(tmp_path_factory.mktemp("idle"), stack)


def test_sigterm_is_a_request_to_the_server_at_once(tmp_path, figure):
    took = []
    for number in range(10):
        with Namespace(tmp_path / str(number)) as namespace:
            namespace.start()
            namespace.server()
            pid = asleep(namespace)
            sent = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            took.append(float(namespace.wait_for(r"^server: asked: system.shutdown: ([\d.]+)$").group(1)) - sent)
    figure("SIGTERM to the server's request", statistics.median(took) * 1000, "ms", "%g" % (RPC_GOAL * 1000))
    assert statistics.median(took) < FAR * RPC_GOAL, took


def test_a_killed_server_is_back_after_one_second(namespace, figure):
    namespace.start(STANDIN_CLOCK="1")
    took = []
    for _ in range(5):
        server = namespace.server()
        killed = time.monotonic()
        os.kill(server.outer, signal.SIGKILL)
        took.append(float(namespace.wait_for(r"^server: first statement: ([\d.]+)$").group(1)) - killed)
    figure("a killed server is back after", statistics.median(took), "s", "1.00 to %.2f" % (1 + BACK_GOAL))
    assert min(took) > 0.99 and statistics.median(took) < 1 + FAR * BACK_GOAL, took


def orphans_seconds(directory, maker, under_tini):
    """How long it takes to make a round's orphans and to reap them all; AssertionError if a zombie stays."""
    with Namespace(directory) as namespace:
        count = str(ORPHANS // ROUNDS)
        if under_tini:
            namespace.start(count, init=maker, python=("tini", "--", *PYTHON), ready=None)
        else:
            namespace.start("--", *PYTHON, str(maker), count, ready=None)
        return float(namespace.wait_for("^orphans: made %s in .* s: reaped after (.*) s$" % count, 2 * SECONDS).group(1))


def test_orphans_are_reaped_as_fast_as_tini_does(tmp_path, figure):
    if not shutil.which("tini"):
        pytest.skip("tini is not installed")
    maker = tmp_path / "maker.py"
    maker.write_text(ORPHAN_MAKER)
    took = {False: [], True: []}
    for number in range(ROUNDS):
        for under_tini in (False, True) if number % 2 else (True, False):
            took[under_tini].append(orphans_seconds(tmp_path / ("%d-%s" % (number, under_tini)), maker, under_tini))
    ratio = statistics.median(ours / tini for ours, tini in zip(took[False], took[True]))
    figure("%d orphans in %.2f s, tini %.2f s" % (ORPHANS, sum(took[False]), sum(took[True])), ratio, "x", ORPHANS_GOAL)
    assert ratio < FAR * ORPHANS_GOAL, took


def resident(pid):
    """The resident memory of our process `pid` in MB (2**20 bytes)."""
    return int(Process(pid).status["VmRSS"].split()[0]) / 1024


def idle_interpreter():
    """The resident memory, in MB, of an interpreter that does nothing."""
    argv = [*PYTHON, "-c", "import time; print('ready', flush=True); time.sleep(100000)"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            return resident(process.pid)
        finally:
            process.kill()


@pytest.mark.parametrize("start, what", [(start_kept, "a kept server"), (start_restarted, "a kept server after a soft restart")],
                         ids=["kept", "restarted"])
def test_memory_of_pid_1_is_little_more_than_an_interpreters(namespace, figure, start, what):
    start(namespace)
    idle = idle_interpreter()
    beyond = resident(asleep(namespace)) - idle
    figure("memory for %s, beyond the %.1f MB of python3 -IS" % (what, idle), beyond, "MB", MEMORY_GOAL)
    assert beyond < FAR * MEMORY_GOAL


@pytest.mark.parametrize("place", list(WHOLE_GOALS))
def test_whole_run_around_true_is_a_few_times_an_interpreters(place, figure):
    shell = ["unshare", "-Ur"] if os.getuid() != 0 else []
    words = [*PYTHON, str(PYINIT1), "--container", "--", "/bin/true", "+", *PYTHON, "-c", "pass"]
    done = subprocess.run([*shell, *PYTHON, "-c", WHOLE_RUNS, place, "25", *words], stdout=subprocess.PIPE, check=True,
                          stderr=subprocess.DEVNULL, timeout=2 * SECONDS)
    took = [float(word) for word in done.stdout.split()]
    ours, bare = statistics.median(took[::2]), statistics.median(took[1::2])
    figure("around true as %s, %.1f ms" % (place, ours * 1000), ours / bare, "x python3 -IS -c pass", WHOLE_GOALS[place])
    assert len(took) == 50 and ours < FAR * WHOLE_GOALS[place] * bare, took


def test_idle_means_asleep(idle, figure):
    """Not one wake-up, and nothing to be interrupted in."""
    left = max(0.0, idle.since + IDLE_SECONDS - time.monotonic())
    time.sleep(left)                    # what is tested is that time passes
    passed = time.monotonic() - idle.since
    woken = {kind: switches(pid) - idle.before[kind] for kind, pid in idle.pids.items()}
    for kind, count in woken.items():
        figure("context switches of PID 1 in %.0f s, %s" % (passed, kind), count, "", "0")
    assert set(woken.values()) == {0}
