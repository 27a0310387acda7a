"""The scenarios: what one boot of a machine shows, one function each.

A scenario is a function of the running machine; its docstring is its claim, the decorator says what is special about the
machine, and what it returns is a figure for the table. A `guest` script is /etc/rc.scenario, which the stand-in server runs
once; it prints `vm-test: ok NAME` when all that it looked at was right, and without that line no scenario passes that
has a script: a machine that ends early has shown nothing.
"""

import collections
import re
import time

import disks as disk_images
import image
import waiting
from machine import BOARDS, DEADLINE, MEMORY, NONE, USUAL, Failure, disk_name

SCENARIOS = {}
OURS = "pyinit1"        # stands in every pattern of a line of pyinit1's log

# console: USUAL, NONE, or UNREAD, one that the scenario may leave unread. changes: functions that change the tree. end: how the
# machine must end, QMP's reason. server: "stand-in" or "zinit". modules: of the kernel, which the script inserts. extras: patterns of
# image.EXTRAS. keyboard: it has one, for Ctrl-Alt-Del. memory: in MiB.
Scenario = collections.namedtuple("Scenario", "name says run guest words console changes end server disks modules extras keyboard memory")

# An ext4 disk: its size in MiB, what it must be like at the end (disks.py), and whether it is the root, with all that the image has.
Disk = collections.namedtuple("Disk", "mebibytes wanted root")

PRELUDE = """
say() { echo "vm-test: $*" >$OUT; }
failed() { say "failed: $*"; exit 1; }
check() { what=$1; shift; "$@" >$OUT 2>&1 || failed "$what: $*"; }      # check WHAT COMMAND...
not() { ! "$@"; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; false; }; }
matches() { echo "$1" | grep -q -- "$2" || { echo "'$1' does not match '$2'"; false; }; }
wait_until() { tries=600; until "$@"; do tries=$((tries-1)); [ $tries -gt 0 ] || failed "in vain: $*"; usleep 100000; done; }
gone() { ! kill -0 $1 2>/dev/null; }
field() { cut -d' ' -f$2 /proc/$1/stat; }                               # of proc(5), where the name has no blank
command_line() { tr '\\0' ' ' </proc/$1/cmdline; }
answers() { python3 -IS -c 'import socket; socket.socket(socket.AF_UNIX).connect("/run/zinit.sock")' 2>/dev/null; }
power_off() { say ok $NAME; kill -TERM 1; }
"""

# An /init that does something to itself, then becomes pyinit1.
WRAPPER = """#!/usr/bin/python3 -IS
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def did(result):
    if result != 0:
        print("vm-test: failed:", os.strerror(ctypes.get_errno()), flush=True)
%s
os.execv("/pyinit1.py", ["/init", *sys.argv[1:]])
"""


# What a keyboard's driver needs is there before /init, as in an initramfs with udev.
KEYBOARD = """#!/bin/busybox sh
for module in %s; do busybox insmod /lib/modules/*/$module; done
exec /next-init "$@"
"""


def scenario(guest="", words="", console=USUAL, changes=(), end="guest-shutdown", server="stand-in", disks=(), modules=(),
             extras=(), keyboard=False, memory=MEMORY):
    """Enter a function as a scenario under its name, with "-" for "_"."""
    def enter(function):
        name = function.__name__.replace("_", "-")
        says = " ".join(function.__doc__.split())
        SCENARIOS[name] = Scenario(name, says, function, guest, words, console, changes, end, server, disks, modules, extras, keyboard,
                                   memory)
        return function
    return enter


def prepare(scenario, tree, architecture):
    """Put the scenario's script into a machine's tree, and make its changes."""
    if scenario.guest:
        out = BOARDS[architecture].console if scenario.console == NONE else "console"
        text = "NAME=%s OUT=/dev/%s\n%s%s" % (scenario.name, out, PRELUDE, scenario.guest)
        image.add(tree, "etc/rc.scenario", image.file(text))
    drivers = BOARDS[architecture].keyboard if scenario.keyboard else ()
    disks = image.DISK_MODULES + image.MORE_MODULES if scenario.disks else ()
    files = image.add_modules(tree, architecture, [*drivers, *disks, *scenario.modules])
    image.add_extras(tree, architecture, scenario.extras)
    for change in scenario.changes:
        change(tree)
    if drivers:
        in_order = [path for name in drivers for path in reversed(files[name])]
        image.add(tree, "next-init", tree["init"])
        image.add(tree, "init", image.file(KEYBOARD % " ".join(dict.fromkeys(in_order)), 0o755))


def play(scenario, machine):
    """Run it to the machine's end; the figure it returns, or "". Failure says what went wrong."""
    figure = scenario.run(machine)
    machine.wait_end(scenario.end)
    if scenario.guest and not re.search("(?<!echo )vm-test: ok %s$" % scenario.name, machine.console.text, re.MULTILINE):
        raise Failure("early power-off", "%s, and the guest never said: ok %s" % (scenario.end, scenario.name))
    for number, disk in enumerate(scenario.disks):
        why = disk_images.fault(machine.disks[number], disk.wanted)
        if why:
            raise Failure("unclean disk", "%s: %s" % (disk_name(number), why))
    return figure or ""


class Unheard:
    """In the place of a match, where nobody would write such a line."""

    def __getitem__(self, _):
        return "0"


def expect(machine, *patterns):
    """The patterns on the console, one after the other; the last match. Another init does not log as pyinit1 does."""
    for pattern in patterns:
        match = Unheard() if machine.foreign and OURS in pattern else machine.wait_for(pattern)
    return match


def logged(machine, pattern):
    """A match of the pattern in what is on the console by now."""
    return re.search(pattern, machine.console.text, re.MULTILINE) or Unheard()


def expect_end(machine, command):
    """The phases of the end, in their order, up to reboot(2) with `command`."""
    expect(machine, "pyinit1: the end: (?:server|COMMAND) stopped: ", "pyinit1: the end: others stopped: ",
           "pyinit1: the end: disks released: ", r"pyinit1: the end: reboot\(2\): " + command)


# ---- what changes a tree

def without(*paths):
    """These paths are not in the image."""
    def change(tree):
        for path in paths:
            image.remove(tree, path)
    return change


def files(texts, mode=0o644):
    """These files are: a dict from path to text."""
    def change(tree):
        for path, text in texts.items():
            image.add(tree, path, image.file(text, mode))
    return change


def guest_program(name):
    """The program of guest/ is in /root."""
    def change(tree):
        image.add(tree, "root/" + name, image.file(image.GUEST / name, 0o755))
    return change


def services(**commands):
    """These services are kept by the server: name and command."""
    return files({"etc/zinit/services/%s.toml" % name: '[service]\nname = "%s"\nexec = "%s"\n' % (name, command)
                  for name, command in commands.items()})


def behind(text):
    """/init is this script, which does something and then executes pyinit1, now /pyinit1.py."""
    def change(tree):
        image.add(tree, "pyinit1.py", tree["init"])
        image.add(tree, "init", image.file(text, 0o755))
    return change


def wrapped(statements):
    """/init is a wrapper that runs these statements of Python and then executes pyinit1."""
    return behind(WRAPPER % statements)


SHELL = files({"etc/zinit/services/console": ""})       # the stand-in's shell on the console


# ---- a machine for a person at the terminal

# busybox's shell prefers its own applets to what is on PATH, so a function has to lead to our links. ash reads $ENV, and the
# kernel makes a variable of it.
TERMINAL_WORDS = "ENV=/etc/shell"
TERMINAL_FUNCTIONS = "".join("%s() { /sbin/%s; }\n" % (name, name) for name in image.POWER_LINKS)

# The real server's service; the stand-in has the same built in. The service itself stays outside the shell's session, and its
# command begins with a word of its command line: else the real server does not know it again after a soft restart.
TERMINAL_SERVICE = """while :; do
    echo 'Type: poweroff, reboot, or kill -USR1 1 (soft restart of the server). Ctrl-A X leaves QEMU.' >/dev/console
    setsid -c /bin/sh </dev/console >/dev/console 2>&1
    sleep 1
done
"""


def terminal(tree, zinit):
    """A shell on the console, kept by the stand-in or, if `zinit`, by the real server."""
    files({"etc/shell": TERMINAL_FUNCTIONS, "etc/console": TERMINAL_SERVICE})(tree)
    (services(console="/bin/sh /etc/console") if zinit else SHELL)(tree)


# ---- a boot

@scenario(guest="""
mounted() { grep -q "^[^ ]* $1 $2 $3" /proc/mounts || { grep " $1 " /proc/mounts; false; }; }
check mount mounted /proc proc rw,nosuid,nodev,noexec
check mount mounted /sys sysfs rw,nosuid,nodev,noexec
check mount mounted /dev devtmpfs 'rw,nosuid,.*mode=755'
check mount mounted /dev/pts devpts 'rw,nosuid,noexec,.*gid=5,mode=620,ptmxmode=666'
check mount mounted /dev/shm tmpfs rw,nosuid,nodev
check mount mounted /run tmpfs 'rw,nosuid,nodev,.*mode=755'
check mount mounted /sys/fs/cgroup cgroup2 'rw,nosuid,nodev,noexec,.*nsdelegate'
check "mode of /dev/shm" same "$(stat -c %a /dev/shm)" 1777
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    check link matches "$(readlink /dev/${link%%:*})" "${link##*:}$"
done
check "loopback is up" same $(($(cat /sys/class/net/lo/flags) & 1)) 1
check hostname same "$(hostname)" vm-test
check PATH same "$PATH" /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
check "hard limit of descriptors" same "$(ulimit -Hn)" 524288
check "soft limit of descriptors" same "$(ulimit -Sn)" 1024
check umask same "$(umask)" 0022
check "working directory" same "$(readlink /proc/1/cwd)" /
check Ctrl-Alt-Del same "$(cat /proc/sys/kernel/ctrl-alt-del)" 0
check "server's arguments" matches "$(command_line $PPID)" \
    " /sbin/zinit-server -c /etc/zinit/services -s /run/zinit.sock --log-level info --pid1-mode $"
check "server leads a session" same "$(field $PPID 6)" $PPID
check "server has no terminal" same "$(field $PPID 7)" 0
check "server blocks no signal" matches "$(grep SigBlk /proc/$PPID/status)" "0000000000000000"
for descriptor in 0 1 2; do check "descriptor of PID 1" same "$(readlink /proc/1/fd/$descriptor)" /dev/console; done
power_off
""")
def boot(machine):
    """What a machine needs is there before the server starts; SIGTERM powers it off, phase by phase."""
    expect(machine, "pyinit1: mode: VM: ", r"pyinit1: server started: pid \d+: /sbin/zinit-server ",
           "^vm-test: ok boot$", "pyinit1: signal: SIGTERM: power off", "pyinit1: the end: power off: ")
    expect_end(machine, "RB_POWER_OFF")


@scenario(changes=[SHELL])
def typed_sigterm(machine):
    """A shell on the console is logged in; `kill -TERM 1` typed there powers off, and no grace is waited for."""
    expect(machine, "^Type: ")
    machine.type("echo vm-test: shell $((40 + 2))")
    expect(machine, "^vm-test: shell 42$")
    machine.type("kill -TERM 1")
    expect(machine, "pyinit1: signal: SIGTERM: power off", r"pyinit1: the end: others stopped: [0-4]\.")


@scenario(changes=[SHELL])
def shell_with_a_job(machine):
    """A shell with a job in the foreground loses its terminal with its service, unheard: no grace is waited for it."""
    expect(machine, "^Type: ")
    machine.type("(usleep 500000; kill -TERM 1) & sleep 1000")
    expect(machine, "pyinit1: signal: SIGTERM: power off", "server: service stopped: console",
           r"pyinit1: the end: others stopped: [0-4]\.")


@scenario(guest="say ok $NAME; kill -INT 1", end="guest-reset")
def reboot_by_sigint(machine):
    """SIGINT reboots."""
    expect(machine, "pyinit1: signal: SIGINT: reboot")
    expect_end(machine, "RB_AUTOBOOT")


@scenario(guest="say ok $NAME; /sbin/poweroff")
def poweroff_link(machine):
    """Our own poweroff powers off."""
    expect(machine, r"pyinit1: signal: \S+ ?\d*: power off")
    expect_end(machine, "RB_POWER_OFF")


@scenario(guest="say ok $NAME; /sbin/reboot", end="guest-reset")
def reboot_link(machine):
    """Our own reboot reboots."""
    expect_end(machine, "RB_AUTOBOOT")


@scenario(guest="say ok $NAME; /sbin/halt", end="host-qmp-quit")
def halt_link(machine):
    """Our own halt halts: the machine stands still with the power on."""
    expect_end(machine, "RB_HALT_SYSTEM")
    expect(machine, "reboot: System halted")
    machine.ask("quit")


@scenario(guest="""
link() { wanted=$1 said=$2; shift 2; "$@" >/run/said 2>&1; got=$?
    check "status of: $*" same $got $wanted
    check "answer of: $*" matches "$(cat /run/said)" "$said"; }
link 2 "-d: not an option of poweroff" /sbin/poweroff -d
link 2 "-t: not an option of reboot" /sbin/reboot -t 5
link 2 "now: not an option of halt" /sbin/halt now
link 2 "--frobnicate: not an option of poweroff" /sbin/poweroff --frobnicate
link 2 "-fx: not an option of poweroff" /sbin/poweroff -fx
link 0 "^usage: poweroff " /sbin/poweroff --help
link 0 "^$" /sbin/reboot -w
link 1 "signal 38 to PID 1: Operation not permitted" \
    python3 -IS -c 'import os; os.setuid(1000); os.execv("/sbin/poweroff", ["poweroff"])'
link 1 "Operation not permitted" python3 -IS -c 'import os; os.setuid(1000); os.execv("/sbin/reboot", ["reboot", "-f"])'
say ok $NAME
/sbin/halt -p
""")
def link_options(machine):
    """What our links do not know or may not do they refuse with a word, and the machine goes on; `halt -p` powers off."""
    expect(machine, "^vm-test: ok ")
    if "pyinit1: signal: " in machine.console.text:
        raise Failure("signalled", "PID 1")
    expect_end(machine, "RB_POWER_OFF")


# ---- COMMAND, and ^C on the console

COMMAND_TERMINAL = "echo vm-test: session $(cut -d' ' -f6 /proc/$$/stat) of $$, terminal $(cut -d' ' -f7 /proc/$$/stat)"


@scenario(words="PYINIT1_COMMAND=/bin/sh")
def command(machine):
    """COMMAND is a shell: the console is its terminal, ^C ends its job and not the machine; that goes when the shell goes."""
    started = expect(machine, r"pyinit1: COMMAND started: pid (\d+): /bin/sh$")[1]
    machine.type(COMMAND_TERMINAL)
    expect(machine, r"^vm-test: session %s of %s, terminal (?!0$)\d+$" % (started, started))
    machine.type("sh -c 'echo vm-test: begun $((40 + 2)); exec sleep 1000'")
    expect(machine, "^vm-test: begun 42$")
    machine.type("\x03", end="")
    machine.type("echo vm-test: status $?")
    expect(machine, "^vm-test: status 130$")
    machine.type("exit 3")
    expect(machine, "pyinit1: COMMAND ended: pid %s: exit status 3" % started)
    expect_end(machine, "RB_POWER_OFF")
    for words in "pyinit1: signal: ", "job control turned off":
        if words in machine.console.text:
            raise Failure("unexpected", words)


@scenario(guest="""
wait_until answers
say type
read -r line </dev/console
check "what was typed" same "$line" "after it"
check "the server lives" kill -0 $PPID
power_off
""")
def ctrl_c(machine):
    """^C on the console of a kept server: neither the server nor PID 1 hears of it."""
    expect(machine, "^vm-test: type$")
    machine.type("before it\x03after it")
    expect(machine, "pyinit1: signal: SIGTERM: power off")
    expect_end(machine, "RB_POWER_OFF")
    if machine.console.text.count("pyinit1: server started: ") > 1:
        raise Failure("started twice", "the server")


# A terminal with an interactive shell, whose keeper goes when the shell goes, as sshd does.
LOGIN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pid, terminal = os.forkpty()
if pid == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.execv(sys.argv[1], [sys.argv[1], "-i"])
os.write(terminal, b"echo $((40 + 2)); sleep 1000\\n")
said = b""
try:
    while True:
        said += os.read(terminal, 1024)
        if b"\\n42\\r" in said:
            os.close(os.open(sys.argv[2], os.O_CREAT))
except OSError:
    pass
"""


@scenario(changes=[files({"root/login": LOGIN})], extras=["bin/bash", "lib/*/libtinfo.so.*"], guest="""
for shell in bash sh; do
    python3 -IS /root/login /bin/$shell /run/$shell &
    wait_until [ -e /run/$shell ]
done
power_off
""")
def shells(machine):
    """bash and busybox's sh are logged in on terminals, with jobs in the foreground: no grace is waited for."""
    expect(machine, r"pyinit1: the end: others stopped: [0-4]\.")


# ---- the server

@scenario(changes=[services(web="echo $$ >>/run/web; exec sleep 10000")], guest="""
wait_until [ -s /run/web ]
old=$PPID
kill -USR1 1
wait_until gone $old
wait_until answers
check "web was started once" same "$(wc -l </run/web)" 1
check "web still runs" kill -0 "$(cat /run/web)"
check "web is ours now" same "$(field "$(cat /run/web)" 4)" 1
power_off
""")
def soft_restart(machine):
    """SIGUSR1 replaces the server; its service keeps its pid, runs once, and is stopped in order at the end."""
    old = expect(machine, r"pyinit1: server started: pid (\d+)")[1]
    expect(machine, "pyinit1: signal: SIGUSR1: soft restart", "pyinit1: server ended: pid %s: exit status 0" % old)
    new = expect(machine, r"pyinit1: server started: pid (\d+)")[1]
    expect(machine, r"server: service adopted: web: pid \d+", "^vm-test: ok ", "server: service stopped: web",
           "pyinit1: server ended: pid %s: exit status 0" % new)
    expect_end(machine, "RB_POWER_OFF")


@scenario(guest="""
wait_until answers
old=$PPID
kill -KILL $old
wait_until gone $old
wait_until answers
power_off
""")
def server_killed(machine):
    """A server killed by SIGKILL is back, not before 1 s."""
    expect(machine, r"pyinit1: server ended: pid \d+: killed by SIGKILL")
    ended = time.monotonic()
    expect(machine, r"pyinit1: server started: pid \d+")
    seconds = time.monotonic() - ended
    if seconds < 0.8:               # a host may show us the first line late, never the second one early
        raise Failure("too early", "started again after %.2f s" % seconds)
    expect_end(machine, "RB_POWER_OFF")
    return "back after %.2f s" % seconds


@scenario(changes=[without("sbin/zinit-server")], keyboard=True, end="guest-reset")
def no_server(machine):
    """Without a server: one line that lists where it looked, and Ctrl-Alt-Del still reboots."""
    expect(machine, "pyinit1: ready: ", "pyinit1: server not started: .*/sbin/zinit-server.*/usr/sbin/zinit-server.*"
           "/usr/bin/zinit-server.*/usr/local/bin/zinit-server")
    machine.press("ctrl", "alt", "delete")
    expect(machine, "pyinit1: signal: SIGINT: reboot")
    expect(machine, r"pyinit1: the end: reboot\(2\): RB_AUTOBOOT")


@scenario(changes=[files({"sbin/zinit-server": "#!/bin/sh\n"})], keyboard=True, end="guest-reset")
def server_not_executable(machine):
    """A server that is not executable: one line with its path, and Ctrl-Alt-Del still reboots."""
    expect(machine, "pyinit1: ready: ", "pyinit1: server not started: .*/sbin/zinit-server")
    machine.press("ctrl", "alt", "delete")
    expect(machine, "pyinit1: signal: SIGINT: reboot", r"pyinit1: the end: reboot\(2\): RB_AUTOBOOT")


# ---- the kernel's command line: whatever stands there, the machine boots

@scenario(words="splash single --frobnicate -z foo=bar -- one two --three", guest="""
check "a word of the environment" same "$foo" bar
power_off
""")
def unknown_words(machine):
    """Words of others on the kernel's command line are logged and ignored."""
    expect(machine, "pyinit1: mode: VM: ", "pyinit1: ignored: splash", "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")
    for word in "splash", "single", "--frobnicate", "-z", "one", "two", "--three":
        if not machine.foreign and "pyinit1: ignored: %s" % word not in machine.console.text:
            raise Failure("not logged", word)


@scenario(words="-c -h -V --check --adopt-server 1 --grace x container=x ZINIT_CONTAINER=1", guest="""
check "server in VM mode" matches "$(command_line $PPID)" " --pid1-mode $"
power_off
""")
def container_words(machine):
    """No option and no variable makes a VM a container, or ends it, or makes it believe in a server that is not."""
    expect(machine, "pyinit1: mode: VM: ", r"pyinit1: server started: pid \d+", "^vm-test: ok ",
           "pyinit1: the end: power off: server has 30 s, others have 10 s")
    expect_end(machine, "RB_POWER_OFF")


# x86's kernel keeps 2048 bytes and panics by itself at more than 32 words for /init.
NOISE = " ".join(["xdebug=1", "debug=10", "zinitdebug=0", "-", "--", "=", "%d%s", "$(reboot)", "\udcff\udc80", '"two words"', "\\", "-r9:"]
                 + ["-%s" % chr(ord("a") + n) * 60 for n in range(14)])


@scenario(words=NOISE, guest="""
check "log level" matches "$(command_line $PPID)" " --log-level info "
power_off
""")
def noise(machine):
    """2 kB of noise on the kernel's command line."""
    expect(machine, "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")


@scenario(words="debug=1", guest="""
(usleep 1 &)
check "the server's log level" matches "$(command_line $PPID)" " --log-level debug "
power_off
""")
def debug(machine):
    """debug=1 is log level debug, for us and for the server: each orphan is logged."""
    expect(machine, r"pyinit1: orphan reaped: pid \d+: ")
    expect_end(machine, "RB_POWER_OFF")


# ---- a poor image

@scenario(console=NONE, words="loglevel=7", guest="""
for descriptor in 0 1 2; do check "descriptor of PID 1" same "$(readlink /proc/1/fd/$descriptor)" /dev/null; done
power_off
""")
def no_console(machine):
    """Without any console descriptors 0 to 2 are filled and the log is in the kernel's, to its last line."""
    expect(machine, r"^\[.*\] pyinit1: mode: VM: ", "^vm-test: ok ")
    expect(machine, r"^\[.*\] pyinit1: signal: SIGTERM: power off")
    expect_end(machine, "RB_POWER_OFF")


def no_nodes(tree):
    """The kernel has a /dev/console of its own in its root file system; a link in the image takes its place."""
    without(*image.DEVICES)(tree)
    image.add(tree, "dev/console", image.link("/nowhere"))


@scenario(changes=[no_nodes], guest="""
for descriptor in 0 1 2; do check "descriptor of PID 1" matches "$(readlink /proc/1/fd/$descriptor)" "^/dev/\\(console\\|null\\)$"; done
power_off
""")
def no_device_nodes(machine):
    """Without device nodes in the image it opens what it needs once /dev is mounted."""
    expect(machine, "pyinit1: mode: VM: ", "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")


def no_directories(tree):
    """Only /usr and /init are left; the script becomes a service elsewhere."""
    image.add(tree, "opt/scenario", tree["etc/rc.scenario"])
    without("proc", "sys", "dev", "run", "tmp", "etc", "root")(tree)
    files({"opt/services/scenario.toml": 'name = "scenario"\nexec = "exec /bin/sh /opt/scenario"\n'})(tree)


@scenario(changes=[no_directories], words="ZINIT_CONFIG_DIR=/opt/services", guest="""
for directory in /proc /sys /dev /run /dev/pts /dev/shm /sys/fs/cgroup; do check mount grep " $directory " /proc/mounts; done
power_off
""")
def bare_directories(machine):
    """Without /proc, /sys, /dev, /run and /etc in the image all is mounted all the same."""
    expect(machine, "pyinit1: mode: VM: ", "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")


@scenario(changes=[wrapped('did(libc.mount(None, b"/", None, 32 | 1, None))       # MS_REMOUNT | MS_RDONLY')], guest="""
check "the root refuses to be written" not touch /file
check "the root is read-only" grep -q "^[^ ]* / [^ ]* ro[, ]" /proc/mounts
power_off
""")
def read_only_root(machine):
    """A root that is read-only from the beginning is no hindrance."""
    expect(machine, "pyinit1: mode: VM: ", "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")


NO_BOOT_CAPABILITY = """
os.mkdir("/proc") if not os.path.isdir("/proc") else None
did(libc.mount(b"proc", b"/proc", b"proc", 0, None))
did(libc.prctl(24, 22, 0, 0, 0))                # PR_CAPBSET_DROP, CAP_SYS_BOOT
"""


# Who hangs in a frozen file system is ended once SysRq thaws it, and that is after PID 1 has parked.
@scenario(changes=[wrapped(NO_BOOT_CAPABILITY)], disks=[Disk(64, disk_images.UNJUDGED, root=False)], keyboard=True, words="PYINIT1_GRACE=1 loglevel=7 tp_printk",
          guest="""
echo 0 >/proc/sys/kernel/ctrl-alt-del           # PID 1 may not do so either; it would be the kernel's own reset
echo 1 >/proc/sys/kernel/sysrq
modprobe virtio_pci && modprobe virtio_blk || failed "the disk's drivers"
mkdir /data
check "mount the disk" mount -t ext4 /dev/vda /data
check freeze fsfreeze --freeze /data
sh -c 'echo text >/data/text; :' straggler &
blocked() { grep -q "^State:.D" /proc/$1/status; }
wait_until blocked $!
check tracefs mount -t tracefs tracefs /sys/kernel/tracing
cd /sys/kernel/tracing/events/sched/sched_process_free
echo "pid == $!" >filter
echo 1 >enable                                  # tp_printk: to the kernel's log
say straggler $!
power_off
""", end="host-qmp-quit")
def reboot_refused(machine):
    """Where reboot(2) fails it is logged and PID 1 parks, still reaping: it never returns, and Ctrl-Alt-Del tries again."""
    straggler = expect(machine, r"^vm-test: straggler (\d+)$")[1]
    expect_end(machine, "RB_POWER_OFF")
    expect(machine, r"pyinit1: reboot\(2\) failed: RB_POWER_OFF: Operation not permitted", "pyinit1: parked: ")
    machine.press("ctrl", "alt", "delete")
    expect(machine, r"pyinit1: the end: reboot\(2\): RB_AUTOBOOT", r"pyinit1: reboot\(2\) failed: RB_AUTOBOOT")
    machine.press("alt", "sysrq", "t")
    if " pid:%s " % straggler not in expect(machine, r"sysrq: Show State(?s:.*?)Showing busy workqueues.*$")[0]:
        raise Failure("nothing to reap", straggler)
    machine.press("alt", "sysrq", "j")              # thaws it
    expect(machine, "sched_process_free: comm=sh pid=%s " % straggler)     # which a zombie is not
    machine.ask("quit")


# ---- reaping, and speed

ORPHANS = """
import os
for _ in range(1000):
    child = os.fork()
    if child == 0:
        os.fork()
        os._exit(0)
    os.waitpid(child, 0)
"""


@scenario(changes=[files({"root/orphans": ORPHANS})], guest="""
zombies() { grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; }
none_left() { [ "$(zombies)" = 0 ]; }
check "a thousand orphans" python3 -IS /root/orphans
wait_until none_left
check "PID 1 has one child" same "$(cat /proc/1/task/1/children)" "$PPID "
power_off
""")
def orphans(machine):
    """A thousand orphans are reaped, and no zombie is left."""
    expect(machine, "^vm-test: ok ")
    expect_end(machine, "RB_POWER_OFF")


# A server that takes no time to start; both times are the kernel's, of one clock.
PROMPT_SERVER = """#!/bin/sh
echo "server: first statement" >/dev/kmsg
. /etc/rc.scenario
exec sleep 1000
"""
WARM_START = """
import os, time
def seconds():
    started = time.monotonic()
    os.waitpid(os.posix_spawn("/usr/bin/python3", ["python3", "-IS", "-c", "pass"], {}), 0)
    return time.monotonic() - started
print("vm-test: warm start: %.6f" % sorted(seconds() for _ in range(9))[4])
"""
GOAL = 5.5                  # times a warm start


@scenario(changes=[files({"sbin/zinit-server": PROMPT_SERVER}, 0o755), files({"root/warm": WARM_START})], guest="""
dmesg | grep -e "Run /init as init process" -e "server: first statement" >$OUT
python3 -IS /root/warm >$OUT
power_off
""")
def speed(machine):
    """From /init to the server's first statement, in warm starts of Python; fails only at ten times the goal."""
    init, server = (float(expect(machine, r"^\[ *([\d.]+)\] " + text)[1]) for text in ("Run /init", "server: first"))
    seconds = server - init
    warm = float(expect(machine, r"^vm-test: warm start: ([\d.]+)$")[1])
    figure = "%.2f s = %.1f x %.3f s (goal: %.1f)" % (seconds, seconds / warm, warm, GOAL)
    if seconds > 10 * GOAL * warm:
        raise Failure("too slow", figure)
    return figure


# ---- the real server: `run --zinit DIR`

# The server's log at its usual level can fill the console for a moment, and a line that pyinit1 cannot write at once is dropped.
@scenario(server="zinit", words="RUST_LOG=warn",
          changes=[services(web="echo $$ >>/run/web; exec sleep 10000", scenario="exec /bin/sh /etc/rc.scenario")], guest="""
wait_until [ -s /run/web ]
server=$(pidof zinit-server)
check "server in VM mode" matches "$(command_line $server)" "^/sbin/zinit-server .* --pid1-mode $"
check "server is ours" same "$(field $server 4)" 1
check "web is the server's" same "$(field "$(cat /run/web)" 4)" "$server"
say server $server
power_off
""")
def zinit(machine):
    """The real zinit-server keeps a service, and stops it in order at the power-off."""
    server = expect(machine, r"^vm-test: server (\d+)$")[1]
    expect(machine, "pyinit1: server ended: pid %s: exit status 0" % server)
    expect_end(machine, "RB_POWER_OFF")
