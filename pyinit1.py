#!/usr/bin/python3 -IS
"""pyinit1: PID 1 in one file. Keeps one server alive, reaps every orphan, ends a container or a machine in good order.

usage: pyinit1.py [OPTIONS] [--] [COMMAND [ARG...]]
       poweroff | reboot | halt             (a link to this file under one of these names: tells PID 1)

Without COMMAND it keeps zinit-server alive; COMMAND is run once, or kept alive with --respawn.

  -c, --container         end by exiting, never by reboot(2)
      --respawn           keep COMMAND alive instead of running it once
  -g, --group             forward signals to COMMAND's process group, not to COMMAND alone
  -r, --rewrite FROM:TO   forward TO when FROM comes; names or numbers, 0 drops it; may be repeated
  -e, --exit-ok CODE      COMMAND's exit status CODE counts as 0; may be repeated
  -p, --parent-death SIG  our own signal when our parent dies, for use outside a container
      --stop-timeout S    seconds that the server, or a COMMAND that we stop, may take to stop (30)
      --grace S           seconds that everything else has between SIGTERM and SIGKILL (10)
      --log-level L       error, warn, info, debug, trace (info)
      --check             try what can be tried without touching the system, say what was found
      --adopt-server PID  internal: the server already runs
  -s, -v, -w              as tini's: a subreaper (always), log level debug, warn of each reaped orphan
  -h, --help              this text
  -V, --version           the version

environment: ZINIT_CONTAINER (as -c), PYINIT1_STOP_TIMEOUT, PYINIT1_GRACE, ZINIT_LOG_LEVEL; ZINIT_CONFIG_DIR and
ZINIT_SOCKET (the server's -c and -s), PYINIT1_SERVER (its path), PYINIT1_COMMAND (COMMAND for a VM). Options win.

mode           when                                                     what it may do
VM             PID 1 of the initial PID namespace, whatever is asked    mount, reboot(2), kill(-1)
container      -c, ZINIT_CONTAINER, $container, or another namespace's  kill(-1), if it is PID 1
plain process  anything else                                            nothing but to its own descendants

signal                     with a kept server, and in any VM
SIGTERM, SIGPWR, 38        power off
SIGINT, 39                 reboot
37                         halt
SIGUSR1                    soft restart of the server: its services go on
SIGUSR2                    self-update
SIGCHLD                    reap
SIGTSTP, SIGTTIN, SIGTTOU  ignored
SIGSEGV, SIGBUS, SIGFPE,
SIGILL, SIGTRAP, SIGSYS    no handler: after a real fault it would be called for ever
others                     logged

In a container or a plain process "power off" and "reboot" mean: stop in order, exit 0. COMMAND run once gets all of
them forwarded there, but SIGCHLD and the faults. Otherwise seven SIGINT within 2 s end at once, without order.

exit status: COMMAND's own, 128+N if signal N killed it, 127 not found, 126 not executable; 0 for a server that was
ended by request; 1 for an end at once and for a bug of ours; 2 for a bad option. In a VM it never exits: that would
be a kernel panic.

files: /etc/zinit/services, /run/zinit.sock, /run/zinit/state.json, /etc/hostname; this file's path + .new and
.new.sha256 for a self-update, + .old for the file before it; the same beside the server, taken at its soft restart

Why it is written as it is: PID 1 that blocks stops the reaping, PID 1 that dies takes everything along, and at
shutdown files may be gone. So there is one loop with one blocking call, every wait has a bound, imports are few
(each costs milliseconds of boot) and none is made at the end. Read it from top to bottom: each function and constant
is met before it is used; the one object, Init, comes after all that can do without it.
"""

# ---- imports: what the start needs; ctypes, json, socket and others come later, see load_libc and load_the_rest

# The built-in half of the signal module. The other half is enums: with all that they import they would double the time
# in which the kernel drops our signals, and a /signal.py beside this file could take their place.
import _signal as signal
import posix  # built in, too

OWN_PID, PARENT = posix.getpid(), posix.getppid()  # -p: that may die while the rest is read
if __name__ == "__main__":
    # No request is lost: what comes from here on waits until the loop can answer it. Nor is a child's status:
    # a parent may have left us SIGCHLD ignored, and then the kernel would reap for us.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

import sys

if __name__ == "__main__" and not sys.flags.isolated:
    # Started as `python3 pyinit1.py`: no /os.py beside this file or on PYTHONPATH may become part of PID 1.
    _library = "/%s/python%d.%d" % (sys.platlibdir, *sys.version_info[:2])
    _folders = (sys.base_prefix + _library, sys.base_exec_prefix + _library + "/lib-dynload")
    sys.path[:] = [path for path in sys.path if path in _folders]

import errno
import fcntl
import marshal
import os
import select
import stat
import time

VERSION = "0.1.0"

# ---- policy: every wait has a bound here, in seconds, and every bound a name

STOP_TIMEOUT = 30.0  # default: the server or COMMAND, from the request to end to SIGKILL
GRACE = 10.0  # default: everything else, from SIGTERM to SIGKILL
RESPAWN_DELAY = 1.0  # from the server's death to the next start
LISTEN_LIMIT = 5.0  # from the server's start until a missing socket means that there will be none
TIDY_AFTER = 1.0  # from COMMAND's start until memory is given back, which takes its time
RPC_LIMIT = 5.0  # one request to the server: connecting and answering together
RESTART_LIMIT = 5.0  # soft restart: the server's exit after it was asked; then the same for services it left
KILL_WAIT = 0.5  # reaping after SIGKILL; who is still there sleeps uninterruptibly
FORK_LIMIT = 5.0  # COMMAND run once: from our start until we give up if fork(2) is refused
DISKS_LIMIT = 10.0  # sync(2), unmounting, remounting and freezing, of all disks together
SLOW_LIMIT = 300.0  # the most that DISKS_LIMIT grows to while disks still move data
STUCK_AFTER = 2.0  # a call that takes so long, while no disk moves data, is stuck
LOOK_AT_DISKS = 0.5  # between two looks whether they do
UPDATE_LIMIT = 10.0  # a new file's checks, its trial start and its way to the disk
TRIAL_LIMIT = 5.0  # the trial start of a new file of ours
RECOVERY_LIMIT = 15.0  # the same after a crash: who takes longer has a dead disk, and a re-exec would never come back
PROBATION = 60.0  # for so long after an update a crash brings the old file back
CRASHES, CRASHES_WITHIN = 5, 60.0  # so many crashes of ours within so many seconds lead to a re-exec
PATIENT_CRASHES = 2  # so many recent crashes keep the signal and the soft restart that were under way; the next one gives them up
SERVER_DEATHS = 3  # a server that was updated may die so often within PROBATION; then the old one comes back
LOCK_LIMIT = 1.0  # reading our own pages, before the end
HURRY_LIMIT = 2.0  # sync(2) when nobody wants to wait any more
DRAIN_LIMIT = 0.5  # the last log lines' way to a slow reader, before reboot(2) or exit
LOOK_AGAIN = 0.05  # between two looks at what sends no signal: others' children, a full backlog
SAY_AGAIN = 60.0  # a line that would come every second comes once in this time
INTERRUPTS, INTERRUPTS_WITHIN = 7, 2.0  # so many SIGINT within so many seconds: end at once
LONGEST_SLEEP = 86400.0  # poll(2) takes its timeout in an int of milliseconds

LATE_LINES = 100  # log lines that are kept for a slow reader
LINE_BYTES = 900  # of one log line: /dev/kmsg takes less than 1 kB
ANSWER_BYTES = 1 << 22  # of the server's answer: enough for thousands of services
MORE_THREADS = 500  # than there are when the end begins; a fork bomb gets no more
NAMES = 20  # processes named in one line
OWN_BYTES, SERVER_BYTES = 1 << 20, 1 << 28  # the largest file that an update takes: ours, the server's
REAP_AT_ONCE = 1000  # children reaped before signals and deadlines are looked at again

SERVER_PATHS = ("/sbin/zinit-server", "/usr/sbin/zinit-server", "/usr/bin/zinit-server", "/usr/local/bin/zinit-server")
CONFIG_DIR = "/etc/zinit/services"
SOCKET = "/run/zinit.sock"
STATE_PATH = "/run/zinit/state.json"  # where the server saves its state before a soft restart
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = 524288  # the hard RLIMIT_NOFILE in a VM

VM, CONTAINER, PLAIN = "VM", "container", "plain process"

# ---- the kernel's constants

PROC_PID_INIT_INO = 0xEFFFFFFC  # include/linux/proc_ns.h: inode of the initial PID namespace
PF_KTHREAD = 0x00200000  # include/linux/sched.h: flag of a kernel thread in /proc/PID/stat
RB_DISABLE_CAD = 0  # <sys/reboot.h>; the others stand in ENDINGS
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_STRICTATIME = 1, 2, 4, 8, 32, 1 << 24  # <linux/mount.h>
UMOUNT_NOFOLLOW = 8  # <linux/fs.h>
FIFREEZE = 0xC0045877  # <linux/fs.h>: _IOWR('X', 119, int)
LOOP_CLR_FD = 0x4C01  # <linux/loop.h>
MCL_CURRENT, MCL_ONFAULT = 1, 4  # <asm-generic/mman.h>
CLONE_NEWPID = 0x20000000  # <linux/sched.h>
TIOCSCTTY = 0x540E  # <asm-generic/ioctls.h>
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # <linux/sockios.h>, <linux/if.h>
AF_INET, SOCK_DGRAM = 2, 2  # <bits/socket.h>

# ---- signals: the one table

POWER_OFF, REBOOT, HALT = "power off", "reboot", "halt"
SOFT_RESTART, SELF_UPDATE, REAP = "soft restart", "self-update", "reap"
UNHEARD, FAULT, OTHER = "ignored: SIG_IGN", "no handler", "ignored"

# Of two signals in one wake-up the one that stands first here is answered first.
# 37, 38 and 39 are systemd's halt, power off and reboot, whatever number SIGRTMIN has in this libc.
ACTIONS = {
    signal.SIGCHLD: REAP,
    signal.SIGTERM: POWER_OFF, signal.SIGPWR: POWER_OFF, 38: POWER_OFF,
    signal.SIGINT: REBOOT, 39: REBOOT,
    37: HALT,
    signal.SIGUSR1: SOFT_RESTART,
    signal.SIGUSR2: SELF_UPDATE,
    signal.SIGTSTP: UNHEARD, signal.SIGTTIN: UNHEARD, signal.SIGTTOU: UNHEARD,
    signal.SIGSEGV: FAULT, signal.SIGBUS: FAULT, signal.SIGFPE: FAULT,
    signal.SIGILL: FAULT, signal.SIGTRAP: FAULT, signal.SIGSYS: FAULT,
}  # fmt: skip

# For each ending: reboot(2)'s command by its name and number, <sys/reboot.h>, the signal that asks PID 1 for it, and what
# does the same by way of Documentation/admin-guide/sysrq.rst, where we have no ctypes: nothing for a halt, which parking is.
ENDINGS = {
    POWER_OFF: ("RB_POWER_OFF", 0x4321FEDC, 38, b"o"),
    REBOOT: ("RB_AUTOBOOT", 0x01234567, 39, b"b"),
    HALT: ("RB_HALT_SYSTEM", 0xCDEF0123, 37, b""),
}


def action_for(number):
    """What the signal `number` means to a kept server's PID 1."""
    return ACTIONS.get(number, OTHER)


def in_order(numbers):
    """The signals of one wake-up in the order in which they are answered."""
    return [number for number in ACTIONS if number in numbers] + sorted(set(numbers) - ACTIONS.keys())


SIGNAL_NUMBERS = {name: number for name, number in vars(signal).items() if name[:3] == "SIG" and "_" not in name}
SIGNAL_NAMES = {SIGNAL_NUMBERS[name]: name for name in sorted(SIGNAL_NUMBERS, reverse=True)}  # SIGCHLD, not SIGCLD


def signal_name(number):
    """SIGTERM for 15; the bare number where signal(7) has no name for it."""
    return SIGNAL_NAMES.get(number, f"signal {number}")


def how_it_ended(status):
    """In words, what a status of waitpid(2) says."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"killed by {signal_name(-code)}"


def exit_code(status, exit_ok=()):
    """Our own exit status for COMMAND's status of waitpid(2): 128+N for signal N; those in `exit_ok` are 0."""
    code = os.waitstatus_to_exitcode(status)
    code = code if code >= 0 else 128 - code
    return 0 if code in exit_ok else code


# ---- the log: one line each, never blocking

LEVELS = ("error", "warn", "info", "debug", "trace")  # trace is debug
DEBUG = LEVELS.index("debug")
SIGNALS_OF_WRITE = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTOU)  # no reader; file too large; in the background
KMSG = os.makedev(1, 11)  # Documentation/admin-guide/devices.txt: /dev/kmsg


def one_line(text):
    """`text` with everything that is not printable escaped: one line, whatever a file name or a server put in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def open_first(*paths):
    """The descriptor of the first of `paths` that opens for writing without blocking, or None."""
    for path in paths:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_APPEND)
        except OSError:
            pass
    return None


def is_ready(fd, events, seconds=0.0):
    """Wait at most `seconds` for one of poll(2)'s `events` on `fd`; -> whether it came. POLLOUT: room for PIPE_BUF bytes."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(max(0.0, seconds) * 1000))  # below 0 is for ever


def write_alone(fd, data, shared):
    """write(2) that does not block; the SIGPIPE and such that it causes is taken away, as it is no request from outside.

    `shared`: others write there, too, and may have taken the room that poll(2) saw. -> how many bytes are done with: all
    of them where they never can be written.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_OF_WRITE)
    try:
        if shared and hasattr(os, "RWF_NOWAIT"):
            try:
                return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
            except OSError as why:
                if why.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):  # a terminal, a named pipe, an old kernel
                    raise
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        signal.sigtimedwait(SIGNALS_OF_WRITE, 0)
        return len(data)  # it will never go
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Log:
    """Writes `pyinit1: what happened: details`. What cannot be written at once waits for the loop; we never do."""

    def __init__(self):
        self.level = LEVELS.index("info")
        self.fd = None  # where lines go; until it is open they are kept in `early`
        self.early = []
        self.late = []  # lines for which there was no room yet; when there are LATE_LINES, new ones are dropped
        self.shared = False  # the descriptor is COMMAND's as well, so O_NONBLOCK must not be set on it
        self.prefix = ""  # of /dev/kmsg: the priority
        self.said = ("", 0.0)  # the last line of `seldom`, and when it was written, time.monotonic()

    def open(self, vm):
        """Open the descriptor: the console in a VM (the kernel's log without one), else stderr anew, for ourselves."""
        if vm:
            self.fd = open_first("/dev/console", "/dev/kmsg")
            if self.fd is not None and os.fstat(self.fd).st_rdev == KMSG:
                self.prefix = "<6>"  # KERN_INFO
                try:
                    with open("/proc/sys/kernel/printk_devkmsg", "r+b", buffering=0) as file:
                        file.write(b"on\n")  # else it keeps 10 lines of 30
                except OSError:
                    pass
        elif not stat.S_ISREG(os.fstat(2).st_mode):
            # A regular file opened anew would have an offset of its own, and we would write over COMMAND's lines.
            self.fd = open_first("/proc/self/fd/2")
        if self.fd is None:
            self.fd, self.shared = 2, not stat.S_ISREG(os.fstat(2).st_mode)
        early, self.early = self.early, []
        for level, text in early:
            self.write(level, text)

    def write(self, level, text):
        """Write one line at `level`, an index of LEVELS; never raises OSError, never blocks."""
        if self.fd is None:
            self.early.append((level, text))
        elif level <= self.level:
            line = f"{self.prefix}pyinit1: {one_line(text)}".encode("utf-8", "backslashreplace")
            line = line[: LINE_BYTES - 1].decode("utf-8", "ignore").encode()  # no half character at the cut
            if len(self.late) < LATE_LINES:
                self.late.append(line + b"\n")
            self.flush()

    def flush(self):
        """Write as much as there is room for."""
        while self.late and (not self.shared or is_ready(self.fd, select.POLLOUT)):
            done = write_alone(self.fd, self.late[0], self.shared)
            self.late[0] = self.late[0][done:]
            if self.late[0]:
                return
            del self.late[0]

    def drain(self):
        """Before the very end: give a slow reader DRAIN_LIMIT to make room."""
        deadline = time.monotonic() + DRAIN_LIMIT
        while self.late and time.monotonic() < deadline:
            is_ready(self.fd, select.POLLOUT, deadline - time.monotonic())
            self.flush()

    def error(self, text):
        self.write(0, text)

    def warn(self, text):
        self.write(1, text)

    def info(self, text):
        self.write(2, text)

    def debug(self, text):
        self.write(3, text)

    def seldom(self, text):
        """An error that comes again every second: written once a minute."""
        now = time.monotonic()
        if text != self.said[0] or now - self.said[1] >= SAY_AGAIN:
            self.said = (text, now)
            self.error(text)


log = Log()


def read_file(path, folder=None):
    """At most 64 kB of the file at `path`, in the folder of that descriptor. Raises OSError."""
    fd = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def in_words(why):
    """What an exception says: of a system call's without "[Errno 2]", of a bug with its type."""
    if isinstance(why, OSError) and why.strerror:
        name = os.fsdecode(why.filename) if isinstance(why.filename, bytes) else why.filename
        return why.strerror if name is None else f"{name}: {why.strerror}"
    return str(why) if isinstance(why, (OSError, ValueError)) else f"{type(why).__name__}: {why}"


def step(what, deed, *arguments):
    """Do one thing that can be done without; log and survive what it raises."""
    try:
        deed(*arguments)
    except Exception as why:  # whatever it is: it is no reason to end here
        log.error(f"{what}: {in_words(why)}")


MOUNTINFO, SWAPS = "/proc/self/mountinfo", "/proc/swaps"
MEMINFO, DISKSTATS, LOADAVG = "/proc/meminfo", "/proc/diskstats", "/proc/loadavg"
SYSRQ, THREADS_MAX = "/proc/sysrq-trigger", "/proc/sys/kernel/threads-max"
held = {}  # path -> descriptor of what the end reads, opened at the start: by then somebody may have unmounted /proc


def hold(path, flags):
    """Open `path` and keep it. Raises OSError."""
    held[path] = os.open(path, flags | os.O_CLOEXEC)


def read_held(path):
    """The whole of a file of /proc as it is now; empty where it could not be opened. Raises OSError."""
    data = b""
    if path not in held:
        step(path, hold, path, os.O_RDONLY)  # something was wrong at the start
    while path in held:
        part = os.pread(held[path], 65536, len(data))
        data += part
        if not part:
            break
    return data


# ---- libc: what Python has no call for

libc = None


def load_libc():
    """Load libc by ctypes, once, before anything needs it. Without ctypes the calls below raise OSError ENOSYS."""
    global libc
    if libc is not None:
        return
    try:
        from ctypes import CDLL, c_char_p as text, c_int as number, c_ulong as word

        library = CDLL(None, use_errno=True)
        for name, *types in (
            ("reboot", number), ("prctl", number, word, word, word, word), ("mount", text, text, text, word, text),
            ("umount2", text, number), ("swapoff", text), ("mlockall", number), ("unshare", number),
            ("sethostname", text, word), ("socket", number, number, number),
        ):  # fmt: skip
            getattr(library, name).argtypes = types
        libc = library
    except (ImportError, OSError, AttributeError) as why:
        log.error(f"no ctypes: {why}: no mounts, no subreaper, no reboot(2)")


def give_memory_back():
    """malloc_trim(3): some MB that compiling this file took. musl has none."""
    load_libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def call(name, *arguments):
    """libc's function `name`, and its result. Raises OSError with errno where that is -1."""
    if libc is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    result = getattr(libc, name)(*arguments)
    if result == -1:
        from ctypes import get_errno  # loaded with libc, so no file is read for it

        raise OSError(get_errno(), os.strerror(get_errno()), name)
    return result


def reboot(command):
    """reboot(2). Raises OSError; refused with EPERM in every process but PID 1, as a machine may depend on it."""
    if os.getpid() != 1:
        raise OSError(errno.EPERM, "we are not PID 1", "reboot")
    call("reboot", command)


def prctl(option, argument):
    """prctl(2) with one argument. Raises OSError."""
    call("prctl", option, argument, 0, 0, 0)


def mount(source, target, fstype, flags, data):
    """mount(2). Raises OSError."""
    call("mount", source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode())


def umount2(target, flags):
    """umount(2). Raises OSError."""
    call("umount2", target, flags)


def remount_read_only(target):
    """mount(2) of a mounted file system anew, read-only. Raises OSError."""
    call("mount", None, target, None, MS_REMOUNT | MS_RDONLY, None)


def ioctl(path, request):
    """ioctl(2) without an argument on the file or folder at `path`. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


def kill(pid, number):
    """kill(2); -> whether there was anybody, whom we may not signal included. That is logged: we may be PID 1 without being root."""
    try:
        if pid == -1 and os.getpid() != 1:
            raise OSError(errno.EPERM, "only PID 1 may")
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except OSError as why:
        if number:
            log.warn(f"not signalled: pid {pid}: {signal_name(number)}: {why.strerror}")
    return True


# ---- the command line


def parse_seconds(word):
    if not (word.isascii() and word.replace(".", "", 1).isdigit()):
        raise ValueError("expected seconds, such as 30 or 2.5")
    return float(word)


def parse_level(word):
    if word not in LEVELS:
        raise ValueError(f"expected one of {', '.join(LEVELS)}")
    return word


def parse_number(word, lowest, highest, what):
    if not (word.isascii() and word.isdigit() and lowest <= int(word) <= highest):
        raise ValueError(f"expected {what} from {lowest} to {highest}")
    return int(word)


def parse_signal(word):
    """The number of a signal given as 15, TERM, SIGTERM or RTMIN+4."""
    if word[:1].isdigit():
        return parse_number(word, 1, 64, "a signal")
    name, plus, more = word.upper().partition("+")
    number = SIGNAL_NUMBERS.get(name if name.startswith("SIG") else "SIG" + name)
    if number is None or plus and not (number == signal.SIGRTMIN and more.isdigit()):
        raise ValueError("expected a signal's name or number, such as TERM or 15")
    return parse_number(str(number + int(more or 0)), 1, 64, "a signal")


def parse_rewrite(word):
    """(FROM, TO) of FROM:TO, where TO is 0 for a signal that is dropped."""
    first, colon, second = word.partition(":")
    if not colon:
        raise ValueError("expected FROM:TO, such as TERM:QUIT")
    source = parse_signal(first)
    if source in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD) or action_for(source) == FAULT:
        raise ValueError(f"{signal_name(source)} is never forwarded")
    return source, 0 if second == "0" else parse_signal(second)


def parse_adopted(word):
    """(pid of the server, descriptor of the state or None) of PID or PID:FD, as reexec() writes it."""
    pid, _, fd = word.partition(":")
    return (
        parse_number(pid, 0 if fd else 1, 2**22, "a process id"),  # proc(5): the highest pid_max
        parse_number(fd, 3, OPEN_FILES, "a descriptor") if fd else None,
    )


OPTIONS = (
    # letter, long name, its argument: None, or a function from the word to the value that raises ValueError
    ("c", "container", None),
    ("", "respawn", None),
    ("g", "group", None),
    ("r", "rewrite", parse_rewrite),
    ("e", "exit-ok", lambda word: parse_number(word, 0, 255, "an exit status")),
    ("p", "parent-death", parse_signal),
    ("", "stop-timeout", parse_seconds),
    ("", "grace", parse_seconds),
    ("", "log-level", parse_level),
    ("", "check", None),
    ("", "adopt-server", parse_adopted),
    ("s", "", None),
    ("v", "", None),
    ("w", "", None),
    ("h", "help", None),
    ("V", "version", None),
)
REPEATED = ("rewrite", "exit-ok")
TIMES = {"stop-timeout": ("PYINIT1_STOP_TIMEOUT", STOP_TIMEOUT), "grace": ("PYINIT1_GRACE", GRACE)}
NOT_IN_A_VM = ("container", "check", "help", "version", "parent-death")


def find_option(name):
    """The row of OPTIONS for `-x`, `--name` or an unambiguous beginning of it. Raises ValueError."""
    rows = [row for row in OPTIONS if name in ("-" + row[0], "--" + row[1])]
    rows = rows or [row for row in OPTIONS if name[2:] and row[1].startswith(name[2:]) and name[1] == "-"]
    if len(rows) != 1:
        raise ValueError("no such option" if not rows else "ambiguous: " + ", ".join("--" + row[1] for row in rows))
    return rows[0]


def take_option(word, rest):
    """The first option of `word`, as getopt_long(3) reads it: (long name, value, what is left of the word).

    Its argument stands in the word, or is taken off the list `rest`. Raises ValueError: what was expected.
    """
    is_long = word.startswith("--")
    name, inline, argument = word.partition("=") if is_long else (word[:2], word[2:], word[2:])
    letter, long_name, parse = find_option(name)
    if parse is None:
        if is_long and inline:
            raise ValueError("takes no argument")
        if inline.startswith("-"):
            raise ValueError("- is no option")  # what is left would be read as a long one
        return long_name or letter, True, "-" + inline if inline else ""
    if not inline and not rest:
        raise ValueError("its argument is missing")
    return long_name, parse(argument if inline else rest.pop(0)), ""


def read_environment(options, env, vm, complaints):
    """Fill in what the command line did not say; bad values are added to `complaints`."""
    for name, (variable, default) in TIMES.items():
        try:
            if name not in options:
                options[name] = parse_seconds(env[variable]) if env.get(variable) else default
        except ValueError as why:
            complaints.append(f"{variable}={env[variable]}: {why}")
            options[name] = default
    options.setdefault("log-level", env.get("ZINIT_LOG_LEVEL", "info"))  # the server's, as it was given
    if vm and env.get("PYINIT1_COMMAND"):
        import shlex

        try:
            options["command"] = shlex.split(env["PYINIT1_COMMAND"])
        except ValueError as why:
            complaints.append(f"PYINIT1_COMMAND={env['PYINIT1_COMMAND']}: {why}")


def parse_args(words, env, vm=False):
    """(options, complaints) from our command line and environment; `options` has an entry for each long name given.

    Outside a VM a complaint is a reason not to start. In a VM nothing may stop the boot: the kernel hands us every
    word that it does not know itself, so words that are not ours are complained of and passed over.
    """
    options, complaints, words = {"command": []}, [], list(words)
    while words:
        word = words.pop(0)
        if word[:1] != "-" or word in ("-", "--"):
            if not vm:
                options["command"] = words if word == "--" else [word] + words
                break
            complaints.append(f"{word}: not an option")
            continue
        while word:
            before, offending = list(words), word
            try:
                name, value, word = take_option(word, words)
            except ValueError as why:
                argument = before[: len(before) - len(words)]  # what take_option() took off
                complaints.append(f"{' '.join([offending] + argument)}: {why}")
                break
            if vm and name in NOT_IN_A_VM:
                complaints.append(f"--{name}: not in a VM")
            elif name in REPEATED:
                options.setdefault(name, []).append(value)
            else:
                options[name] = value
    read_environment(options, env, vm, complaints)
    return options, complaints


def own_level(options):
    """Our own log level, an index of LEVELS: debug with -v; nonsense means info; trace is debug."""
    name = "debug" if "v" in options else options["log-level"]
    return min(LEVELS.index(name if name in LEVELS else "info"), DEBUG)


def usage():
    """The two lines of the docstring that say how we are called."""
    return __doc__[__doc__.index("usage:") :].split("\n\n")[0]


# ---- where am I


def has_kthreadd():
    """Is PID 2 in no session and no group of this namespace? kthreadd is, and it is in the initial one only."""
    try:
        return os.getsid(2) == os.getpgid(2) == 0
    except OSError:
        return False


def in_initial_pid_namespace():
    """Is this PID 1 the machine's? By its namespace's inode, or by reboot(RB_DISABLE_CAD), which no other may ask."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == PROC_PID_INIT_INO
    except OSError:
        pass  # a direct /init has no /proc yet
    load_libc()
    try:
        reboot(RB_DISABLE_CAD)
        return True
    except OSError as why:
        # Without ctypes nobody can ask: say VM. A container that is taken for a VM parks instead of exiting; the reverse panics.
        return why.errno == errno.ENOSYS or why.errno == errno.EPERM and has_kthreadd()


def container_word(options, env):
    """The word that says that this is a container, or nothing."""
    if "container" in options:
        return "--container"
    if "ZINIT_CONTAINER" in env:
        return "ZINIT_CONTAINER is set"
    return f"$container is {env['container']}" if env.get("container") else ""


def where_am_i(pid, vm, word):
    """(mode, reason) of the process `pid`; `vm` says that it is a machine's PID 1, `word` is container_word()."""
    if vm:
        return VM, "PID 1 of the initial PID namespace"
    if word:
        return CONTAINER, word if pid == 1 else f"{word}, but PID {pid}: only its own descendants are reaped and ended"
    if pid == 1:
        return CONTAINER, "PID 1 of another PID namespace"
    return PLAIN, f"PID {pid}, not PID 1: only its own descendants are reaped and ended"


# ---- boot: what a machine's first process finds undone; each step is idempotent, each failure logged and survived

# mount(8) of the API file systems: file system, where, flags, data to try in this order
API_MOUNTS = (
    ("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ("",)),
    ("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, ("",)),
    ("devtmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, ("mode=0755",)),
    ("tmpfs", "/run", MS_NOSUID | MS_NODEV | MS_STRICTATIME, ("mode=0755",)),
    ("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, ("mode=0620,gid=5,ptmxmode=0666",)),  # nodev breaks sshd
    ("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV | MS_STRICTATIME, ("mode=1777",)),
    ("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, ("nsdelegate", "")),
)
DEV_LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))


def mount_api(fstype, where, flags, data):
    """Mount one row of API_MOUNTS where nothing is mounted yet. Raises OSError."""
    os.makedirs(where, 0o755, exist_ok=True)
    if os.path.ismount(where):
        return
    for attempt in data:
        try:
            mount(fstype, where, fstype, flags, attempt)
            return
        except OSError as why:
            if why.errno == errno.EBUSY:
                return  # mounted already, in a way that ismount() cannot see
            if attempt == data[-1]:
                raise


def fill_descriptors(paths):
    """Open the first of `paths` that can be on those of the descriptors 0, 1 and 2 that are closed.

    A closed one would be taken by the next open(), and a child that prints would then write into that file.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            for path, flags in paths:
                try:
                    os.set_inheritable(os.open(path, flags), True)  # the lowest free number, which is fd
                    break
                except OSError:
                    pass


CONSOLE = (("/dev/console", os.O_RDWR | os.O_NOCTTY),)
NOTHING = (("/dev/null", os.O_RDWR), ("/", os.O_RDONLY))


def link_dev():
    for name, target in DEV_LINKS:
        if not os.path.lexists("/dev/" + name):
            os.symlink(target, "/dev/" + name)


def loopback_up():
    """netdevice(7): set IFF_UP on lo, with a struct ifreq of 40 bytes."""
    fd = call("socket", AF_INET, SOCK_DGRAM, 0)
    try:
        fcntl.ioctl(fd, SIOCSIFFLAGS, b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, sys.byteorder) + bytes(22))
    finally:
        os.close(fd)


def set_hostname():
    """The first word of /etc/hostname, if there is one."""
    try:
        words = read_file("/etc/hostname").split()
    except FileNotFoundError:
        return
    if words:
        call("sethostname", words[0], len(words[0]))


def look_at_root():
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        log.warn("boot: the root is read-only: left as it is")


def raise_open_files():
    """The hard RLIMIT_NOFILE, never lowered; the soft one stays, as programs with select(2) break above 1024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, OPEN_FILES))


def debug_wanted():
    """Does the kernel's command line have debug=1 or zinitdebug=1, as a whole word?"""
    try:
        return bool({b"debug=1", b"zinitdebug=1"} & set(read_file("/proc/cmdline").split()))
    except OSError:
        return False


def disable_ctrl_alt_del():
    """It shall be a SIGINT for us and no reset. Raises OSError."""
    try:
        reboot(RB_DISABLE_CAD)
    except OSError:  # no ctypes, say
        with open("/proc/sys/kernel/ctrl-alt-del", "wb", buffering=0) as file:
            file.write(b"0\n")


def boot(options, again):
    """Everything a VM needs before the server starts; `again` after a re-exec, when others may have changed some of it."""
    load_libc()
    for row in API_MOUNTS:
        step(f"boot: mount {row[1]}", mount_api, *row)
    if debug_wanted():
        options["log-level"] = "debug"
    log.level = own_level(options)
    fill_descriptors(CONSOLE + NOTHING)
    log.open(vm=True)
    for path in (MOUNTINFO, SWAPS, MEMINFO, DISKSTATS, LOADAVG):
        step(f"boot: {path}", hold, path, os.O_RDONLY)
    step(f"boot: {SYSRQ}", hold, SYSRQ, os.O_WRONLY)
    step(f"boot: {THREADS_MAX}", hold, THREADS_MAX, os.O_WRONLY)
    step("boot: root", look_at_root)
    step("boot: links in /dev", link_dev)
    if not again:
        step("boot: loopback interface", loopback_up)
        step("boot: hostname", set_hostname)
    step("boot: RLIMIT_NOFILE", raise_open_files)
    step("boot: Ctrl-Alt-Del", disable_ctrl_alt_del)
    os.environ.setdefault("PATH", DEFAULT_PATH)
    os.umask(0o022)


# ---- other processes, as /proc shows them


class Process:
    """One process of proc(5)'s /proc/PID/stat."""

    def __init__(self, line):
        before, _, after = line.rpartition(b")")  # the name may have parentheses and spaces of its own
        fields = after.split()
        self.pid, self.name = int(before.split()[0]), before.partition(b"(")[2].decode("utf-8", "replace")
        self.zombie, self.ppid, self.group = fields[0] == b"Z", int(fields[1]), int(fields[2])
        self.has_tty, self.kernel_thread = fields[4] != b"0", bool(int(fields[6]) & PF_KTHREAD)
        self.identity = (self.pid, fields[19])  # with its start time: no other process has had both


def processes():
    """All user processes but ourselves; none without a /proc of our own PID namespace."""
    found, pids = [], []
    try:
        if os.readlink("self", dir_fd=held["/proc"]) == str(os.getpid()):
            pids = os.listdir(held["/proc"])
    except (KeyError, OSError):
        pass
    for pid in pids:
        try:
            if pid.isdigit() and int(pid) != os.getpid():
                found.append(Process(read_file(f"{pid}/stat", held["/proc"])))
        except (OSError, IndexError):
            pass  # it has just ended
    return [process for process in found if not process.kernel_thread]


def children_of(pid, table):
    """The children of `pid`, of the processes() in `table`, that are alive."""
    return [process for process in table if process.ppid == pid and not process.zombie]


def descendants_of(pid, table):
    """The children of `pid`, theirs, and so on: parents first."""
    found = [process for process in table if process.ppid == pid]
    for process in found:
        found += [child for child in table if child.ppid == process.pid]
    return found


def names(listed):
    """In words, a list of Process."""
    text = ", ".join(f"pid {process.pid} {process.name}" for process in listed[:NAMES]) or "none"
    return text + (f" and {len(listed) - NAMES} more" if len(listed) > NAMES else "")


# ---- children: fork, a clean start, exec


def find_server(env):
    """The path of zinit-server. Raises OSError that says where it was looked for."""
    paths = (env["PYINIT1_SERVER"],) if env.get("PYINIT1_SERVER") else SERVER_PATHS
    for path in paths:
        if not path.startswith("/"):
            raise OSError(errno.EINVAL, "PYINIT1_SERVER: expected an absolute path", path)
        if os.path.exists(path):
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
            raise PermissionError(errno.EACCES, "not an executable file", path)
    raise FileNotFoundError(errno.ENOENT, "not found", ", ".join(paths))


def server_argv(path, env, level, mode):
    """The words that start the server."""
    argv = [path, "-c", env.get("ZINIT_CONFIG_DIR", CONFIG_DIR), "-s", env.get("ZINIT_SOCKET", SOCKET)]
    return argv + ["--log-level", level] + (["--pid1-mode"] if mode == VM else [])


def candidates(name, env):
    """The paths that the command `name` can mean, in execvp(3)'s order."""
    folders = env.get("PATH", DEFAULT_PATH).split(":") if name else ()  # "" is not found
    return [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in folders]


def interpreter_of(path):
    """What the first line of a script names; a binary's is the loader of its libraries."""
    line = read_file(path)[:256].partition(b"\n")[0]  # as much as the kernel reads of it
    words = line[2:].replace(b"\t", b" ").split(b" ")  # and as it splits it: a \r is part of the name
    return os.fsdecode(next(filter(None, words), b"")) if line.startswith(b"#!") else "the loader"


def exec_command(argv, env, is_script):
    """Become argv[0], looked up on PATH as execvp(3) does. Returns never; raises OSError.

    What is no program, and has no `#!`, is a script for /bin/sh if `is_script` says that it may be one.
    """
    failure = FileNotFoundError(errno.ENOENT, "not found", argv[0] or "''")
    for path in candidates(argv[0], env):
        try:
            os.execve(path, argv, env)
        except OSError as why:
            if why.errno == errno.ENOEXEC and is_script:  # as for every shell; an empty one too
                os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], env)
            if why.errno == errno.EACCES:
                failure = OSError(errno.EACCES, "is a directory" if os.path.isdir(path) else "not executable", path)
            elif why.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            elif os.path.exists(path):
                raise OSError(errno.ELIBBAD, f"its interpreter is missing: {interpreter_of(path)}", path) from None
    raise failure


def failure_code(why):
    """127 if there is no such program, 126 if it cannot be run: what shells say."""
    return 127 if getattr(why, "errno", None) in (errno.ENOENT, errno.ENOTDIR) else 126


def run_child(become, report):
    """What the child of Init.fork_server() does: become(report), which is not to return. Never returns.

    Why it could not goes to the descriptor `report`, which exec closes.
    """
    code = 126
    log.late.clear()  # the parent writes those
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        become(report)
    except Exception as why:
        code = failure_code(why)
        write_alone(report, in_words(why).encode("utf-8", "surrogateescape"), shared=False)
    finally:
        os._exit(code)


def given_descriptors():
    """The descriptors above 2 that our parent gave us: those that are not close-on-exec."""
    found = []
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            if int(fd) > 2 and os.get_inheritable(int(fd)):
                found.append(int(fd))
        except OSError:
            pass  # the one that listdir() had open
    return found


def may_read(fd):
    """May our process group read from this terminal? Asked by a read(2) of nothing, which from the background says EIO."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)  # another reader shall not make us wait
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTIN])
    try:
        return os.read(own, 0) == b""
    except BlockingIOError:
        return True
    finally:
        os.close(own)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def foreground_terminal():
    """The descriptor of the terminal in whose foreground our process group is, or None."""
    for fd in (0, 1, 2):
        try:
            # A group of outside our PID namespace has the number 0 for us, whichever it is: ours may be another one.
            if os.tcgetpgrp(fd) == os.getpgrp() and (os.getpgrp() or may_read(fd)):
                return fd
        except OSError:
            pass
    return None


def set_foreground(fd, group):
    """tcsetpgrp(3), with the SIGTTOU of that blocked: put a process group into the terminal's foreground."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        os.tcsetpgrp(fd, group)
    except OSError as why:
        log.debug(f"terminal not given to group {group}: {why.strerror}")
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_our_child(pid):
    """waitid(2) without taking the status: is `pid` a child of ours, alive or not yet reaped?"""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    except OSError:
        return False


# What becomes of a helper: its exit status, or GIVEN_UP if we did not wait for its end. REFUSED: deed() said no, by ValueError.
# NOT_NEEDED: it returned False, as there was nothing to do. FAILED is all else, that there is no helper included; one that
# could not even log why ends with UNSAID.
DONE, REFUSED, FAILED, NOT_NEEDED, GIVEN_UP, UNSAID = range(6)


def start_helper(what, deed, helpers):
    """fork(2) a child that does deed(), which may block; -> its pid. Raises OSError.

    `helpers` has None for its pid from the statement that forks: it is known whatever happens to us then. It leads a process
    group, and logs why it was not done.
    """
    code = UNSAID
    helpers[(pid := os.fork())] = None
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # our handlers mean nothing in here
            os.setpgid(0, 0)
            log.late.clear()  # the parent writes those
            code = NOT_NEEDED if deed() is False else DONE
        except BaseException as why:
            log.error(f"{what}: {in_words(why)}")
            code = REFUSED if isinstance(why, ValueError) else FAILED
        finally:
            try:
                log.drain()
            finally:
                os._exit(code)
    return pid


def kill_helper(helper):
    """SIGKILL for a helper and whom it has started; for itself alone before it leads its group."""
    if not kill(-helper, signal.SIGKILL):
        kill(helper, signal.SIGKILL)


def outcome_of(status):
    """What became of a helper, by its status of waitpid(2)."""
    code = os.waitstatus_to_exitcode(status)
    return code if code in (DONE, REFUSED, NOT_NEEDED) else FAILED


# ---- disks: what the end does to them; only children of ours call this, for each of these calls may never return

# What we and the kernel need to the last, with all that is mounted below it and holds nothing of a disk.
API_FOLDERS = (b"/proc", b"/sys", b"/dev", b"/run")
API_TYPES = frozenset(
    b"proc sysfs devtmpfs devpts tmpfs cgroup cgroup2 securityfs selinuxfs debugfs tracefs configfs bpf pstore efivarfs"
    b" mqueue hugetlbfs binfmt_misc fusectl fuse.lxcfs nsfs autofs rpc_pipefs".split()
)


def unescape(field):
    """A path of mountinfo, where space, tab, newline and backslash are written as three octal digits."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


class Mount:
    """One line of /proc/self/mountinfo, proc(5)."""

    def __init__(self, line):
        fields = line.split(b" ")
        self.id, self.parent, self.where = int(fields[0]), int(fields[1]), unescape(fields[4])
        self.fstype = fields[fields.index(b"-") + 1]

    def stays(self):
        """Is it one of API_FOLDERS, or an API file system below one, or the initramfs, that is no disk?"""
        folder = b"/" + self.where.split(b"/")[1]
        return self.fstype == b"rootfs" or folder in API_FOLDERS and self.fstype in API_TYPES


def unmount_order(mounts):
    """Children before their parents, by the parents' ids: after `mount --move` the lines' order says nothing."""
    parents = {mount.id: mount.parent for mount in mounts}

    def depth(identity):
        seen = set()
        while identity in parents and identity not in seen:
            seen.add(identity)
            identity = parents[identity]
        return len(seen)

    return sorted(mounts[::-1], key=lambda mount: depth(mount.id), reverse=True)  # of equal ones the newest first


def mounts_to_release():
    """The mounts that are to go, in the order in which they can."""
    mounts = []
    for line in read_held(MOUNTINFO).split(b"\n"):
        try:
            mounts.append(Mount(line))
        except (ValueError, IndexError):
            pass  # torn by an unmount between two reads, or the empty one behind the last
    return [mount for mount in unmount_order(mounts) if not mount.stays()]


def loop_devices():
    """The paths of the loop devices that are in use."""
    names = os.listdir("/sys/block") if os.path.isdir("/sys/block") else ()
    return ["/dev/" + name for name in names if os.path.exists(f"/sys/block/{name}/loop/backing_file")]


def disk_traffic():
    """(kB that wait for disks, sectors that disks have read and written): proc(5)'s meminfo and diskstats.

    Both: the first may stand still for seconds, as ext4 counts pages in large heaps, and a network has no second.
    """
    fields = [line.split() for line in read_held(MEMINFO).splitlines()]
    waiting = sum(int(field[1]) for field in fields if field[0] in (b"Dirty:", b"Writeback:"))
    disks = [line.split() for line in read_held(DISKSTATS).splitlines()]
    return waiting, sum(int(disk[5]) + int(disk[9]) for disk in disks)


class DiskTime:
    """How long the disks still have: DISKS_LIMIT, and more where they are slow, not dead."""

    def __init__(self):
        self.looked_at = time.monotonic()
        self.deadline, self.slow_deadline = self.looked_at + DISKS_LIMIT, self.looked_at + SLOW_LIMIT
        self.traffic = disk_traffic()  # at the last look

    def is_over(self):
        return time.monotonic() >= self.deadline

    def moved(self, began):
        """Have disks moved data since the last look? Then a call that `began` over STUCK_AFTER ago gets the time since that look."""
        now, before, self.traffic = time.monotonic(), self.traffic, disk_traffic()
        moved = now < self.slow_deadline and (self.traffic[0] < before[0] or self.traffic[1] > before[1])
        if moved and now >= began + STUCK_AFTER:
            log.seldom("the end: disks are slow: they get more time")
            self.deadline += min(LOOK_AT_DISKS, now - self.looked_at)
        self.looked_at = now
        return moved


class Release:
    """A child's work at the end: nothing stays mounted for writing. Any of its calls may never return."""

    def __init__(self, stuck, report):
        self.stuck = stuck  # names of the steps that hold another child: passed over
        self.report = report  # descriptor: the name of each step and a NUL before it is done

    def tell(self, name):
        """Report what is done next; the parent may be slow to read, and that is no reason to stop."""
        try:
            os.write(self.report, name + b"\0")
        except OSError:
            pass

    def attempt(self, name, deed, *arguments):
        """Do one step; -> why it failed, or an empty text."""
        if name in self.stuck:
            return "stuck"
        self.tell(name)
        try:
            deed(*arguments)
            return ""
        except OSError as why:
            return why.strerror
        except Exception as why:  # a bug shall not cost the disk what comes next
            return in_words(why)

    def run(self):
        """Sync, release swap and loop devices, unmount, make read-only or freeze what is left, sync."""
        self.attempt(b"sync", os.sync)
        if self.stuck and b"/" in [mount.where for mount in mounts_to_release()]:
            self.attempt(b"/", remount_read_only, b"/")  # at once, as several dead disks may use up the time
        self.unmount()  # a tmpfs first: swapoff(2) would read it back into memory
        for line in read_held(SWAPS).splitlines()[1:]:
            path = unescape(line.split()[0])
            self.attempt(path, call, "swapoff", path)
        for path in loop_devices():
            self.attempt(path.encode(), ioctl, path, LOOP_CLR_FD)  # in use still, it goes with its last user
        for where, why in self.unmount():
            self.write_protect(where, why)
        self.attempt(b"last sync", os.sync)

    def unmount(self):
        """umount2(2) in passes, until a pass changes nothing; -> [(path, why)] of what is left, the root among it."""
        changed = True
        while changed:
            changed, left = False, []
            for mount in mounts_to_release():
                root = mount.where == b"/"
                why = "the root" if root else self.attempt(mount.where, umount2, mount.where, UMOUNT_NOFOLLOW)
                changed = changed or not why
                left += [(mount.where, why)] if why else []
        return left

    def write_protect(self, where, why):
        """Remount read-only; where even that is refused (we may map a file that was replaced), freeze."""
        if where != b"/" and where not in [mount.where for mount in mounts_to_release()]:
            return  # another child has done it, and the folder is its parent's now
        outcome, refused = "read-only", self.attempt(where, remount_read_only, where)
        if refused:
            outcome = f"frozen, as it could not be made read-only: {refused}"
            refused = self.attempt(where, ioctl, where, FIFREEZE)
        if refused:
            outcome = f"left as it is: {refused}"
        if outcome != "read-only" or where != b"/":
            log.warn(f"the end: busy: {os.fsdecode(where)}: {why}: {outcome}")


# ---- the server's RPC: what is said; who says it is Init.ask


def rpc_request(method):
    return f'{{"jsonrpc":"2.0","id":1,"method":"{method}"}}\n'.encode()


def rpc_result(line, kind):
    """The result, of the type `kind`, in the server's answer. Raises ValueError: nothing that comes in is trusted."""
    import json  # loaded by load_the_rest

    try:
        answer = json.loads(line.decode())  # bytes may be any encoding to json, which would be imported now
    except (ValueError, RecursionError):
        raise ValueError(f"answered no JSON: {line[:60]!r}") from None
    if not isinstance(answer, dict) or answer.get("id") != 1 or not isinstance(answer.get("result"), kind):
        raise ValueError(f"answered: {line[:200].decode('utf-8', 'replace')}")
    return answer["result"]


def file_identity(path):
    """What differs when the file at `path` is another one than before; None if there is none.

    Not its age: a fresh file's time comes from a clock that may lag time.time() by 4 ms.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def state_was_saved(result, before, identity=file_identity):
    """Did the server save its state? By its `result`, and by the file whose identity was `before` the request."""
    path = result.get("state_path")
    path = path if isinstance(path, str) else STATE_PATH
    now = identity(path)
    # `ready` and no file, which does happen, is not saved: the next server would start every service again.
    return now is not None and (result.get("ready") is True or (path == STATE_PATH and now != before))


def listed_pids(services):
    """The pids in the result of service.list_full: what the server says are its services."""
    states = [entry.get("state") for entry in services if isinstance(entry, dict)]
    return [state.get("pid") for state in states if isinstance(state, dict)]


# ---- re-exec: this process starts its file anew; server, orphans, statuses, descriptors and pending signals stay

OWN_PATH = os.path.realpath(__file__)
OWN_IDENTITY = file_identity(OWN_PATH)  # of the file that we are


def environment():
    """Our environment as execve(2) takes it: a kernel's word "=x" has no name, which is EINVAL."""
    return {name: value for name, value in os.environ.items() if name}


def reexec(path, words, state):
    """execve(2) of `path` with our `words`; `state` goes along in a memfd. Raises OSError: then nothing has changed.

    All signals must be blocked: what comes meanwhile stays pending. There is no way back once the interpreter runs, so a
    trial_start() has to come before.
    """
    fd = os.memfd_create("pyinit1", 0)  # without MFD_CLOEXEC
    try:
        os.write(fd, marshal.dumps(state, 2))  # a form that every Python 3 reads
        os.lseek(fd, 0, os.SEEK_SET)
        flags = "I" * sys.flags.isolated + "S" * sys.flags.no_site
        python = sys.executable or "/proc/self/exe"
        if words[:1] == ["--adopt-server"]:
            words = words[2:]
        server = state["server"] or 0
        argv = [python, *(["-" + flags] if flags else []), path, "--adopt-server", f"{server}:{fd}", *words]
        os.execve(python, argv, environment())
    finally:
        os.close(fd)


def handed_over(words):
    """The state that reexec() left for a process with these words, or the server's pid at least.

    {} if there is no such child of ours: a kernel's words may say anything.
    """
    try:
        pid, fd = parse_adopted(words[1]) if words[:1] == ["--adopt-server"] else (0, None)
    except (IndexError, ValueError):
        return {}
    try:
        state = dict(marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0)))
        os.set_inheritable(fd, False)
        return dict(state, memfd=fd)  # stays open until all is taken over: after a crash before that it is read again
    except (TypeError, ValueError, EOFError, OSError):
        return {"server": pid} if pid and is_our_child(pid) else {}


def go_with_parent():
    """prctl(2): SIGKILL for us when our parent dies; without ctypes we outlive it."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError:
        pass


TRIED = b"pyinit1: trial: ready\n"  # what a file that is tried says, whatever its log level


NOWHERE = "/trial"  # no file, no socket
NOT_TRIED = 99  # an exit status that neither Python nor we have


def trial_words(vm):
    """Our words, for a trial start: a kernel's mean nothing outside a VM; what is tried has no COMMAND that it could start."""
    if vm:
        return []
    command = parse_args(sys.argv[1:], {})[0]["command"]
    return sys.argv[1 : len(sys.argv) - len(command)] + [NOWHERE] * bool(command)


def stand_in(lifeline):
    """In a child: stand for the server that is to be taken over, as long as somebody has the other end of `lifeline` open."""
    os.dup2(lifeline, 0)
    os.closerange(1, 1024)  # that other end, where a trial's last word goes, an update's lock
    os.read(0, 1)
    os._exit(DONE)


def become_tried(path, words, write_end, lifeline):
    """In a child: become the file that is tried; its log goes to `write_end`. Exit status NOT_TRIED if it could not."""
    try:
        go_with_parent()
        server = os.fork()
        if server == 0:
            stand_in(lifeline)
        os.dup2(write_end, 2)
        for name, _ in TIMES.values():
            os.environ.pop(name, None)  # of a bad one a VM complains; outside, where this is, it would be refused
        os.environ.update(PYINIT1_SERVER=NOWHERE, ZINIT_SOCKET=NOWHERE)  # if it takes over nobody, it shall disturb nobody
        reexec(path, words, {"server": server, "trial": True})
    except Exception as why:
        os.write(write_end, in_words(why).encode())
    finally:
        os._exit(NOT_TRIED)


def await_trial(trial, read_end, limit):
    """Wait until the process `trial` says that it is ready. Raises as trial_start() does."""
    text, deadline = b"", time.monotonic() + limit
    while TRIED not in text:
        if not is_ready(read_end, select.POLLIN, deadline - time.monotonic()):
            raise ValueError(f"not ready within {limit:g} s")
        part = os.read(read_end, 65536)
        text += part
        if not part:
            why = f"did not start: {(text.splitlines() or [b''])[-1].decode('utf-8', 'replace')}"
            # SIGKILL: the kernel wanted memory.
            could_not = os.waitstatus_to_exitcode(os.waitpid(trial, 0)[1]) in (NOT_TRIED, -signal.SIGKILL)
            raise OSError(errno.EAGAIN, why) if could_not else ValueError(why)


def trial_start(path, words, limit):
    """Start the file with `words` in a PID namespace of its own, where that is allowed: it has `limit` seconds to get ready.

    For a child of ours, and nothing of it is left. Raises OSError if it cannot be made, ValueError if it goes wrong, with
    the last line that was written.
    """
    load_libc()
    read_end, write_end = os.pipe()
    lifeline, alive = os.pipe()
    try:
        call("unshare", CLONE_NEWPID)
    except OSError as why:
        log.debug(f"trial start: in our own PID namespace: {why.strerror}")
    trial = os.fork()
    if trial == 0:
        become_tried(path, words, write_end, lifeline)
    os.close(write_end)
    try:
        await_trial(trial, read_end, limit)
    finally:
        kill(trial, signal.SIGKILL)
        for fd in (read_end, lifeline, alive):
            os.close(fd)


# ---- updates: FILE.new takes the place of FILE, which is kept as FILE.old; only children of ours do this


def check_owner(path, status, sticky=False):
    """Raise ValueError if somebody else than root and us can write there; a `sticky` folder lets nobody exchange what is not theirs."""
    others = status.st_mode & 0o022 and not (sticky and status.st_mode & stat.S_ISVTX)
    if status.st_uid not in (0, os.geteuid()) or others:
        raise ValueError(f"{path}: not only ours to write: owner {status.st_uid}, mode {status.st_mode & 0o7777:o}")


def read_trusted(path, most):
    """The file at `path`, no link, of `most` bytes at most, that nobody else can write. Raises OSError, ValueError."""
    folder = os.path.realpath(os.path.dirname(path))
    path = os.path.join(folder, os.path.basename(path))
    check_owner("/", os.stat("/"), sticky=True)  # the kernel's own, of an initramfs, has the mode 1777
    while folder != "/":
        check_owner(folder, os.stat(folder))
        folder = os.path.dirname(folder)
    if os.path.islink(path):
        raise ValueError(f"{path}: expected a file, and no link")
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        check_owner(path, status)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError(f"{path}: expected a file of at most {most} bytes")
        return file.read(most)


def verify(path, most):
    """The content of FILE.new, if it is what FILE.new.sha256 says. Raises OSError, ValueError."""
    import hashlib

    content = read_trusted(path + ".new", most)
    words = read_trusted(path + ".new.sha256", 4096).split()
    if words[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise ValueError(f"{path}.new: its SHA-256 is not the one in {path}.new.sha256")
    return content


def remove(path):
    """unlink(2) of what may be missing. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def sync_path(path):
    """fsync(2) of a file or folder. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(folder):
    """flock(2), as long as this process lives: another pyinit1.py may update the same file. Raises OSError, ValueError."""
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another update is under way there") from None


def update(path, most, try_it, keep_old):
    """Put what was verified of FILE.new in FILE's place; FILE becomes FILE.old if `keep_old` or there is none.

    Not if FILE is that already: it may be done again. What is tried and installed is a file of our own, for FILE.new may be
    written anew meanwhile. There is a FILE at every moment. Raises what try_it(content, path of our file) raises, OSError
    and ValueError: then FILE is the old one.
    """
    lock_folder(os.path.dirname(path))
    offered, trial, spare = os.lstat(path + ".new").st_mtime_ns, path + ".trial", path + ".old.new"
    content, mode = verify(path, most), os.stat(path).st_mode & 0o7777
    remove(trial)
    with open(trial, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:  # whatever our umask is
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            try_it(content, trial)
            os.fchmod(file.fileno(), mode)
            os.utime(file.fileno(), ns=(offered, offered))  # tidy_up() knows by it which FILE.new this was
            with open(path, "rb") as now:
                keep_old = keep_old and now.read() != content
            if keep_old or not os.path.lexists(path + ".old"):
                remove(spare)
                os.link(path, spare)
                os.replace(spare, path + ".old")
            os.replace(trial, path)
        except BaseException:
            step("update", remove, trial)
            raise


def tidy_up(path):
    """After an update: FILE.new goes, unless it is the next update already; what was renamed is on the disk. Raises OSError."""
    installed, offered = os.stat(path), os.lstat(path + ".new") if os.path.lexists(path + ".new") else None
    if offered and (offered.st_mtime_ns, offered.st_size) == (installed.st_mtime_ns, installed.st_size):
        remove(path + ".new")
        remove(path + ".new.sha256")
    sync_path(os.path.dirname(path))


def update_server(keep_old):
    """Update the server, if there is one and a new file beside it; -> False if not. Raises OSError, ValueError."""
    try:
        path = find_server(os.environ)
        os.lstat(path + ".new")
    except OSError:
        return False
    log.info(f"server's update: {path}.new")
    return update(path, SERVER_BYTES, lambda *_: None, keep_old)  # the last statement: what is done may not fail any more


def bring_back(path):
    """FILE.old to FILE. Raises OSError."""
    os.replace(path + ".old", path)
    sync_path(os.path.dirname(path))


# ---- the last things: they work without the loop, and are met again in Init

def ask_kernel(requests):
    """Documentation/admin-guide/sysrq.rst: `s` syncs, `u` remounts read-only, `o` and `b` end the machine: the kernel does, not we."""
    for request in requests:
        step(SYSRQ, os.write, held.get(SYSRQ, -1), request)


def try_reboot(how):
    """reboot(2) as one of ENDINGS asks for it. Returns only if that fails."""
    name, command, _, request = ENDINGS[how]
    log.info(f"the end: reboot(2): {name}")
    log.drain()
    try:
        reboot(command)
    except OSError as why:
        log.error(f"reboot(2) failed: {name}: {why.strerror}")
        if why.errno == errno.ENOSYS:
            ask_kernel([request])


def reap_all():
    """Take every status that is there."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except OSError:
        pass


def done_in_time(what, deed, seconds):
    """Let a child do deed(), without the loop: all signals are blocked. -> what became of it."""
    deadline = time.monotonic() + seconds
    try:
        helper = start_helper(what, deed, {})
        while time.monotonic() < deadline:
            pid, status = os.waitpid(helper, os.WNOHANG)
            if pid:
                return outcome_of(status)
            signal.sigtimedwait([signal.SIGCHLD], max(0.0, deadline - time.monotonic()))
        kill_helper(helper)
        log.error(f"{what}: not done within {seconds:g} s")
        return GIVEN_UP
    except OSError as why:
        log.error(f"{what}: fork: {why.strerror}")
        return FAILED


def limit_threads():
    """Let there be MORE_THREADS besides those that there are, and no more: a fork bomb only replaces its own."""
    now = int(read_held(LOADAVG).split()[3].partition(b"/")[2])  # proc(5): running/all
    os.pwrite(held[THREADS_MAX], b"%d\n" % (now + MORE_THREADS), 0)


def release_again(stuck):
    """All that the end does to disks once more, without the loop; what it could not do in time the kernel is asked for."""
    outcome = done_in_time("the end: disks", Release(stuck, -1).run, DISKS_LIMIT)
    if outcome == FAILED:
        outcome = done_in_time("the end: disks", Release(stuck, -1).run, DISKS_LIMIT)
    if outcome != DONE:
        ask_kernel([b"u"])


def sync_twice():
    """sync(2): first what is in loop devices, then the files that those are."""
    os.sync()
    os.sync()


def hurry(how):
    """Sync in a child for at most HURRY_LIMIT, then reboot(2). Returns only if that fails."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    outcome = done_in_time("sync", sync_twice, HURRY_LIMIT)
    if outcome != DONE:
        ask_kernel([b"s"])
    if outcome == FAILED:
        signal.sigtimedwait([], HURRY_LIMIT)  # the kernel has only made a note of it
    try_reboot(how)


def park():
    """Sleep for ever, still reaping; a request to end tries reboot(2) again. Relies on nothing that may be broken."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    log.error("parked: nothing is started any more, and a request to end tries reboot(2)")
    while True:
        reap_all()
        action = action_for(signal.sigwait([number for number in ACTIONS if ACTIONS[number] in (REAP, *ENDINGS)]))
        if action != REAP:
            hurry(action)


# ---- PID 1: its state, its loop, and what it does


# What the next one gets over a re-exec: attributes of Init, all of them numbers, texts, and collections of such. The child's
# `report` does not survive: if exec fails then, its exit status says so. `releasing` is go_on()'s: it re-execs no more then.
HANDED_OVER = (
    "server", "started", "start_at", "started_at", "unsettled", "cwd", "terminal", "restart", "update", "unheard", "request", "ending",
    "releasing", "status", "reaped", "stopped", "crashes", "probation", "server_probation", "server_deaths", "leaving", "had_terminal",
)  # fmt: skip


ITS_OWN_FAILURE = b"a failure of its own"  # what a Release ended of; the next one does all of it once more


class Init:
    """The one object of this file. Everything that it waits for goes through turn(), the one loop."""

    def __init__(self, options, mode):
        self.options, self.mode = options, mode
        self.command = options["command"]
        self.once = bool(self.command) and "respawn" not in options
        self.forwards = self.once and mode != VM
        self.rewrite = dict(options.get("rewrite", ())) if self.command else {}  # signal -> what COMMAND gets instead
        self.group = bool(self.command) and "group" in options
        self.what = "COMMAND" if self.command else "server"  # in the log
        self.cwd = "/"  # where the child starts; ours is /, so that we hold no mount
        self.given = []  # descriptors above 2 that are the child's
        self.terminal = None  # descriptor of the terminal that COMMAND gets from us, and gives back
        self.server = None  # pid of the server, or of COMMAND; None while it does not run
        self.started = ""  # the words that it was started with; empty if exec failed
        self.report, self.said = None, b""  # descriptor on which the child says what it becomes, until it has closed it; what it said
        self.start_at = 0.0  # when the server is to be started, time.monotonic()
        self.started_at = 0.0  # when it was
        self.tidy_at = time.monotonic() + TIDY_AFTER if self.command else 0.0  # when memory is given back; 0 when it was
        self.give_up_at = time.monotonic() + FORK_LIMIT  # from then on a fork(2) for a COMMAND run once is not tried again
        self.services = {}  # pid -> Process: services that are our children, since a soft restart
        self.leaving = None  # (what it answered, file_identity(STATE_PATH) before) of a server that was asked to go
        self.unsettled = False  # a new server has not yet said which of them it took over
        self.helpers = {}  # pid -> status, or None while it runs: children that do what could block us
        self.crashes = []  # when we crashed, time.monotonic()
        self.probation = 0.0  # until then a crash brings the file from before the update back, time.monotonic()
        self.update = False  # a self-update was asked for
        self.unheard = False  # one was begun, and we have not heard its end: FILE.old may be what we are
        self.server_probation, self.server_deaths = 0.0, 0  # the same for an updated server
        self.reaped = (0, 0)  # the last (pid, status) of waitpid(2)
        self.releasing = False  # the disks are being released: our own file may be gone
        self.stuck = set()  # the steps of that which hold a child
        self.stopped = 0  # the signal that stopped COMMAND, until that is answered
        self.answering = 0  # the signal that is being answered
        self.wakeup = None  # read end of the pipe that signals write to
        self.pending = {}  # signals that came and are not answered yet; see listen()
        self.interrupts = []  # when the last SIGINTs came, time.monotonic()
        self.restart = False  # a soft restart was asked for
        self.request = None  # the first of ENDINGS that was asked for
        self.ending = False  # the end is under way: nothing is started any more
        self.had_terminal = set()  # identities of the processes that had one when the end began
        self.status = 0  # our exit status, where we exit

    # -- the loop

    def listen(self):
        """Put the handler in and unblock: from here on signals are answered.

        The handler is setdefault(number, frame) of `pending`: no statement of ours, so none of ours can fail in it and lose
        the signal. The pipe's bytes only wake us: it drops them when it is full; `pending` does not.
        """
        self.wakeup, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        handler = self.pending.setdefault
        handlers = {FAULT: signal.SIG_DFL, UNHEARD: handler if self.forwards else signal.SIG_IGN}
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, handlers.get(action_for(number), handler))
        self.look_for_children()  # who died before has sent nothing
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def look_for_children(self):
        """Reap in the next turn, though no SIGCHLD came."""
        self.pending[signal.SIGCHLD] = None

    def turn(self, deadline=None, fd=None, events=0):
        """One turn of the loop: sleep until a signal, the deadline (time.monotonic()) or `fd`; reap; answer.

        -> whether `fd` has one of poll(2)'s `events`.
        """
        ready = self.sleep(deadline, fd, events)
        self.answer_all(self.pending)  # after the pipe was drained: what comes now wakes the next turn
        if self.stopped:  # not before: what has come shall not wait for a shell's `fg`
            self.command_stopped(self.stopped)
            self.stopped = 0
        return ready

    def sleep(self, deadline, fd, events):
        """The one blocking call of PID 1."""
        poll = select.poll()  # not select(2), which breaks at descriptor 1024
        reader = log.fd if log.late else None  # there is something to say, and it has to make room first
        for each, its_events in (
            (self.wakeup, select.POLLIN), (self.report, select.POLLIN), (reader, select.POLLOUT), (fd, events),
        ):  # fmt: skip
            if each is not None:
                poll.register(each, its_events)
        timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_SLEEP) * 1000
        ready = [each for each, _ in poll.poll(0 if self.pending else timeout)]
        if self.wakeup in ready:
            os.read(self.wakeup, 65536)  # all that a pipe holds
        if self.report in ready:
            self.read_report()
        if reader in ready:
            log.flush()
        return fd in ready

    def wait(self, done, seconds, look_again=None):
        """Turn until done(), at most `seconds`; -> whether it is done. Gives up early when it is called_away().

        `look_again`: the seconds after which done() is asked again even if no signal came.
        """
        deadline = time.monotonic() + seconds
        while not done():
            now = time.monotonic()
            if now >= deadline or self.called_away():
                return False
            self.turn(min(deadline, now + (look_again or seconds)))
        return True

    def called_away(self):
        """Has a request to end come, while something less important is done?"""
        return self.request is not None and not self.ending

    # -- reaping

    def reap(self):
        """Take every status that is there; -> whether we have no child at all any more."""
        tell = log.warn if "w" in self.options else log.debug if log.level >= DEBUG else None
        for _ in range(REAP_AT_ONCE):
            try:
                pid, status = self.reaped = os.waitpid(-1, os.WNOHANG | (os.WUNTRACED if self.command else 0))
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if os.WIFSTOPPED(status):  # an orphan's stop is nobody's business; one by ptrace(2) comes unasked
                if pid == self.server and self.command:
                    self.stopped = os.WSTOPSIG(status)
                self.reaped = (0, 0)
                continue
            self.services.pop(pid, None)
            if pid == self.server:
                self.server_ended(status)
            elif pid in self.helpers:
                self.helpers[pid] = status
            elif tell:
                tell(f"orphan reaped: pid {pid}: {how_it_ended(status)}")
        self.look_for_children()  # there may be more: signals and deadlines first
        return False

    def server_ended(self, status):
        """Note the end of the server or of COMMAND: run() starts it again, or ends."""
        self.report_is_over()
        self.start_at = time.monotonic() + RESPAWN_DELAY
        if self.terminal is not None:
            set_foreground(self.terminal, os.getpgrp())
        if self.started:
            log.info(f"{self.what} ended: pid {self.server}: {how_it_ended(status)}")
        if self.once:
            self.status = exit_code(status, self.options.get("exit-ok", ()))
            self.request = self.request or POWER_OFF
        elif not (self.command or self.restart or self.ending):
            self.server_deaths += time.monotonic() < self.server_probation
            self.warn_of_services()  # in a soft restart replace_server() has listed them
        self.stopped = 0  # a stop that its death overtook
        self.server = None  # last: after a crash of ours in here all of it is done again

    def warn_of_services(self):
        """The server has died: nobody can tell its services from other orphans any more, so none is stopped."""
        left = [each for each in children_of(os.getpid(), processes()) if each.pid not in self.helpers]
        if left and self.started:
            log.warn(f"services may run twice: the server died and left: {names(left)}")

    def command_stopped(self, number):
        """COMMAND was stopped, by ^Z say: PID 1 continues it, for nobody could type `fg`; a plain process stops, too."""
        asks, terminal = number in (signal.SIGTTIN, signal.SIGTTOU), foreground_terminal()  # does it ask for the terminal?
        if asks and terminal is not None:
            self.terminal, goes_on = terminal, True  # a shell's `fg` has given it to us meanwhile
        elif os.getpid() == 1:
            # Not if somebody wants it to stand still, nor if it waits in the background, for `fg` where we were started.
            goes_on = number != signal.SIGSTOP and not (asks and self.terminal is None)
            if goes_on:
                log.warn(f"COMMAND continued: pid {self.server}: {signal_name(number)} stopped it, and PID 1 has no `fg`")
        else:
            # In an orphaned group we do not stop, and nobody can type `fg`: it would ask again and again.
            goes_on = self.stop_as_well(number) or not asks
        if goes_on and self.terminal is not None:
            set_foreground(self.terminal, self.server)
        if goes_on:
            kill(-self.server, signal.SIGCONT)

    def stop_as_well(self, number):
        """Stop ourselves by the signal that stopped COMMAND, until a shell's `fg` or `bg` sends us SIGCONT. -> did we stop?

        An orphaned process group does not: setpgid(2).
        """
        if self.terminal is not None:
            set_foreground(self.terminal, os.getpgrp())
        handler = signal.signal(number, signal.SIG_DFL) if number != signal.SIGSTOP else None
        # As the terminal would have: a script around us, and the other commands of a pipeline, stop as well.
        asks = number in (signal.SIGTTIN, signal.SIGTTOU)
        together = asks or self.terminal is not None and number != signal.SIGSTOP
        os.kill(0 if together else os.getpid(), number)
        if handler is not None:
            signal.signal(number, handler)
        self.terminal, stopped = foreground_terminal(), signal.SIGCONT in self.pending
        self.pending.pop(signal.SIGCONT, None)  # COMMAND gets its own next; this one, forwarded later, would undo the next ^Z
        self.answer_all(self.pending.keys() - {signal.SIGCHLD})  # SIGTERM, say: before COMMAND may stop again
        return stopped

    # -- answering

    def answer_all(self, numbers):
        """Answer these signals that came, in their order."""
        for number in in_order(numbers):
            self.answering = number  # before it is taken: a crash hands it over
            self.pending.pop(number, None)
            if number == signal.SIGCHLD:
                self.reap()
            else:
                self.answer(number)
        self.answering = 0

    def answer(self, number):
        """Answer one signal: pass it on, or note what is to be done. Nothing waits in here."""
        if self.forwards and self.server is not None:
            self.stopped = 0 if number == signal.SIGCONT else self.stopped
            self.signal_server(self.rewrite.get(number, number))
            return
        action = action_for(number)
        late = self.request is not None and action != OTHER
        too_late = f" (too late: {self.request} is under way)" if late else ""
        log.info(f"signal: {signal_name(number)}: {action}{too_late}")
        if number == signal.SIGINT:
            self.count_interrupt()
        if late:
            return
        if action in ENDINGS:
            self.request = action
        elif action == SOFT_RESTART and self.once:
            log.warn("soft restart: there is no server: COMMAND is run once")
        elif action == SOFT_RESTART:
            self.restart = True
        elif action == SELF_UPDATE:
            self.update = True

    def count_interrupt(self):
        """Seven SIGINT within 2 s: somebody has no patience with the orderly end any more."""
        self.interrupts = self.interrupts[1 - INTERRUPTS :] + [time.monotonic()]
        if len(self.interrupts) == INTERRUPTS and self.interrupts[-1] - self.interrupts[0] <= INTERRUPTS_WITHIN:
            log.warn(f"{INTERRUPTS} SIGINT within {INTERRUPTS_WITHIN:g} s: ending at once")
            if self.mode == VM:
                hurry(self.request or REBOOT)
                park()
            self.signal_others(signal.SIGKILL, self.others())  # a plain process must not leave them behind
            os._exit(1)

    def signal_server(self, number):
        """Send a signal, unless it is 0, to the server or COMMAND, if it runs; with -g to its whole group."""
        if self.server is None or number == 0:
            return
        # A child that has no group of its own yet gets the signal itself.
        if not self.group or not kill(-self.server, number):
            kill(self.server, number)

    # -- the server

    def run(self):
        """Keep the server alive until a request to end comes. Never returns."""
        while self.request is None:
            if self.restart:
                self.soft_restart()
            elif self.update:
                self.self_update()
            elif self.server is not None and self.unsettled:
                self.stop_unadopted()
            elif self.server is not None and self.tidy_at:
                self.tidy()
            elif self.server is not None:
                self.turn()
            elif time.monotonic() < self.start_at:
                self.turn(self.start_at)
            else:
                self.start_again()
        self.end()

    def tidy(self):
        """Once COMMAND has run for a while: give back what compiling this file took. A short COMMAND ends without it."""
        self.turn(self.tidy_at)
        if time.monotonic() >= self.tidy_at:
            self.tidy_at = 0.0
            step("memory", give_memory_back)
            log.debug("memory given back")

    def start_again(self):
        """Start the server, or its update; no more once the end was asked for."""
        if self.leaving:
            self.settle_services()
        self.exchange_server()
        if self.request is None:
            self.start_server()

    def adopt(self, state):
        """Go on where the one before the re-exec was; -> whether there was one."""
        if not state:
            if "adopt-server" in self.options:
                log.warn(f"ignored: --adopt-server {self.options['adopt-server'][0]}: not our child")
            return False
        self.server, self.started = state["server"], "adopted"
        for name in set(HANDED_OVER) & set(state):
            setattr(self, name, state[name])
        self.services = {process.pid: process for process in processes() if process.pid in state.get("services", ())}
        self.look_at_adopted()
        if self.server is not None and not self.restart:  # its soft restart was given up, by hand_over() say
            self.leaving, self.services = None, {pid: each for pid, each in self.services.items() if is_our_child(pid)}
        if "memfd" in state:
            os.close(state.pop("memfd"))
        self.close_given()
        log.info(f"taken over: {self.what}: pid {self.server}")
        return True

    def look_at_adopted(self):
        """What has become of the server that is taken over? Most often nothing: it lives, or its status waits for waitpid(2)."""
        pid, status = self.reaped
        if self.server is None:
            return
        if pid != self.server:
            if not is_our_child(self.server):
                if time.monotonic() < self.probation:
                    raise ChildProcessError(errno.ECHILD, f"pid {self.server} cannot be taken over")
                self.server_ended(1 << 8)  # its status is lost: let it be 1
        elif os.WIFSTOPPED(status):  # we had its status, and then a crash
            self.stopped = os.WSTOPSIG(status)
        else:
            self.server_ended(status)

    def state(self):
        """What the one after a re-exec has to know."""
        state = {name: getattr(self, name) for name in HANDED_OVER}
        return dict(state, services=list(self.services))

    def leave(self, answering=0):
        """Before a re-exec, all signals being blocked: those that wait for an answer, and `answering`, shall wait in the kernel."""
        for number in self.pending.keys() | {answering} - {0}:
            os.kill(os.getpid(), number)
        for helper in [helper for helper, status in self.helpers.items() if status is None]:
            kill_helper(helper)  # nobody would know of it any more

    def self_update(self):
        """Put our new file into place and re-exec it; whatever is wrong with it: nothing has changed, and we go on."""
        log.info(f"self-update: {OWN_PATH}.new")
        self.update = False
        keep_old = time.monotonic() >= self.probation and not self.unheard  # else .old is the last that is proven
        words = trial_words(self.mode == VM)

        def try_it(content, trial):
            compile(content, trial, "exec")
            trial_start(trial, words, TRIAL_LIMIT)

        before, self.unheard = self.unheard, True
        outcome = self.have_done("self-update: refused", lambda: update(OWN_PATH, OWN_BYTES, try_it, keep_old), UPDATE_LIMIT)
        if outcome == DONE:
            self.probation = time.monotonic() + PROBATION
        self.unheard = outcome == GIVEN_UP or before and outcome != DONE
        if outcome != DONE:
            return
        self.have_done("self-update: tidying up", lambda: tidy_up(OWN_PATH), UPDATE_LIMIT)
        log.info("self-update: re-exec")
        log.drain()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.leave()
            reexec(OWN_PATH, sys.argv[1:], self.state())
        except OSError as why:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            log.error(f"self-update: re-exec: {why.strerror}: the old file comes back")
            self.have_done("self-update: the old file", lambda: bring_back(OWN_PATH), UPDATE_LIMIT)
            self.probation = 0.0

    def have_done(self, what, deed, seconds):
        """Let a child do deed(), which may block, for `seconds` at most, while the loop turns. -> what became of it.

        GIVEN_UP, too, if we are called away. Whatever is wrong has been logged.
        """
        try:
            helper = start_helper(what, deed, self.helpers)
        except OSError as why:
            log.error(f"{what}: fork: {why.strerror}")
            return FAILED
        if not self.wait(lambda: self.helpers[helper] is not None, seconds):
            kill_helper(helper)
            log.error(f"{what}: " + (f"{self.request} goes first" if self.called_away() else f"not done within {seconds:g} s"))
        status = self.helpers.pop(helper)
        if status is None:
            return GIVEN_UP
        if os.waitstatus_to_exitcode(status) not in (DONE, REFUSED, FAILED, NOT_NEEDED):
            log.error(f"{what}: {how_it_ended(status)}")
        return outcome_of(status)

    def exchange_server(self):
        """Before the server starts: take back its update if it keeps dying, or install one if a soft restart was asked for."""
        now = time.monotonic()
        if self.server_deaths > SERVER_DEATHS:
            log.error(f"server died {self.server_deaths} times within {PROBATION:g} s of its update: the old file comes back")
            outcome = self.have_done("server's old file", lambda: bring_back(find_server(os.environ)), UPDATE_LIMIT)
            if outcome == DONE or now >= self.server_probation:  # else it is tried again before the next start
                self.server_probation, self.server_deaths = 0.0, 0
        elif self.restart and not self.command:
            keep_old = now >= self.server_probation
            if self.have_done("server not updated", lambda: update_server(keep_old), UPDATE_LIMIT) == DONE:
                self.server_probation, self.server_deaths = time.monotonic() + PROBATION, 0
                log.info("server updated")
                self.have_done("server's update: tidying up", lambda: tidy_up(find_server(os.environ)), UPDATE_LIMIT)

    def start_server(self):
        """Start the server or COMMAND; where that fails, say so and leave it to the next try."""
        self.unsettled = bool(self.services)
        self.restart = False  # whatever was asked for meanwhile is met by this start
        self.reaped = (0, 0)  # the last one's death is not this one's, should it get the same pid
        self.started_at = time.monotonic()
        self.start_at = self.started_at + RESPAWN_DELAY  # if this fails
        self.started = " ".join(self.command) or "zinit-server"
        try:
            self.fork_server()
        except OSError as why:
            give_up = self.once and self.started_at >= self.give_up_at
            self.not_started(f"fork: {why.strerror}", again=not give_up)
            self.status = 126 if self.once else 0
            if give_up:
                self.request = POWER_OFF
        self.close_given()

    def fork_server(self):
        """fork(2) the server or COMMAND. Raises OSError. Nobody waits for its exec: the loop reads its report.

        Its pid is noted in the statement that forks, so that after a crash of ours it is taken over, not started again.
        """
        self.said = b""
        self.report, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Blocked around fork: a handler of ours that ran in the child would swallow the signal, and wake the parent.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.server = os.fork()
            if self.server == 0:
                run_child(self.become, write_end)
        except OSError:
            os.close(self.report)
            self.report = None
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(write_end)

    def close_given(self):
        """COMMAND run once has its own copies of the descriptors that we were given: ours would keep pipes open."""
        while self.once and self.server is not None and self.given:
            step("close", os.close, self.given.pop())

    def prepare(self):
        """In the child: its own group or session, its terminal and its folder."""
        try:
            if self.mode == VM:
                os.setsid()
                if self.command and os.isatty(0):
                    fcntl.ioctl(0, TIOCSCTTY, 0)
            else:
                os.setpgid(0, 0)
                if self.terminal is not None:
                    set_foreground(self.terminal, os.getpid())
            os.chdir(self.cwd)
        except OSError as why:
            log.warn(f"{self.what} starts without: {in_words(why)}")

    def become(self, report):
        """In the child: become the server or COMMAND; the server's path is said first. Returns never; raises OSError.

        The server is looked up here and not by us, for a disk that is dead may hold who looks.
        """
        self.prepare()
        env = environment()
        if env.get("LISTEN_PID") == str(os.getppid()):  # sd_listen_fds(3): the descriptors are for this process
            env["LISTEN_PID"] = str(os.getpid())
        argv = self.command
        if not argv:
            argv = server_argv(find_server(env), env, self.options["log-level"], self.mode)
            write_alone(report, os.fsencode(argv[0]) + b"\0", shared=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # not before the handlers are gone
        exec_command(argv, env, is_script=bool(self.command))

    def read_report(self):
        """Hear from the child; when it has said all, log whether exec worked."""
        data = os.read(self.report, 65536)
        self.said += data
        if not data:
            self.report_is_over()

    def report_is_over(self):
        """The child has become another program, or is gone."""
        if self.report is None:
            return
        self.said += os.read(self.report, 65536)
        os.close(self.report)
        self.report = None
        path, _, failure = self.said.decode("utf-8", "replace").rpartition("\0")
        if path:
            self.started = " ".join(server_argv(path, os.environ, self.options["log-level"], self.mode))
        if failure:
            self.started = ""
            self.not_started(failure, again=not self.once)
        else:
            log.info(f"{self.what} started: pid {self.server}: {self.started}")

    def not_started(self, why, again):
        log.seldom(f"{self.what} not started: {why}" + ("; trying again every second" if again else ""))

    def terminate(self):
        """SIGTERM, or what -r makes of it, and SIGCONT: a stopped process sees no SIGTERM."""
        self.signal_server(self.rewrite.get(signal.SIGTERM, signal.SIGTERM))
        self.signal_server(signal.SIGCONT)

    def await_server(self, seconds):
        """Wait for the server's end, then kill it; called away it does neither."""
        if self.wait(lambda: self.server is None, seconds) or self.called_away():
            return
        log.warn(f"{self.what} killed: pid {self.server}: still there after {seconds:.1f} s")
        kill(self.server, signal.SIGKILL)
        self.wait(lambda: self.server is None, KILL_WAIT)

    # -- asking the server

    def ask(self, method, seconds, kind=dict):
        """Send the server an RPC; -> its result, of the type `kind`, or None if it could not be asked.

        The result is {} if it took the request and hung up. Takes at most `seconds`; the loop goes on turning.
        """
        if self.server is not None:
            kill(self.server, signal.SIGCONT)  # a stopped server answers nobody
        deadline = time.monotonic() + seconds
        try:
            import socket  # loaded by load_the_rest

            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.setblocking(False)
                self.connect(connection, os.environ.get("ZINIT_SOCKET", SOCKET), deadline)
                connection.send(rpc_request(method))
                line = self.receive(connection, deadline)
                return rpc_result(line, kind) if line else {}
        except (OSError, ValueError, ImportError) as why:
            log.warn(f"server not asked: {method}: {in_words(why)}")
            return None

    def connect(self, connection, path, deadline):
        """connect(2), tried again while the server's backlog is full, or it has only just started. Raises OSError."""
        while True:
            try:
                return connection.connect(path)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as why:
                young = time.monotonic() < self.started_at + LISTEN_LIMIT
                if not (young or isinstance(why, BlockingIOError)):
                    raise
                self.patience(deadline, f"does not accept: {why.strerror}")
            self.turn(min(deadline, time.monotonic() + LOOK_AGAIN))

    def receive(self, connection, deadline):
        """One line; b"" if the server hung up after it had read our request. Raises OSError, ValueError.

        Had it not read it, recv(2) would say ECONNRESET: unix(7) sockets tell.
        """
        data = b""
        while b"\n" not in data:
            if time.monotonic() >= deadline or not is_ready(connection.fileno(), select.POLLIN):  # it may have said it, and ended
                self.patience(deadline, "does not answer")
            if self.turn(deadline, connection.fileno(), select.POLLIN):
                chunk = connection.recv(65536)
                if not chunk:
                    return b""
                data += chunk
            if len(data) > ANSWER_BYTES:
                raise ValueError("answers without an end")
        return data.partition(b"\n")[0]

    def patience(self, deadline, what):
        """Raise TimeoutError if there is no use in waiting for the server any more."""
        if self.called_away():
            raise TimeoutError(errno.ETIMEDOUT, f"{self.request} goes first")
        if self.server is None:
            raise TimeoutError(errno.ETIMEDOUT, "has ended")
        if time.monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, what)

    # -- soft restart

    def soft_restart(self):
        """Replace the server; its services live on as our children, and none runs twice afterwards."""
        if self.server is not None:
            log.info(f"soft restart: stopping {self.what}: pid {self.server}")
            if self.command:
                self.terminate()
                self.await_server(self.options["stop-timeout"])
            else:
                self.replace_server()
        if self.request is not None:
            return
        if self.server is None:
            self.start_again()
        else:
            log.error(f"soft restart: {self.what} cannot be killed: pid {self.server}: the next one starts after it")
            self.restart = False

    def replace_server(self):
        """Ask the server to save its state and go. Services that it did not save are stopped, not to run twice."""
        self.note_services()
        if os.waitid(os.P_PID, self.server, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self.warn_of_services()  # it died before that was read
        before = self.leaving[1] if self.leaving else file_identity(STATE_PATH)  # asked again, after a crash: not anew
        self.leaving = ({}, before)  # it has saved nothing, until it answers
        result = self.ask("system.prepare_restart", RPC_LIMIT)
        self.note_services()  # it may have started one meanwhile
        if result is None and not self.called_away():
            self.terminate()
        self.leaving = ({name: value for name, value in (result or {}).items() if isinstance(value, (bool, str))}, before)
        self.await_server(RESTART_LIMIT)

    def note_services(self):
        """The server's services, beside those that outlived an earlier soft restart: from here on a crash of ours forgets none."""
        if self.server is not None:
            self.services.update({process.pid: process for process in children_of(self.server, processes())})

    def settle_services(self):
        """The server that was asked to go has gone: stop its services if it did not save them."""
        def look():  # by a child: the path is the server's word, and may be on a disk that is dead
            return self.have_done("soft restart: saved state", lambda: state_was_saved(*self.leaving), RPC_LIMIT)

        outcome = look()
        if outcome == FAILED:
            outcome = look()
        # Where no child can look, the server's word counts.
        if outcome == DONE or outcome == FAILED and self.leaving[0].get("ready") is True:
            self.services = {pid: process for pid, process in self.services.items() if is_our_child(pid)}
            log.info(f"soft restart: state saved: services go on: {self.names_of_services()}")
        else:
            self.stop_services("state not saved", list(self.services.values()))
        self.leaving = None

    def names_of_services(self):
        return names(list(self.services.values()))

    def stop_unadopted(self):
        """Ask the new server which services it took over, and stop the others, of which it starts a second copy.

        zinit knows a saved service by the first word of its `exec`: it misses one like "exec nginx" or "cd /x && y".
        """
        listed = self.ask("service.list_full", RPC_LIMIT, list)
        self.unsettled = self.server is None  # it died meanwhile: the next one is asked
        if isinstance(listed, list):
            pids = listed_pids(listed)
            left = [service for pid, service in self.services.items() if pid not in pids]
            if left:
                self.stop_services("not adopted", left)
        elif not self.unsettled and not self.called_away():
            log.warn(f"services may run twice: the new server names none: {self.names_of_services()}")

    def stop_services(self, why, services):
        """SIGTERM to the process groups of these services, RESTART_LIMIT, SIGKILL."""
        log.warn(f"soft restart: {why}: stopping: {names(services)}")
        groups = {process.group for process in services} - {0, 1, os.getpgrp()}

        def gone():
            groups.difference_update([group for group in groups if not kill(-group, 0)])
            return not groups

        for number, seconds in ((signal.SIGTERM, RESTART_LIMIT), (signal.SIGKILL, KILL_WAIT)):
            for group in groups:
                kill(-group, number)
                kill(-group, signal.SIGCONT)
            if self.wait(gone, seconds, LOOK_AGAIN) or self.called_away():
                return
            log.warn(f"soft restart: still there {seconds:g} s after {signal_name(number)}: groups {sorted(groups)}")

    # -- the end

    def end(self):
        """Stop everything in order, then leave. Never returns."""
        self.ending = True
        if self.mode == VM:
            step("the end: threads-max", limit_threads)
        if not self.nobody_left():
            # A shell whose session's leader goes with the server has lost its terminal when the others' turn comes.
            self.had_terminal |= {process.identity for process in processes() if process.has_tty}
        log.info(f"the end: {self.request}: {self.limits_in_words()}")
        if self.mode == VM:
            self.lock_memory()
        self.phase(f"{self.what} stopped", self.stop_server)
        self.phase("others stopped", self.stop_others)
        if self.mode == VM:
            step("the end: threads-max", limit_threads)  # our own children are to have some
            self.phase("disks released", self.release_disks)
            try_reboot(self.request)
            park()
        log.info(f"the end: exit status {self.status}")
        log.drain()
        os._exit(self.status)

    def lock_memory(self):
        """mlockall(2): no page has to come from a disk any more. A child reads them first, as a dead disk would hold us."""
        read = self.have_done("the end: our pages", lambda: call("mlockall", MCL_CURRENT), LOCK_LIMIT)
        step("the end: mlockall", call, "mlockall", MCL_CURRENT if read == DONE else MCL_CURRENT | MCL_ONFAULT)

    def limits_in_words(self):
        others = f"others have {self.options['grace']:g} s"
        return others if self.server is None else f"{self.what} has {self.options['stop-timeout']:g} s, {others}"

    def phase(self, name, deed):
        """Do one phase of the end, and log how long it took."""
        started = time.monotonic()
        deed()
        log.info(f"the end: {name}: {time.monotonic() - started:.3f} s")

    def stop_server(self):
        """Ask it, else SIGTERM; SIGKILL when its time is over."""
        if self.server is None:
            return
        timeout = self.options["stop-timeout"]
        deadline = time.monotonic() + timeout
        # Half of the time at most for asking, so that SIGTERM has some, too.
        if self.command or self.ask("system.shutdown", min(RPC_LIMIT, timeout / 2)) is None:
            self.terminate()
        self.await_server(max(0.0, deadline - time.monotonic()))

    def stop_others(self):
        """SIGHUP where there was a terminal (interactive shells ignore SIGTERM), SIGTERM, SIGCONT; grace; SIGKILL."""
        if self.nobody_left():
            return
        grace, look_again = self.options["grace"], LOOK_AGAIN if self.mode == CONTAINER else None
        others = self.others()
        # SIGHUP first: bash, which ignores SIGTERM, now and then overlooks one that comes just after its job has died.
        for process in others:
            if process.has_tty or process.identity in self.had_terminal:
                kill(process.pid, signal.SIGHUP)
        self.signal_others(signal.SIGTERM, others)
        self.signal_others(signal.SIGCONT, others)
        if self.wait(self.nobody_left, grace, look_again):
            return
        others = self.others()
        log.warn(f"others killed: still there after {grace:g} s: {names(others)}")
        self.signal_others(signal.SIGKILL, others)
        if not self.wait(self.nobody_left, KILL_WAIT, look_again):
            log.warn(f"others left behind: SIGKILL did not end them: {names(self.others())}")

    def others(self):
        """The processes that we are to end: all, if we are PID 1, else our descendants."""
        table = processes()
        return table if os.getpid() == 1 else descendants_of(os.getpid(), table)

    def signal_others(self, number, others):
        """The signal to `others`, each exactly once: if we are PID 1 by one kill(-1), which no fork escapes."""
        for pid in [-1] if os.getpid() == 1 else [process.pid for process in others]:
            kill(pid, number)

    def nobody_left(self):
        """Have we nobody left to end? Neither a child nor, in a container, what was started there from outside."""
        # In a VM kill(-1, 0) always finds kernel threads.
        return self.reap() and (self.mode == VM or os.getpid() != 1 or not kill(-1, 0))

    def release_disks(self):
        """Let a child do Release, and leave it behind where one disk holds it: another one does the rest."""
        self.releasing = True
        disk_time = DiskTime()
        try:
            while not disk_time.is_over():
                doing = self.follow_release(disk_time)
                if not doing or doing in self.stuck:
                    break  # all is done; or it has held a second child, and there is no use in a third
                log.warn(f"the end: stuck: {os.fsdecode(doing)}: going on without it")
                self.stuck.add(doing)
        except OSError as why:
            log.error(f"the end: disks: {why.strerror}: asking the kernel to sync and to remount read-only")
            ask_kernel([b"s", b"u"])
            self.wait(lambda: False, HURRY_LIMIT)
        began = time.monotonic()
        while not self.wait(lambda: None not in self.helpers.values(), LOOK_AT_DISKS):
            disk_time.moved(began)
            if disk_time.is_over():
                log.error(f"the end: disks: given up: {os.fsdecode(b', '.join(self.stuck))}")
                return

    def follow_release(self, disk_time):
        """Start a child that does Release; -> the step that holds it; empty if all is done. Raises OSError.

        If it has ended without that: ITS_OWN_FAILURE; the second time, the step at which it did.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # stays open: who is left behind may go on later
        helper = start_helper("the end", Release(self.stuck, write_end).run, self.helpers)
        os.close(write_end)
        doing, began, alive = b"starting", time.monotonic(), time.monotonic()  # of the step, of the last sign of life
        while self.helpers[helper] is None:
            if self.turn(time.monotonic() + LOOK_AT_DISKS, read_end, select.POLLIN):
                data = os.read(read_end, 65536)  # names, a NUL behind each: the last one is what it does
                if not data:  # it has ended, and its status comes
                    self.wait(lambda: self.helpers[helper] is not None, STUCK_AFTER)
                    break
                doing, began, alive = (data.split(b"\0")[-2:-1] or [doing])[0], time.monotonic(), time.monotonic()
            elif disk_time.moved(began):
                alive = time.monotonic()
            if disk_time.is_over() or time.monotonic() >= alive + STUCK_AFTER:
                break
        status = self.helpers[helper]
        if status == 0:
            return b""
        return doing if status is None or ITS_OWN_FAILURE in self.stuck else ITS_OWN_FAILURE


# ---- main


LINKS = {"poweroff": POWER_OFF, "reboot": REBOOT, "halt": HALT}
# What busybox's, systemd's and sysvinit's commands take. -d is refused: to one it is a delay, to another no wtmp.
LINK_OPTIONS = {
    "-f": "force", "--force": "force", "-n": "no-sync", "--no-sync": "no-sync", "-p": "poweroff",
    "--poweroff": "poweroff", "--reboot": "reboot", "--halt": "halt", "-w": "wtmp-only", "--wtmp-only": "wtmp-only",
    "--no-wtmp": "", "--no-wall": "", "-h": "", "-i": "", "--help": "help",
}  # fmt: skip


def parse_link_args(name, words):
    """(one of ENDINGS, the set of options) for one of our links. Raises ValueError."""
    asked = set()
    for word in words:
        letters = ["-" + letter for letter in word[1:]] if word[:1] == "-" and word[1:2] != "-" else []
        for option in letters or [word]:
            if option not in LINK_OPTIONS:
                raise ValueError(f"{word}: not an option of {name}")
            asked.add(LINK_OPTIONS[option])
    for what in LINKS:
        name = what if what in asked else name
    return LINKS[name], asked


def words_of_pid_1():
    """The words after our file's name in PID 1's command line; None if PID 1 is not this file."""
    words = [os.fsdecode(word) for word in read_file("/proc/1/cmdline").split(b"\0")[:-1]]
    for index, word in enumerate(words[:4]):
        if os.path.exists(word) and os.path.samefile(word, __file__):
            return words[index + 1 :]
    return None


def force(how, sync):
    """-f: reboot(2) at once, without PID 1, on a machine and nowhere else. Raises OSError."""
    if not in_initial_pid_namespace():
        raise OSError(errno.EPERM, "this is a container: leave out -f")
    load_libc()
    if sync:
        os.sync()
    return call("reboot", ENDINGS[how][1])


def tell_pid_1(name, words):
    """What our links poweroff, reboot and halt do: a signal to PID 1, and no waiting. -> exit status."""
    try:
        how, asked = parse_link_args(name, words)
        if "help" in asked:
            print(f"usage: {name} [-f|--force [-n|--no-sync]] [-p|--poweroff] [--reboot] [--halt] [-w|--wtmp-only]")
        if asked & {"help", "wtmp-only"}:  # there is no wtmp
            return 0
        theirs = words_of_pid_1()
        if theirs is None:
            raise OSError(errno.ESRCH, "PID 1 is not pyinit1: use its own command")
        number = ENDINGS[how][2]
        if "force" in asked:
            return force(how, "no-sync" not in asked)
        try:
            os.kill(1, number)
        except OSError as why:
            raise OSError(why.errno, f"signal {number} to PID 1: {why.strerror}") from None
        options, _ = parse_args(theirs, {}, in_initial_pid_namespace())
        if options["command"] and "respawn" not in options:
            print(f"{name}: signal {number} sent: PID 1 passes it on to {options['command'][0]}, which decides")
        return 0
    except (OSError, ValueError) as why:
        print(f"{name}: {in_words(why)}", file=sys.stderr)
        return 2 if isinstance(why, ValueError) else 1


def check(options, mode, reason):
    """--check: say what a start would find. -> exit status."""
    problems = []
    print(f"mode: {mode}: {reason}")
    try:
        name = options["command"][0] if options["command"] else find_server(os.environ)
        if not any(os.path.isfile(path) and os.access(path, os.X_OK) for path in candidates(name, os.environ)):
            raise FileNotFoundError(errno.ENOENT, "not found, or not executable", name)
        print(f"would start: {name}")
    except OSError as why:
        problems.append(in_words(why))
    load_libc()
    if libc is None:
        problems.append("ctypes: missing: no mounts, no subreaper, no reboot(2)")
    if not os.path.isdir("/proc/self"):
        problems.append("/proc: not mounted: processes cannot be named, terminals not hung up")
    for problem in problems:
        print("problem:", problem)
    return 1 if problems else 0


def answer_at_once(options, complaints, mode, reason):
    """Outside a VM: what is answered without starting anything, a bad command line above all."""
    if complaints:
        print(f"pyinit1: bad option: {one_line(complaints[0])}\n{usage()}", file=sys.stderr)
        sys.exit(2)
    elif "help" in options:
        print(__doc__.strip())
    elif "version" in options:
        print("pyinit1", VERSION)
    elif "check" in options:
        sys.exit(check(options, mode, reason))
    else:
        return
    sys.exit(0)


def become_subreaper(options):
    """Not PID 1: our descendants' orphans shall come to us, and we may have to go with our parent."""
    load_libc()
    step("prctl: orphans are not reaped", prctl, PR_SET_CHILD_SUBREAPER, 1)
    if "parent-death" in options:
        step("prctl: our parent's death goes unnoticed", prctl, PR_SET_PDEATHSIG, options["parent-death"])
        if os.getppid() != PARENT:  # it died before that
            os.kill(os.getpid(), options["parent-death"])


def restore_locale():
    """In the C locale Python sets LC_CTYPE in our environment (PEP 538): give the child what we were given."""
    with open("/proc/self/environ", "rb") as file:
        _, given, rest = (b"\0" + file.read()).partition(b"\0LC_CTYPE=")
    os.environ.pop("LC_CTYPE", None)
    if given:
        os.environ["LC_CTYPE"] = os.fsdecode(rest.partition(b"\0")[0])


def leave_folder():
    """Go to /; -> the folder that we were in."""
    try:
        return os.getcwd()
    except OSError:
        return "/"  # somebody has removed it
    finally:
        os.chdir("/")


def get_ready(vm, again):
    """Everything up to the point where the server can be started, or, `again` after a re-exec, taken over. -> Init."""
    options, complaints = parse_args(sys.argv[1:], os.environ, vm)
    mode, reason = where_am_i(os.getpid(), vm, container_word(options, os.environ))
    if not vm:
        fill_descriptors(NOTHING)
        answer_at_once(options, complaints, mode, reason)
    # From here on nothing may bail out: what fails is logged, and we go on.
    given = given_descriptors()
    if vm:
        boot(options, again)
    else:
        log.level = own_level(options)
        log.open(vm=False)
    (log.info if os.getpid() == 1 else log.warn)(f"mode: {mode}: {reason}")
    step("/proc", hold, "/proc", os.O_RDONLY | os.O_DIRECTORY)
    step("environment", restore_locale)
    if vm and container_word(options, os.environ):
        complaints.append(f"{container_word(options, os.environ)}: not in a VM")
    for complaint in complaints:
        log.warn(f"ignored: {complaint}")
    if os.getpid() != 1:
        become_subreaper(options)
    init = Init(options, mode)
    init.given, init.cwd = given, leave_folder()
    init.terminal = foreground_terminal() if init.command and not vm else None
    return init


def load_the_rest():
    """Import what only the RPC needs: once the server runs, and before any file can be gone."""
    import json  # noqa: F401
    import socket  # noqa: F401

    give_memory_back()


def say_ready(trial):
    """To the log, and to who tries this file."""
    log.info(f"ready: pid {os.getpid()}")
    if trial:
        os.write(2, TRIED)


def report_crash(why, vm):
    """Log an exception and where it came from, in one line."""
    places, frame = [], why.__traceback__
    while frame is not None:
        places.append(f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}")
        frame = frame.tb_next
    if log.fd is None:
        log.open(vm)
    log.error(f"crashed: {type(why).__name__}: {why}: at {' > '.join(places[-20:])}")


def quietly(deed, *arguments):
    """Do one thing in the handler of an exception, and once more if it fails: that stops nothing else. -> was it done?"""
    for _ in range(2):
        try:
            deed(*arguments)
            return True
        except BaseException:
            if os.getpid() != OWN_PID:
                os._exit(126)  # a child of ours that never became what it should
    return False


def take_back(state):
    """Exchange our file for FILE.old if it is on probation, or if we crashed in an update that had come so far; -> was it?"""
    came_so_far = state.get("unheard") and OWN_IDENTITY and file_identity(OWN_PATH + ".old") == OWN_IDENTITY
    if not came_so_far and time.monotonic() >= state.get("probation", 0.0):
        return False
    log.error("self-update: a crash: the old file comes back")
    bring_back(OWN_PATH)
    return True


def recover(state, vm):
    """After a crash: re-exec, with the file from before an update if that was recent. Returns if nothing can help.

    Raises what went wrong.
    """
    if len(state.get("crashes", ())) > CRASHES:
        log.error(f"crashed {CRASHES + 1} times within {CRASHES_WITHIN:g} s")
        return
    if done_in_time("the old file", lambda: take_back(state), UPDATE_LIMIT) == DONE:
        state.update(probation=0.0, unheard=False)
    outcome = done_in_time("trial start", lambda: trial_start(OWN_PATH, trial_words(vm), RECOVERY_LIMIT), RECOVERY_LIMIT + 1)
    if outcome in (DONE, FAILED):  # where it could not be made, for want of memory say, the file is most likely what it was
        quietly(log.drain)
        reexec(OWN_PATH, sys.argv[1:], state)
    raise ChildProcessError(errno.ECHILD, "the trial start went wrong")


def recent_crashes(state):
    return [crash for crash in state.get("crashes", ()) if time.monotonic() - crash < CRASHES_WITHIN]


def hand_over(init, state):
    """Put into `state` all that the one after the re-exec has to know. The third recent crash gives up what was under way."""
    state.update(init.state())
    patient = len(recent_crashes(state)) < PATIENT_CRASHES
    if not patient:
        state.update(restart=False, unsettled=False, stopped=0)
    init.leave(init.answering if patient else 0)


def count_crash(state):
    state["crashes"] = recent_crashes(state) + [time.monotonic()]


def go_on(why, vm, state, init):
    """After an exception: re-exec, which costs the server nothing; else a machine parks, another one exits. Never returns."""
    quietly(signal.pthread_sigmask, signal.SIG_BLOCK, signal.valid_signals())
    quietly(report_crash, why, vm)
    if init and not state:
        state = {name: getattr(init, name) for name in ("server", "request", "crashes", "probation")}
        quietly(hand_over, init, state)
    if state.get("releasing"):  # our own file may be gone: all of it once more, without the loop
        quietly(release_again, init.stuck)
    elif state:
        quietly(count_crash, state)
        quietly(recover, state, vm)
    quietly(log.drain)
    if vm:
        quietly(load_libc)
        if state.get("request"):
            quietly(hurry, state["request"])
        while True:
            quietly(park)
    if init:
        quietly(lambda: init.signal_others(signal.SIGKILL, init.others()))  # a plain process must not leave them behind
    elif state.get("server"):
        quietly(kill, state["server"], signal.SIGKILL)
    os._exit(1)


def crashed(why, pid, vm, trial, state, init):
    """An exception in main(), in the process `pid`. Returns if it is no bug but a way to exit; else never.

    How far it came:
        no state, no init   nothing runs yet; or it came while the state was read, which is done now
        state, with or      a re-exec is not finished: the state is what the one before it handed over, and goes to the
        without init        next one as it is
        init alone          it runs
    `trial`: we are only tried, and have nobody.
    """
    if os.getpid() != pid:
        os._exit(126)  # a child of ours that never became what it should
    if not (init or state):  # it came while that was read
        state = handed_over(sys.argv[1:])
        trial = state.pop("trial", trial)
    if isinstance(why, SystemExit) and not (init or state or vm):
        return
    if trial:
        state, init = {}, None  # it only says why
    go_on(why, vm, state, init)


def main():
    name = os.path.basename(sys.argv[0])
    if name in LINKS and os.getpid() != 1:
        sys.exit(tell_pid_1(name, sys.argv[1:]))
    pid, vm, trial, state, init = os.getpid(), os.getpid() == 1, False, {}, None
    try:
        vm = vm and in_initial_pid_namespace()
        state = handed_over(sys.argv[1:])
        trial = state.pop("trial", False)
        init = get_ready(vm, again=bool(state))
        init.adopt(state) or init.start_server()
        state = {}  # it is init's now
        init.listen()
        init.command or step("RPC", load_the_rest)
        say_ready(trial)
        init.run()
    except BaseException as why:
        while True:
            try:
                crashed(why, pid, vm, trial, state, init)
                break
            except BaseException:
                pass  # an exception in the handler of one
        raise


if __name__ == "__main__":
    # As long as a statement of this file runs, the interpreter keeps the file's syntax tree: 3 MB, for ever if that
    # statement is main(). So we leave by an exception: it lets go of the tree, and then calls the hook, which is main().
    sys.excepthook = lambda *_: main()
    raise Exception("on to main()")
