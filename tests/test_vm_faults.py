"""The faults in machines: which lines are tried, how a machine is judged, what is printed; and that a failure is one."""

import collections
import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers import PYINIT1, ROOT

import disks
import faults
import image
import injection
import machine
import packages
import waiting
from disks import CLEAN, FROZEN, SYNCED, UNJUDGED

TEXT = PYINIT1.read_text()
HOST = packages.host_architecture()
needs_qemu = pytest.mark.skipif(not machine.has_qemu(HOST), reason="%s is not installed" % machine.BOARDS[HOST].program)


# ---- which lines

def test_every_function_that_is_named_is_there():
    functions = set(injection.functions_of(TEXT).values()) | {"module"}
    assert functions >= {*faults.BOOT, *faults.AGAIN, *faults.EXEMPT}
    assert all(faults.parse_point(word, TEXT, 1).line for word in faults.FEW)


def test_a_point_is_given_by_a_line_or_by_a_functions_first_statement():
    assert faults.parse_point("usual:end-init:17:MemoryError", TEXT, 1) == ("usual", "end-init", 17, "MemoryError")
    for function, statement in ("boot", "    load_libc()"), ("Init.stop_others", "        if self.nobody_left():"):
        line = faults.parse_point("usual:end-init:" + function, TEXT, 1).line
        assert TEXT.splitlines()[line - 1] == statement and injection.functions_of(TEXT)[line] == function
    point = faults.parse_point("crash:end-again:18", TEXT, 1)
    assert faults.parse_point(faults.in_words(point), TEXT, 2) == point


def test_the_exception_at_a_line_depends_on_the_line_and_the_seed():
    for draw in (lambda number: faults.exception_for(number, 1)), (lambda number: faults.exception_for(7, number)):
        assert [draw(number) for number in range(5)] != [draw(number) for number in range(1, 6)]
        assert {draw(number) for number in range(5)} == set(injection.EXCEPTIONS)


def test_what_was_executed_is_read_off_the_console_without_the_lines_of_the_copy():
    last = TEXT[:TEXT.index(injection.LAST)].count("\n")
    console = "executed boot-init 12\npyinit1: ready\n/ # executed end-child 13\nexecuted end-init %d\nexecuted boot-init 12\n" % (last + 1)
    assert faults.executed(console, TEXT) == {("boot-init", 12), ("end-child", 13)}


def line_of(function):
    return faults.first_lines(TEXT)[function]


def test_a_line_is_tried_in_the_first_scenario_that_executes_it():
    end = line_of("Init.stop_others")
    points, _ = faults.sort_out({"usual": {("end-init", end)}, "deaf": {("end-init", end), ("end-child", end), ("disks-init", end)}}, TEXT)
    assert points == [("usual", "end-init", end), ("deaf", "disks-init", end), ("deaf", "end-child", end)]


@pytest.mark.parametrize("role, function, why", [
    ("boot-init", "mount_api", ""), ("boot-child", "Init.prepare", ""), ("boot-init", "parse_args", "tried in namespaces"),
    ("end-init", "parse_args", ""), ("end-child", "Release.run", ""), ("disks-child", "Release.run", ""),
    ("end-init", "main", "exempt"), ("boot-init", "in_initial_pid_namespace", "exempt"),
    ("end-trial", "get_ready", "tried in namespaces"), ("end-crash-init", "go_on", "tried in namespaces"),
    ("disks-crash-init", "go_on", ""), ("disks-crash-child", "start_helper", ""),
    ("end-again", "boot", ""), ("end-again", "Init.adopt", ""), ("end-again", "Init.stop_others", "as before the re-exec"),
])
def test_what_is_not_tried_has_a_reason_and_is_counted(role, function, why):
    points, left = faults.sort_out({"usual": {(role, line_of(function))}}, TEXT)
    assert (len(points), left) == ((1, {}) if not why else (0, {why: collections.Counter([function])}))


def test_a_sample_is_the_same_for_the_same_seed_and_all_is_all():
    points = [("usual", "end-init", line) for line in range(100)]
    some = faults.choose(points, 10, 4)
    assert faults.choose(points, 10, 4) == some != faults.choose(points, 10, 5) and len(set(some)) == 10
    assert [point[:3] for point in faults.choose(points, None, 4)] == points and len(faults.choose(points, 200, 4)) == 100


# ---- the machine

def test_every_script_can_be_read_by_a_shell():
    texts = [faults.RC % "a b", *(each.script for each in faults.SCENARIOS.values()), *(faults.SAVES % {"name": "x", "signal": each} for each in faults.SIGNALS.values())]
    for text in texts:
        done = subprocess.run(["sh", "-n"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, (done.stdout, text)


def test_the_copy_has_pyinit1s_lines_and_more_before_the_last_statement():
    copy = injection.with_statements(TEXT, faults.CRASH + injection.hook(faults.PLAN, "/dev/console", "/run/raised", faults.WHEN))
    before, _, after = TEXT.partition(injection.LAST)
    assert copy.startswith(before) and copy.endswith(injection.LAST + after)
    compile(copy, "copy", "exec")


def test_the_plan_and_what_a_scenario_needs_are_words_for_the_kernel():
    words = faults.kernel_words("amd64", faults.SCENARIOS["deaf"], "end-init:17:MemoryError")
    assert {"SCENARIO=deaf", "FAULT=end-init:17:MemoryError", "PYINIT1_GRACE=1"} <= set(words.split())
    assert " FAULT" not in faults.kernel_words("amd64", faults.SCENARIOS["deaf"], "")     # of a machine that is to be saved


class Running:
    """A machine whose console says this, and which then ends so, or says no more."""

    def __init__(self, text, end=None):
        reader, writer = os.pipe()
        self.console, self.process, self.pid, self.end = waiting.Lines(reader), self, os.getpid(), end
        os.write(writer, text.encode())
        if end:
            os.close(writer)

    def how_it_ended(self):
        return self.end, "details"

    def wait(self):
        return 0


STARTED = "server: ready: pid 92\npyinit1: server started: pid 92: /sbin/zinit-server\n"


@pytest.mark.parametrize("text, end, judgement", [
    (STARTED + "vm-test: asking\n", "guest-shutdown", False),
    ("pyinit1: crashed: it\npyinit1: parked: nothing\n", None, True),
    (STARTED + "pyinit1: parked: nothing\n", None, "hang"),
    (STARTED + "vm-test: asking\npyinit1: parked: nothing\n", None, "hang"),
    (STARTED + "vm-test: asking\npyinit1: parked: a child\n", "guest-shutdown", False),
    (STARTED + "vm-test: asking\n", None, "hang"),
    (STARTED, None, "hang"),
    (STARTED + "vm-test: asking\n", "panic", "panic"), (STARTED, "panic", "panic"),
    (STARTED + "vm-test: asking\n", "guest-reset", "wrong end"), (STARTED, "guest-shutdown", "wrong end"),
    (STARTED + "vm-test: failed: mount\n", None, "the guest failed"),
    (STARTED + "vm-test: asking\n", "QEMU's own end", "host"), (STARTED + "vm-test: asking\n", "host-signal", "host"),
])
def test_a_machine_goes_on_until_the_request_and_ends_as_asked(monkeypatch, text, end, judgement):
    monkeypatch.setattr(faults.soak, "ask_the_kernel", lambda running: "")
    monkeypatch.setattr(faults, "PARKED", 0.1)
    running, clock = Running(text, end), faults.soak.Patience(os.getpid(), 0.5)
    if isinstance(judgement, bool):
        assert faults.play(faults.SCENARIOS["usual"], running, clock) == judgement
        return
    with pytest.raises(machine.Failure) as caught:
        faults.play(faults.SCENARIOS["usual"], running, clock)
    assert caught.value.judgement == judgement


POINT = faults.Point("usual", "end-init", 17, "MemoryError")


@pytest.mark.parametrize("more, judgement", [
    ("", None), ("server: ready: pid 7\n", "twice"), ("server: service killed: web\n", "early"), ("vm-test: asking again\n", "hang"),
    ("pyinit1: crashed: it: at turn:1 > note:2 > trace:3\nvm-test: asking again\n", None),
])
def test_what_a_console_may_not_say(more, judgement):
    if judgement is None:
        faults.check_words(POINT, STARTED + more)
        return
    with pytest.raises(machine.Failure) as caught:
        faults.check_words(POINT, STARTED + more)
    assert caught.value.judgement == judgement


def test_a_console_without_a_server_is_a_failure():
    with pytest.raises(machine.Failure, match="started 0 times"):
        faults.check_words(POINT, "")


@pytest.mark.parametrize("complaint", ["[ 1.0] EXT4-fs error (device vda)\n", "[ 1.0] I/O error, dev vdb\n", "[ 1.0] BUG: it\n"])
def test_what_the_kernel_complains_of_is_a_failure_where_no_disk_was_in_use_or_dead(complaint):
    with pytest.raises(machine.Failure, match="other: "):
        faults.check_complaints(faults.SCENARIOS["usual"], CLEAN, STARTED + complaint)
    faults.check_complaints(faults.SCENARIOS["usual"], SYNCED, STARTED + complaint)
    faults.check_complaints(faults.SCENARIOS["dead"], CLEAN, STARTED + complaint)


# ---- the disks

@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    disks.write({"text": image.file("text\n")}, path, 8)
    return path


def change(path, *commands):
    for command in commands:
        disks.packages.run([disks.tool("debugfs"), "-w", "-R", command, path])


def test_a_disks_condition_is_the_best_that_is_true(disk):
    assert faults.condition_of(disk) == (CLEAN, "")
    change(disk, "set_inode_field text links_count 2")      # e2fsck complains, but the journal needs no recovery
    condition, why = faults.condition_of(disk)
    assert condition == FROZEN and "e2fsck" in why


def test_a_disk_that_needs_recovery_is_synced_at_best(disk):
    change(disk, "feature needs_recovery")
    assert faults.condition_of(disk) == (SYNCED, "its journal needs recovery")


def found(*conditions, saved=faults.SAVED, text="text\n"):
    """What look_at() finds on disks in these conditions."""
    conditions += (CLEAN,) * (4 - len(conditions))
    places = [where for where, _ in faults.DISKS] + [faults.LOOP]
    files = {"text": text, **{name: "saved\n" * (name in saved) for name in faults.SAVED}}
    return [(where, condition, "why", files) for where, condition in zip(places, conditions)]


def judgement_of(name, role, looked_at):
    try:
        return faults.judge_disks(faults.SCENARIOS[name], faults.demand_for(role), looked_at)[0]
    except machine.Failure as why:
        return why.judgement + "!"


@pytest.mark.parametrize("role, condition, judgement", [
    ("boot-init", CLEAN, CLEAN), ("boot-init", SYNCED, "unclean!"), ("boot-init", FROZEN, "unclean!"),
    ("end-init", CLEAN, CLEAN), ("end-init", FROZEN, "unclean!"), ("end-again", SYNCED, "unclean!"), ("end-child", SYNCED, "unclean!"),
    ("disks-child", CLEAN, CLEAN), ("disks-child", FROZEN, FROZEN), ("disks-child", SYNCED, "unclean!"),
    ("disks-init", CLEAN, CLEAN), ("disks-init", faults.LOST, "lost!"), ("disks-child", faults.LOST, "lost!"),
])
def test_what_is_demanded_of_each_disk_depends_on_when_the_exception_comes(role, condition, judgement):
    for number in range(4):
        assert judgement_of("usual", role, found(*[CLEAN] * number, condition)) == judgement


def test_while_disks_are_released_by_pid_1_as_much_is_demanded_as_one_constant_says():
    for condition in (CLEAN, FROZEN, SYNCED):
        allowed = faults.worse(condition, faults.RELEASING) == faults.RELEASING
        for role, scenario in ("disks-init", "usual"), ("disks-crash-init", "crash-releasing"):
            assert judgement_of(scenario, role, found(condition)) == (condition if allowed else "unclean!")


def test_no_more_is_demanded_than_a_scenario_lets_be():
    assert judgement_of("replaced", "end-init", found(FROZEN)) == CLEAN and judgement_of("replaced", "end-init", found(CLEAN, FROZEN)) == "unclean!"
    assert judgement_of("dead", "end-init", found(CLEAN, CLEAN, faults.LOST)) == CLEAN
    assert judgement_of("hurry", "end-init", found(SYNCED, SYNCED, SYNCED, SYNCED, saved=())) == SYNCED
    assert {each for scenario in faults.SCENARIOS.values() for each in scenario.best} == {CLEAN, FROZEN, UNJUDGED}


def test_what_was_written_before_the_request_must_be_there_and_all_had_the_time_to_save_their_work():
    assert judgement_of("usual", "disks-init", found(text="")) == "lost!"
    for name in faults.SAVED:
        assert judgement_of("usual", "end-init", found(saved=set(faults.SAVED) - {name})) == "early!"


# ---- what is counted and printed

def options(*words):
    return faults.parse(["few", *words])


@pytest.mark.parametrize("judgement, verdict", [
    ("panic", "panic"), ("hang", "hang"), ("unclean", "unclean"), ("lost", "lost"), ("twice", "twice"), ("early", "early"), ("host", "host"),
    ("wrong end", "other"), ("the guest failed", "other"),
])
def test_a_failure_is_counted_where_it_belongs(tmp_path, monkeypatch, judgement, verdict):
    def attempt(*arguments):
        (arguments[-1] / "console").write_text("console")
        raise machine.Failure(judgement, "details")

    monkeypatch.setattr(faults, "attempt", attempt)
    result = faults.judge(options(), None, None, POINT, tmp_path / "x")
    assert (result.verdict, result.console) == (verdict, "console") and verdict in faults.FAILED


def test_an_error_of_the_harness_is_one_lines_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "attempt", lambda *_: 1 // 0)
    assert faults.judge(options(), None, None, POINT, tmp_path / "x").verdict == "other"


def test_a_line_that_was_not_reached_has_a_second_machine_and_a_failure_has_none(tmp_path, monkeypatch):
    for outcomes, verdict in ([("not reached", ""), (CLEAN, "")], CLEAN), ([("unclean", ""), (CLEAN, "")], "unclean"), ([("not reached", "")] * 2, "not reached"):
        monkeypatch.setattr(faults, "attempt", lambda *_: outcomes.pop(0))
        assert faults.judge(options(), None, None, POINT, tmp_path / "x").verdict == verdict


def test_an_exception_that_was_never_raised_is_nothing_survived(tmp_path, monkeypatch):
    for console, verdict in (STARTED, "not reached"), (STARTED + "raised end-init 17\n", CLEAN), (STARTED + "raised end-init 170\n", "not reached"):
        monkeypatch.setattr(faults, "live", lambda *_: (False, [], console))
        monkeypatch.setattr(faults, "look_at", lambda *_: found())
        assert faults.attempt(options(), None, None, POINT, tmp_path)[0] == verdict


def result(verdict, role="end-init", seconds=2.0):
    return faults.Result(POINT._replace(role=role, line=line_of("Init.stop_others")), verdict, "details", seconds, "")


def test_the_table_counts_every_line_once_for_its_role_and_once_in_all():
    results = [result(each) for each in (*faults.COUNTED, *faults.FAILED)] + [result(CLEAN, "disks-init", 8.0)]
    rows = {words[0]: words[1:] for words in map(str.split, faults.table(results)[1:])}
    assert rows["end-init"] == ["13", "3", "1", "1", "1", "1", "1", "8", "2.0"]
    assert rows["disks-init"] == ["1", "1", "1", "0", "0", "0", "0", "0", "8.0"]
    assert rows["all"] == ["14", "4", "2", "1", "1", "1", "1", "8", "2.0"]


def test_below_the_table_stand_what_was_not_tried_and_what_is_no_more_than_synced():
    lines = faults.remarks(options(), [result(SYNCED), result("parked", "boot-init")], {"exempt": collections.Counter(main=3), "other": collections.Counter(x=2)})
    assert lines == ["not tried, exempt: 3 lines: main 3", "not tried, other: 2 lines",
                     "synced: end-init Init.stop_others 1", "parked: boot-init Init.stop_others 1"]


@pytest.mark.parametrize("verdict", [*faults.COUNTED, *faults.FAILED])
def test_one_line_that_was_not_survived_is_a_failed_run(verdict, capsys):
    assert faults.report(options(), [result(CLEAN), result(verdict)], {}) == (0 if verdict in faults.COUNTED else 1)


def test_a_run_of_nothing_is_a_failed_run(capsys):
    assert faults.report(options(), [], {}) == 1


def test_a_failure_is_one_line_with_what_repeats_it(tmp_path):
    init = tmp_path / "my init"
    shutil.copy(PYINIT1, init)
    where = result("panic")._replace(details="it hurts")
    line = faults.failure_line(options("--arch", "arm64", "--init", str(init)), where, tmp_path)
    assert "\n" not in line and "Init.stop_others:%d: MemoryError in end-init, usual: panic: it hurts" % where.point.line in line
    assert "repeat it: vm-test/faults.py usual:end-init:%d:MemoryError --arch arm64 --init '%s'; see %s" % (where.point.line, init, tmp_path) in line
    words = re.search("repeat it: vm-test/faults.py (\\S+)", line)[1]
    assert faults.parse([words]).points == [where.point]


@pytest.mark.parametrize("words", [["0"], ["-1"], ["many"], ["usual"], ["usual:end-init:no_such"], ["no-such:end-init:7"], ["usual:end-init:7:ValueError"],
                                   ["all", "few"], ["--init", "/nowhere"], ["--arch", "vax"], ["--seed", "x"]])
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        faults.parse(words)
    assert caught.value.code == 2 and "usage: " in capsys.readouterr().err


# ---- that failures fail, in a machine

BROKEN = {
    "panic": ("usual:end-init:Init.stop_others", "def go_on(*_):\n    os._exit(1)\n\n\n"),
    "unclean": ("usual:disks-child:Log.drain", "Release.run = lambda self: os.sync()\n\n\n"),
    "twice": ("usual:end-init:Init.stop_others", "reexec_well = reexec\n\n\ndef reexec(path, words, state):\n    if 'trial' in state:\n"
              "        reexec_well(path, words, state)\n    os.execve(sys.executable, [sys.executable, path, *words], os.environ)\n\n\n"),
}


@needs_qemu
@pytest.mark.parametrize("verdict", BROKEN)
def test_what_is_broken_on_purpose_is_found(tmp_path, verdict):
    """PID 1 ends at a crash; it only syncs; it forgets after a crash that there is a server, and the request to end."""
    point, statements = BROKEN[verdict]
    init = tmp_path / "init"
    init.write_text(injection.with_statements(TEXT, statements))
    done = subprocess.run([sys.executable, ROOT / "vm-test/faults.py", point, "--init", init, "--patience", "60"], env=dict(os.environ, TMPDIR=str(tmp_path)),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 1 and re.search("^faults: FAILED: .*: %s: " % verdict, done.stdout, re.M), done.stdout
