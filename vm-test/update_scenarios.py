"""Scenarios of trust: PID 1 replaces itself and survives its own bugs; the server goes on, and the disks are clean at the end."""

import re
import time

import disks
import image
from disk_scenarios import DATA, DISK, ROOT, SYNCED_DATA, expect_nothing_left, expect_saved
from machine import Failure
from scenarios import expect, expect_end, files, scenario, services

LAST = '\nif __name__ == "__main__":\n'         # pyinit1.py's last statement begins so

# What such a file says of itself: nothing on its trial start, which is in a PID namespace of its own, or is not PID 1.
MARK = """
if __name__ == "__main__" and os.getpid() == 1 and in_initial_pid_namespace():
    with open("/run/generation", "w") as file:
        file.write("%s\\n")
"""
# An exception of that text where a method of Init is called, if a condition holds.
BREAK = """
BORN = time.monotonic()
def broken(*arguments, deed=Init.%s):
    if os.getpid() == 1 and in_initial_pid_namespace() and (%s):
        raise RuntimeError("on purpose")
    return deed(*arguments)
Init.%s = broken
"""

GUEST = """
offer() { cp $1 $INIT.new && sha256sum $INIT.new >$INIT.new.sha256 || failed "to offer $1"; }
update() { offer $1; kill -USR2 1; }
runs() { [ -e /run/generation ] && [ "$(cat /run/generation)" = $1 ]; }
soon() { tries=250; until "$@"; do tries=$((tries-1)); [ $tries -gt 0 ] || return; usleep 100000; done; }
insist() { until update $1; soon runs ${1##*/}; do :; done; }           # a slow machine refuses what takes too long
orphan() { (true &); }
came_back() { orphan; [ ! -e $INIT.old ] && cmp -s $INIT /root/before; }
none_left() { ! grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; }
same_server() { check "the server is the same" same "$(field $$ 4)" $PPID; }
"""
IN_MEMORY = GUEST + "INIT=/init\ncp /init /root/before\n"       # /init is a file of the initramfs
DISK_AT_DATA = DISK + "echo text >/data/text\n"


def patched(text, statements):
    """pyinit1's text with these statements before its last one: all is defined there, and nothing has begun."""
    before, last, after = text.rpartition(LAST)
    return before + "\n" + statements + last + after


def broken_in(method, when="True"):
    """Statements that break a method of Init."""
    return BREAK % (method, when, method)


def offered(**statements):
    """/root/NAME is pyinit1 with these statements, for each name."""
    def change(tree):
        text = image.content(tree["init"]).decode()
        for name, each in statements.items():
            image.add(tree, "root/" + name, image.file(patched(text, each), 0o755))
    return change


def breakable(method, when):
    """/init itself is broken in that method of Init."""
    def change(tree):
        image.add(tree, "init", image.file(patched(image.content(tree["init"]).decode(), broken_in(method, when)), 0o755))
    return change


def expect_same_server(machine, takeovers):
    """The server was started once, taken over so often, and ended once, when it was asked to."""
    started, taken, ended = (re.findall("pyinit1: " + what, machine.console.text) for what in (
        r"server started: pid (\d+)", r"taken over: server: pid (\d+|None)", r"server ended: pid (\d+): exit status 0"))
    if len(started) != 1 or len(taken) != takeovers or not set(taken) <= {*started, "None"} or ended != started:
        raise Failure("not the same server", "started: %s, taken over: %s, ended: %s" % (started, taken, ended))


# ---- updates

@scenario(disks=[ROOT], changes=[offered(generation=MARK % "GENERATION")], guest=GUEST + """
INIT=/usr/sbin/init
(while :; do orphan; usleep 50000; done) &
orphans=$!
(while :; do dd if=/dev/zero of=/file bs=64k count=8 2>/dev/null; usleep 50000; done) &
wait_until [ -s /file ]
sent=0
for n in 1 2 3 4 5 6 7 8 9 10; do
    sed s/GENERATION/$n/ /root/generation >/root/next
    until update /root/next; sent=$((sent+1)); soon runs $n; do :; done
done
say sent $sent
same_server
check "the one that runs is the last" grep -q '"10.n"' $INIT
check "nothing else is left" same "$(echo $INIT*)" "$INIT $INIT.old"
kill $orphans
wait_until none_left
power_off
""")
def update_ten_times(machine):
    """Ten self-updates in a row while orphans die and a writer is busy: the same server, no zombie, a clean disk."""
    expect(machine, "pyinit1: signal: SIGUSR2: self-update")
    started = time.monotonic()
    for _ in range(10):
        expect(machine, "pyinit1: self-update: re-exec")
    sent = int(expect(machine, r"^vm-test: sent (\d+)$")[1])
    seconds = time.monotonic() - started
    # A slow machine refuses one that takes too long, and is asked again; a request that was lost would be sent again, too.
    heard, slow = (len(re.findall("pyinit1: " + what, machine.console.text)) for what in (
        "signal: SIGUSR2", "self-update: refused: .*not (?:done|ready) within "))
    if sent != heard or sent > 10 + slow:
        raise Failure("lost", "%d requests sent, %d heard, %d took too long" % (sent, heard, slow))
    expect_nothing_left(machine)
    expect_same_server(machine, 10)
    return "%.2f s for one update" % (seconds / 10)


@scenario(disks=[DATA], changes=[offered(broken=broken_in("turn") + MARK % "broken", good=MARK % "good")], guest=DISK_AT_DATA + IN_MEMORY + """
update /root/broken
wait_until runs broken
wait_until came_back
same_server
update /root/good
wait_until runs good
same_server
power_off
""")
def update_crashes_at_once(machine):
    """A new file crashes in the first turn of its loop: the old one comes back, goes on, and takes the next update."""
    expect(machine, "pyinit1: self-update: re-exec", "pyinit1: crashed: RuntimeError: on purpose: at ",
           "pyinit1: self-update: a crash: the old file comes back", "pyinit1: taken over: ", "pyinit1: self-update: re-exec")
    figure = expect_nothing_left(machine)
    expect_same_server(machine, 3)
    expect_saved(machine, "text", "text\n")
    return figure


@scenario(disks=[DATA], changes=[offered(broken=broken_in("turn", "time.monotonic() > BORN + 10") + MARK % "broken")],
          guest=DISK_AT_DATA + IN_MEMORY + """
update /root/broken
wait_until runs broken
wait_until came_back
same_server
power_off
""")
def update_crashes_later(machine):
    """A new file crashes 10 s after its start: the old one comes back, and the machine powers off in order."""
    expect(machine, "pyinit1: self-update: re-exec", "pyinit1: ready: ")
    started = time.monotonic()
    expect(machine, "pyinit1: crashed: RuntimeError: on purpose: at ")
    seconds = time.monotonic() - started
    if seconds < 8:
        raise Failure("too early", "crashed after %.1f s" % seconds)
    expect(machine, "pyinit1: self-update: a crash: the old file comes back")
    figure = expect_nothing_left(machine)
    expect_same_server(machine, 2)
    expect_saved(machine, "text", "text\n")
    return figure


def crashes_in_its_end(name, method, where):
    """A scenario: the new file crashes in the end, at the start of that method of Init, `where` in words."""
    def run(machine):
        expect(machine, "pyinit1: signal: SIGTERM: power off", "pyinit1: crashed: RuntimeError: on purpose: at ",
               "pyinit1: self-update: a crash: the old file comes back", "pyinit1: taken over: server: ")
        figure = expect_nothing_left(machine)
        expect_same_server(machine, 2)
        expect_saved(machine, "text", "text\n")
        return figure

    run.__name__ = "update_end_" + name
    run.__doc__ = "A new file crashes in its end, %s: the old one finishes the end, and the disk is clean." % where
    scenario(disks=[DATA], changes=[offered(broken=broken_in(method) + MARK % "broken")], guest=DISK_AT_DATA + IN_MEMORY + """
update /root/broken
wait_until runs broken
power_off
""")(run)


crashes_in_its_end("server", "stop_server", "before the server is stopped")
crashes_in_its_end("others", "stop_others", "before the others are")
crashes_in_its_end("disks", "release_disks", "before the disks are released")


@scenario(disks=[SYNCED_DATA], changes=[offered(broken=broken_in("follow_release") + MARK % "broken")],
          guest=DISK_AT_DATA + IN_MEMORY + """
update /root/broken
wait_until runs broken
power_off
""")
def update_end_releasing(machine):
    """A new file crashes while the disks are released, when its own may be gone: a sync, and the power-off."""
    expect(machine, "pyinit1: signal: SIGTERM: power off", "pyinit1: the end: others stopped: ",
           "pyinit1: crashed: RuntimeError: on purpose: at ", r"pyinit1: the end: reboot\(2\): RB_POWER_OFF")
    expect_same_server(machine, 1)
    expect_saved(machine, "text", "text\n")


# What is wrong with a file, and what is said of it.
BAD_FILES = {
    "syntax": ("def", "invalid syntax"),
    "start": ('raise RuntimeError("at its start")', "did not start: RuntimeError: at its start"),
    "exit": ("sys.exit(0)", "did not start: "),
    "sleep": ("time.sleep(1000)", "not ready within 5 s"),
    "sum": ("", "its SHA-256 is not the one in "),
}


@scenario(disks=[DATA], changes=[offered(**{name: statements for name, (statements, _) in BAD_FILES.items()})],
          guest=DISK_AT_DATA + IN_MEMORY + """
for name in %s; do
    offer /root/$name
    [ $name != sum ] || echo "# other" >>$INIT.new
    kill -USR2 1
    read -r line </dev/console
    check "$name: our file is the old one" cmp $INIT /root/before
    check "$name: nothing is left" same "$(echo $INIT*)" "$INIT $INIT.new $INIT.new.sha256"
done
check "there was no re-exec" not grep -q adopt-server /proc/1/cmdline
same_server
power_off
""" % " ".join(BAD_FILES))
def update_refused(machine):
    """Files that do not compile, start, get ready or have their sum are refused with a word, and nothing has changed."""
    for _, said in BAD_FILES.values():
        expect(machine, "pyinit1: self-update: refused: .*" + said)
        machine.type("go")
    figure = expect_nothing_left(machine)
    expect_same_server(machine, 0)
    return figure


# ---- crashes

# One crash for each time that the file is there: the signal itself is answered once more after a crash.
CRASH = breakable("answer", 'arguments[1] == 40 and os.path.exists("/run/crash") and not os.unlink("/run/crash")')
WEB = services(web="echo $$ >>/run/web; exec sleep 10000")
CRASHES = GUEST + """
crash() { touch /run/crash; kill -40 1; wait_until [ ! -e /run/crash ]; }
wait_until [ -s /run/web ]
all_goes_on() {
    same_server
    check "the service is the same" same "$(field "$(cat /run/web)" 4)" $PPID
    orphan
    wait_until none_left
}
"""


@scenario(disks=[DATA], changes=[CRASH, WEB], guest=DISK_AT_DATA + CRASHES + """
crash
wait_until grep -q adopt-server /proc/1/cmdline
all_goes_on
power_off
""")
def crash_once(machine):
    """PID 1 crashes: it is there again, the server and its service go on, and the machine powers off in order."""
    expect(machine, "pyinit1: crashed: RuntimeError: on purpose: at ", r"pyinit1: taken over: server: pid \d+", "^vm-test: ok ")
    figure = expect_nothing_left(machine)
    expect_same_server(machine, 1)
    expect_saved(machine, "text", "text\n")
    return figure


@scenario(disks=[SYNCED_DATA], changes=[CRASH, WEB], guest=DISK_AT_DATA + CRASHES + """
for n in 1 2 3 4 5 6; do crash; done
read -r line </dev/console
all_goes_on
power_off
""")
def crash_parked(machine):
    """At the sixth crash in a minute PID 1 parks: it reaps, all goes on, and SIGTERM syncs and powers off."""
    for _ in range(5):
        expect(machine, "pyinit1: crashed: RuntimeError: on purpose: at ", r"pyinit1: taken over: server: pid \d+")
    expect(machine, "pyinit1: crashed: RuntimeError: on purpose: at ", "pyinit1: crashed 6 times within 60 s", "pyinit1: parked: ")
    machine.type("go")
    expect(machine, "^vm-test: ok ", r"pyinit1: the end: reboot\(2\): RB_POWER_OFF")
    expect_saved(machine, "text", "text\n")


# ---- process ids

# Orphans that live for 20 ms; some pids are left to the others, also while PID 1 does not reap.
ORPHANS = """
import os, time
def have_one():
    if os.fork() == 0:
        try:
            if os.fork() == 0:
                time.sleep(0.02)
        finally:
            os._exit(0)
    os.wait()
while True:
    if sum(name.isdigit() and int(name) > 300 for name in os.listdir("/proc")) < 20:
        have_one()
    time.sleep(0.002)
"""
# Past 300 the kernel gives these only: 40 of them, again and again.
FEW_PIDS = """
echo 340 >/proc/sys/kernel/pid_max
now=0
pid() { sh -c 'echo $$'; }
came_round() { before=$now; now=$(pid); [ $now -lt $before ]; }
python3 -IS /root/orphans &
wait_until came_round
server() { pidof zinit-server; }
another() { read -r name 2>/dev/null </proc/$1/comm && [ $name != zinit-server ]; }         # no fork: it is quick
"""


@scenario(disks=[DATA], changes=[files({"root/orphans": ORPHANS}), offered(good=MARK % "good")], guest=DISK_AT_DATA + IN_MEMORY + FEW_PIDS + """
taken=0
for n in 1 2 3 4; do
    wait_until answers
    old=$(server)
    rm /run/zinit.sock
    kill -KILL $old
    until [ -e /run/zinit.sock ]; do ! another $old || taken=1; done
done
check "somebody else has had a dead server's pid" same $taken 1
wait_until answers
old=$(server)
kill -USR1 1
wait_until gone $old
wait_until answers
new=$(server)
update /root/good
wait_until runs good
wait_until came_round
check "the server is the same" same "$(server)" $new
power_off
""")
def pids_come_round(machine):
    """With 40 pids that come round within a second the dead server's pid is an orphan's soon, and nobody is confused."""
    for _ in range(4):
        expect(machine, r"pyinit1: server ended: pid (\d+): killed by SIGKILL")
        expect(machine, r"pyinit1: server started: pid \d+")
    expect(machine, r"pyinit1: server ended: pid \d+: exit status 0")
    pid = expect(machine, r"pyinit1: server started: pid (\d+)")[1]
    expect(machine, "pyinit1: taken over: server: pid %s$" % pid, "pyinit1: server ended: pid %s: exit status 0" % pid)
    figure = expect_nothing_left(machine)
    if machine.console.text.count("pyinit1: server ended: ") != 6:
        raise Failure("confused", "the server ended %d times" % machine.console.text.count("pyinit1: server ended: "))
    expect_saved(machine, "text", "text\n")
    return figure


@scenario(server="zinit", words="RUST_LOG=warn",
          changes=[CRASH, services(web="echo $$ >>/run/web; exec sleep 10000", scenario="exec /bin/sh /etc/rc.scenario")], guest="""
crash() { touch /run/crash; kill -40 1; wait_until [ ! -e /run/crash ]; }
wait_until [ -s /run/web ]
server=$(pidof zinit-server)
say server $server
crash
wait_until grep -q adopt-server /proc/1/cmdline
check "the server is the same" same "$(pidof zinit-server)" "$server"
check "the server is ours" same "$(field $server 4)" 1
check "web ran once" same "$(wc -l </run/web)" 1
check "web is the server's" same "$(field "$(cat /run/web)" 4)" "$server"
power_off
""")
def zinit_crash(machine):
    """PID 1 crashes over the real zinit-server: server and service go on, and are stopped in order at the power-off."""
    server = expect(machine, r"^vm-test: server (\d+)$")[1]
    expect(machine, "pyinit1: crashed: RuntimeError: on purpose: at ", "pyinit1: taken over: server: pid %s" % server,
           "pyinit1: server ended: pid %s: exit status 0" % server)
    expect_end(machine, "RB_POWER_OFF")
