#!/usr/bin/env python3
"""Soak: machines that are ended at random, each of which must end as it was asked to, with all its disks clean.

    vm-test/soak.py 200                 so many machines, one after the other
    vm-test/soak.py 1 --seed 4711       the machine of this seed again

A machine has its root and its data on ext4 disks and a shell logged in on its console. Its seed says what asks for the end,
when, and what misbehaves meanwhile; machine number n of a run has the run's seed + n. One line for each machine that failed,
with what repeats it and where its console and disks are kept, and a table at the end.

unclean: a disk that needs recovery, that e2fsck complains of, or that lacks what was written before the request. hang: nothing
came within --patience; seconds in which this computer did not let QEMU run do not count. host: this computer ended QEMU, or
hardly let it run, so nothing is shown. other: another end than the one asked for, or a complaint on the console.
Exit status: 0 if all were clean, 1 if one was not or nothing could be run, 2 for a bad option.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import disks
import image
import machine
import packages
import scenarios

PYINIT1 = pathlib.Path(__file__).resolve().parent.parent / "pyinit1.py"

PATIENCE = 180.0            # seconds of QEMU's own in which anything in a guest must come: four times the worst case of an end
HOST_LIMIT = 1800.0         # seconds, all of them, after which a machine that could hardly run is given up
LOOK_SECONDS = 1.0          # between two looks at how much of the time was QEMU's
SYSRQ_SECONDS = 30.0        # that a machine which hangs has to say what its processes do
KEPT_DISKS = 5              # so many failures keep their disks, too
DISKS = (("/", 192), ("/data", 64))         # where each is mounted, and its size in MiB


# ---- what a seed means

POWER_OFF, REBOOT = "guest-shutdown", "guest-reset"         # QMP's words
POWER_OFFS = ("kill -TERM 1", "kill -PWR 1", "kill -38 1", "/sbin/poweroff")
REBOOTS = ("kill -INT 1", "kill -39 1", "/sbin/reboot")
DELAY = 2.0                 # seconds at most, from the moment when all is ready to the request
MEANWHILE = (-0.1, 0.4)     # seconds after the request in which a server still stops

# meanwhile: what the guest's script starts before the delay. request: what it runs then, or an outside deed of OUTSIDE.
Ending = collections.namedtuple("Ending", "meanwhile request reason")
Plan = collections.namedtuple("Plan", "seed name company delay ending")


def any_request(draw):
    """(request, reason) of any of those that a process makes."""
    request = draw.choice(POWER_OFFS + REBOOTS)
    return request, POWER_OFF if request in POWER_OFFS else REBOOT


def server_killed(draw, delay):
    """The server gets SIGKILL: while it stops, or some time before the request, when the next one may have started already."""
    moment = draw.choice((draw.uniform(0.0, delay), max(0.0, delay + draw.uniform(*MEANWHILE))))
    return Ending("(usleep %d; kill -KILL $PPID) &\n" % (moment * 1e6), *any_request(draw))


OUTSIDE = {
    "the keys": lambda running: running.press("ctrl", "alt", "delete"),
    "the word": lambda running: running.type("poweroff"),
}

ENDINGS = {                 # by name: (draw, delay) -> Ending
    "power off": lambda draw, delay: Ending("", draw.choice(POWER_OFFS), POWER_OFF),
    "reboot": lambda draw, delay: Ending("", draw.choice(REBOOTS), REBOOT),
    "Ctrl-Alt-Del": lambda draw, delay: Ending("", "the keys", REBOOT),
    "poweroff typed": lambda draw, delay: Ending("", "the word", POWER_OFF),
    "SIGTERM storm": lambda draw, delay: Ending("", "storm %d" % draw.randint(1, 3), POWER_OFF),
    "server killed": server_killed,
}

# By name: how often, and what the guest's script does. Ignored signals are inherited, so "deaf" stands first.
COMPANY = {
    "deaf to SIGTERM": (0.25, """
trap '' TERM HUP
(while :; do usleep 100000; done) &
"""),
    "busy writer": (0.5, """
write() {
    mkdir $1; n=0
    while :; do
        n=$((n+1))
        dd if=/dev/zero of=$1/file$((n % 8)) bs=64k count=$((n % 16 + 1))
        mkdir $1/folder$n; mv $1/file$((n % 8)) $1/file; rm -r $1/folder$((n-3))
    done 2>/dev/null
}
write /data/work & write /work &
wait_until [ -e /data/work/file ]; wait_until [ -e /work/file ]
"""),
    "stopped process": (0.5, """
setsid sh -c 'exec 3>/data/held 4>/data/deleted 5>/held 6>/deleted; rm /data/deleted /deleted; cd /data; kill -STOP $$' &
stopped() { grep -q "^State:.T" /proc/$1/status; }
wait_until stopped $!
"""),
    "python replaced": (0.25, """
for file in $(readlink -f /usr/bin/python3) /lib/*-linux-gnu/libc.so.6 /usr/lib/*-linux-gnu/libffi.so.8.*; do
    [ -e $file ] || continue
    check copy cp $file $file.new
    check rename mv $file.new $file
done
"""),
}

# /etc/rc.scenario, the same in all machines; the disk of the data holds what only this one does.
RC = "OUT=/dev/console\n" + scenarios.PRELUDE + """
storm() { for _ in $(seq $1); do (while :; do kill -TERM 1; done) & done; }
for module in %s; do check "the keyboard's driver" modprobe $module; done
check "mount the data" mount -t ext4 /dev/vdb /data
. /data/script
"""
SCRIPT = """%(company)s
say ready
%(meanwhile)susleep %(microseconds)d
echo %(seed)d >/saved; echo %(seed)d >/data/saved
say now
%(request)s
"""


def plan_of(seed):
    """The Plan that a seed means: any run of twice as many seeds as there are endings has each ending in it."""
    turn, place = divmod(seed, len(ENDINGS))
    name = random.Random("turn %d" % turn).sample(list(ENDINGS), len(ENDINGS))[place]
    draw = random.Random("machine %d" % seed)
    delay = draw.uniform(0.0, DELAY)
    company = tuple(each for each, (often, _) in COMPANY.items() if draw.random() < often)
    return Plan(seed, name, company, delay, ENDINGS[name](draw, delay))


def script(plan):
    """What the guest runs."""
    return SCRIPT % {"company": "".join(COMPANY[each][1] for each in plan.company), "meanwhile": plan.ending.meanwhile,
                     "microseconds": plan.delay * 1e6, "seed": plan.seed,
                     "request": "" if plan.ending.request in OUTSIDE else plan.ending.request}


def kernel_words(architecture, plan):
    """The kernel's command line. No tests of its own ciphers: half a second. Whoever is deaf need not be waited for long."""
    grace = ["PYINIT1_GRACE=2"] if "deaf to SIGTERM" in plan.company else []
    return machine.kernel_words(architecture, " ".join([scenarios.TERMINAL_WORDS, "sysrq_always_enabled", "cryptomgr.notests", *grace]))


def in_words(plan):
    """A plan in one line."""
    return "%s (%s) after %.1f s%s" % (plan.name, plan.ending.request, plan.delay, "".join(", " + each for each in plan.company))


# ---- what a machine did

VERDICTS = ("clean", "unclean", "panic", "hang", "other", "host")
VERDICT_OF = {"unclean disk": "unclean", "not saved": "unclean", "panic": "panic", "hang": "hang", "host": "host"}

GUEST_FAILED = "vm-test: failed: .*$"       # it may stand behind a shell's prompt

# Lines that no machine may have on its console, however it ended: pyinit1's own, and the kernel's.
COMPLAINTS = re.compile(r"^.*(?:pyinit1: crashed|pyinit1: parked|disks: given up|EXT4-fs error|Oops).*$", re.MULTILINE)

# What pyinit1 says of what it could not do as usual; no failure, and told at the end.
LEFT = re.compile(r"pyinit1: ((?:the end: (?:busy|stuck|disks: )|others (?:killed|left)).*?)(?:: pid .*)?$", re.MULTILINE)

PARTS = ("making it", "booting", "at work", "ending", "checking")
ENDING = PARTS.index("ending")              # from the request to the end

# How long the end's own phases took, as pyinit1 says it.
PHASES = re.compile(r"pyinit1: the end: (.* (?:stopped|released): [\d.]+ s)$", re.MULTILINE)

# parts: the seconds of each of PARTS, or nothing, if the end was none that was asked for. waited: those of its end that were the host's.
Result = collections.namedtuple("Result", "plan verdict details parts waited console")


class Patience:
    """Counts the seconds that a QEMU had to run in. Those that its threads stood waiting for a processor are the host's."""

    def __init__(self, pid, limit):
        self.pid, self.limit = pid, limit
        self.begin()

    def begin(self):
        """Count from now on."""
        self.used, self.all = 0.0, 0.0
        self.last, self.waits = time.monotonic(), waits_of(self.pid)

    def look(self):
        """Add the seconds since the last look."""
        now, waits = time.monotonic(), waits_of(self.pid)
        waited = max([waits[thread] - self.waits.get(thread, 0.0) for thread in waits], default=0.0)
        self.all += now - self.last
        # A look that comes late is a host that stood still.
        self.used += max(0.0, min(now - self.last, 2 * LOOK_SECONDS) - waited)
        self.last, self.waits = now, waits


def waits_of(pid):
    """{thread: seconds that it has waited for a processor}, of a process: Documentation/scheduler/sched-stats.rst."""
    waits = {}
    for path in pathlib.Path("/proc/%d/task" % pid).glob("*/schedstat"):
        try:
            waits[path.parent.name] = int(path.read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            pass                # the thread has ended; or this kernel counts nothing
    return waits


def wait(running, what, done, clock):
    """Read the console until done(); what that yields. Failure if the machine hangs, or this one does not let it run."""
    clock.begin()
    while True:
        found = done()
        if found:
            return found
        if clock.used >= clock.limit:
            raise machine.Failure("hang", "within %.0f s no %s; %s" % (clock.used, what, ask_the_kernel(running)))
        if clock.all >= HOST_LIMIT:
            raise machine.Failure("host", "no %s within %.0f s, of which it could run %.0f s" % (what, clock.all, clock.used))
        if time.monotonic() >= clock.last + LOOK_SECONDS:
            clock.look()
        if running.console.ended:
            raise wrong_end(*end_of(running), "before: " + what)
        running.console.read(LOOK_SECONDS)


def wait_for(running, pattern, clock):
    """Wait for the pattern on the console; Failure also if the guest says that it failed."""
    match = wait(running, pattern, lambda: running.console.find("%s|%s" % (pattern, GUEST_FAILED)), clock)
    if re.match(GUEST_FAILED, match.group()):
        raise machine.Failure("the guest failed", match.group())


def end_of(running):
    """(judgement, details) of an end that has come; one that QEMU says nothing of is this computer's doing."""
    kind, details = running.how_it_ended()
    if kind == "host-signal":
        return "host", "somebody on this computer ended QEMU"
    if kind == "QEMU's own end":
        return "host", "QEMU ended by itself: exit status %s" % running.process.wait()
    return kind, details


def wrong_end(judgement, details, wanted):
    """The Failure of an end that should have come later, or otherwise."""
    return machine.Failure(judgement if judgement in VERDICT_OF else "wrong end", "%s, %s" % (details, wanted))


def ask_the_kernel(running):
    """Let a machine that hangs show all its processes on the console by SysRq; its last word, and whether it did, in words."""
    last = running.console.text[running.console.text.rfind("pyinit1: "):].partition("\n")[0]
    try:
        answers = press_sysrq(running, "8", "Loglevel set to 8") and press_sysrq(running, "t", "Show State")
    except (machine.Failure, OSError):
        return "QEMU does not answer"
    until = time.monotonic() + SYSRQ_SECONDS * answers
    while time.monotonic() < until and running.console.read(until - time.monotonic()):
        pass
    return "its last word is %r; its kernel %s" % (last, "shows on the console what it does" if answers else "does not answer")


def press_sysrq(running, key, answer):
    """A break on the console and a key; whether the kernel answered. A second break before the key would take the first back."""
    deadline = time.monotonic() + SYSRQ_SECONDS
    running.ask("chardev-send-break", id="console")
    running.type(key, end="")
    while answer not in running.console.text and time.monotonic() < deadline and running.console.read(deadline - time.monotonic()):
        pass
    return answer in running.console.text


def end_time(running):
    """When the guest had ended, by QMP's word of it (time.time()); None without one. Once how_it_ended() has read it all."""
    events = [json.loads(line) for line in running.qmp.lines if '"SHUTDOWN"' in line]
    stamps = [event["timestamp"] for event in events if event.get("event") == "SHUTDOWN"]
    return stamps[-1]["seconds"] + stamps[-1]["microseconds"] / 1e6 if stamps else None


def play(plan, running, clock, moments):
    """From the boot to the end. Appends the moments that begin PARTS[2:], and the end, to `moments`; Failure says what went wrong.

    Afterwards `clock` has counted the end.
    """
    wait_for(running, "vm-test: ready$", clock)
    moments.append(time.time())
    wait_for(running, "vm-test: now$", clock)
    if plan.ending.request in OUTSIDE:
        wait(running, "shell", lambda: "Type: poweroff" in running.console.text, clock)
        moments.append(time.time())
        OUTSIDE[plan.ending.request](running)
    else:
        moments.append(time.time())
    wait(running, "end", lambda: running.console.ended, clock)
    judgement, details = end_of(running)
    moments.append(end_time(running) or time.time())
    if judgement != plan.ending.reason:
        raise wrong_end(judgement, details, "expected: " + plan.ending.reason)


def wanted(plan, where):
    """What the disk mounted there must be like: only a root whose files were replaced while in use may be left frozen."""
    return disks.FROZEN if where == "/" and "python replaced" in plan.company else disks.CLEAN


def check(plan, paths, console):
    """Failure if a disk is not clean, or was never written to (one that nobody mounted is always clean), or of a complaint."""
    for (where, _), path in zip(DISKS, paths):
        why = disks.fault(path, wanted(plan, where))
        if why:
            raise machine.Failure("unclean disk", "%s: %s" % (where, why))
        saved = disks.read(path, "saved")
        if saved != "%d\n" % plan.seed:
            raise machine.Failure("not saved", "%s: what was written before the request is %r" % (where, saved))
    complaint = COMPLAINTS.search(console)
    if complaint:
        raise machine.Failure("a complaint", complaint.group())


# ---- one machine, and all of them

def make_base(options, directory):
    """What all machines start from, made once: (kernel, initramfs, the root's disk)."""
    tree = image.machine_tree(options.arch, options.init)
    scenarios.terminal(tree, None)
    keyboard = machine.BOARDS[options.arch].keyboard
    image.add_modules(tree, options.arch, (*image.DISK_MODULES, *keyboard))
    image.add(tree, "data", image.directory())
    image.add(tree, "etc/rc.scenario", image.file(RC % " ".join(keyboard)))
    root, small = image.on_a_disk(tree, options.arch)
    disks.write(root, directory / "root", DISKS[0][1])
    image.write_initramfs(small, directory / "initramfs")
    return image.kernel(options.arch), directory / "initramfs", directory / "root"


def make_disks(plan, root, directory):
    """The machine's own disks: a copy of the root, and one for its data."""
    paths = [directory / machine.disk_name(number) for number in range(len(DISKS))]
    packages.run(["cp", "--sparse=always", root, paths[0]])
    disks.write({"script": image.file(script(plan))}, paths[1], DISKS[1][1])
    return paths


def attempt(options, base, plan, directory, moments):
    """Make, boot, end and check one machine; the seconds of its end that were the host's. The console is written in any case."""
    kernel, initramfs, root = base
    paths = make_disks(plan, root, directory)
    parts = (kernel, initramfs, kernel_words(options.arch, plan), paths)
    argv = machine.qemu_argv(options.arch, *parts, kvm=machine.kvm_wanted())
    (directory / "plan").write_text("%s\n\n%s\n" % (in_words(plan), machine.shell_line(argv)))
    moments.append(time.time())
    with machine.Machine(options.arch, *parts) as running:
        try:
            clock = Patience(running.process.pid, options.patience)
            play(plan, running, clock, moments)
        finally:
            (directory / "console").write_text(running.console.drain(), encoding="utf-8")
    check(plan, paths, running.console.text)
    return clock.all - clock.used


def judge(options, base, seed, directory):
    """One machine from its seed to its Result; whatever goes wrong is its own failure."""
    plan, moments = plan_of(seed), [time.time()]
    directory.mkdir()
    try:
        verdict, details, waited = "clean", "", 0.0
        waited = attempt(options, base, plan, directory, moments)
    except machine.Failure as why:
        verdict, details = VERDICT_OF.get(why.judgement, "other"), str(why)
    except Exception as why:
        traceback.print_exc()
        verdict, details = "other", "the harness failed: %r" % why
    moments.append(time.time())
    ended = verdict in ("clean", "unclean")
    parts = [after - before for before, after in zip(moments, moments[1:])] if ended else []
    console = directory / "console"
    return Result(plan, verdict, details, parts, waited, console.read_text(encoding="utf-8") if console.exists() else "")


def repeat_line(options, seed):
    """The command that repeats the machine of a seed."""
    words = ["make", "soak", "N=1", "SEED=%d" % seed, "ARCH=" + options.arch]
    return machine.shell_line(words + (["INIT=%s" % options.init] if options.init != PYINIT1 else []))


def failure_line(options, result, directory):
    return "soak: FAILED: seed %d: %s: %s: repeat it: %s; see %s" % (
        result.plan.seed, in_words(result.plan), " ".join(result.details.split()), repeat_line(options, result.plan.seed), directory)


def tidy(options, result, directory, failures):
    """Delete what nobody will look at: of a machine that was clean all (with --keep: its disks), of many failures the disks."""
    clean = result.verdict == "clean"
    if clean and not options.keep:
        shutil.rmtree(directory)
    elif clean or failures > KEPT_DISKS:
        for number in range(len(DISKS)):
            (directory / machine.disk_name(number)).unlink(missing_ok=True)


def run_all(options, directory, results):
    """Run the machines, `jobs` at a time, and append to `results`; a line for each failure, and ten of progress."""
    base = make_base(options, directory)
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)      # no "with": that would wait for the machines after ^C
    seeds = range(options.seed, options.seed + options.machines)
    for future in concurrent.futures.as_completed([pool.submit(judge, options, base, seed, directory / str(seed)) for seed in seeds]):
        result = future.result()
        results.append(result)
        if result.verdict != "clean":
            print(failure_line(options, result, directory / str(result.plan.seed)), flush=True)
        tidy(options, result, directory / str(result.plan.seed), sum(each.verdict != "clean" for each in results))
        if len(results) * 10 // options.machines > (len(results) - 1) * 10 // options.machines:
            print("soak: %d of %d: %d clean" % (len(results), options.machines, sum(each.verdict == "clean" for each in results)),
                  flush=True)


# ---- what is printed at the end

COLUMNS = ("cycles", "clean", "unclean", "panics", "hangs", "other", "host", "median", "slowest")


def row(name, results):
    """One line of the table: how many came to what, and the seconds from the request to the end."""
    counts = collections.Counter(result.verdict for result in results)
    seconds = [result.parts[ENDING] for result in results if result.parts]
    times = ["%.2f" % statistics.median(seconds), "%.2f" % max(seconds)] if seconds else ["-", "-"]
    return [name, str(len(results)), *(str(counts[verdict]) for verdict in VERDICTS), *times]


def table(results):
    """The lines of the table: endings, then what kept them company (a machine counts in each that it had), then all."""
    rows = [row(name, [result for result in results if result.plan.name == name]) for name in ENDINGS]
    rows += [row("with: " + name, [result for result in results if name in result.plan.company]) for name in COMPANY]
    rows += [row("with: nothing else", [result for result in results if not result.plan.company]), row("all", results)]
    return ["%-24s" % first + "".join("%9s" % word for word in words) for first, *words in [("ending", *COLUMNS), *rows]]


def remarks(results):
    """Lines below the table: where the time went, the slowest end, and what pyinit1 could not do as usual."""
    lines, timed = [], [result for result in results if result.parts]
    if timed:
        medians = [statistics.median(seconds) for seconds in zip(*(result.parts for result in timed))]
        lines.append("median seconds of a machine: " + ", ".join("%.1f %s" % pair for pair in zip(medians, PARTS)))
        slowest = max(timed, key=lambda result: result.parts[ENDING])
        lines.append("slowest: %.2f s: seed %d: %s" % (slowest.parts[ENDING], slowest.plan.seed, in_words(slowest.plan)))
        lines.append("    its phases: %s; it waited %.1f s for a processor of this computer" % (
            ", ".join(PHASES.findall(slowest.console)), slowest.waited))
    left = collections.defaultdict(list)
    for result in results:
        for text in LEFT.findall(result.console):
            left[text].append(result.plan.seed)
    return lines + ["%d times, such as seed %d: %s" % (len(seeds), seeds[0], text) for text, seeds in left.items()]


def report(results):
    """Print all of it; the exit status."""
    print("\n".join(["", *table(results), "", *remarks(results)]), flush=True)
    return 0 if all(result.verdict == "clean" for result in results) else 1


# ---- main

def positive(word):
    if int(word) < 1:
        raise ValueError(word)
    return int(word)


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machines", nargs="?", type=positive, default=200, metavar="N", help="how many machines (default: 200)")
    parser.add_argument("--seed", type=int, default=None, help="the first machine's seed (default: any)")
    parser.add_argument("--arch", default=None, choices=packages.ARCHITECTURES, help="the guests' architecture (default: this machine's)")
    parser.add_argument("--init", type=pathlib.Path, default=PYINIT1, metavar="FILE", help="what becomes /sbin/init (default: pyinit1.py)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="so many machines at a time (default: 1)")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="S",
                        help="seconds without what has to come that make a hang (default: %(default)g)")
    parser.add_argument("--keep", action="store_true", help="keep the consoles of all machines, not only of those that failed")
    options = parser.parse_args(words)
    if not options.init.is_file():
        parser.error("no file: %s" % options.init)
    options.arch = options.arch or packages.host_architecture()
    options.seed = random.randrange(10 ** 6) if options.seed is None else options.seed
    return options


def work(options):
    """Run them all, with a temporary directory that stays if there is something to see; exit status."""
    if not machine.has_qemu(options.arch):
        raise packages.HarnessError("no %s here: `make soak ARCH=%s` installs it, or says how" % (
            machine.BOARDS[options.arch].program, options.arch))
    print("soak: %d machines, %s, seed %d, init %s, sha256 %s" % (
        options.machines, options.arch, options.seed, options.init, hashlib.sha256(options.init.read_bytes()).hexdigest()[:12]), flush=True)
    packages.root(options.arch)
    directory, results = pathlib.Path(tempfile.mkdtemp(prefix="vm-test-soak.")), []
    try:
        run_all(options, directory, results)
        return report(results)
    except KeyboardInterrupt:
        report(results)
        raise
    finally:
        if options.keep or any(result.verdict != "clean" for result in results):
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
