#!/usr/bin/env python3
"""Fuzz: lives of pyinit1.py at random, held after each step against a model that says what must be true.

    tests/fuzz.py 1000                  so many schedules
    tests/fuzz.py 1 --seed 4711         the schedule of this seed again

A schedule is one life in a PID namespace: some steps, of which each is up to three deeds at almost the same time (signals,
orphans, deaths of the server, soft restarts, updates good and bad, crashes of pyinit1.py's own, faults of the socket), and an
end, with or without company. Its seed says what is done; schedule n of a run has the run's seed + n. The model: the right
ending, exactly one, with the right status; the server's pid; each service once; no zombie; nobody left; no request lost.
One line for each schedule that failed, with what repeats it, and a table at the end.
Exit status: 0 if all went well, 1 if one did not, 2 for a bad option.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback

if __name__ == "__main__" and "--init" in sys.argv[:-1]:        # helpers reads it at its import
    os.environ["PYINIT1_FILE"] = os.path.abspath(sys.argv[sys.argv.index("--init") + 1])

import helpers
from helpers import SECONDS, Namespace, Process, child_pids, is_alive, poll
from updating import Updatable, from_here, generation, quiet

from injection import EXCEPTIONS, IN_TRIALS_NAMESPACE

STOP_TIMEOUT, GRACE = 4, 10         # s: what the copy gives the server, and the others
IDLE = 0.08                         # s: longer than pyinit1.py ever sleeps while it has something under way, see LOOK_AGAIN
GAP = 0.15                          # s at most between two deeds of a step
STEPS = (1, 5)                      # of a schedule, without the end
CRASHES = 2                         # of one life at most: from the third on pyinit1.py gives up what was asked for

# ---- the copy of pyinit1.py: shorter waits, and a crash to order

COPY = """
RESPAWN_DELAY, RPC_LIMIT, RESTART_LIMIT, LISTEN_LIMIT = 0.2, 0.8, 0.8, 0.8

def crash_to_order(name):
    well = getattr(Init, name)

    def method(self, *more):
        if os.getpid() == PID_AT_START and not ON_TRIAL:
            try:
                wanted = read_file("/run/crash").decode().split()
            except OSError:
                wanted = [""]
            if wanted[0] == name:
                os.unlink("/run/crash")
                import builtins
                raise getattr(builtins, wanted[1])("on purpose")
        return well(self, *more)
    setattr(Init, name, method)

if __name__ == "__main__":
    PID_AT_START, ON_TRIAL = os.getpid(), %s
    for each in %r:
        crash_to_order(each)
"""
IN_THE_LOOP = ("answer", "turn", "sleep", "reap")           # not the handler: it would take those along that it interrupted
IN_THE_END = ("stop_server", "stop_others", "nobody_left", "signal_others", "limits_in_words", "phase")
CRASHES_AT_ONCE = "turn_well = Init.turn\ndef turn(self, *more):\n    return turn_well(self, *more) if %s else 1 / 0\nInit.turn = turn\n" % IN_TRIALS_NAMESPACE


def copy(number, early="", more=""):
    """The copy, of this generation."""
    return generation(number, early, COPY % (IN_TRIALS_NAMESPACE, IN_THE_LOOP + IN_THE_END) + more)


# ---- what a seed means

# deeds: (name, seconds after the one before) at almost the same time. Ending: the signals that ask for it, and deeds meanwhile.
Plan = collections.namedtuple("Plan", "seed kind services steps ending")
Ending = collections.namedtuple("Ending", "company numbers crash")
Deed = collections.namedtuple("Deed", "act often kinds effects")

SERVER, PLAIN, KEPT, ONCE = "server", "plain process", "kept COMMAND", "COMMAND run once"
KINDS = {SERVER: 6, PLAIN: 2, KEPT: 2, ONCE: 2}
ENDINGS = {signal.SIGTERM: "power off", signal.SIGPWR: "power off", 38: "power off", signal.SIGINT: "reboot", 39: "reboot", 37: "halt"}
IGNORED = {signal.SIGHUP: "SIGHUP", signal.SIGWINCH: "SIGWINCH", signal.SIGALRM: "SIGALRM", signal.SIGIO: "SIGIO", 40: "signal 40", 50: "signal 50"}
NAMED = [number for number in IGNORED if number < 32]
# How the next server misbehaves; see the stand-in. What is nothing comes more often.
SERVER_FAULTS = ("", "", "hung", "garbage", "unsaved", "forgets", "close-first", "close-after", "endless", "slow", "wrong-id", "error-32603",
                 "error-32603 unsaved", "refused", "no-accept", "full", "no-socket", "stays", "nested", "hung ignore-term")

DEEDS = {}


def deed(often, kinds, *effects):
    """Enter a function(life, draw) as a deed; its name is the deed's, with spaces."""
    def enter(function):
        DEEDS[function.__name__.replace("_", " ")] = Deed(function, often, kinds, frozenset(effects))
        return function
    return enter


def draw_step(draw, kind, crashes, most=3):
    """[(deed, gap)] of one step: at most one of them changes the generation, or crashes, for the model is simple."""
    fit = {name: each for name, each in DEEDS.items() if kind in each.kinds and ("crash" not in each.effects or crashes < CRASHES)}
    chosen, seen = [], set()
    for name in draw.choices(list(fit), [each.often for each in fit.values()], k=draw.randint(1, most)):
        once = fit[name].effects & {"generation", "restart"}
        if not once & seen and name not in chosen:
            chosen.append(name)
            seen |= once
    return tuple((name, draw.choice((0.0, draw.uniform(0.0, GAP)))) for name in chosen)


def crashes_of(steps):
    return sum("crash" in DEEDS[name].effects for step in steps for name, _ in step)


def plan_of(seed):
    """The Plan that a seed means."""
    draw = random.Random("schedule %d" % seed)
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    services, steps = draw.randint(0, 2) if kind in (SERVER, PLAIN) else 0, []
    for _ in range(draw.randint(*STEPS)):
        steps.append(draw_step(draw, kind, crashes_of(steps)))
    company = draw_step(draw, kind, CRASHES, 2) if draw.random() < 0.5 else ()
    crash = draw.choice(IN_THE_END) if crashes_of(steps) < CRASHES and draw.random() < 0.2 and kind != ONCE else ""
    numbers = draw.choices(list(ENDINGS), k=draw.choice((1, 1, 2, 3)))
    return Plan(seed, kind, services, tuple(steps), Ending(company, tuple(numbers), crash))


def in_words(plan):
    """A plan in one line."""
    steps = ["+".join(name for name, _ in step) for step in (*plan.steps, plan.ending.company) if step]
    crash = ", crash in " + plan.ending.crash if plan.ending.crash else ""
    return "%s, %d services: %s; %s%s" % (plan.kind, plan.services, "; ".join(steps), " ".join("%d" % n for n in plan.ending.numbers), crash)


# ---- the deeds

BOTH, KEEPS, ALL = (SERVER, PLAIN), (SERVER, PLAIN, KEPT), tuple(KINDS)
NOT_PLAIN = (SERVER, KEPT, ONCE)        # where those who are brought in from outside become children of ours


@deed(3, ALL)
def signals(life, draw):
    """Each must be answered: logged, or forwarded."""
    for number in draw.sample(NAMED if life.plan.kind == ONCE else list(IGNORED), draw.randint(1, 4)):
        life.expect("^command: got %s$" % IGNORED[number] if life.plan.kind == ONCE else "^pyinit1: signal: %s: ignored$" % IGNORED[number])
        life.namespace.kill(number)


@deed(2, NOT_PLAIN)
def orphans(life, draw):
    """They are reaped."""
    life.namespace.enter("sh", "-c", "for n in $(seq %d); do (sleep 0.0%d &); done" % (draw.randint(1, 30), draw.randint(0, 9))).wait()


@deed(1, NOT_PLAIN)
def an_orphan_that_stays(life, draw):
    """It is left alone to the end, and then given the time to save its work."""
    name = "stays%d" % len(life.staying)
    life.staying.append(name)
    with open("/proc/%d/fd/1" % life.namespace.init, "wb", buffering=0) as output:
        life.namespace.enter("sh", "-c", life.namespace.guinea_pig(name, 0.05, draw.choice(("orphan", "orphan hup"))), stdout=output).wait()
    life.expect("^%s: ready" % name)


@deed(2, KEEPS, "death")
def server_killed(life, draw):
    """It is started again; services that it leaves go on."""
    for process in life.servers()[:1]:
        with contextlib.suppress(OSError):
            os.kill(process.outer, draw.choice((signal.SIGKILL, signal.SIGSEGV)) if life.plan.kind in BOTH else signal.SIGKILL)


@deed(1, KEEPS)
def server_stopped(life, draw):
    """A stopped server is nobody's business, until it is to be asked; a COMMAND is continued."""
    for process in life.servers()[:1]:
        with contextlib.suppress(OSError):
            os.kill(process.outer, signal.SIGSTOP)
            time.sleep(draw.choice((0.0, 0.05)))
            os.kill(process.outer, signal.SIGCONT)


@deed(3, KEEPS, "restart")
def soft_restart(life, draw):
    life.expect("^pyinit1: signal: SIGUSR1: soft restart$")
    life.namespace.kill(signal.SIGUSR1)


@deed(3, BOTH)
def the_next_server_misbehaves(life, draw):
    life.faulty = True
    life.namespace.fault(draw.choice(SERVER_FAULTS))


@deed(1, BOTH)
def the_socket_vanishes(life, draw):
    life.faulty = True
    with contextlib.suppress(OSError):
        life.namespace.socket.unlink()


@deed(1, BOTH)
def clients_hang_up(life, draw):
    """Clients of the server's come and go, with an answer unread if they asked for one."""
    for _ in range(draw.randint(1, 4)):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(life.namespace.socket))
            client.send(b'{"jsonrpc":"2.0","id":1,"method":"system.ping"}\n' * draw.randint(0, 2))


@deed(3, KEEPS, "generation")
def update(life, draw):
    life.number += 1
    life.home.offer(life.copy(life.number))
    life.installed(life.number)
    life.expect("^generation: %d$" % life.number)
    life.namespace.kill(signal.SIGUSR2)


@deed(1, KEEPS, "generation")
def bad_update(life, draw):
    """It is refused, and nothing is changed."""
    new = life.home.beside(".new")
    life.home.offer(life.copy(99, draw.choice(("1 / 0\n", "def:\n", "os._exit(0)\n"))))
    draw.choice((lambda: None, lambda: new.write_text(new.read_text() + "#\n"), new.unlink))()
    life.expect("^pyinit1: self-update: refused: ")
    life.namespace.kill(signal.SIGUSR2)


@deed(1, KEEPS, "generation", "crash")
def update_that_crashes(life, draw):
    """The file from before it comes back."""
    life.number += 1
    life.home.offer(life.copy(life.number, more=CRASHES_AT_ONCE))
    life.installed(life.number)
    life.crashed()
    life.expect("^pyinit1: crashed: ZeroDivisionError(?s:.*)^generation: %d$" % life.generation)
    life.namespace.kill(signal.SIGUSR2)


@deed(2, ALL, "generation", "crash")
def crash(life, draw):
    """It costs nothing; soon after an update the file from before it comes back."""
    life.order_crash(draw.choice(IN_THE_LOOP), draw)
    life.crashed()
    life.expect("^pyinit1: crashed: (?s:.*)^pyinit1: ready")
    life.namespace.kill(signal.SIGCHLD)         # reaps, and is answered by nobody
    life.namespace.kill(signal.SIGWINCH)


# ---- one life, and the model of it

class Descent(Namespace):
    """A Namespace that finds its processes by descent: PID 1's, without a look at all of this computer's."""

    def processes(self):
        found, pids = [], [self.init]
        for pid in pids:
            with contextlib.suppress(OSError):
                pids += child_pids(pid)
        for pid in pids[1:]:
            with contextlib.suppress(OSError):
                found.append(Process(pid))
        return found


class Life:
    """One life by a plan: what is done, what must have come of it."""

    def __init__(self, plan, namespace, broken="", patience=SECONDS):
        self.plan, self.namespace, self.broken, self.patience = plan, namespace, broken, patience
        self.home = Updatable(namespace, self.copy(1))
        self.number = self.generation = self.old = 1        # the last one offered, the one that runs, the one of .old
        self.probation = False
        self.faulty = self.restarted = False                # does, or did, a server misbehave? was there a soft restart?
        self.kills = self.crash_count = 0
        self.staying, self.expected = [], []                # names of orphans that stay; patterns of the step
        self.must_live = set()                              # pids that nobody may end before the end
        self.server, self.services, self.position = None, {}, 0

    def copy(self, number, early="", more=""):
        return copy(number, early, self.broken + more)

    # -- what is known

    def text(self):
        """The log of this step."""
        return self.namespace.log.drain()[self.position:]

    def servers(self):
        """The server's processes, or COMMAND's: children of pyinit1.py that are alive."""
        word = "zinit-server" if self.plan.kind in BOTH else "guinea_pig.py command"
        return [each for each in self.namespace.children() if word in each.words and each.state not in "ZX"]

    def copies(self):
        """{service: [pids]} of those that run."""
        found = {name: [] for name in self.names()}
        for each in self.namespace.processes():
            if len(each.argv) > 3 and each.argv[3] in found and each.argv[2].endswith("guinea_pig.py") and each.state not in "ZX":
                found[each.argv[3]].append(each.pid)
        return found

    def names(self):
        return ["service%d" % number for number in range(self.plan.services)]

    def expect(self, pattern):
        self.expected.append(re.compile(pattern, re.M))

    def installed(self, number):
        """An update went well."""
        self.old = self.old if self.probation else self.generation
        self.generation, self.probation = number, True

    def crashed(self):
        if self.probation:
            self.generation, self.probation = self.old, False
        self.crash_count += 1

    def order_crash(self, where, draw):
        new = self.namespace.run_directory / "crash.new"
        new.write_text("%s %s" % (where, draw.choice(EXCEPTIONS)))
        new.rename(new.with_name("crash"))

    # -- from the start to the end

    def start(self):
        for name in self.names():
            self.namespace.service(name, "exec " + self.namespace.guinea_pig(name, 0.05))
        pig = self.namespace.guinea_pig("command", 0.05, "exit=7" if self.plan.kind == ONCE else "").split()
        words = {KEPT: ("--respawn", "--", *pig), ONCE: ("--", *pig)}.get(self.plan.kind, ())
        self.namespace.start("--stop-timeout", str(STOP_TIMEOUT), "--grace", str(GRACE), *words, init=self.home.inside,
                             plain=self.plan.kind == PLAIN)
        self.settle(frozenset(), first=True)

    def begin(self):
        """A step begins: nothing is expected yet."""
        from_here(self.namespace)
        self.position, self.expected = self.namespace.log.position, []

    def do(self, number, deeds):
        for place, (name, gap) in enumerate(deeds):
            time.sleep(gap)                             # what is tested is that no moment is a bad one
            DEEDS[name].act(self, random.Random("deed %d %d %d" % (self.plan.seed, number, place)))

    def step(self, number):
        deeds = self.plan.steps[number]
        effects = [effect for name, _ in deeds for effect in DEEDS[name].effects]
        self.begin()
        self.kills += effects.count("death")
        if "death" in effects and "restart" not in effects and not self.restarted:
            self.must_live.update(pid for pids in self.services.values() for pid in pids)
        self.restarted = self.restarted or "restart" in effects
        self.do(number, deeds)
        self.settle(frozenset(effects))

    def settle(self, effects, first=False):
        """Wait until all that the model wants is so, and PID 1 quiet; then it must be so still. Remembers what is so."""
        what, deadline = ["nothing"], time.monotonic() + self.patience
        while what:
            what = self.complaints(effects, first)
            if what and (time.monotonic() > deadline or self.namespace.log.ended):
                raise AssertionError("; ".join(what))
            if not what:
                quiet(self.namespace)
                what = self.awake() or self.complaints(effects, first)
            else:
                time.sleep(0.02)
        self.server, self.services = self.servers()[0], self.copies()

    def awake(self):
        """Does PID 1 wake up by itself? Then it has something under way; else not one time."""
        def switches():
            status = Process(self.namespace.init).status
            return status["voluntary_ctxt_switches"], status["nonvoluntary_ctxt_switches"]
        before = switches()
        time.sleep(IDLE)
        return ["PID 1 is awake"] if switches() != before else []

    def complaints(self, effects, first):
        """What is not as it must be after a step with these effects."""
        if self.namespace.log.ended:
            return ["it has ended"]
        text, servers = self.text(), self.servers()
        found = ["not said: " + pattern.pattern for pattern in self.expected if not pattern.search(text)]
        found += ["servers: %s" % servers] if len(servers) != 1 else self.wrong_server(servers[0], effects, first, text)
        found += ["zombie: %r" % each for each in self.namespace.processes() if each.state == "Z"]
        found += self.wrong_services(effects, first)
        alive = {each.pid for each in self.namespace.processes() if each.state not in "ZX"}
        found += ["pid %d is gone" % pid for pid in self.must_live - alive]
        found += ["%s got a signal" % name for name in self.staying if "%s: got " % name in self.namespace.log.text]
        return found + self.wrong_file()

    def wrong_server(self, server, effects, first, text):
        """The server's pid, and how often one was started."""
        who = "server" if self.plan.kind in BOTH else "command"
        starts, killed = len(re.findall("^%s: ready: pid" % who, text, re.M)), effects & {"death", "restart"}
        if "%s: ready: pid %d\n" % (who, server.pid) not in self.namespace.log.text:
            return ["the server is not ready"]
        if first or not killed:
            same = first or server.outer == self.server.outer
            return ["another server"] * (not same) + ["%d servers were started" % starts] * (starts > first)
        most = len(killed) + ("crash" in effects)           # a soft restart that came to a crash is made again
        return ["the same server"] * (server.outer == self.server.outer) + ["%d servers were started" % starts] * (starts > most)

    def wrong_services(self, effects, first):
        """Each runs once; more often only after a server's death, or where a warning says so; and is the one that it was."""
        found, copies = [], self.copies()
        twice = self.kills + len(re.findall("^pyinit1: services may run twice: ", self.namespace.log.text, re.M)) * 2
        for name, pids in copies.items():
            if not 1 <= len(pids) <= 1 + twice:
                found.append("%s runs %d times" % (name, len(pids)))
            found += ["%s is not ready" % name for pid in pids if "%s: ready: pid %d\n" % (name, pid) not in self.namespace.log.text]
        goes_on = not first and not ("restart" in effects and self.faulty) and not (self.restarted and "death" in effects)
        if goes_on:
            found += ["%s: pids %s are gone" % (name, lost) for name, lost in
                      ((name, set(pids) - set(copies[name])) for name, pids in self.services.items()) if lost]
        if goes_on and "death" not in effects and {name: set(pids) for name, pids in copies.items()} != {name: set(pids) for name, pids in self.services.items()}:
            found.append("services %s, were %s" % (copies, self.services))
        return found

    def wrong_file(self):
        """The file is the generation that runs, and the last that started."""
        said = re.findall(r"^generation: (\d+)$", self.namespace.log.text, re.M)
        return ["generation %s runs, should be %d" % (said[-1], self.generation)] * (said[-1] != str(self.generation)) \
            + ["the file is not generation %d" % self.generation] * ("generation: %d\\n" % self.generation not in self.home.path.read_text())

    # -- the end

    def end(self):
        """Ask for the end, with company, and see that it is the right one, once, in order."""
        ending, before = self.plan.ending, self.copies()
        effects = {effect for name, _ in ending.company for effect in DEEDS[name].effects}
        self.begin()
        with contextlib.suppress(OSError):                  # when it has ended already
            self.do(len(self.plan.steps), ending.company)
            if ending.crash:
                self.order_crash(ending.crash, random.Random(self.plan.seed))
            for number in ending.numbers if self.plan.kind != ONCE else [signal.SIGTERM]:
                self.namespace.kill(number)
                time.sleep(random.Random(self.plan.seed).choice((0.0, 0.02)))
        status = self.namespace.wait(2 * self.patience)
        found = self.wrong_end(status, self.namespace.log.text[self.position:], ending, effects)
        found += self.not_saved(before, self.namespace.log.text[self.position:], effects)
        if found:
            raise AssertionError("; ".join(found))

    def wrong_end(self, status, text, ending, effects):
        """The status, the ending's name, that there is one, and that nothing is started in it."""
        once = self.plan.kind == ONCE
        found = ["exit status %d" % status] * (status != (7 if once else 0))
        crashes = len(re.findall("^pyinit1: crashed: ", text, re.M))
        found += ["crashed"] * (crashes > bool(ending.crash))
        begun = re.findall("^pyinit1: the end: (power off|reboot|halt): ", text, re.M)
        asked = re.findall("^pyinit1: signal: .*: (power off|reboot|halt)$", text, re.M)
        wanted = {"power off"} if once else {ENDINGS[number] for number in ending.numbers}
        found += ["the end began as %s" % begun] * (len(set(begun)) != 1 or len(begun) > 1 + crashes or not set(begun) <= wanted)
        found += ["asked for %s, began as %s" % (asked, begun)] * (not once and set(asked[:1]) != set(begun))
        found += ["ended %d times" % text.count("the end: exit status")] * (text.count("the end: exit status") != 1)
        after = text[text.find("pyinit1: the end: "):]
        ready = len(re.findall("^(?:server|command): ready", after, re.M))
        found += ["a server was started in the end"] * (ready > bool(effects & {"death", "restart"}))
        return found + re.findall("^pyinit1: (?:others killed|others left|parked).*", text, re.M)

    def not_saved(self, before, text, effects):
        """Everybody had the time to save his work, and was asked once."""
        found = []
        counts = {**{name: len(pids) for name, pids in before.items()}, **{name: 1 for name in self.staying}}
        for name, count in counts.items():
            asked, saved = (len(re.findall("^%s: %s$" % (name, what), text, re.M)) for what in ("got SIGTERM", "saved"))
            most = count if name in self.staying else count * (1 + bool(self.faulty or self.restarted or effects or self.kills)) + 2 * bool(effects)
            found += ["%s: %d of %d were asked, %d saved" % (name, asked, count, saved)] * (not count <= asked <= most or saved < count)
        return found


# ---- all of them

Result = collections.namedtuple("Result", "plan why seconds log")


def live(plan, broken="", patience=SECONDS):
    """One schedule; -> Result, whose `why` is empty if all went well. `broken`: what makes the copy another one, in Python."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyinit1-") as directory, Descent(directory) as namespace:
        where, life = "the start", Life(plan, namespace, broken, patience)
        try:
            life.start()
            for number in range(len(plan.steps)):
                where = "step %d" % (number + 1)
                life.step(number)
            where = "the end"
            life.end()
            why = ""
        except (AssertionError, OSError, IndexError, StopIteration) as error:
            why = "%s: %s" % (where, error if isinstance(error, AssertionError) else repr(error))
        except Exception:
            why = "%s: the harness failed: %s" % (where, traceback.format_exc())
        return Result(plan, why, time.monotonic() - began, namespace.log.drain() if namespace.log else "")


def repeat_line(options, seed):
    return "make fuzz N=1 SEED=%d" % seed + (" INIT=%s" % options.init if options.init else "")


def run_all(options, directory):
    """Run the schedules; -> the results. A line for each failure, and ten of progress."""
    results, seeds = [], range(options.seed, options.seed + options.schedules)
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    try:
        for future in concurrent.futures.as_completed([pool.submit(live, plan_of(seed)) for seed in seeds]):
            result = future.result()
            results.append(result)
            if result.why:
                path = directory / str(result.plan.seed)
                path.write_text("%s\n%s\n\n%s" % (in_words(result.plan), result.why, result.log))
                print("fuzz: FAILED: seed %d: %s: %s: repeat it: %s; see %s" % (
                    result.plan.seed, in_words(result.plan), " ".join(result.why.split())[:400], repeat_line(options, result.plan.seed), path), flush=True)
            if len(results) * 10 // options.schedules > (len(results) - 1) * 10 // options.schedules:
                print("fuzz: %d of %d: %d went well" % (len(results), options.schedules, sum(not each.why for each in results)), flush=True)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
    return results


def table(results):
    """The lines of the table: kinds, deeds (a schedule counts in each that it had), endings, all."""
    def row(name, some):
        seconds = [each.seconds for each in some]
        return "%-30s%10d%10d%10s%10s" % (name, len(some), sum(bool(each.why) for each in some),
                                          *("%.1f" % value for value in (statistics.median(seconds), max(seconds)))) if some else "%-30s%10d" % (name, 0)

    def had(plan, name):
        return name in [each for step in (*plan.steps, plan.ending.company) for each, _ in step]
    lines = ["%-30s%10s%10s%10s%10s" % ("", "schedules", "failed", "median s", "longest")]
    lines += [row(kind, [each for each in results if each.plan.kind == kind]) for kind in KINDS]
    lines += [row("with: " + name, [each for each in results if had(each.plan, name)]) for name in DEEDS]
    lines += [row("crash in the end", [each for each in results if each.plan.ending.crash]), row("all", results)]
    return lines + ["%d steps, %d deeds" % (sum(len(each.plan.steps) for each in results),
                                           sum(len(step) for each in results for step in (*each.plan.steps, each.plan.ending.company)))]


def positive(word):
    if int(word) < 1:
        raise ValueError(word)
    return int(word)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schedules", nargs="?", type=positive, default=1000, metavar="N", help="how many schedules (default: 1000)")
    parser.add_argument("--seed", type=int, default=None, help="the first schedule's seed (default: any)")
    parser.add_argument("--jobs", type=positive, default=4, metavar="N", help="so many at a time (default: 4)")
    parser.add_argument("--init", default=None, metavar="FILE", help="what is put through it (default: pyinit1.py)")
    options = parser.parse_args()
    if os.getuid() != 0:
        parser.error("not root: who updates pyinit1.py must own every folder above it")
    options.seed = random.randrange(10 ** 6) if options.seed is None else options.seed
    directory = pathlib.Path(tempfile.mkdtemp(prefix="fuzz."))
    print("fuzz: %d schedules, seed %d, %s" % (options.schedules, options.seed, helpers.PYINIT1), flush=True)
    results = run_all(options, directory)
    print("\n".join(["", *table(results)]) if results else "nothing was run", flush=True)
    if any(result.why for result in results):
        print("kept: %s" % directory, flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if len(results) == options.schedules and not any(result.why for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
