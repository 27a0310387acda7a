"""One virtual machine: QEMU's command line, the console to read and type on, the end and what it means.

QEMU exits 0 after a power-off, a reboot and a panic alike. What happened is told by QMP's SHUTDOWN event (its reason:
guest-shutdown or guest-reset; -no-reboot makes QEMU end at a reset, and panic=-1 makes a panic a reset), and by the console.
"""

import collections
import json
import os
import re
import shlex
import shutil
import socket
import subprocess

import packages
import waiting

DEADLINE = 120.0            # seconds that anything in a guest may take, on a machine that is slow and busy
QEMU_SECONDS = 20.0         # QEMU's own answers
MEMORY = 256                # MiB
GUEST_FAILED = "^vm-test: failed: .*$"      # what a script in the guest says when something is wrong
PANIC = re.compile(r"^.*Kernel panic - not syncing.*$", re.MULTILINE)

# An architecture's machine: QEMU's program, its arguments, the guest's serial console, the kernel's words for its own log on that
# line without any console that /init could open, other words (on a busy host the kernel finds QEMU's timer broken, and panics), the
# modules that its keyboard needs, and QEMU's arguments for a console that is left unread (a PL011 would stop the whole machine).
Board = collections.namedtuple("Board", "program arguments console no_console words keyboard unread")
BOARDS = {
    "amd64": Board("qemu-system-x86_64", ("-machine", "q35"),
                   "ttyS0", "console=none earlyprintk=serial,ttyS0,115200,keep", "no_timer_check", (),
                   ("-serial", "chardev:console")),
    "arm64": Board("qemu-system-aarch64", ("-machine", "virt", "-device", "virtio-keyboard-pci"),
                   "ttyAMA0", "console=none keep_bootcon earlycon", "", ("virtio_pci", "virtio_input"),
                   ("-serial", "null", "-device", "pci-serial,chardev=console")),
}
USUAL, NONE, UNREAD = "usual", "none", "unread"         # a machine's console


class Failure(AssertionError):
    """A machine did not do what was expected. `judgement`: panic, hang, early power-off, wrong end, ..."""

    def __init__(self, judgement, details):
        super().__init__("%s: %s" % (judgement, details))
        self.judgement = judgement


def kernel_words(architecture, words="", console=USUAL):
    """The kernel's command line: the console or none, no waiting after a panic, few lines of its own; then `words`."""
    board = BOARDS[architecture]
    consoles = {USUAL: "console=" + board.console, NONE: board.no_console, UNREAD: "console=ttyS0"}
    return " ".join(filter(None, (consoles[console], "panic=-1", "quiet", board.words, words)))


def qemu_argv(architecture, kernel, initramfs, words, disks=(), memory=MEMORY, console=USUAL, qmp=None, kvm=False, state=None):
    """QEMU's command line. The serial console is its standard input and output; `disks` are the files of /dev/vda and so on.

    With `qmp`, the number of a connected socket, the console is all that is there: for tests. Without, it shares the terminal
    with QEMU's monitor, and Ctrl-A X leaves QEMU. `state`: the file of a Machine.save() of the same machine, which goes on from there.
    """
    board = BOARDS[architecture]
    if qmp is None:
        channels = ["-serial", "mon:stdio"]
    else:
        channels = ["-chardev", "stdio,id=console,signal=off",
                    *(board.unread if console == UNREAD else ("-serial", "chardev:console")), "-chardev", "socket,id=qmp,fd=%d" % qmp, "-mon", "chardev=qmp,mode=control"]
    # cache=unsafe: what this machine's disk does does not matter. No merging: a throttled disk would answer nothing for seconds.
    for number, path in enumerate(disks):
        channels += ["-drive", "if=none,id=drive%d,format=raw,cache=unsafe,file=%s" % (number, str(path).replace(",", ",,")),
                     "-device", "virtio-blk-pci,request-merging=off,id=%s,drive=drive%d" % (disk_name(number), number)]
    return [board.program, *board.arguments, "-accel", "kvm" if kvm else "tcg", "-cpu", "host" if kvm else "max",
            "-m", str(memory), "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", *channels,
            "-kernel", str(kernel), "-initrd", str(initramfs), "-append", words,
            *(("-incoming", "exec:cat " + shlex.quote(str(state))) if state else ())]


def disk_name(number):
    """vda, vdb, ...: the disk's name in the guest, and in QMP."""
    return "vd" + chr(ord("a") + number)


def kvm_wanted():
    """KVM is used when asked for only: where /dev/kvm exists it may still hang."""
    return os.environ.get("PYINIT1_KVM") == "1"


def has_qemu(architecture):
    """Is the architecture's QEMU installed?"""
    return bool(shutil.which(BOARDS[architecture].program))


def shell_line(argv):
    """The command line as one types it."""
    return " ".join(shlex.quote(word) for word in argv)


def meaning(reason, console):
    """What the end of a machine was, by QMP's reason (None if there was none) and the console's text: (kind, details)."""
    panic = PANIC.search(console)
    if panic:
        return "panic", panic.group().strip()
    return reason or "QEMU's own end", "QMP: SHUTDOWN: %s" % reason


class Machine:
    """A running machine. A context manager: at its end QEMU is gone, whatever happened."""

    def __init__(self, architecture, kernel, initramfs, words, disks=(), memory=MEMORY, console=USUAL, state=None):
        self.disks = disks
        self.foreign = False        # is its /init another one than pyinit1, which logs nothing of what pyinit1 logs?
        ours, theirs = socket.socketpair()
        argv = qemu_argv(architecture, kernel, initramfs, words, disks, memory, console, qmp=theirs.fileno(), kvm=kvm_wanted(), state=state)
        with theirs:        # setpriv: whatever becomes of us, QEMU goes with the thread that started it
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.PIPE, bufsize=0,
                                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()])
        self.console = waiting.Lines(self.process.stdout, "console")
        self.socket, self.qmp = ours, waiting.Lines(ours, "QMP")
        self.ask("qmp_capabilities")
        if state:               # what is typed before it is there would be lost
            waiting.poll(lambda: self.ask("query-status")["running"], QEMU_SECONDS, "a saved machine to go on")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for end in (self.process.stdin, self.process.stdout, self.socket):
            end.close()

    def ask(self, command, **arguments):
        """Give a QMP command and wait for its answer; -> what that returns."""
        try:
            self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = self.qmp.wait_for(r'^\{"(return|error)".*$', QEMU_SECONDS)
        except (OSError, AssertionError):
            raise self.early_end("QMP: " + command) from None
        if answer[1] == "error":
            raise packages.HarnessError("QMP: %s: %s" % (command, answer[0]))
        return json.loads(answer[0])["return"]

    def save(self, path):
        """Write the machine as it is now, without its disks, to the file `path`. It stands still from then on."""
        self.ask("migrate", uri="exec:cat >" + shlex.quote(str(path)))
        status = waiting.poll(lambda: {self.ask("query-migrate").get("status")} & {"completed", "failed"}, QEMU_SECONDS, "a saved machine")
        if status != {"completed"}:
            raise packages.HarnessError("QMP: migrate: %s" % path)

    def throttle(self, number, bytes_per_second):
        """From now on the disk of that number is so slow."""
        self.ask("block_set_io_throttle", device="drive%d" % number, bps=bytes_per_second, bps_rd=0, bps_wr=0,
                 iops=0, iops_rd=0, iops_wr=0)

    def stop_answering(self, number):
        """From now on the disk of that number takes requests and answers none: one byte a second is never."""
        self.throttle(number, 1)

    def press(self, *keys):
        """Press keys together and let them go: press("ctrl", "alt", "delete")."""
        self.ask("send-key", keys=[{"type": "qcode", "data": key} for key in keys])

    def type(self, text, end="\r"):
        """Type a line on the console; with end="" as it is, so type("\x03", end="") is ^C."""
        self.process.stdin.write((text + end).encode())

    def wait_for(self, pattern, seconds=DEADLINE, partial=False):
        """The console's next match of `pattern` (waiting.Lines); Failure if the guest says that it failed, ends, or hangs."""
        try:
            match = self.console.wait_for("(?:%s)|%s" % (pattern, GUEST_FAILED), seconds, partial)
        except AssertionError:
            if self.console.ended:
                raise self.early_end(pattern) from None
            raise Failure("hang", "within %g s there was no: %s" % (seconds, pattern)) from None
        if re.match(GUEST_FAILED, match.group()):
            raise Failure("the guest failed", match.group())
        return match

    def early_end(self, awaited):
        """The Failure to raise when the machine has ended before something."""
        kind, details = self.how_it_ended()
        return Failure("panic" if kind == "panic" else "early power-off", "%s, before: %s" % (details, awaited))

    def wait_end(self, expected, seconds=DEADLINE):
        """The machine must end by itself, as `expected`: guest-shutdown, guest-reset or panic. Failure if it does not."""
        try:
            self.console.wait_end(seconds)
        except AssertionError:
            raise Failure("hang", "still running after %g s, should have ended: %s" % (seconds, expected)) from None
        kind, details = self.how_it_ended()
        if kind != expected:
            raise Failure("panic" if kind == "panic" else "wrong end", "%s, expected: %s" % (details, expected))

    def wait_shutdown(self, seconds=DEADLINE):
        """Wait for QMP's word of the end, without reading the console; Failure if it does not come."""
        try:
            self.qmp.wait_for(r'^.*"event": "SHUTDOWN".*$', seconds)
        except AssertionError:
            raise Failure("hang", "no end within %g s" % seconds) from None

    def how_it_ended(self):
        """meaning() of an end that has come: QEMU closes the console and the socket as its last deed."""
        try:
            self.qmp.wait_end(QEMU_SECONDS)
        except AssertionError:
            return "hang", "QEMU closed the console and goes on"
        events = [json.loads(line) for line in self.qmp.lines if '"SHUTDOWN"' in line]
        reasons = [event["data"]["reason"] for event in events if event.get("event") == "SHUTDOWN"]
        return meaning(reasons[-1] if reasons else None, self.console.drain())
