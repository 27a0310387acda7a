"""`make bench`: what it computes and prints, and that it sees an init that loses signals, wakes up for nothing and is slow."""

import re
import subprocess
import sys

import pytest
import test_speed

from bench import figures
from bench.figures import ALONE, US
from helpers import ROOT, SECONDS, clean_environment

BENCH = ROOT / "tests/bench/run"

# An init of many faults: it never forwards SIGHUP, looks for something to do ten times a second, and takes its time.
FAULTY = r'''
import os, signal, sys
signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
sum(range(5000000))
words = sys.argv[sys.argv.index("--") + 1:] if "--" in sys.argv else [os.environ["PYINIT1_SERVER"]]
pid = os.posix_spawnp(words[0], words, os.environ, setsigmask=())
while True:
    got = signal.sigtimedwait(signals, 0.1)
    while got and got.si_signo == signal.SIGCHLD:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            os._exit(os.waitstatus_to_exitcode(status) & 0xff)
        if not ended:
            break
    if got and got.si_signo not in (signal.SIGCHLD, signal.SIGHUP):
        os.kill(pid, got.si_signo)
'''


# ---- what it computes

def test_a_percentile_is_one_of_the_values():
    values = list(range(1, 201))
    assert [figures.percentile(values, share) for share in (0, 1, 50, 99, 100)] == [1, 2, 100, 198, 200]
    assert figures.percentile([5.0, 3.0], 99) == 5.0
    assert figures.percentile([7], 50) == 7


@pytest.mark.parametrize("value, text", [(0, "0"), (0.05123, "0.0512"), (0.9, "0.900"), (7.184, "7.18"), (23.14, "23.1"),
                                         (1234.4, "1234"), (-14.2, "-14.2")])
def test_figures_have_three_digits_and_no_exponent(value, text):
    assert figures.digits(value) == text


def around(middle, worst):
    """100 samples: the median is `middle`, the 99th percentile `worst`."""
    return [middle] * 98 + [worst] * 2


# What figures makes of samples that just meet the goal, and of those that just do not.
JUDGED = {
    "a whole run as PID 1": lambda bad: figures.whole_rows("PID 1", {US: [2.5 + bad], ALONE: [1.0]}),
    "a whole run as a plain process": lambda bad: figures.whole_rows("a plain process", {US: [2.75 + bad], ALONE: [1.0]}),
    "a signal's median": lambda bad: figures.signal_rows({US: [3e-4 + bad * 1e-5], "tini": [1e-4]}),
    "a signal's 99th percentile": lambda bad: figures.signal_rows({US: around(1e-4, 5e-4 + bad * 1e-5), "tini": [1e-4]}),
    "a signal's 99th percentile without tini": lambda bad: figures.signal_rows({US: around(1e-4, 5e-4 + bad * 1e-5)}),
    "wake-ups": lambda bad: figures.idle_rows("COMMAND", 10, {US: bad, "tini": 10}),
    "memory": lambda bad: figures.memory_rows("COMMAND", {US: 10 + bad * 0.01, ALONE: 7.0, "tini": 1.0}),
    "memory of a plain process": lambda bad: figures.memory_rows("COMMAND, a plain process", {US: 10.5 + bad * 0.01, ALONE: 7.0}),
    "memory with a server": lambda bad: figures.memory_rows("a kept server", {US: 11.5 + bad * 0.01, ALONE: 7.0}),
    "orphans": lambda bad: figures.orphan_rows(20000, {US: [1.2 + bad, 2.4 + bad, 1.2 + bad], "tini": [1.0, 2.0, 1.0]}),
    "docker stop": lambda bad: figures.stop_rows({US: [0.25 + bad * 0.01], ALONE: [0.2]}),
    "a burst": lambda bad: figures.burst_rows(10000, {US: [True, not bad, True], "tini": [False]}),
}


@pytest.mark.parametrize("what", list(JUDGED))
def test_a_goal_is_met_or_missed(what):
    for bad, met in ((0, True), (1, False)):
        rows = JUDGED[what](bad)
        assert [row.met for row in rows if row.goal] == [met]
        assert ("**missed**" in figures.table(rows)) is not met


def test_the_goals_are_those_of_the_tests():
    assert list(figures.WHOLE_GOALS.values()) == list(test_speed.WHOLE_GOALS.values())
    assert figures.ORPHANS_GOAL == test_speed.ORPHANS_GOAL
    assert figures.MEMORY_GOALS["a kept server"] == test_speed.MEMORY_GOAL


def test_orphans_are_compared_round_by_round():
    rows = figures.orphan_rows(600, {US: [1.0, 30.0, 1.0], "tini": [1.0, 30.0, 1.0]})       # a noisy minute hit both
    assert rows[1].cells == {US: "1.00", "tini": "1.00"}


# ---- what it prints

def test_the_table_is_aligned_and_has_no_empty_column():
    rows = [figures.Row("around `true`, µs", "≤ 2.5", True, {US: "1.00 / 2.00", "tini": "3"}), figures.Row("more", "", None, {US: "4"})]
    lines = figures.table(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["what", "goal", US, "tini"]
    assert cells[2:] == [["around `true`, µs", "≤ 2.5: met", "1.00 / 2.00", "3"], ["more", "", "4", ""]]
    assert all(re.fullmatch("-+:?", cell) for cell in cells[1])
    assert len({len(line) for line in lines}) == 1


def test_the_picture_has_a_curve_for_each_init_in_each_panel():
    script = figures.gnuplot_script({"it's one": {US: [0.003, 0.001, 0.002], "tini": [0.001]}, "two": {ALONE: [0.5]}}, "a'b.svg")
    assert "set output 'a''b.svg'\n" in script and "set title 'it''s one' noenhanced\n" in script
    assert re.findall(r"title '([^']*)'(?:,|$)", script, re.M) == [US, "tini", ALONE]
    blocks = re.findall(r"^\$data\d << END\n(.*?)\nEND$", script, re.M | re.S)
    points = [[tuple(map(float, line.split())) for line in block.split("\n")] for block in blocks]
    assert len(points) == 3 and all(curve == sorted(curve) for curve in points)
    assert points[0][0] == (1.0, 0.0) and points[0][-1] == (3.0, 100.0)


# ---- the whole

def bench(*words, **environment):
    """Run it with few repetitions; -> (exit status, its table as {what: [other cells]}, all that it said)."""
    done = subprocess.run([sys.executable, str(BENCH), "--quick", *words], env={**clean_environment(), **environment}, timeout=6 * SECONDS,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    return done.returncode, {what: others for what, *others in lines}, done.stdout


def test_every_group_but_dockers_has_figures_of_pyinit1():
    status, table, said = bench("whole", "plain", "signals", "bursts", "rest", "orphans")
    assert status == 0, said
    assert table["what"][:2] == ["goal", US] and "tini" in table["what"], said
    assert len(table) >= 15 and all(cells[1] for cells in table.values()), said
    assert table["bursts of 10000 signals of which none was lost"][:2] == ["all: met", "1 of 1"], said
    assert [cells[:2] for what, cells in table.items() if what.startswith("wake-ups")] == 3 * [["0: met", "0"]], said


def test_an_init_with_faults_is_seen_through(tmp_path):
    faulty = tmp_path / "faulty.py"
    faulty.write_text(FAULTY)
    status, table, said = bench("whole", "bursts", "rest", PYINIT1_FILE=str(faulty))
    assert status == 0, said
    assert table["bursts of 10000 signals of which none was lost"][:2] == ["all: **missed**", "0 of 1"], said
    assert table["times `python3 -IS -c pass`"][0] == "≤ 2.5: **missed**", said
    idle = [cells for what, cells in table.items() if what.startswith("wake-ups")]
    assert [cells[0] for cells in idle] == 3 * ["0: **missed**"] and all(int(cells[1]) > 5 for cells in idle), said


def test_what_cannot_be_measured_is_an_error(tmp_path):
    status, table, said = bench("whole", PYINIT1_FILE=str(tmp_path / "none.py"))
    assert status == 1 and "bench: not measured: whole\n" in said and not table.get("around `true` as PID 1, ms, median / 99 %")
