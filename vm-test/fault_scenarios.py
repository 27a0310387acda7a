"""Scenarios of a faulty system, as only a machine can show it: calls that fail, a clock that jumps, a Python without ctypes.

Which calls fail says a seccomp filter that /init puts in before it becomes pyinit1. It holds for the whole machine, so only
those are refused that the guest's script and the stand-in server can do without, often for one value of an argument.
"""

import errno
import re
from errno import EAGAIN, EBUSY, EINVAL, EIO, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM
from os import strerror

import image
import seccomp
from disk_scenarios import (DATA, DISK, ROOT, SAVE, SYNCED_DATA, expect_killed, expect_left, expect_nothing_left,
                            expect_release, expect_saved)
from machine import Failure
from scenarios import behind, expect, expect_end, files, logged, scenario, services, wrapped
from seccomp import Refusal
from update_scenarios import DISK_AT_DATA, GUEST, MARK, broken_in, expect_same_server, offered

# What pyinit1 asks for and nobody else here: the index of an argument, and its value.
REMOUNT_READ_ONLY = 3, 32 | 1           # mount(2): MS_REMOUNT | MS_RDONLY
FREEZE = 1, 0xC0045877                  # ioctl(2): FIFREEZE
EVERYBODY = 0, 0xFFFFFFFF               # kill(2): -1
AF_INET = 0, 2                          # socket(2)
RB_POWER_OFF = 2, 0x4321FEDC            # reboot(2), behind its two magic numbers


def failing(*refusals):
    """/init refuses these calls to itself and to all that comes after it, then becomes pyinit1."""
    return wrapped(seccomp.install(*refusals))


def frozen(where, why, refused):
    """What is said of a mount that was frozen: why it could not be unmounted, and why not made read-only."""
    return "the end: busy: %s: %s: frozen, as it could not be made read-only: %s" % (where, why, refused)


def expect_disk(machine, left="", command="RB_POWER_OFF", end="guest-shutdown"):
    """The end, with that line of what was left over, if any, and what was written is on the disk; the figure for the table."""
    figure = expect_left(machine, left, command) if left else expect_nothing_left(machine, command=command)
    expect_saved(machine, "text", "text\n", end)
    return figure


def code_of(error):
    """EPERM as it stands in a scenario's name."""
    return errno.errorcode[error].lower()


# ---- disks that cannot be released as usual; a frozen one is as clean as an unmounted one, where nobody holds a deleted file

@scenario(disks=[ROOT], changes=[failing(Refusal("mount", EPERM))], guest="""
for folder in /dev/pts /dev/shm /sys/fs/cgroup; do check "nothing is mounted" not grep " $folder " /proc/mounts; done
echo text >/text
power_off
""")
def fault_mount(machine):
    """Every mount(2) is refused from the beginning: each is logged, the server starts, and the root is frozen at the end."""
    for folder in "/dev/pts", "/dev/shm", "/sys/fs/cgroup":
        expect(machine, "pyinit1: boot: mount %s: .*%s" % (folder, strerror(EPERM)))
    expect(machine, r"pyinit1: server started: pid \d+")
    return expect_disk(machine, frozen("/", "the root", strerror(EPERM)))


# The three calls that release a disk, the next where the last was refused; who holds a file there is gone by then.
UMOUNT, REMOUNT, FIFREEZE = Refusal("umount2", EBUSY), Refusal("mount", EINVAL, *REMOUNT_READ_ONLY), Refusal("ioctl", EOPNOTSUPP, *FREEZE)


def refusing_umount(error):
    """A scenario: umount2(2) fails with this error."""
    def run(machine):
        return expect_disk(machine, "the end: busy: /data: %s: read-only" % strerror(error))

    run.__name__ = "fault_umount2_" + code_of(error)
    run.__doc__ = "umount2(2) fails with %s: the disk is made read-only, and clean." % errno.errorcode[error]
    scenario(disks=[DATA], changes=[failing(UMOUNT._replace(error=error))], guest=DISK_AT_DATA + "power_off")(run)


for each in EBUSY, EIO, EPERM:
    refusing_umount(each)


@scenario(disks=[DATA], changes=[failing(UMOUNT, REMOUNT)], guest=DISK_AT_DATA + "power_off")
def fault_remount(machine):
    """umount2(2) and the read-only remount fail: the disk is frozen, so that its journal needs no recovery."""
    return expect_disk(machine, frozen("/data", strerror(EBUSY), strerror(EINVAL)))


@scenario(disks=[SYNCED_DATA], changes=[failing(UMOUNT, REMOUNT, FIFREEZE)], guest=DISK_AT_DATA + "power_off")
def fault_freeze(machine):
    """umount2(2), the remount and FIFREEZE fail: said, what was written is on the disk, and the machine ends all the same."""
    return expect_disk(machine, "the end: busy: /data: %s: left as it is: %s" % (strerror(EBUSY), strerror(EOPNOTSUPP)))


def refusing_sync(error):
    """A scenario: sync(2) fails with this error."""
    def run(machine):
        return expect_disk(machine)

    run.__name__ = "fault_sync_" + code_of(error)
    run.__doc__ = "sync(2) fails with %s, which nobody hears of: the disk is clean all the same." % errno.errorcode[error]
    scenario(disks=[DATA], changes=[failing(Refusal("sync", error))], guest=DISK_AT_DATA + "power_off")(run)


for each in EIO, ENOSYS:
    refusing_sync(each)


# ---- reboot(2)

def refusing_power_off(error):
    """A scenario: reboot(RB_POWER_OFF) fails with this error."""
    def run(machine):
        figure = expect_nothing_left(machine)
        expect(machine, r"pyinit1: reboot\(2\) failed: RB_POWER_OFF: " + strerror(error), "pyinit1: parked: ")
        machine.press("ctrl", "alt", "delete")
        expect(machine, r"pyinit1: the end: reboot\(2\): RB_AUTOBOOT")
        expect_saved(machine, "text", "text\n", "guest-reset")
        return figure

    run.__name__ = "fault_reboot_" + code_of(error)
    run.__doc__ = "reboot(2) cannot power off, %s: logged and parked, and Ctrl-Alt-Del then resets the machine." % errno.errorcode[error]
    scenario(disks=[DATA], keyboard=True, end="guest-reset", changes=[failing(Refusal("reboot", error, *RB_POWER_OFF))],
             guest=DISK_AT_DATA + "power_off")(run)


for each in EIO, EINVAL:
    refusing_power_off(each)


@scenario(changes=[failing(Refusal("reboot", EPERM))], end="host-qmp-quit", guest="power_off")
def fault_reboot_at_entry(machine):
    """Every reboot(2) is refused, and no /proc says at the entry what this is: a machine all the same, parked at its end."""
    expect(machine, "pyinit1: mode: VM: ")
    expect_end(machine, "RB_POWER_OFF")
    expect(machine, r"pyinit1: reboot\(2\) failed: RB_POWER_OFF: " + strerror(EPERM), "pyinit1: parked: ")
    machine.ask("quit")


# ---- the boot, and what PID 1 lives on

BOOT_STEPS = {
    "links in /dev": [Refusal("symlink", EPERM), Refusal("symlinkat", EPERM)],
    "loopback interface": [Refusal("socket", EPERM, *AF_INET)],
    "hostname": [Refusal("sethostname", EPERM)],
    "RLIMIT_NOFILE": [Refusal("prlimit64", EPERM)],
}


@scenario(changes=[failing(*sum(BOOT_STEPS.values(), []))], guest="""
check "no links in /dev" not test -e /dev/fd
check "loopback is down" same $(($(cat /sys/class/net/lo/flags) & 1)) 0
check "no hostname" same "$(hostname)" "(none)"
check "PATH is there" same "$PATH" /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
power_off
""")
def fault_boot(machine):
    """Steps of the boot are refused: one line each, and the next one is done; the server starts, and the end is in order."""
    expect(machine, r"pyinit1: server started: pid \d+", "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")
    said = re.findall("^pyinit1: boot: (.*): .*%s" % strerror(EPERM), machine.console.text, re.MULTILINE)
    if said != list(BOOT_STEPS) and not machine.foreign:
        raise Failure("not logged, or too often", said)


@scenario(disks=[DATA], changes=[failing(Refusal("mlockall", ENOMEM), Refusal("swapoff", EPERM))], guest=DISK_AT_DATA + """
check "make a swap file" dd if=/dev/zero of=/data/swap bs=1M count=4
check mkswap mkswap /data/swap
check swapon swapon /data/swap
power_off
""")
def fault_mlockall_swapoff(machine):
    """mlockall(2) and swapoff(2) fail: both survived, and the disk with the swap file is frozen."""
    expect(machine, "pyinit1: the end: mlockall: .*" + strerror(ENOMEM))
    return expect_disk(machine, frozen("/data", strerror(EBUSY), strerror(EBUSY)))


@scenario(disks=[DATA], words="PYINIT1_GRACE=1", changes=[failing(Refusal("kill", EPERM, *EVERYBODY))], guest=DISK_AT_DATA + """
sh -c 'exec 3>/data/held; echo >&3; while :; do usleep 100000; done' &
wait_until [ -s /data/held ]
power_off
""")
def fault_kill(machine):
    """kill(-1) is refused, so that nobody but the server can be ended: said, waited for no longer, and the disk is frozen."""
    figure = expect_release(machine)
    for number in "SIGTERM", "SIGCONT", "SIGKILL":
        if not logged(machine, "^pyinit1: not signalled: pid -1: %s: %s$" % (number, strerror(EPERM))):
            raise Failure("not logged", number)
    if not logged(machine, r"^pyinit1: others left behind: SIGKILL did not end them: pid \d+ sh"):
        raise Failure("not logged", "who was left behind")
    expect_saved(machine, "text", "text\n")
    return figure


# The stand-in and what this script runs need no poll(2); busybox's `read` would.
@scenario(disks=[SYNCED_DATA], keyboard=True, end="guest-reset", changes=[failing(Refusal("poll", ENOMEM), Refusal("ppoll", ENOMEM))],
          guest=SAVE)
def fault_poll(machine):
    """PID 1 cannot even wait: it crashes six times and parks, the server goes on, and Ctrl-Alt-Del syncs and resets."""
    for _ in range(6):
        expect(machine, "pyinit1: crashed: OSError: .*%s: at " % strerror(ENOMEM))
    expect(machine, "pyinit1: crashed 6 times within 60 s", "pyinit1: parked: ")
    if machine.console.text.count("server: ready") != 1:
        raise Failure("started twice", "the server")
    machine.press("ctrl", "alt", "delete")
    expect(machine, r"pyinit1: the end: reboot\(2\): RB_AUTOBOOT")
    expect_saved(machine, "text", "text\n", "guest-reset")


# PID 1 alone is in the group, with a server that it starts from then on; this script is not.
FEW = """
check controllers sh -c 'echo +pids >/sys/fs/cgroup/cgroup.subtree_control'
mkdir /sys/fs/cgroup/first
check "PID 1 in a group" sh -c 'echo 1 >/sys/fs/cgroup/first/cgroup.procs'
forks() { echo $1 >/sys/fs/cgroup/first/pids.max; }
server() { pidof zinit-server >/dev/null; }
refused() { ! grep -q "^max 0" /sys/fs/cgroup/first/pids.events; }
"""


@scenario(disks=[DATA], guest=DISK_AT_DATA + FEW + """
forks 1
old=$PPID
kill -KILL $old
wait_until gone $old
wait_until refused
check "there is no server" not server
forks max
wait_until server
wait_until answers
forks 1
power_off
""")
def fault_fork(machine):
    """fork(2) fails with EAGAIN: the server is started when it works again; in the end the kernel makes the disk clean."""
    expect(machine, "pyinit1: server not started: fork: %s; trying again every second" % strerror(EAGAIN),
           r"pyinit1: server started: pid \d+", "^vm-test: ok ")
    return expect_disk(machine, "the end: disks: %s: asking the kernel .*" % strerror(EAGAIN))


# ---- self-update

IN_A_WRAPPER = GUEST + "INIT=/pyinit1.py\ncp $INIT /root/before\n"       # of the initramfs, and /init is what refuses


def refusing_unshare(error):
    """A scenario: unshare(2) fails with this error, and prctl(2), too."""
    def run(machine):
        expect(machine, "pyinit1: self-update: re-exec", "pyinit1: crashed: RuntimeError: on purpose: at ",
               "pyinit1: self-update: a crash: the old file comes back", "pyinit1: taken over: ", "pyinit1: self-update: re-exec")
        figure = expect_disk(machine)
        expect_same_server(machine, 3)
        return figure

    run.__name__ = "fault_unshare_" + code_of(error)
    run.__doc__ = "unshare(2), prctl(2): %s: updates are tried all the same, one crashes, and nothing of the trials is left." % (
        errno.errorcode[error])
    scenario(disks=[DATA], changes=[offered(broken=broken_in("turn") + MARK % "broken", good=MARK % "good"),
                                    failing(Refusal("unshare", error), Refusal("prctl", error))],
             guest=DISK_AT_DATA + IN_A_WRAPPER + """
insist /root/broken
wait_until came_back
insist /root/good
same_server
alone() { [ "$(grep -l 'pyinit1[.]py' /proc/[0-9]*/cmdline 2>/dev/null)" = /proc/1/cmdline ]; }
for _ in 1 2 3 4 5 6 7 8 9 10; do alone || usleep 200000; done
check "nothing of the trials is left" alone
power_off
""")(run)


for each in EPERM, ENOSYS:
    refusing_unshare(each)


@scenario(disks=[DATA], changes=[offered(good=MARK % "good"), failing(Refusal("memfd_create", ENOSYS))],
          guest=DISK_AT_DATA + IN_A_WRAPPER + """
update /root/good
read -r line </dev/console
check "our file is the old one" cmp $INIT /root/before
check "nothing is left" same "$(echo $INIT*)" "$INIT $INIT.new $INIT.new.sha256"
same_server
power_off
""")
def fault_memfd_create(machine):
    """memfd_create(2) fails, and with it every re-exec: a self-update is refused with a word, and nothing has changed."""
    expect(machine, "pyinit1: self-update: refused: .*did not start: .*" + strerror(ENOSYS))
    machine.type("go")
    figure = expect_disk(machine)
    expect_same_server(machine, 0)
    return figure


# ---- a clock that jumps

# The start of a process, and how long the machine has run, both in 1/100 s and by no wall clock.
JUMPS = """
jump() { check "set the clock" date -s "$1-06-01 12:00"; check "the clock" same "$(date +%Y)" $1; }
now() { read -r seconds _ </proc/uptime; echo ${seconds%.*}${seconds#*.}; }
server() { pidof zinit-server; }
"""


@scenario(guest=JUMPS + """
for year in 1980 2037 1971; do
    wait_until answers
    old=$(server)
    asked=$(now)
    kill -KILL $old
    wait_until gone $old
    jump $year
    wait_until server >/dev/null
    took=$(($(field $(server) 22) - asked))
    check "back after a second: $took" test $took -ge 100
    check "and not much later: $took" test $took -lt 1000
done
power_off
""")
def fault_clock_respawn(machine):
    """The clock jumps by decades while a dead server waits for its next start: that comes after 1 s, as ever."""
    expect(machine, "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")


# The server says nothing, so that a new state file is all that tells, and an older one with a later time is there already.
@scenario(changes=[services(web="echo $$ >>/run/web; exec sleep 10000"), files({"etc/zinit/services/fault": "close-after"})],
          guest=JUMPS + """
wait_until [ -s /run/web ]
for years in "2037 1980" "1971 2037"; do
    wait_until answers
    jump ${years% *}
    mkdir -p /run/zinit
    echo "{}" >/run/zinit/state.json
    jump ${years#* }
    old=$(server)
    kill -USR1 1
    wait_until gone $old
done
wait_until answers
check "web was started once" same "$(wc -l </run/web)" 1
check "web still runs" kill -0 "$(cat /run/web)"
power_off
""")
def fault_clock_soft_restart(machine):
    """The clock jumps by decades before a soft restart: the saved state is known for new, and no service runs twice."""
    for _ in range(2):
        expect(machine, "pyinit1: soft restart: state saved: services go on: ", r"server: service adopted: web: pid \d+")
    expect(machine, "^vm-test: ok ", "server: service stopped: web")
    expect_end(machine, "RB_POWER_OFF")


@scenario(disks=[DATA], changes=[offered(broken=broken_in("answer", "arguments[1] == 40") + MARK % "broken"), failing()],
          guest=DISK_AT_DATA + IN_A_WRAPPER + JUMPS + """
for year in 2037 1980; do
    rm -f /run/generation
    insist /root/broken
    jump $year
    kill -40 1
    wait_until came_back
done
same_server
power_off
""")
def fault_clock_update(machine):
    """The clock jumps by decades between a self-update and its crash: the old file comes back all the same."""
    for _ in range(2):
        expect(machine, "pyinit1: self-update: re-exec", "pyinit1: crashed: RuntimeError: on purpose: at ",
               "pyinit1: self-update: a crash: the old file comes back")
    figure = expect_disk(machine)
    expect_same_server(machine, 4)
    return figure


# It jumps when the server stops this service, and again when the others have their grace.
CLOCK_SERVICE = """
trap 'date -s "2037-06-01 12:00"; usleep 500000; exit' TERM
echo >/run/web
while :; do usleep 50000; done
"""
GRACE = 5


@scenario(disks=[DATA], words="PYINIT1_GRACE=%d" % GRACE, changes=[files({"root/web": CLOCK_SERVICE}), services(web="exec sh /root/web")],
          guest=DISK + """
(trap 'date -s "1980-06-01 12:00"; usleep 500000; echo saved >/data/saved; exit' TERM; echo >/run/set; while :; do usleep 50000; done) &
(trap '' TERM HUP; exec sleep 1000) &
wait_until [ -e /run/set ]
wait_until [ -e /run/web ]
power_off
""")
def fault_clock_end(machine):
    """The clock jumps forward while the server stops, and back in the others' grace: all have their time, and no more."""
    expect(machine, "server: service stopped: web", r"pyinit1: server ended: pid \d+: exit status 0")
    figure = expect_killed(machine, r"pid \d+ sleep", GRACE)
    expect_saved(machine, "saved", "saved\n")
    return figure


# ---- no ctypes

# All that Debian's libpython3.N-minimal has of the library, beside the packages that are in no image.
MINIMAL = frozenset("""
__future__ _collections_abc _compat_pickle _py_abc _sitebuiltins _strptime _threading_local _weakrefset abc argparse ast base64 bisect
calendar codecs collections compileall configparser contextlib copy copyreg csv datetime dis encodings enum filecmp fnmatch functools
genericpath getopt glob hashlib heapq imp importlib inspect io ipaddress keyword lib-dynload linecache locale logging opcode operator
optparse os pathlib pickle pkgutil platform posixpath py_compile quopri random re reprlib runpy selectors signal site socket sre_compile
sre_constants sre_parse ssl stat string stringprep struct subprocess sysconfig tempfile textwrap threading token tokenize traceback
tracemalloc types typing urllib uu warnings weakref zipfile zipimport
""".split())


def minimal_library(tree):
    """Of Python's library there is what python3-minimal brings, and none of the modules in C that are files."""
    for path in [path for path in tree if re.fullmatch(r"usr/lib/python3\.\d+/(lib-dynload/)?[^/]+", path)]:
        name = path.rpartition("/")[2].partition(".")[0]
        if path in tree and (name not in MINIMAL or "/lib-dynload/" in path):
            image.remove(tree, path)


# The stand-in is Python, and needs what is not there.
SHELL_SERVER = """#!/bin/sh
trap 'echo "server: asked: SIGTERM"; exit 0' TERM
echo "server: ready"
[ -e /run/scenario ] || { >/run/scenario; sh /etc/rc.scenario & }
while :; do usleep 50000; done
"""
# pyinit1 can mount nothing then.
NO_CTYPES = [offered(good=MARK % "good"), minimal_library, behind(image.MOUNTS + 'exec /pyinit1.py "$@"\n'),
             files({"sbin/zinit-server": SHELL_SERVER}, 0o755)]


def without_ctypes(name, request, command, end):
    """A scenario: after `request` the machine ends, as QMP calls it by `end`, though reboot(2) with `command` cannot be called."""
    def run(machine):
        expect(machine, "pyinit1: no ctypes: ", "pyinit1: mode: VM: ", r"pyinit1: server started: pid \d+",
               r"pyinit1: server ended: pid \d+: killed by SIGKILL")
        server = expect(machine, r"pyinit1: server started: pid (\d+)")[1]
        expect(machine, "pyinit1: self-update: re-exec", "pyinit1: taken over: server: pid %s$" % server, "server: asked: SIGTERM",
               "pyinit1: server ended: pid %s: exit status 0" % server)
        return expect_disk(machine, frozen("/data", strerror(ENOSYS), strerror(ENOSYS)), command, end)

    run.__name__ = "fault_no_ctypes_" + name
    run.__doc__ = "Python without ctypes, json and the like: a server is kept, an update taken, the disk frozen; %s works." % name
    scenario(disks=[DATA], changes=NO_CTYPES, end=end, guest=DISK_AT_DATA + IN_A_WRAPPER + """
server() { pidof zinit-server; }
for module in ctypes json resource termios shlex; do check "no $module" not python3 -IS -c "import $module"; done
old=$PPID
kill -KILL $old
wait_until gone $old
wait_until server >/dev/null
new=$(server)
orphan
wait_until none_left
insist /root/good
check "the server is the same" same "$(server)" $new
orphan
wait_until none_left
say ok $NAME
%s
""" % request)(run)


@scenario(disks=[DATA], keyboard=True, end="guest-reset", changes=NO_CTYPES, guest=SAVE)
def fault_no_ctypes_keys(machine):
    """Ctrl-Alt-Del is a request to PID 1, and no reset by the kernel, also where reboot(2) cannot be asked for that."""
    expect(machine, "^vm-test: ok ")
    machine.press("ctrl", "alt", "delete")
    expect(machine, "pyinit1: signal: SIGINT: reboot")
    return expect_disk(machine, frozen("/data", strerror(ENOSYS), strerror(ENOSYS)), "RB_AUTOBOOT", "guest-reset")


without_ctypes("poweroff", "kill -TERM 1", "RB_POWER_OFF", "guest-shutdown")
without_ctypes("reboot", "kill -INT 1", "RB_AUTOBOOT", "guest-reset")
