"""What `make bench` measures: one function for each group of rows, from the columns to figures.Row. All inits take turns."""

import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench import figures
from bench.figures import ALONE, BARE, US
from bench.inits import AS_PID_1, ORIGINAL, PLAIN, PYINIT1, PYTHON, SECONDS, Running, kept, poll
from helpers import GUINEA_PIG, ORPHAN_MAKER, Process, docker, why_no_docker

HERE = Path(__file__).resolve().parent

TURNS = 200                 # whole runs of each
SIGNALS = 2500              # to each
GAP = (0.001, 0.003)        # seconds between two signals: everybody shall be asleep when the next one comes
IDLE_SECONDS = 10.0
SETTLE_SECONDS = 3.0        # after its start an init may tidy up
ORPHANS, ROUNDS = 20000, 4  # so many in all, made in so many rounds
BATCH = 200                 # ORPHAN_MAKER makes so many at a time
STOPS = 10                  # docker stops of each
BURSTS, BURST = 5, 10000    # so many bursts of so many signals
LOST_AFTER = 5.0            # seconds after its burst a signal that COMMAND has not seen is lost
AMONG = (signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH)    # one of each among a burst's SIGUSR1

READY_AND_SLEEP = "echo ready; exec sleep 100000"

# Says when each SIGUSR1 came, in nanoseconds of CLOCK_MONOTONIC.
WATCHER = r'''
import os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.write(1, b"ready\n")
while True:
    signal.sigwait([signal.SIGUSR1])
    os.write(1, b"got: %d\n" % time.monotonic_ns())
'''

# Computes, and says after each bit of work what came meanwhile, if anything did, and when: "seen: NUMBER=NANOSECONDS ...".
BUSY = r'''
import os, signal, sys, time
seen, told = {}, {}
def note(number, _frame):
    seen[number] = time.monotonic_ns()
for word in sys.argv[1:]:
    signal.signal(int(word), note)
os.write(1, b"ready\n")
while True:
    sum(range(20000))
    if seen != told:
        told = dict(seen)
        os.write(1, ("seen: %s\n" % " ".join("%d=%d" % pair for pair in told.items())).encode())
'''


class NotHere(Exception):
    """What a group of rows needs is not there."""


def command_columns(columns):
    """Those that run COMMAND."""
    return [name for name in columns if name in AS_PID_1]


def turned(names, turn):
    """The names in another order each turn, so that nobody always comes after the same one."""
    at = turn % len(names)
    return names[at:] + names[:at]


# ---- whole runs

def whole(place, columns, share):
    """Samples of whole runs around `true`; ALONE is a bare interpreter."""
    words, names = [], command_columns(columns)
    before = AS_PID_1 if place == "PID 1" else PLAIN
    for name in names:
        argv = [*before[name], "/bin/true"] if name != ALONE else [*PYTHON, "-c", "pass"]
        words += ["+", shutil.which(argv[0]), *argv[1:]]
    done = subprocess.run([*PYTHON, str(HERE / "whole.py"), place, str(max(3, round(TURNS * share))), *words[1:]],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True)
    samples = {name: [] for name in names}
    for line in done.stdout.splitlines():
        number, seconds = line.split()
        samples[names[int(number)]].append(float(seconds))
    return samples


def whole_as_pid_1(columns, share, panels):
    samples = whole("PID 1", columns, share)
    panels["a whole run around true, as PID 1"] = {BARE if name == ALONE else name: each for name, each in samples.items()}
    return figures.whole_rows("PID 1", samples)


def whole_as_plain(columns, share, _panels):
    return figures.whole_rows("a plain process", whole("a plain process", columns, share))


# ---- signals

def running(stack, argv, **options):
    return stack.enter_context(Running(argv, **options))


def pass_through(init):
    """Send one SIGUSR1; -> the seconds until COMMAND had it."""
    sent = time.monotonic_ns()
    os.kill(init.pid, signal.SIGUSR1)
    return (int(init.log.wait_for(r"^got: (\d+)$", SECONDS)[1]) - sent) / 1e9


def signals(columns, share, panels):
    samples = panels["a signal's way to COMMAND"] = {name: [] for name in command_columns(columns)}
    with contextlib.ExitStack() as stack:
        inits = {name: running(stack, [*AS_PID_1[name], *PYTHON, "-c", WATCHER]) for name in samples}
        for turn in range(round(SIGNALS * share)):
            for name in turned(list(inits), turn):
                time.sleep(random.uniform(*GAP))
                samples[name].append(pass_through(inits[name]))
    return figures.signal_rows(samples)


def burst(init):
    """Send BURST times SIGUSR1, as fast as it goes, and each of AMONG once in between; -> when the last one was sent."""
    for other in (None, *AMONG):
        if other:
            os.kill(init.pid, other)
        for _ in range(BURST // (1 + len(AMONG))):
            last = time.monotonic_ns()
            os.kill(init.pid, signal.SIGUSR1)
    return last


def nothing_lost(init):
    """A burst; -> did COMMAND see a SIGUSR1 after the last was sent, and each of the others?"""
    last = burst(init)

    def all_seen():
        said = re.findall(r"^seen: (.*)\n", init.log.drain(), re.M)
        seen = dict(map(int, word.split("=")) for word in said[-1].split()) if said else {}
        return set(seen) == {signal.SIGUSR1, *AMONG} and seen[signal.SIGUSR1] >= last
    try:
        return poll(all_seen, LOST_AFTER, "the signals of a burst")
    except AssertionError:
        return False


def bursts(columns, share, _panels):
    outcomes = {name: [] for name in command_columns(columns)}
    numbers = ["%d" % number for number in (signal.SIGUSR1, *AMONG)]
    for turn in range(max(1, round(BURSTS * share))):
        for name in turned(list(outcomes), turn):
            with Running([*AS_PID_1[name], *PYTHON, "-c", BUSY, *numbers]) as init:
                outcomes[name].append(nothing_lost(init))
    return figures.burst_rows(BURST, outcomes)


# ---- at rest

def switches(pid):
    """How often the process was woken, or interrupted, since its start."""
    status = Process(pid).status
    return int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"])


def resident(pid):
    """Resident memory in MB (2**20 bytes)."""
    return int(Process(pid).status["VmRSS"].split()[0]) / 1024


def idle_inits(columns, stack):
    """{kind: {column: Running}}; ALONE is an idle interpreter."""
    kinds = {"COMMAND": {}, "COMMAND, a plain process": {}, "a kept server": {}}
    sleeper = ["sh", "-c", READY_AND_SLEEP]
    interpreter = [*PYTHON, "-c", "import time; print('ready', flush=True); time.sleep(100000)"]
    for name in command_columns(columns):
        command = sleeper if name != ALONE else interpreter
        kinds["COMMAND"][name] = running(stack, [*AS_PID_1[name], *command])
        kinds["COMMAND, a plain process"][name] = running(stack, [*PLAIN[name], *command], plain=True)
    for name in (US, ORIGINAL):
        if name in columns:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyinit1-"))
            kinds["a kept server"][name] = stack.enter_context(kept(name, directory, READY_AND_SLEEP))
    kinds["a kept server"][ALONE] = kinds["COMMAND"][ALONE]
    return kinds


def at_rest(columns, share, _panels):
    seconds, rows = max(1.0, IDLE_SECONDS * share), []
    with contextlib.ExitStack() as stack:
        kinds = idle_inits(columns, stack)
        every = {init.pid: init for inits in kinds.values() for init in inits.values()}
        time.sleep(SETTLE_SECONDS)
        for init in every.values():
            init.await_sleep()
        before = {pid: switches(pid) for pid in every}
        time.sleep(seconds)         # what is measured is that time passes
        woken = {pid: switches(pid) - before[pid] for pid in every}
        for kind, inits in kinds.items():
            rows += figures.idle_rows(kind, seconds, {name: woken[init.pid] for name, init in inits.items() if name != ALONE})
        for kind, inits in kinds.items():
            rows += figures.memory_rows(kind, {name: resident(init.pid) for name, init in inits.items()})
    return rows


# ---- orphans

def orphans_seconds(name, count, directory):
    """How long it takes to make and to reap them, in a namespace whose PID 1 is `name`."""
    words = [*PYTHON, "-c", "print('ready', flush=True)\n" + ORPHAN_MAKER, str(count)]
    init = Running([*AS_PID_1[name], *words]) if name in AS_PID_1 else kept(name, directory, "exec " + shlex.join(words))
    with init:
        return float(init.log.wait_for(r"^orphans: .*: reaped after (.*) s$", 4 * SECONDS)[1])


def orphans(columns, share, _panels):
    samples = {name: [] for name in columns if name != ALONE}   # COMMAND as PID 1 reaps nobody
    count = max(BATCH, round(ORPHANS * share / ROUNDS))
    for turn in range(ROUNDS):
        for name in turned(list(samples), turn):
            with tempfile.TemporaryDirectory(prefix="pyinit1-") as directory:
                samples[name].append(orphans_seconds(name, count, directory))
    return figures.orphan_rows(ROUNDS * count, samples)


# ---- docker stop

@contextlib.contextmanager
def docker_image(names):
    """An image of Debian packages with pyinit1.py, the other inits and the guinea pig in it; -> its name."""
    import image
    import packages
    tree, tag = image.python_tree(packages.host_architecture()), "pyinit1-bench-%d" % os.getpid()
    image.add(tree, str(PYINIT1), image.file(PYINIT1, 0o755))
    image.add(tree, "guinea_pig.py", image.file(GUINEA_PIG))
    for name in set(names) - {US, ALONE}:
        image.add(tree, "usr/bin/" + name, image.file(Path(shutil.which(name)), 0o755))
    with tempfile.TemporaryFile() as tar:
        image.write_tar(tree, tar)
        tar.seek(0)
        subprocess.run(["docker", "import", "-", tag], stdin=tar, stdout=subprocess.DEVNULL, check=True, timeout=300)
    try:
        yield tag
    finally:
        docker("rmi", "--force", tag)


def stop_seconds(tag, name):
    """How long `docker stop` takes for a COMMAND that ends as soon as it gets SIGTERM."""
    words = ["python3" if word == PYTHON[0] else word for word in AS_PID_1[name]]
    identity = docker("run", "--detach", tag, *words, "python3", "-IS", "/guinea_pig.py", "pig", "0")
    try:
        poll(lambda: "pig: ready" in docker("logs", identity), SECONDS, "COMMAND in a container of %s" % name)
        started = time.monotonic()
        docker("stop", identity)
        return time.monotonic() - started
    finally:
        docker("rm", "--force", identity)


def docker_stop(columns, share, _panels):
    if why_no_docker():
        raise NotHere(why_no_docker())
    samples = {name: [] for name in command_columns(columns)}
    with docker_image(samples) as tag:
        for turn in range(max(2, round(STOPS * share))):
            for name in turned(list(samples), turn):
                samples[name].append(stop_seconds(tag, name))
    return figures.stop_rows(samples)


# In the table's order. Each takes the columns, the share of the full number of repetitions, and {title: samples} to draw.
GROUPS = {"whole": whole_as_pid_1, "plain": whole_as_plain, "signals": signals, "bursts": bursts, "rest": at_rest, "orphans": orphans,
          "stop": docker_stop}
