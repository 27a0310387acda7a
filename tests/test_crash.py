"""A crash of pyinit1.py's own costs the server nothing: an exception at every line, in the handler, in the end, and too many."""

import collections
import concurrent.futures
import contextlib
import os
import random
import re
import signal
import statistics
import time

import pytest

from helpers import PYINIT1, SECONDS, Process, is_alive, poll
from injecting import SCENARIOS, live
from updating import NAMELESS, ON_TRIAL, Updatable, from_here, generation, quiet

from injection import EXCEPTIONS, functions_of

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="not root: every folder has an owner who is neither root nor us")

AT_ONCE = 4                 # lives at a time
SAMPLE = 100                # lines that are tried, of all; PYINIT1_FAULTS=all tries all, as `make faults` does
SEED = 1                    # which lines, and which exception at each; PYINIT1_FAULTS_SEED is another one
FAR = 10                    # times the goal: then a test fails
CRASH_GOAL = 0.2            # s: from the crash to the next loop

# What is not tried, and why.
EXEMPT = {
    "main": "the statements before the handler is in, and the handler's own last resort",
    "in_initial_pid_namespace": "without its answer this may be a machine's PID 1, that parks",
    "park": "the parking itself",
    "module": "imports, constants and definitions, before the handler is in",
}


# ---- an exception at every line

def recorded():
    """{(role, line): the first scenario that executes it}, see injecting.py; no life by itself has anything wrong with it."""
    found = {}
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        lives = dict(zip(SCENARIOS, pool.map(lambda scenario: live(scenario, "record"), SCENARIOS)))
    for scenario, (life, wrong) in lives.items():
        assert not wrong, (scenario, wrong, life.log)
        for key in life.lines:
            found.setdefault(key, scenario)
    return found


def try_line(scenario, role, line, exception):
    """-> (what became of it, the log): survived, nothing ran yet, not reached, or what was wrong."""
    for _ in range(2):
        life, wrong = live(scenario, "%s %d %s" % (role, line, exception))
        if life.was_raised:
            break
    if not life.was_raised:
        return wrong or "not reached", life.log
    if wrong == "not started" and (role == "init" or "command" in scenario):
        return "nothing ran yet", life.log
    return wrong or "survived", life.log


def in_words(counts):
    return ", ".join("%s %d" % (name, counts[name]) for name in sorted(counts)) or "none"


def test_an_exception_at_any_line_costs_nothing(figure):
    """Same server, and a request to end ends all in order; in the end: it is finished, and no server is started."""
    wanted, seed = os.environ.get("PYINIT1_FAULTS", str(SAMPLE)), int(os.environ.get("PYINIT1_FAULTS_SEED") or SEED)
    names, found = functions_of(PYINIT1.read_text()), recorded()
    exempt = {key for key in found if names.get(key[1], "module") in EXEMPT}
    keys = sorted(found.keys() - exempt)
    if wanted != "all":
        keys = random.Random(seed).sample(keys, min(int(wanted), len(keys)))
    plans = [(found[role, line], role, line, EXCEPTIONS[(line + seed) % len(EXCEPTIONS)]) for role, line in keys]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = dict(zip(plans, pool.map(lambda plan: try_line(*plan), plans)))
    counts = collections.Counter(outcome for outcome, _ in outcomes.values())
    wrong = {plan: both for plan, both in outcomes.items() if both[0] not in ("survived", "nothing ran yet", "not reached")}
    for (scenario, role, line, exception), (outcome, text) in wrong.items():
        print("%s:%d: %s, %s, %s: %s\n%s\n" % (names.get(line), line, role, exception, scenario, outcome, text))
    early = collections.Counter(names[line] for (_, _, line, _), (outcome, _) in outcomes.items() if outcome == "nothing ran yet")
    figure("an exception at each of %d lines (of %d executed; seed %d): survived" % (len(keys), len(found), seed), counts["survived"], "lines", "all")
    figure("... ended before anything ran: " + in_words(early), counts["nothing ran yet"], "lines", "those of the first start")
    figure("... not reached again", counts["not reached"], "lines", "few")
    figure("... exempt: " + in_words(collections.Counter(names.get(line, "module") for _, line in exempt)), len(exempt), "lines", "those")
    assert not wrong, "\n".join("%s:%d: %s, %s, %s: %s" % (names.get(line), line, role, exception, scenario, outcome)
                                for (scenario, role, line, exception), (outcome, _) in wrong.items())
    assert counts["not reached"] < len(keys) / 20


# ---- what a crash costs, and when it is one too many

def crashing(when, also="", early=""):
    """pyinit1.py, that crashes when it answers SIGHUP and this expression is true."""
    return generation(1, early, late="""
answer_well = Init.answer
def answer(self, number):
    if number == signal.SIGHUP and (%s):
        raise ZeroDivisionError("on purpose")
    answer_well(self, number)
Init.answer = answer
%s
""" % (when, also))


ONCE = "not self.crashes"


def start(namespace, text, *words, **more):
    """Start this text with the stand-in as its server; -> the server's Process."""
    home = Updatable(namespace, text)
    namespace.start(*words, init=home.inside, **more)
    server = namespace.server()
    quiet(namespace)
    return server


def crash(namespace):
    """SIGHUP, and wait until the next one is in its loop; -> the seconds that took."""
    from_here(namespace)
    began = time.monotonic()
    namespace.kill(signal.SIGHUP)
    namespace.wait_for("^pyinit1: crashed: ZeroDivisionError: on purpose: at .*answer:")
    namespace.wait_for("^pyinit1: ready")
    return time.monotonic() - began


@pytest.mark.parametrize("plain", [False, True], ids=["pid-1", "plain"])
def test_a_crash_costs_the_server_nothing(namespace, plain):
    namespace.marked_service("web")
    server = start(namespace, crashing(ONCE), plain=plain)
    services = namespace.settled()
    crash(namespace)
    namespace.wait_for("^pyinit1: signal: SIGHUP: ignored")         # the request is not lost
    assert is_alive(server.outer) and namespace.services_running() == services
    assert [each.pid for each in namespace.children()] == [server.pid]
    namespace.power_off()
    assert namespace.log.text.count("server: asked: system.shutdown") == namespace.log.text.count("server: ready") == 1


def test_a_variable_without_a_name_is_left_out_of_the_next_one(namespace):
    """execve(2) takes it from others, and os.execve() from nobody."""
    server = start(namespace, crashing(ONCE), prefix=NAMELESS)
    assert "=x" in Process(namespace.init).read("environ").split("\0")
    crash(namespace)
    assert is_alive(server.outer) and [each.pid for each in namespace.children()] == [server.pid]
    namespace.power_off()


def test_a_signal_that_always_crashes_it_is_given_up(namespace):
    server = start(namespace, crashing("True"))
    from_here(namespace)
    namespace.kill(signal.SIGHUP)
    poll(lambda: namespace.log.drain().count("pyinit1: crashed: ") >= 2, SECONDS, "two crashes")
    quiet(namespace)
    assert is_alive(server.outer) and 2 <= namespace.log.drain().count("pyinit1: crashed: ") <= 4
    namespace.power_off()


STATE_CRASHES = "def state(self):\n    return 1 / 0\nInit.state = state\n"


@pytest.mark.parametrize("also", ["", STATE_CRASHES], ids=["its state is handed over", "its state cannot be said"])
def test_the_sixth_crash_in_a_minute_is_the_last(namespace, also):
    server = start(namespace, crashing("True", also))
    for _ in range(6):
        if namespace.log.ended:
            break
        before = namespace.log.drain().count("pyinit1: crashed: ZeroDivisionError")
        with contextlib.suppress(ProcessLookupError):           # it has just ended
            namespace.kill(signal.SIGHUP)
        poll(lambda: namespace.log.drain().count("pyinit1: crashed: ZeroDivisionError") > before or namespace.log.ended, SECONDS, "a crash")
        poll(lambda: namespace.log.drain().count("pyinit1: ready") > namespace.log.text.count("pyinit1: crashed: ZeroDivisionError") or namespace.log.ended,
             SECONDS, "the next one to be ready")
    assert namespace.wait() == 1
    text = namespace.log.text
    assert text.count("pyinit1: crashed: ZeroDivisionError") == 6 and text.count("pyinit1: ready") == 6
    assert re.search("^pyinit1: crashed 6 times within 60 s", text, re.M)
    assert not is_alive(server.outer)           # the kernel ends a PID namespace with its PID 1


def test_a_crash_takes_little_and_old_ones_do_not_count(namespace, figure):
    server = start(namespace, crashing("time.monotonic() - (self.crashes or [0])[-1] > 0.5", "CRASHES_WITHIN = 0.4\n"))
    took = []
    for _ in range(8):
        took.append(crash(namespace))
        quiet(namespace)
        over = time.monotonic() + 0.5
        poll(lambda: time.monotonic() > over, SECONDS, "0.5 s to be over")
    assert is_alive(server.outer)
    figure("a crash, from the signal that causes it to the next loop", statistics.median(took), "s", CRASH_GOAL)
    assert statistics.median(took) < FAR * CRASH_GOAL, took
    namespace.power_off()


@pytest.mark.parametrize("where", ["stop_server", "stop_others", "await_server", "nobody_left", "signal_others", "limits_in_words"])
def test_after_a_crash_in_the_end_the_end_goes_on(namespace, where):
    """And no server is started."""
    also = "%s_well = Init.%s\ndef %s(self, *more):\n    return %s_well(self, *more) if self.crashes else 1 / 0\nInit.%s = %s\n" % ((where,) * 6)
    namespace.service("web", "exec " + namespace.guinea_pig("web", 0.3))
    namespace.service("left", namespace.guinea_pig("left", 0.1, "orphan"))
    server = start(namespace, crashing("False", also))
    namespace.wait_ready("web", "left")
    namespace.power_off()
    text = namespace.log.text
    assert "pyinit1: crashed: ZeroDivisionError" in text and "web: saved" in text and "left: saved" in text
    assert text.count("server: ready") == 1 and not is_alive(server.outer)
    assert text.count("pyinit1: the end: exit status 0") == 1


def test_the_exit_status_of_command_outlives_a_crash_in_the_end(namespace):
    also = "end_well = Init.end\ndef end(self):\n    self.ending = True\n    end_well(self) if self.crashes else 1 / 0\nInit.end = end\n"
    home = Updatable(namespace, crashing("False", also))
    namespace.start("--", "sh", "-c", "echo up; exit 7", init=home.inside, ready=None)
    assert namespace.wait() == 7
    assert namespace.log.text.count("\nup\n") == 1


def test_a_command_that_is_run_once_outlives_a_crash(namespace):
    crashes = crashing("False", "answer_well_2 = Init.answer\ndef answer(self, number):\n    if number == signal.SIGWINCH and not self.crashes:\n        1 / 0\n"
                       "    answer_well_2(self, number)\nInit.answer = answer\n")
    home = Updatable(namespace, crashes)
    namespace.start("--", *namespace.guinea_pig("once", 0.1).split(), init=home.inside)
    command = namespace.pid_said(r"^once: ready: pid (\d+)")
    from_here(namespace)
    namespace.kill(signal.SIGWINCH)
    namespace.wait_for("^pyinit1: crashed: ")
    namespace.wait_for("^once: got SIGWINCH")           # what crashed it was forwarded in the end
    assert is_alive(command.outer)
    namespace.power_off()
    assert len(re.findall("^once: got SIGTERM", namespace.log.text, re.M)) == 1


@pytest.mark.parametrize("where", ["report_crash", "hand_over", "Init.state", "Init.leave", "count_crash", "recent_crashes", "take_back", "Log.error", "Log.write"])
def test_what_always_fails_in_the_handler_costs_the_server_nothing(namespace, where):
    """It is found when something else crashes."""
    broken = "%s = lambda *_: 1 / 0" % where if where != "Log.write" else "write_well = Log.write\n" \
        "Log.write = lambda self, level, text: write_well(self, level, text) if 'crashed' not in text else 1 / 0"
    server = start(namespace, crashing("not os.path.exists('/run/crashed') and not os.close(os.open('/run/crashed', os.O_CREAT))", broken + "\n"))
    namespace.kill(signal.SIGHUP)
    from_here(namespace)
    namespace.wait_for("^generation: 1$")
    namespace.wait_for("^pyinit1: ready")
    assert is_alive(server.outer)
    assert [each.pid for each in namespace.children()] == [server.pid]
    namespace.power_off()


# Where COMMAND's stop gets lost, if it does: when it is read, and when it is answered.
STOP_CRASHES = {
    "before it is noted": """
wifstopped_well = os.WIFSTOPPED
def WIFSTOPPED(status):
    if wifstopped_well(status) and not os.path.exists("/run/crashed"):
        os.close(os.open("/run/crashed", os.O_WRONLY | os.O_CREAT))
        raise ZeroDivisionError("on purpose")
    return wifstopped_well(status)
os.WIFSTOPPED = WIFSTOPPED
""",
    "before it is answered": """
command_stopped_well = Init.command_stopped
def command_stopped(self, number):
    return command_stopped_well(self, number) if self.crashes else 1 / 0
Init.command_stopped = command_stopped
""",
}


@pytest.mark.parametrize("words", [("--",), ("--respawn", "--")], ids=["once", "respawn"])
@pytest.mark.parametrize("when", STOP_CRASHES)
def test_a_command_that_was_stopped_is_continued_after_a_crash(namespace, when, words):
    """Nobody else would: its stop is said once."""
    namespace.start(*words, "sleep", "100000", init=Updatable(namespace, generation(1, late=STOP_CRASHES[when])).inside)
    command = namespace.pid_said(r"^pyinit1: COMMAND started: pid (\d+)")
    poll(lambda: Process(command.outer).name == "sleep", SECONDS, "COMMAND to be itself")
    os.kill(command.outer, signal.SIGTSTP)
    namespace.wait_for("^pyinit1: crashed: ZeroDivisionError")
    namespace.wait_for(r"^pyinit1: COMMAND continued: pid %d: SIGTSTP stopped it" % command.pid)
    poll(lambda: Process(command.outer).state == "S", SECONDS, "COMMAND to go on")
    assert namespace.log.drain().count("pyinit1: crashed: ") == 1


# Something of the disk does not answer: who starts our file again never gets ready, or does not even get that far.
DEAD_DISK = {
    "what is tried": ("if %s:\n    time.sleep(1000)\n" % ON_TRIAL, "RECOVERY_LIMIT = 1.0\n", "trial start: not ready within 1 s"),
    "who tries it": ("", "RECOVERY_LIMIT = 0.5\ndef trial_start(*_):\n    time.sleep(1000)\n", "trial start: not done within 1.5 s"),
}


@pytest.mark.parametrize("who", DEAD_DISK)
def test_after_a_crash_nobody_comes_back_if_the_disk_holds(namespace, who):
    """A re-exec would never come back, and then nothing would end what is left: so it ends, and the engine starts it anew."""
    early, late, said = DEAD_DISK[who]
    home = Updatable(namespace, crashing(ONCE, late, early))
    namespace.start(init=home.inside)
    server = namespace.server()
    namespace.kill(signal.SIGHUP)
    assert namespace.wait() == 1
    text = namespace.log.text
    assert text.count("pyinit1: crashed: ZeroDivisionError") == text.count("generation: 1") == 1
    assert text.index("pyinit1: crashed: ") < text.index("pyinit1: " + said)
    assert not is_alive(server.outer)


@pytest.mark.parametrize("where", ["trial_start", "start_helper"])
def test_where_the_file_cannot_be_tried_a_crash_costs_the_server_nothing_either(namespace, where):
    """No memory, no processes: the file is most likely what it was."""
    refuses = "def %s(*_):\n    raise OSError(12, 'Cannot allocate memory')\n" % where
    server = start(namespace, crashing(ONCE, refuses))
    crash(namespace)
    assert re.search("^pyinit1: trial start: .*Cannot allocate memory", namespace.log.text, re.M)
    assert is_alive(server.outer) and [each.pid for each in namespace.children()] == [server.pid]
    namespace.power_off()


def test_a_file_that_is_gone_when_it_crashes_is_said_and_ends_it(namespace):
    home = Updatable(namespace, crashing(ONCE))
    namespace.start(init=home.inside)
    namespace.server()
    home.path.unlink()
    namespace.kill(signal.SIGHUP)
    assert namespace.wait() == 1
    assert re.search("^pyinit1: crashed: ", namespace.log.text, re.M) and "pyinit1.py" in namespace.log.text.rpartition("crashed: ")[2]
