"""Soak: what a seed means, how a machine is judged, what is printed. No machine is started here."""

import os
import re
import subprocess
import time

import pytest

import helpers  # noqa: F401  vm-test is on the path from here on

import disks
import image
import machine
import soak
import waiting

SEEDS = range(2000, 2300)


def options(*words):
    return soak.parse(["1", "--seed", "7", *words])


# ---- what a seed means

def test_a_seed_means_the_same_machine_every_time():
    assert [soak.plan_of(seed) for seed in SEEDS] == [soak.plan_of(seed) for seed in SEEDS]
    assert len({soak.script(soak.plan_of(seed)) for seed in SEEDS}) == len(SEEDS)


def test_a_short_run_has_every_ending_in_it():
    for first in SEEDS[:50]:
        assert {soak.plan_of(seed).name for seed in range(first, first + 2 * len(soak.ENDINGS) - 1)} == set(soak.ENDINGS)


def test_everything_that_can_be_drawn_is_drawn():
    plans = [soak.plan_of(seed) for seed in SEEDS]
    requests = {plan.ending.request for plan in plans}
    assert requests >= {*soak.POWER_OFFS, *soak.REBOOTS, *soak.OUTSIDE, "storm 1", "storm 3"}
    assert {each for plan in plans for each in plan.company} == set(soak.COMPANY) and any(not plan.company for plan in plans)
    assert min(plan.delay for plan in plans) < 0.1 and max(plan.delay for plan in plans) > soak.DELAY - 0.1


def test_the_server_is_killed_before_and_after_the_request():
    plans = [plan for plan in map(soak.plan_of, SEEDS) if plan.name == "server killed"]
    early = [plan.delay - int(re.search(r"usleep (\d+)", plan.ending.meanwhile)[1]) / 1e6 for plan in plans]
    assert min(early) < 0 < 1 < max(early)
    assert {plan.ending.reason for plan in plans} == {soak.POWER_OFF, soak.REBOOT}


def test_a_machine_must_end_as_it_is_asked_to():
    for plan in map(soak.plan_of, SEEDS):
        asked = soak.REBOOT if plan.ending.request in soak.REBOOTS + ("the keys",) else soak.POWER_OFF
        assert plan.ending.reason == asked, plan


def test_every_script_can_be_read_by_a_shell():
    for plan in map(soak.plan_of, SEEDS[:40]):
        text = soak.RC % "a b" + soak.script(plan)
        done = subprocess.run(["sh", "-n"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, (done.stdout, text)


def test_what_comes_from_outside_is_not_run_in_the_guest():
    for plan in map(soak.plan_of, SEEDS):
        last = soak.script(plan).strip().splitlines()[-1]
        assert last == ("say now" if plan.ending.request in soak.OUTSIDE else plan.ending.request)


# ---- what the disks must be like

def plan(seed=7, name="reboot", company=()):
    return soak.Plan(seed, name, company, 0.5, soak.Ending("", "/sbin/reboot", soak.REBOOT))


def test_only_a_root_whose_files_were_replaced_may_be_frozen():
    replaced = plan(company=("python replaced",))
    assert soak.wanted(replaced, "/") == disks.FROZEN and soak.wanted(replaced, "/data") == disks.CLEAN
    assert soak.wanted(plan(), "/") == soak.wanted(plan(), "/data") == disks.CLEAN


@pytest.fixture
def two_disks(tmp_path):
    """Disks as a machine of seed 7 leaves them."""
    paths = [tmp_path / "vda", tmp_path / "vdb"]
    for path in paths:
        disks.write({"saved": image.file("7\n")}, path, 16)
    return paths


def test_disks_that_are_clean_and_have_what_was_written_pass(two_disks):
    soak.check(plan(), two_disks, "")


def test_a_disk_that_nobody_wrote_to_is_no_clean_disk(two_disks):
    disks.write({}, two_disks[1], 16)
    with pytest.raises(machine.Failure, match="not saved: /data: "):
        soak.check(plan(), two_disks, "")


@pytest.mark.parametrize("number, where", [(0, "/"), (1, "/data")])
def test_a_disk_that_needs_recovery_is_unclean(two_disks, number, where):
    disks.packages.run([disks.tool("debugfs"), "-w", "-R", "feature needs_recovery", two_disks[number]])
    with pytest.raises(machine.Failure, match="unclean disk: %s: its journal needs recovery" % where):
        soak.check(plan(company=("python replaced",)), two_disks, "")


@pytest.mark.parametrize("complaint", ["/ # pyinit1: crashed: KeyError: 1", "[ 1.0] EXT4-fs error (device vda)"])
def test_a_complaint_on_the_console_is_a_failure_but_an_unclean_disk_a_worse_one(two_disks, complaint):
    with pytest.raises(machine.Failure, match="a complaint: .*" + re.escape(complaint)):
        soak.check(plan(), two_disks, "something\n%s\nsomething\n" % complaint)
    disks.write({}, two_disks[1], 16)
    with pytest.raises(machine.Failure, match="not saved"):
        soak.check(plan(), two_disks, complaint)


def test_a_machine_has_its_own_disks_with_its_own_script(tmp_path):
    root = tmp_path / "root"
    disks.write({"name": image.file("root\n")}, root, 16)
    before = root.read_bytes()
    paths = soak.make_disks(plan(), root, tmp_path)
    assert disks.read(paths[0], "name") == "root\n" and disks.read(paths[1], "script") == soak.script(plan())
    disks.packages.run([disks.tool("debugfs"), "-w", "-R", "rm name", paths[0]])
    assert root.read_bytes() == before


# ---- how a machine is judged

class Running:
    """A machine whose console is a pipe, and which ended as `end` says."""

    def __init__(self, end=("guest-shutdown", "QMP: SHUTDOWN: guest-shutdown")):
        reader, self.console_end = os.pipe()
        self.console, self.process, self.pid, self.end = waiting.Lines(reader), self, os.getpid(), end

    def says(self, text):
        os.write(self.console_end, text.encode())
        return self

    def ends(self):
        os.close(self.console_end)
        return self

    def ask(self, *_, **__):
        raise machine.Failure("hang", "QMP")

    def wait(self):
        return -9

    def how_it_ended(self):
        return self.end


def patience(seconds):
    return soak.Patience(os.getpid(), seconds)


def judgement_of(running):
    with pytest.raises(machine.Failure) as caught:
        soak.wait_for(running, "vm-test: ready$", patience(60.0))
    return caught.value.judgement


def test_what_a_machine_says_is_found_behind_a_shells_prompt():
    soak.wait_for(Running().says("/ # vm-test: ready\n"), "vm-test: ready$", patience(60.0))
    assert judgement_of(Running().says("/ # vm-test: failed: mount\n")) == "the guest failed"


def test_a_machine_that_says_nothing_more_hangs(monkeypatch):
    monkeypatch.setattr(soak, "HOST_LIMIT", 10.0)
    with pytest.raises(machine.Failure, match="hang: within 0 s no end; QEMU does not answer"):
        soak.wait(Running().says("pyinit1: parked\n"), "end", lambda: False, patience(0.0))


class Alive(Running):
    """A machine that hangs, but whose kernel answers SysRq."""
    pressed = ""

    def ask(self, command, **arguments):
        assert (command, arguments) == ("chardev-send-break", {"id": "console"})

    def type(self, key, end):
        self.pressed += key + end
        self.says({"8": "sysrq: Loglevel set to 8\n", "t": "sysrq: Show State\ntask:init\n"}[key])


def test_a_machine_that_hangs_shows_why_if_its_kernel_can(monkeypatch):
    monkeypatch.setattr(soak, "SYSRQ_SECONDS", 1.0)
    running = Alive().says("pyinit1: ready: pid 1\n/ # pyinit1: parked\n")
    with pytest.raises(machine.Failure, match="its last word is 'pyinit1: parked'; its kernel shows on the console what it does"):
        soak.wait(running, "end", lambda: not running.console.read(0.1), patience(0.0))
    assert running.pressed == "8t" and "task:init" in running.console.text


def test_a_machine_that_could_not_run_is_no_hang(monkeypatch):
    monkeypatch.setattr(soak, "HOST_LIMIT", 0.0)
    assert judgement_of(Running()) == "host"


@pytest.mark.parametrize("end, judgement", [
    ("guest-shutdown", "wrong end"), ("guest-reset", "wrong end"), ("panic", "panic"), ("hang", "hang"), ("QEMU's own end", "host"),
])
def test_an_end_before_its_time_has_its_reason(end, judgement):
    assert judgement_of(Running((end, "details")).ends()) == judgement


class Playing(Running):
    """A machine that boots, is asked, and ends; QMP says so at second 1000.5."""
    qmp = waiting.Lines(-1)
    qmp.text = '{"timestamp": {"seconds": 1000, "microseconds": 500000}, "event": "SHUTDOWN", "data": {}}\n'


@pytest.mark.parametrize("end, judgement", [
    ("guest-reset", None), ("guest-shutdown", "wrong end"), ("panic", "panic"), ("QEMU's own end", "host")])
def test_only_the_end_that_was_asked_for_is_no_failure(end, judgement):
    running, moments = Playing((end, "details")).says("vm-test: ready\nvm-test: now\n").ends(), []
    if judgement is None:
        soak.play(plan(), running, patience(60.0), moments)
        assert moments[-1] == 1000.5 and len(moments) == 3
    else:
        with pytest.raises(machine.Failure) as caught:
            soak.play(plan(), running, patience(60.0), moments)
        assert caught.value.judgement == judgement


@pytest.mark.parametrize("judgement, verdict", [
    (None, "clean"), ("unclean disk", "unclean"), ("not saved", "unclean"), ("panic", "panic"), ("hang", "hang"), ("host", "host"),
    ("wrong end", "other"), ("a complaint", "other"), ("the guest failed", "other"),
])
def test_a_failure_is_counted_where_it_belongs(tmp_path, monkeypatch, judgement, verdict):
    def attempt(_options, _base, _plan, directory, moments):
        moments += [11.0, 12.0, 13.0, 15.0]
        (directory / "console").write_text("console")
        if judgement:
            raise machine.Failure(judgement, "details")
        return 0.5

    monkeypatch.setattr(soak, "attempt", attempt)
    result = soak.judge(options(), None, 7, tmp_path / "7")
    assert result.verdict == verdict and verdict in soak.VERDICTS
    assert result.console == "console" and result.waited == (0.0 if judgement else 0.5)
    assert (result.parts[soak.ENDING] == 2.0) if verdict in ("clean", "unclean") else not result.parts


def test_an_error_of_the_harness_is_one_machines_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "attempt", lambda *_: 1 // 0)
    assert soak.judge(options(), None, 7, tmp_path / "7").verdict == "other"


# ---- patience

def test_seconds_in_which_qemu_waited_for_a_processor_are_the_hosts(monkeypatch):
    now, waits = [100.0], [{"1": 5.0, "2": 1.0}]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(soak, "waits_of", lambda pid: waits[0])
    clock = patience(60.0)
    for seconds, threads, used in ((1.0, {"1": 5.0, "2": 1.0}, 1.0), (1.0, {"1": 5.75, "2": 1.0}, 1.25), (1.0, {"3": 0.5}, 1.75),
                                   (60.0, {"3": 0.5}, 3.75), (1.0, {"3": 9.5}, 3.75), (1.0, {}, 4.75)):
        now[0], waits[0] = now[0] + seconds, threads
        clock.look()
        assert clock.used == used
    assert clock.all == 65.0


def test_a_process_that_shares_its_processor_is_known_to_wait():
    processor = {max(os.sched_getaffinity(0))}
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"], preexec_fn=lambda: os.sched_setaffinity(0, processor)) for _ in range(2)]
    try:
        clock = soak.Patience(busy[0].pid, 60.0)
        waiting.poll(lambda: clock.look() or clock.used < clock.all / 1.2 - 0.1, 60.0, "a process that gets half of a processor")
    finally:
        for process in busy:
            process.kill()
            process.wait()


# ---- what is printed

def result(seed, verdict="clean", seconds=1.0, name="reboot", company=(), console=""):
    parts = [0.1, 4.0, 1.0, seconds, 0.2] if verdict in ("clean", "unclean") else []
    return soak.Result(plan(seed, name, company), verdict, "panic: [ 1.0]  it\nhurts", parts, 0.5, console)


CONSOLE = """pyinit1: the end: power off: server has 30 s, others have 10 s
/ # pyinit1: the end: server stopped: 0.187 s
pyinit1: others killed: still there after 10 s: pid 7 sh, pid 8 dd
pyinit1: the end: others stopped: 10.035 s
"""
RESULTS = [result(1), result(2, seconds=3.0, company=("busy writer",), console=CONSOLE),
           result(3, "unclean", 2.0), result(4, "panic", name="power off"), result(5, "hang"), result(6, "other"), result(7, "host")]


def test_the_table_counts_every_machine_once_for_its_ending_and_once_in_all():
    rows = {line[:24].strip(): line[24:].split() for line in soak.table(RESULTS)}
    assert rows["ending"] == ["cycles", "clean", "unclean", "panics", "hangs", "other", "host", "median", "slowest"]
    assert rows["reboot"] == ["6", "2", "1", "0", "1", "1", "1", "2.00", "3.00"]
    assert rows["power off"] == ["1", "0", "0", "1", "0", "0", "0", "-", "-"]
    assert rows["with: busy writer"] == ["1", "1", "0", "0", "0", "0", "0", "3.00", "3.00"]
    assert rows["all"] == ["7", "2", "1", "1", "1", "1", "1", "2.00", "3.00"]
    assert set(soak.ENDINGS) <= set(rows) and {"with: " + name for name in soak.COMPANY} <= set(rows)


def test_below_the_table_stand_the_slowest_end_and_what_was_left():
    lines = soak.remarks(RESULTS)
    assert "4.0 booting" in lines[0] and lines[1].startswith("slowest: 3.00 s: seed 2: reboot (/sbin/reboot)")
    assert lines[2:] == ["    its phases: server stopped: 0.187 s, others stopped: 10.035 s; "
                         "it waited 0.5 s for a processor of this computer",
                         "1 times, such as seed 2: others killed: still there after 10 s"]
    assert soak.remarks([]) == []


@pytest.mark.parametrize("verdict", soak.VERDICTS)
def test_one_machine_that_was_not_clean_is_a_failed_run(verdict):
    assert soak.report([result(1), result(2, verdict)]) == (0 if verdict == "clean" else 1)


def test_a_failure_is_one_line_with_what_repeats_it(tmp_path):
    init = tmp_path / "my init"
    init.write_text("")
    line = soak.failure_line(options("--arch", "arm64", "--init", str(init)), RESULTS[3], tmp_path)
    assert "\n" not in line and "seed 4: power off" in line and "panic: [ 1.0] it hurts" in line
    assert "make soak N=1 SEED=4 ARCH=arm64 'INIT=%s'; see %s" % (init, tmp_path) in line
    assert "INIT" not in soak.failure_line(options(), RESULTS[3], tmp_path)


@pytest.mark.parametrize("words, verdict, failures, left", [
    ([], "clean", 0, []), (["--keep"], "clean", 0, ["console"]), ([], "panic", 1, ["console", "vda", "vdb"]),
    ([], "panic", soak.KEPT_DISKS + 1, ["console"]),
])
def test_what_is_kept(tmp_path, words, verdict, failures, left):
    directory = tmp_path / "7"
    directory.mkdir()
    for name in "console", "vda", "vdb":
        (directory / name).write_text("")
    soak.tidy(options(*words), result(7, verdict), directory, failures)
    assert sorted(path.name for path in directory.glob("*")) == left


@pytest.mark.parametrize("words", [["0"], ["-1"], ["many"], ["--init", "/nowhere"], ["--arch", "vax"], ["--seed", "x"]])
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        soak.parse(words)
    assert caught.value.code == 2 and "usage: " in capsys.readouterr().err


def test_a_run_without_a_seed_draws_one():
    assert len({soak.parse(["1"]).seed for _ in range(20)}) > 1
