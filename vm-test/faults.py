#!/usr/bin/env python3
"""Faults: an exception in PID 1 or a child of its, once, at each line that only a machine executes; one machine a line.

    vm-test/faults.py all               every line, in half an hour
    vm-test/faults.py 50                so many of them; --seed says which
    vm-test/faults.py few               those that tell most
    vm-test/faults.py usual:end-init:2178:MemoryError       this one; a function's name means the line of its first statement

A machine has its root, /data and /data/more on ext4 disks, mounts in mounts, a file system on a loop device, a swap file, a server
with a service, and orphans, of which one has a terminal. A copy of pyinit1.py that traces itself is its /sbin/init. First each
scenario is played once to learn which lines are executed, and by whom; then each line has a machine in the first scenario that
executes it, which is booted, or, from the request on, goes on from where one of this scenario was saved. Tried is what is executed
from the request to end on, and of the boot what namespaces do not have (BOOT).

A role is when and by whom a line is executed. When: `boot`, `end`, that is from the request on, or `disks`, once their release has
begun; with `crash` in the handling of a first exception, which some scenarios have. By whom: `init`, PID 1, `again`, PID 1 after a
re-exec, `child`, a child of it, or `trial`, a trial start. The exception comes at the line's first execution there.

It is survived if the machine goes on until the request and then powers off by itself, starts its server once, gives all the time
to save their work, has on its disks what was written before the request, and leaves these as clean as DEMANDS says. An exception
before the server's first start may park PID 1; that is counted apart.
unclean, lost, twice, early: what was not so. panic, hang: always a failure. host: this computer ended QEMU, or hardly let it run.
Exit status: 0 if all were survived, 1 if one was not or nothing could be run, 2 for a bad option.
"""

import argparse
import ast
import collections
import concurrent.futures
import functools
import hashlib
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import disks
import image
import injection
import machine
import packages
import scenarios
import soak

PYINIT1 = pathlib.Path(__file__).resolve().parent.parent / "pyinit1.py"

PATIENCE = 90.0             # seconds of QEMU's own in which the boot, and then the end, must come: soak.Patience
PARKED = 16.0               # ... that a machine may go on after somebody in it has parked: pyinit1's DISKS_LIMIT, and more
SEED = 1                    # which lines are tried, and which exception at each
SAMPLE = 50                 # lines
KEPT_DISKS = 5              # so many failures keep their disks, too
ANSWER_SECONDS = 0.1        # between two Ctrl-Alt-Del
KEYS = 100                  # so many Ctrl-Alt-Del at most
SLOW_BYTES = 400 << 10      # what a slow disk takes a second

# ---- which lines

# What is not tried, and why.
EXEMPT = {
    "main": "the statements before the handler is in, and the handler's own last resort",
    "in_initial_pid_namespace": "without its answer this may be a container's PID 1, that exits",
    "park": "the parking itself",
    "module": "imports, constants and definitions, before the handler is in",
}

# Functions that have lines of the boot that no namespace executes; all else of it is tried there, by tests/test_crash.py, and so are
# trial starts and what is done after a crash, but for one while the disks are released.
BOOT = ("boot", "call", "debug_wanted", "disable_ctrl_alt_del", "fill_descriptors", "get_ready", "hold", "Init.prepare", "link_dev",
        "load_libc", "Log.open", "look_at_root", "loopback_up", "mount", "mount_api", "raise_open_files", "reboot", "set_hostname", "step",
        "where_am_i")
# A process that takes over in the end does what the one before it did, but for these.
AGAIN = (*BOOT, "handed_over", "Init.adopt", "Init.look_at_adopted", "crashed")

# What tells most: all that a step of the boot may raise, the end before the disks, the release of the disks, and its child.
FEW = ("usual:boot-init:mount_api:MemoryError", "usual:end-init:Init.stop_others:MemoryError",
       "usual:disks-init:Init.follow_release:ZeroDivisionError", "usual:disks-child:Release.unmount:RecursionError")

# ---- how clean a disk must be

LOST = "lost"               # not even what sync(2) promises
CONDITIONS = (disks.CLEAN, disks.FROZEN, disks.SYNCED, LOST, disks.UNJUDGED)        # each is worse than the one before it
RELEASING = disks.SYNCED    # what is demanded after an exception in PID 1 while the disks are released
DEMANDS = (("disks-child", disks.FROZEN), ("disks-", RELEASING), ("", disks.CLEAN))      # by the beginning of the role: the first counts

# ---- the machine

DISKS = (("/", 192), ("/data", 32), ("/data/more", 32))         # where each is mounted, and its size in MiB
LOOP = "/inside"            # where the file system in the file `image` of /data is mounted
IMAGE_MIB, SWAP_BYTES = 8, 1 << 20
WRITTEN = "text"            # what the file `text` of each file system says, written before the request
SAVED = ("web", "left", "terminal")     # files of /data: what the service and the orphans save at the end

# When a line is executed, for the hook's role.
WHEN = """(("disks-" if "release_disks" in called else "end-" if os.path.exists("/run/asked") else "boot-")
        + "crash-" * ("go_on" in called))"""
# The plan: a word that the kernel hands over, or, in a machine that goes on from where another one was saved, one of a file.
PLAN = """(os.environ.get("FAULT") or os.path.exists("/run/plan") and read_file("/run/plan").decode()
            or "").replace(":", " ").split()"""

# The first exception of the scenarios that have one: where the method $CRASH of Init is called.
CRASH = """
def crash_once(name):
    well = getattr(Init, name)
    def crash(*arguments):
        if os.getpid() == 1 and not os.path.exists("/run/crashed"):
            os.close(os.open("/run/crashed", os.O_WRONLY | os.O_CREAT))
            raise ZeroDivisionError("the first crash")
        return well(*arguments)
    setattr(Init, name, crash)


if os.environ.get("CRASH"):
    crash_once(os.environ["CRASH"])
"""

# A process that needs a moment to save its work, when the signal comes; it says that it is there by a file.
SAVES = """
trap '' TERM
trap 'usleep 200000; echo saved >/data/%(name)s; exit' %(signal)s
: >/run/%(name)s
sleep 10000 &
wait
wait
"""
SIGNALS = {"web": "TERM", "left": "TERM", "terminal": "HUP"}

# /etc/rc.scenario. What comes behind `asking` does so without a fork. A request that is lost is made again, and that is said.
RC = "OUT=/dev/console\n" + scenarios.PRELUDE + """
none_left() { ! grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; }
wait_for_key() { say ready; read -r line </dev/console; }
for module in loop %s; do check driver modprobe $module; done
check "mount /data" mount -t ext4 /dev/vdb /data
check "mount /data/more" mount -t ext4 /dev/vdc /data/more
check bind mount -o bind /data/folder /data/bound
check tmpfs mount -t tmpfs tmpfs /data/scratch
check losetup losetup /dev/loop0 /data/image
check losetup losetup /dev/loop1 /data/more/image
check "mount the loop device" mount -t ext4 /dev/loop0 /inside
check mkswap mkswap /data/swap
check swapon swapon /data/swap
(sh /root/left &)
(setsid -c sh /root/terminal </dev/console >/dev/console 2>&1 &)
for each in web left terminal; do wait_until [ -e /run/$each ]; done
for folder in "" /data /data/more /inside; do echo text >$folder/text; done
(true &)
wait_until none_left
check "the server is the same" same "$(field $$ 4)" $PPID
if [ -z "$FAULT" ]; then
    say saved
    read -r plan </dev/console
    echo "$plan" >/run/plan
fi
. /root/scenario-$SCENARIO
: >/run/asked
say asking
kill -TERM 1
read -r -t 20 line </dev/console
say asking again
kill -TERM 1
"""

# words: for the kernel. script: what the guest does before the request; it may wait for a deed from outside. best: the condition that
# the scenario itself leaves DISKS and LOOP in. demand: no more of any of them, whatever the line. saved: which of SAVED. reason: of
# the end, QMP's.
Scenario = collections.namedtuple("Scenario", "name words script deed best demand saved reason")
SCENARIOS = {}


def scenario(name, words="", script="", deed=None, best=(disks.CLEAN,) * 4, demand=disks.CLEAN, saved=SAVED,
             reason=soak.POWER_OFF):
    SCENARIOS[name] = Scenario(name, words, script, deed, best, demand, saved, reason)


def all_at_once(running):
    """Seven Ctrl-Alt-Del within 2 s; after a crash some of them may be lost, so: until it ends, or in vain."""
    for _ in range(KEYS):
        if running.console.ended or "pyinit1: the end: reboot(2)" in running.console.text:
            break
        try:
            running.press("ctrl", "alt", "delete")
        except (machine.Failure, OSError):
            break                                   # it has ended
        running.console.read(ANSWER_SECONDS)


def dies(running):
    running.stop_answering(2)
    running.type("go")


def gets_slow(running):
    running.throttle(2, SLOW_BYTES)
    running.type("go")


DEAF = 'STANDIN_FAULT="hung ignore-term" PYINIT1_STOP_TIMEOUT=2 PYINIT1_GRACE=1'

# The first in which a line is executed is the one in which it is tried: the cheapest come first.
scenario("usual")
# The root's files were replaced: it can only be frozen.
scenario("replaced", best=(disks.FROZEN, disks.CLEAN, disks.CLEAN, disks.CLEAN), script="""
for file in $(readlink -f /usr/bin/python3) /lib/*-linux-gnu/libc.so.6 /usr/lib/*-linux-gnu/libffi.so.8.*; do
    [ -e $file ] || continue
    check copy cp $file $file.new
    check rename mv $file.new $file
done
""")
# The server and an orphan are deaf, and killed.
scenario("deaf", DEAF, "(trap '' TERM HUP; sleep 10000) &\n")
# There is no memory for a fork any more, so the kernel is asked to release the disks; and what it does last to /data it does before
# /inside, whose disk that is. Nor can a shell wait any more while it saves its work.
scenario("no-fork", best=(disks.CLEAN, disks.CLEAN, disks.CLEAN, disks.UNJUDGED), demand=disks.SYNCED, saved=(), script="""
echo 0 >/proc/sys/vm/overcommit_ratio
echo 2 >/proc/sys/vm/overcommit_memory
""")
# A first exception before the disks are released, and one while they are.
scenario("crash", "CRASH=stop_others")
scenario("crash-releasing", "CRASH=follow_release", demand=RELEASING)
# Seven SIGINT.
scenario("hurry", DEAF, ": >/run/asked\nwait_for_key\n", all_at_once, demand=disks.SYNCED, saved=(), reason=soak.REBOOT)
# A file system is frozen, and who writes there sleeps uninterruptibly with a file of another open.
scenario("frozen", "PYINIT1_GRACE=1", best=(disks.CLEAN, disks.FROZEN, disks.FROZEN, disks.CLEAN), script="""
blocked() { grep -q "^State:.D" /proc/$1/status; }
check freeze fsfreeze --freeze /data/more
(exec 3>/data/held; echo more >/data/more/blocked) &
wait_until blocked $!
""")
# A disk takes its time.
scenario("slow", script="""
for limit in dirty_ratio dirty_background_ratio; do echo 90 >/proc/sys/vm/$limit; done
echo 64 >/sys/block/vdc/queue/max_sectors_kb
wait_for_key
dd if=/dev/zero of=/data/more/file bs=64k count=32 2>/dev/null
""", deed=gets_slow)
# A disk answers no more. Now and then the time is over before /data's turn comes, which it holds.
scenario("dead", "PYINIT1_GRACE=1", best=(disks.CLEAN, disks.CLEAN, disks.UNJUDGED, disks.CLEAN), demand=disks.SYNCED, deed=dies, script="""
(while :; do dd if=/dev/zero of=/data/more/file bs=64k count=32 2>/dev/null; done) &
wait_until [ -s /data/more/file ]
wait_for_key
""")


# ---- points: a line, who executes it, and what is raised there

Point = collections.namedtuple("Point", "scenario role line exception")
EXECUTED = re.compile(r"executed (\S+) (\d+)$", re.MULTILINE)


def in_words(point):
    """How a point is given on the command line."""
    return ":".join(str(word) for word in point)


def exception_for(line, seed):
    return injection.EXCEPTIONS[(line + seed) % len(injection.EXCEPTIONS)]


def parse_point(word, text, seed):
    """The Point of SCENARIO:ROLE:LINE[:EXCEPTION], LINE being the number of one, or a function of `text`. Raises ValueError."""
    scenario, role, line, *rest = word.split(":")
    if scenario not in SCENARIOS:
        raise ValueError("%s: no scenario %s; there are: %s" % (word, scenario, " ".join(SCENARIOS)))
    first = first_lines(text)
    if not (line.isdigit() or line in first):
        raise ValueError("%s: neither a line nor a function: %s" % (word, line))
    number = int(line) if line.isdigit() else first[line]
    exception = rest[0] if rest else exception_for(number, seed)
    if rest[1:] or exception not in injection.EXCEPTIONS:
        raise ValueError("%s: expected one exception of: %s" % (word, " ".join(injection.EXCEPTIONS)))
    return Point(scenario, role, number, exception)


@functools.cache
def first_lines(text):
    """{function: the line of its first statement, without its docstring}."""
    functions, first = injection.functions_of(text), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None and node.body[1:] else node.body
            first[functions[node.lineno]] = body[0].lineno
    return first


def executed(console, text):
    """{(role, line)} that a recorded machine said on its console; without the lines of the copy that `text` does not have."""
    last = text[:text.index(injection.LAST)].count("\n")
    found = {(role, int(line)) for role, line in EXECUTED.findall(console)}
    return {(role, line) for role, line in found if line <= last}


def why_not(role, function):
    """Why no line of this function is tried there; "" if each is."""
    when, *_, who = role.split("-")
    if function in EXEMPT:
        return "exempt"
    if who == "trial" or when == "boot" and function not in BOOT or when != "disks" and "-crash-" in role:
        return "tried in namespaces"
    return "as before the re-exec" if who == "again" and function not in AGAIN else ""


def sort_out(recorded, text):
    """([(scenario, role, line)] to be tried, {why others are not: their functions, counted}) of {scenario: {(role, line)}}."""
    functions, points, seen, left = injection.functions_of(text), [], set(), {}
    for name in SCENARIOS:
        for role, line in sorted(recorded.get(name, set()) - seen):
            seen.add((role, line))
            function = functions.get(line, "module")
            why = why_not(role, function)
            if why:
                left.setdefault(why, collections.Counter())[function] += 1
            else:
                points.append((name, role, line))
    return points, left


def choose(points, wanted, seed):
    """All of these points, or as many as wanted, with their exceptions."""
    if wanted is not None:
        points = sorted(random.Random(seed).sample(points, min(wanted, len(points))), key=points.index)
    return [Point(*point, exception_for(point[2], seed)) for point in points]


# ---- what a machine did

SURVIVED = (disks.CLEAN, disks.FROZEN, disks.SYNCED)
COUNTED = (*SURVIVED, "parked", "not reached")          # no failures
FAILED = ("unclean", LOST, "twice", "early", "panic", "hang", "host", "other")
VERDICT_OF = {"panic": "panic", "hang": "hang", "host": "host", "unclean": "unclean", LOST: LOST, "twice": "twice", "early": "early"}

# The kernel's words that something is wrong.
COMPLAINTS = re.compile(r"^.*(?:EXT4-fs error|I/O error|Oops|BUG: ).*$", re.MULTILINE)

BEGUN = "vm-test: (?:ready|asking)$"        # all is as it should be until here

Result = collections.namedtuple("Result", "point verdict details seconds console")


def play(scenario, running, clock):
    """To the end. Failure says what went wrong; -> whether it is parked before anything was started."""
    soak.wait_for(running, BEGUN + "|pyinit1: parked: ", clock)
    if not re.search(BEGUN, running.console.text, re.MULTILINE):
        if re.search("pyinit1: server started: |server: ready: ", running.console.text):
            raise machine.Failure("hang", "parked, and there was a server")
        return True
    if scenario.deed:
        scenario.deed(running)
    soak.wait(running, "end", lambda: running.console.ended or running.console.find("pyinit1: parked: "), clock)
    # A child that never became one parks as well, and PID 1 goes on without it.
    soak.wait(running, "end", lambda: running.console.ended or clock.used >= PARKED, clock)
    if not running.console.ended:
        raise machine.Failure("hang", "parked, and no end within %g s" % PARKED)
    judgement, details = soak.end_of(running)
    if judgement != scenario.reason:
        raise soak.wrong_end(judgement, details, "expected: " + scenario.reason)
    return False


def check_words(point, console):
    """Failure if the console tells of what may not be."""
    starts = len(re.findall(r"server: ready: pid \d+$", console, re.MULTILINE))
    if starts != 1:
        raise machine.Failure("twice" if starts else "other", "the server was started %d times" % starts)
    # What the handler of the signal itself could not note is lost with the crash.
    if "vm-test: asking again" in console and not (point and re.search("pyinit1: crashed: .* > note:", console)):
        raise machine.Failure("hang", "the request was not heard")
    if "server: service killed" in console:
        raise machine.Failure("early", "the server had to kill its service")


def check_complaints(scenario, condition, console):
    """Failure if the kernel complains, and not of a disk that was in use to the last, or dead."""
    complaint = COMPLAINTS.search(console)
    if complaint and condition == disks.CLEAN and disks.UNJUDGED not in scenario.best:
        raise machine.Failure("other", complaint.group())


def condition_of(path):
    """(the first of CONDITIONS that is true of a disk, why not a better one)."""
    better = ""
    for each in (disks.CLEAN, disks.FROZEN, disks.SYNCED):
        why = disks.fault(path, each)
        if not why:
            return each, better
        better = why
    return LOST, better


def worse(*conditions):
    return max(conditions, key=CONDITIONS.index)


def demand_for(role):
    """What is demanded of the disks after an exception there."""
    return next(demand for beginning, demand in DEMANDS if role.startswith(beginning))


def look_at(paths, directory):
    """[(where, condition, why not better, {file: text})] of the file systems, that on the loop device last."""
    found = []
    for (where, _), path in zip(DISKS, paths):
        found.append((where, *condition_of(path), {name: disks.read(path, name) for name in ("text", *SAVED)}))
    inner = directory / "image"
    with disks.recovered(paths[1]) as copy:
        disks.ask("debugfs", "-R", 'dump image "%s"' % inner, copy)
    return [*found, (LOOP, *condition_of(inner), {"text": disks.read(inner, "text")})]


def judge_disks(scenario, demand, found):
    """(the condition of the worst of them, why no better one); as good as the scenario lets it be is clean. Failure if one is worse
    than demanded, or lacks something. `found`: look_at()."""
    outcome, whys = disks.CLEAN, []
    for (where, condition, why, files), best in zip(found, scenario.best):
        if best == disks.UNJUDGED:
            continue
        if condition == LOST or files["text"] != WRITTEN + "\n":
            raise machine.Failure(LOST, "%s: what was written before the request is %r; %s" % (where, files["text"], why))
        if worse(condition, best) != best:
            outcome = worse(outcome, condition)
            whys.append("%s is %s: %s" % (where, condition, why))
        least = worse(best, scenario.demand, demand)
        if worse(condition, least) != least:
            raise machine.Failure("unclean", "%s is %s, demanded: %s: %s" % (where, condition, least, why))
    missing = [name for name in scenario.saved if found[1][3][name] != "saved\n"]
    if missing:
        raise machine.Failure("early", "had no time to save its work: %s" % ", ".join(missing))
    return outcome, "; ".join(whys)


# ---- one machine, and all of them

# What machines start from; state: of a machine that was saved, console: the text that it had by then.
Base = collections.namedtuple("Base", "kernel initramfs disks state console", defaults=(None, ""))


def make_base(options, directory):
    """The Base of all machines, made once."""
    hook = injection.hook(PLAN, "/dev/console", "/run/raised", WHEN)
    (directory / "init").write_text(injection.with_statements(options.init.read_text(), CRASH + hook))
    tree = image.machine_tree(options.arch, directory / "init")
    keyboard = machine.BOARDS[options.arch].keyboard
    image.add_modules(tree, options.arch, (*image.DISK_MODULES, "loop", *keyboard))
    for folder in "data", "inside":
        image.add(tree, folder, image.directory())
    image.add(tree, "etc/rc.scenario", image.file(RC % " ".join(keyboard)))
    for name, number in SIGNALS.items():
        image.add(tree, "root/" + name, image.file(SAVES % {"name": name, "signal": number}))
    for name, each in SCENARIOS.items():
        image.add(tree, "root/scenario-" + name, image.file(each.script))
    scenarios.services(web="exec /bin/sh /root/web")(tree)
    root, small = image.on_a_disk(tree, options.arch)
    disks.write({}, directory / "image", IMAGE_MIB)
    inner = image.file(directory / "image")
    data = {name: image.directory() for name in ("folder", "bound", "scratch", "more")}
    data.update(image=inner, swap=image.file(b"x" * SWAP_BYTES))
    paths = [directory / machine.disk_name(number) for number in range(len(DISKS))]
    for content, path, (_, mebibytes) in zip((root, data, {"image": inner}), paths, DISKS):
        disks.write(content, path, mebibytes)
    image.write_initramfs(small, directory / "initramfs")
    return Base(image.kernel(options.arch), directory / "initramfs", paths)


def kernel_words(architecture, scenario, plan):
    """The kernel's command line. No tests of its own ciphers: a second and a half."""
    return machine.kernel_words(architecture, " ".join(filter(None, [
        "sysrq_always_enabled", "cryptomgr.notests", "SCENARIO=" + scenario.name, plan and "FAULT=" + plan, scenario.words])))


def copied(originals, directory):
    """The machine's own disks."""
    paths = [directory / original.name for original in originals]
    for original, path in zip(originals, paths):
        packages.run(["cp", "--sparse=always", original, path])
    return paths


def live(options, base, scenario, plan, directory):
    """One machine by this plan, in `directory`: (parked?, its disks, its console's text). Failure says what went wrong."""
    paths = copied(base.disks, directory)
    with machine.Machine(options.arch, base.kernel, base.initramfs, kernel_words(options.arch, scenario, plan), paths) as running:
        return end_of_life(options, scenario, running, directory)


def resume(options, saved, scenario, plan, directory):
    """The same from where a machine was saved: a third of the time."""
    paths = copied(saved.disks, directory)
    parts = (saved.kernel, saved.initramfs, kernel_words(options.arch, scenario, ""), paths)
    with machine.Machine(options.arch, *parts, state=saved.state) as running:
        running.console.text, running.console.position = saved.console, len(saved.console)
        running.type(plan)
        return end_of_life(options, scenario, running, directory)


def end_of_life(options, scenario, running, directory):
    """What live() and resume() return."""
    try:
        parked = play(scenario, running, soak.Patience(running.process.pid, options.patience))
    finally:
        (directory / "console").write_text(running.console.drain(), encoding="utf-8")
    return parked, running.disks, running.console.text


class Saved:
    """For each scenario a machine that has booted, saved when the first one is to go on from there."""

    def __init__(self, options, base, directory):
        self.options, self.base, self.directory = options, base, directory
        self.locks, self.made = {name: threading.Lock() for name in SCENARIOS}, {}

    def of(self, name):
        """The Base of a scenario's machines. Failure if it cannot be made."""
        with self.locks[name]:
            if name not in self.made:
                self.made[name] = self.save(SCENARIOS[name], self.directory / ("saved-" + name))
        return self.made[name]

    def save(self, scenario, directory):
        directory.mkdir(exist_ok=True)
        base, paths, words = self.base, copied(self.base.disks, directory), kernel_words(self.options.arch, scenario, "")
        with machine.Machine(self.options.arch, base.kernel, base.initramfs, words, paths) as running:
            soak.wait_for(running, "vm-test: saved$", soak.Patience(running.process.pid, self.options.patience))
            running.save(directory / "state")
            return base._replace(disks=paths, state=directory / "state", console=running.console.drain())


def console_of(directory):
    path = directory / "console"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def record(options, base, name, directory):
    """Play a scenario without a fault, which must end as it should; the lines that it executes: {(role, line)}."""
    directory.mkdir()
    scenario = SCENARIOS[name]
    _, paths, console = live(options, base, scenario, "record", directory)
    check_words(None, console)
    judge_disks(scenario, disks.CLEAN, look_at(paths, directory))
    return executed(console, options.text)


def attempt(options, base, saved, point, directory):
    """One machine with a fault: (verdict, details). Failure says what went wrong. `saved`: None if it is to boot in any case."""
    scenario, plan = SCENARIOS[point.scenario], in_words(point[1:])
    if saved and not point.role.startswith("boot-"):
        parked, paths, console = resume(options, saved.of(point.scenario), scenario, plan, directory)
    else:
        parked, paths, console = live(options, base, scenario, plan, directory)
    if "raised %s %d\n" % (point.role, point.line) not in console:
        return "not reached", ""
    if parked:
        return "parked", ""
    check_words(point, console)
    condition, details = judge_disks(scenario, demand_for(point.role), look_at(paths, directory))
    check_complaints(scenario, condition, console)
    return condition, details


def judge(options, base, saved, point, directory):
    """One point's Result; whatever goes wrong is its own failure. What was not reached, or the host's doing, gets a second machine."""
    started = time.monotonic()
    for _ in range(2):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        try:
            verdict, details = attempt(options, base, saved, point, directory)
        except machine.Failure as why:
            verdict, details = VERDICT_OF.get(why.judgement, "other"), str(why)
        except Exception as why:
            traceback.print_exc()
            verdict, details = "other", "the harness failed: %r" % why
        if verdict not in ("not reached", "host"):
            break
    return Result(point, verdict, " ".join(details.split()), time.monotonic() - started, console_of(directory))


def directory_name(point):
    return in_words(point).replace(":", "-")


def repeat_line(options, point):
    """The command that repeats one line."""
    words = ["vm-test/faults.py", in_words(point), "--arch", options.arch]
    words += ["--init", str(options.init)] if options.init != PYINIT1 else []
    return machine.shell_line(words)


def failure_line(options, result, directory):
    point = result.point
    return "faults: FAILED: %s:%d: %s in %s, %s: %s: %s: repeat it: %s; see %s" % (
        injection.functions_of(options.text).get(point.line, "module"), point.line, point.exception, point.role, point.scenario,
        result.verdict, result.details, repeat_line(options, point), directory)


def tidy(options, result, directory, failures):
    """Delete what nobody will look at: of a machine without a failure all (with --keep: its disks), of many failures the disks."""
    if result.verdict in COUNTED and not options.keep:
        shutil.rmtree(directory)
    elif result.verdict in COUNTED or failures > KEPT_DISKS:
        for name in [machine.disk_name(number) for number in range(len(DISKS))] + ["image"]:
            (directory / name).unlink(missing_ok=True)


def record_all(options, base, directory, pool):
    """{scenario: {(role, line)}}. Raises HarnessError where a scenario does not even end well without a fault."""
    futures = {name: pool.submit(record, options, base, name, directory / ("record-" + name)) for name in SCENARIOS}
    recorded = {}
    for name, future in futures.items():
        try:
            recorded[name] = future.result()
        except machine.Failure as why:
            raise packages.HarnessError("faults: %s, without a fault: %s; see %s" % (name, why, directory)) from None
    return recorded


def run_all(options, directory, results):
    """Run the machines, `jobs` at a time, and append to `results`; a line for each failure. -> what was not tried: sort_out()."""
    base = make_base(options, directory)
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)      # no "with": that would wait for the machines after ^C
    points, left, saved = options.points, {}, None
    if not points:
        saved = Saved(options, base, directory)
        found, left = sort_out(record_all(options, base, directory, pool), options.text)
        points = choose(found, options.sample, options.seed)
        print("faults: %d lines that are executed, %d of them tried" % (len(found), len(points)), flush=True)
    futures = [pool.submit(judge, options, base, saved, point, directory / directory_name(point)) for point in points]
    for future in concurrent.futures.as_completed(futures):
        result = future.result()
        results.append(result)
        where = directory / directory_name(result.point)
        if result.verdict not in COUNTED:
            print(failure_line(options, result, where), flush=True)
        tidy(options, result, where, sum(each.verdict not in COUNTED for each in results))
        if len(results) * 10 // len(points) > (len(results) - 1) * 10 // len(points):
            print("faults: %d of %d" % (len(results), len(points)), flush=True)
    return left


# ---- what is printed at the end

def row(name, results):
    """One line of the table: how many lines came to what, and the seconds that a machine took."""
    counts = collections.Counter(result.verdict for result in results)
    failed = sum(counts[verdict] for verdict in FAILED)
    seconds = [result.seconds for result in results]
    return [name, len(results), sum(counts[each] for each in SURVIVED), *(counts[each] for each in COUNTED), failed,
            "%.1f" % statistics.median(seconds)]


COLUMNS = ("tried", "survived", *COUNTED, "failed", "median s")


def table(results):
    """The lines of the table: who executed the line and when, and all."""
    if not results:
        return []
    in_order = sorted(results, key=lambda each: list(SCENARIOS).index(each.point.scenario))
    roles = list(dict.fromkeys(result.point.role for result in in_order))
    rows = [row(role, [result for result in results if result.point.role == role]) for role in roles]
    return ["%-20s" % first + "".join("%12s" % word for word in words)
            for first, *words in [("who, and when", *COLUMNS), *rows, row("all", results)]]


def counted(functions):
    """In words, a Counter."""
    return ", ".join("%s %d" % (name, functions[name]) for name in sorted(functions))


def remarks(options, results, left):
    """Lines below the table: what was not tried, and where what was survived was not all as it is without an exception."""
    functions, lines = injection.functions_of(options.text), []
    for why, found in left.items():
        lines.append("not tried, %s: %d lines%s" % (why, sum(found.values()), ": " + counted(found) if why == "exempt" else ""))
    for verdict in (disks.FROZEN, disks.SYNCED, "parked", "not reached"):
        found = collections.Counter("%s %s" % (result.point.role, functions.get(result.point.line, "module"))
                                    for result in results if result.verdict == verdict)
        if found:
            lines.append("%s: %s" % (verdict, counted(found)))
    return lines


def report(options, results, left):
    """Print all of it; the exit status."""
    print("\n".join(["", *table(results), "", *remarks(options, results, left)]), flush=True)
    return 0 if results and all(result.verdict in COUNTED for result in results) else 1


# ---- main

def parse(words):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE",
                        help="all, few, a number, or SCENARIO:ROLE:LINE[:EXCEPTION]... (default: %d)" % SAMPLE)
    parser.add_argument("--seed", type=int, default=SEED, help="which lines, and which exception at each (default: %(default)s)")
    parser.add_argument("--arch", default=None, choices=packages.ARCHITECTURES, help="the guests' architecture (default: this machine's)")
    parser.add_argument("--init", type=pathlib.Path, default=PYINIT1, metavar="FILE", help="what becomes /sbin/init (default: pyinit1.py)")
    parser.add_argument("--jobs", type=soak.positive, default=1, metavar="N", help="so many machines at a time (default: 1)")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="S",
                        help="seconds without what has to come that make a hang (default: %(default)g)")
    parser.add_argument("--keep", action="store_true", help="keep the consoles of all machines, not only of those that failed")
    options = parser.parse_args(words)
    if not options.init.is_file():
        parser.error("no file: %s" % options.init)
    options.arch, options.text = options.arch or packages.host_architecture(), options.init.read_text()
    options.sample, options.points = SAMPLE, []
    try:
        if options.lines[:1] in (["all"], ["few"]) or options.lines and options.lines[0].isdigit():
            first, = options.lines
            options.sample = None if first == "all" else soak.positive(first) if first != "few" else 0
            options.lines = FEW if first == "few" else []
        options.points = [parse_point(word, options.text, options.seed) for word in options.lines]
    except ValueError as why:
        parser.error(str(why))
    return options


def work(options):
    """Run them all, with a temporary directory that stays if there is something to see; exit status."""
    if not machine.has_qemu(options.arch):
        raise packages.HarnessError("no %s here: `make faults-vm ARCH=%s` installs it, or says how" % (
            machine.BOARDS[options.arch].program, options.arch))
    print("faults: %s, seed %d, init %s, sha256 %s" % (
        options.arch, options.seed, options.init, hashlib.sha256(options.init.read_bytes()).hexdigest()[:12]), flush=True)
    packages.root(options.arch)
    directory, results, left = pathlib.Path(tempfile.mkdtemp(prefix="vm-test-faults.")), [], {}
    keep = True                         # what an error leaves behind is worth a look
    try:
        left = run_all(options, directory, results)
        keep = options.keep
        return report(options, results, left)
    except KeyboardInterrupt:
        report(options, results, left)
        raise
    finally:
        if keep or any(result.verdict not in COUNTED for result in results):
            print("kept: %s" % directory, flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def main():
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work(options)
    except packages.HarnessError as why:
        packages.say(why)
        return 1
    except KeyboardInterrupt:
        os._exit(130)                       # not waiting for the threads: their machines go with us


if __name__ == "__main__":
    sys.exit(main())
