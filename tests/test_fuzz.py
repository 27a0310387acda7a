"""Fuzz: what a seed means, and that the model notices what is wrong with a copy of pyinit1.py."""

import os
import re

import pytest

import fuzz
from helpers import AtOnce

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="not root: every folder has an owner who is neither root nor us")

SEEDS = range(1000, 1400)


def test_a_seed_means_the_same_schedule_every_time():
    assert [fuzz.plan_of(seed) for seed in SEEDS] == [fuzz.plan_of(seed) for seed in SEEDS]
    assert len({fuzz.in_words(fuzz.plan_of(seed)) for seed in SEEDS}) > len(SEEDS) * 0.9


def test_everything_that_can_be_drawn_is_drawn():
    plans = [fuzz.plan_of(seed) for seed in SEEDS]
    drawn = {(plan.kind, name) for plan in plans for step in (*plan.steps, plan.ending.company) for name, _ in step}
    assert drawn == {(kind, name) for name, deed in fuzz.DEEDS.items() for kind in deed.kinds}
    assert {number for plan in plans for number in plan.ending.numbers} == set(fuzz.ENDINGS)
    assert {plan.ending.crash for plan in plans} == {"", *fuzz.IN_THE_END}


def test_no_schedule_crashes_it_so_often_that_it_gives_up_what_was_asked_for():
    for plan in map(fuzz.plan_of, SEEDS):
        assert fuzz.crashes_of((*plan.steps, plan.ending.company)) + bool(plan.ending.crash) <= fuzz.CRASHES


# ---- broken copies

def plan(*names, services=1, kind=fuzz.SERVER, numbers=(38,)):
    """A schedule with one deed in each step."""
    return fuzz.Plan(1, kind, services, tuple(((name, 0.0),) for name in names), fuzz.Ending((), numbers, ""))


KILLS = """
stop_server_well = Init.stop_server
def stop_server(self):
    self.signal_others(signal.SIGKILL, self.others())
    stop_server_well(self)
Init.stop_server = stop_server
"""
LATE_SERVER = """
stop_others_well = Init.stop_others
def stop_others(self):
    self.start_server()
    time.sleep(2)
    stop_others_well(self)
Init.stop_others = stop_others
"""
FORGETS = """
start_server_well = Init.start_server
def start_server(self):
    remove(STATE_PATH)
    start_server_well(self)
Init.start_server, Init.stop_unadopted = start_server, lambda self: setattr(self, "unsettled", False)
"""

# What is wrong -> (schedule, what makes the copy so, what the model must say)
BROKEN = {
    "signals are lost": (plan("signals"), "answer_well = Init.answer\nInit.answer = lambda self, number: answer_well(self, number) if number in ACTIONS else None\n",
                         "step 1: not said: .*ignored"),
    "orphans are not reaped": (plan("orphans"), """
reap_well = Init.reap
def reap(self):
    first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return reap_well(self) if first and first.si_pid == self.server else False
Init.reap = reap
""", "step 1: .*zombie"),
    "the server dies of an update": (plan("update"), "over_well = Init.leave\nInit.leave = lambda self, *more: kill(self.server, signal.SIGKILL) and over_well(self, *more)\n",
                                     "step 1: .*(another server|servers were started)"),
    "the update is never done": (plan("update"), "Init.self_update = lambda self: setattr(self, 'update', False)\n", "step 1: not said: .generation: 2"),
    "a crash rolls nothing back": (plan("update", "crash"), "recover_well = recover\ndef recover(state, vm):\n    recover_well(dict(state, probation=0.0), vm)\n",
                                   "step 2: generation 2 runs, should be 1"),
    "a crash ends it": (plan("crash"), "def recover(state, vm):\n    pass\n", "step 1: (not said: .*crashed|it has ended)"),
    "a killed server stays away": (plan("server killed"), "Init.start_again = lambda self: self.turn()\n", "step 1: servers: "),
    "services run twice": (plan("soft restart"), FORGETS, "step 1: .*service0 runs 2 times"),
    "a soft restart is none": (plan("soft restart"), "Init.soft_restart = lambda self: setattr(self, 'restart', False)\n", "step 1: the same server"),
    "a soft restart ends orphans": (plan("an orphan that stays", "soft restart"), "Init.names_of_services = lambda self: str(self.signal_others(signal.SIGURG, ()))\n",
                                    "step 2: .*stays0 got a signal"),
    "it ends as something else": (plan(), "end_well = Init.end\ndef end(self):\n    self.request = HALT\n    end_well(self)\nInit.end = end\n", "the end: the end began as .*halt"),
    "the status is wrong": (plan(kind=fuzz.ONCE, services=0), "def exit_code(status, exit_ok=()):\n    return 0\n", "the end: exit status 0"),
    "a server is started in the end": (plan(), LATE_SERVER, "the end: a server was started in the end"),
    "nobody can save his work": (plan("an orphan that stays"), KILLS, "the end: .*0 saved"),
}


def try_broken(name, _):
    schedule, broken, _ = BROKEN[name]
    return fuzz.live(schedule, broken, patience=5)


@pytest.fixture(scope="module")
def lives():
    return AtOnce(try_broken, BROKEN, workers=3)


@pytest.mark.parametrize("name", BROKEN)
def test_the_model_notices_if(lives, name):
    result = lives.result(name)
    assert re.match(BROKEN[name][2], result.why), "%s\n%s" % (result.why, result.log)


@pytest.fixture(scope="module")
def good_lives():
    schedules = {BROKEN[name][0] for name in BROKEN} | {fuzz.plan_of(seed) for seed in range(10)}
    return AtOnce(lambda schedule, _: fuzz.live(schedule), schedules, workers=3)


def test_it_finds_nothing_where_nothing_is_wrong(good_lives):
    for schedule in good_lives.parameters:
        result = good_lives.result(schedule)
        assert not result.why, "%s\n%s\n%s" % (fuzz.in_words(schedule), result.why, result.log)
