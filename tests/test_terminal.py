"""The terminal is COMMAND's: ^C, ^Z, `fg`, `bg`, `&`, a new size and a hangup, as PID 1 and under a shell's job control.

Each terminal is a pty of ours. As PID 1 we lead the session that it controls, as with `docker run -t`; as a plain process we are
a job of an interactive bash, which is the namespace's PID 1 then.
"""

import fcntl
import os
import pty
import shlex
import signal
import struct
import termios
import time

import pytest

from helpers import PYINIT1, PYTHON, SECONDS, AtOnce, Lines, Namespace, Process, busy_seconds, is_alive, mutant, poll

READER = ("sed", "-u", "s/^/read: /")                   # says what it reads from the terminal
BASH = ("bash", "--norc", "--noprofile", "--noediting")
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = "\x03", "\x04", "\x1a", "\x1c"


class Screen:
    """A terminal and who sits at it; use it in a with statement. `log` has the lines of everybody on it."""

    def __init__(self, namespace):
        self.namespace = namespace
        self.master, self.slave = pty.openpty()
        self.log = namespace.log = Lines(self.master, "the terminal")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.namespace.log = None               # it is no file that could be closed
        self.namespace.__exit__()
        self.namespace.process = None
        self.hang_up()

    def start(self, *words, script='exec setsid --ctty "$@"', **more):
        """Start pyinit1.py, or what `python` and `init` say, by this shell script: in a session that this terminal controls."""
        self.namespace.start(*words, prefix=("sh", "-c", script, "sh"), ready=None, stdin=self.slave, stdout=self.slave, stderr=self.slave, **more)
        os.close(self.slave)
        self.slave = None
        return self

    def shell(self, **more):
        """Start an interactive bash, with job control; it prompts."""
        self.start(python=BASH, init="-i", PS1="bash: ", **more)
        self.bash = poll(lambda: [each for each in (Process(self.namespace.init), *self.namespace.processes()) if each.name == "bash"],
                         SECONDS, "bash")[0]
        self.prompt()
        return self

    def type(self, text):
        os.write(self.master, text.encode())

    def run(self, *words, end="\n"):
        """At the shell's prompt: pyinit1.py with these words; wait until COMMAND is started; -> (pyinit1's Process, COMMAND's)."""
        self.type(shlex.join([*PYTHON, str(PYINIT1), *words]) + end)
        command = self.started()
        return Process(command.parent), command

    def started(self):
        """COMMAND's Process, once it is started. What it says may come before that line: it can still be waited for."""
        position = self.log.position
        pid = self.wait_for(r"pyinit1: COMMAND started: pid (\d+)")[1]
        self.log.position = position
        return self.namespace.by_pid(pid)

    def wait_for(self, pattern):
        return self.log.wait_for(pattern, SECONDS)

    def prompt(self):
        """Wait until the shell has the terminal, and reads from it; -> the exit status that it saw last."""
        return int(self.said("echo $?"))

    def said(self, line):
        """What the shell, once it has the terminal, answers to this line: `echo` and the like."""
        self.wait_foreground(self.bash)
        self.type("echo '<'$(%s)'>'\n" % line)
        return self.wait_for("<(.*)>$")[1]

    def foreground(self):
        """The pid, as we see it, of the foreground process group's leader."""
        return os.tcgetpgrp(self.master)

    def wait_foreground(self, process):
        poll(lambda: self.foreground() == os.getpgid(process.outer), SECONDS, "the terminal to be %r's" % process)

    def reads(self, text):
        """What is typed arrives at COMMAND, a READER."""
        self.type(text + "\n")
        self.wait_for("read: %s$" % text)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self):
        """The terminal is gone: a modem's line, a closed window, a lost connection."""
        for fd in (self.master, self.slave):
            if fd is not None:
                os.close(fd)
        self.master = self.slave = None

    def status(self):
        """Wait for the namespace's end; -> its exit status."""
        return self.namespace.process.wait(SECONDS)


@pytest.fixture
def screen(namespace):
    with Screen(namespace) as it:
        yield it


def state(process):
    """One letter: S, T, Z, ...; "" if it is gone."""
    try:
        return Process(process.outer).state
    except OSError:
        return ""


def wait_stopped(*stopped):
    for process in stopped:
        poll(lambda: state(process) == "T", SECONDS, "%r to stop" % process)


def as_pid_1(screen, *words, **more):
    """pyinit1.py as PID 1 around this COMMAND; -> COMMAND's Process, when it has the terminal."""
    command = screen.start("--", *words, **more).started()
    screen.wait_foreground(command)
    return command


# ---- as PID 1

@pytest.mark.parametrize("key, name", [(CTRL_C, "SIGINT"), (CTRL_BACKSLASH, "SIGQUIT"), (CTRL_Z, "SIGTSTP")])
def test_as_pid_1_a_key_is_commands_signal_once_and_not_ours(screen, key, name):
    """It has the terminal's foreground, so the signal is not ours to forward: COMMAND would get it twice."""
    as_pid_1(screen, *screen.namespace.guinea_pig("command").split())
    screen.wait_for("^command: ready")
    screen.type(key)
    screen.wait_for("command: got %s$" % name)
    screen.namespace.kill(signal.SIGUSR1)
    screen.wait_for("command: got SIGUSR1$")
    assert screen.log.text.count("command: got %s\n" % name) == 1


@pytest.mark.parametrize("key, status", [(CTRL_C, 130), (CTRL_BACKSLASH, 131), (CTRL_D, 0)])
def test_as_pid_1_a_key_ends_it_with_this_status(screen, key, status):
    as_pid_1(screen, "sh", "-c", "ulimit -c 0; exec " + shlex.join(READER))
    screen.reads("hello")
    screen.type(key)
    assert screen.status() == status


@pytest.mark.parametrize("options", [(), ("--respawn",)], ids=["once", "respawn"])
def test_as_pid_1_ctrl_z_is_undone_with_a_warning_as_nobody_could_type_fg(screen, options):
    """Under tini COMMAND hangs then, and not even ^C ends it."""
    screen.start("--log-level", "warn", *options, "--", *READER)
    screen.reads("before")
    for word in ("once", "twice"):
        screen.type(CTRL_Z)
        screen.wait_for(r"pyinit1: COMMAND continued: pid \d+: SIGTSTP")
        screen.reads(word)
    if not options:
        screen.type(CTRL_D)
        assert screen.status() == 0


def test_as_pid_1_a_stop_that_was_sent_to_us_is_forwarded_and_undone(screen):
    as_pid_1(screen, *READER)
    for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        screen.namespace.kill(number)
        screen.wait_for("pyinit1: COMMAND continued: pid [0-9]+: " + number.name)
        screen.reads(number.name)


@pytest.mark.parametrize("options", [(), ("-g",)], ids=["alone", "group"])
def test_as_pid_1_ctrl_z_is_undone_for_all_of_commands_group(screen, options):
    """The key stops all of a pipeline."""
    screen.start(*options, "--", "sh", "-c", shlex.join(READER) + " | cat; exit 6")
    screen.reads("before")
    screen.type(CTRL_Z)
    screen.wait_for(r"pyinit1: COMMAND continued: pid \d+: SIGTSTP")
    screen.reads("after")
    screen.type(CTRL_D)
    assert screen.status() == 6


def test_as_pid_1_a_command_that_is_started_again_has_the_terminal_again(screen):
    """One that never reads: who reads would get it by that."""
    screen.start("--respawn", "--", "sleep", "100000")
    for _ in range(3):
        screen.wait_foreground(screen.started())
        screen.type(CTRL_C)
        screen.wait_for("pyinit1: COMMAND ended: pid [0-9]+: killed by SIGINT$")


def test_as_pid_1_a_stop_that_commands_death_has_overtaken_is_forgotten(screen):
    """A copy that has taken the stop looks for more only when COMMAND is dead: both come in one wake-up."""
    taken = "                    self.stopped = os.WSTOPSIG(status)\n"
    waits = "                    log.warn('stop taken')\n                    while not os.path.exists('/run/go'):\n                        pass\n"
    slow = mutant(screen.namespace.directory, (taken, taken + waits))
    command = screen.start("--", *READER, init=slow).started()
    screen.wait_foreground(command)
    screen.type(CTRL_Z)
    screen.wait_for("pyinit1: stop taken$")
    os.kill(command.outer, signal.SIGKILL)
    poll(lambda: state(command) == "Z", SECONDS, "COMMAND to die")
    (screen.namespace.run_directory / "go").touch()
    assert screen.status() == 137
    assert "crashed" not in screen.log.drain() and "continued" not in screen.log.text


def test_as_pid_1_a_shell_as_command_has_job_control(screen):
    """`docker run -it --init IMAGE bash`."""
    bash = as_pid_1(screen, *BASH, "-i", PS1="bash: ")
    screen.type(shlex.join(READER) + "\n")
    screen.reads("one")
    screen.type(CTRL_Z)
    screen.wait_for("Stopped")
    screen.type("echo prompt 'again'\n")
    screen.wait_for("prompt again$")
    screen.type("fg\n")
    screen.reads("two")
    screen.type(CTRL_C)
    screen.wait_foreground(bash)
    screen.type("exit 7\n")
    assert screen.status() == 7
    assert "COMMAND continued" not in screen.log.text


def read_at_once(number, directory):
    """COMMAND reads a line that was typed before we were started; -> (exit status, log)."""
    with Namespace(directory) as namespace, Screen(namespace) as screen:
        screen.type("typed ahead\n")
        screen.start(*["-g"] * (number % 2), "--", "head", "-n", "1")
        return screen.log.wait_end(SECONDS), screen.status()


def test_as_pid_1_the_terminal_is_commands_before_its_first_instruction():
    """Who is given it after the fork, by the parent, may read before that, and is stopped by SIGTTIN: 3 of 300."""
    runs = AtOnce(read_at_once, range(60), workers=4)
    for number in range(60):
        text, status = runs.result(number)
        assert status == 0 and "continued" not in text and text.count("typed ahead\n") == 2, text        # the echo is one


def test_as_pid_1_a_new_size_is_commands_sigwinch_once(screen):
    as_pid_1(screen, *screen.namespace.guinea_pig("command").split())
    screen.wait_for("^command: ready")
    screen.resize(50, 100)
    screen.wait_for("^command: got SIGWINCH$")
    screen.namespace.kill(signal.SIGUSR1)
    screen.wait_for("^command: got SIGUSR1$")
    assert screen.log.text.count("got SIGWINCH") == 1
    screen.namespace.kill(signal.SIGWINCH)              # an engine that sends it to PID 1
    screen.wait_for("^command: got SIGWINCH$")


SAVER = "trap 'sleep 0.3; echo saved >%s; exit 3' HUP; trap '' PIPE; echo saver: ready; while :; do sleep 0.05; done"


def test_as_pid_1_a_terminal_that_is_lost_ends_it(screen):
    as_pid_1(screen, "sleep", "100000")
    screen.hang_up()
    assert screen.status() == 128 + signal.SIGHUP


def test_as_pid_1_a_terminal_that_is_lost_leaves_time_to_save(screen):
    mark = screen.namespace.directory / "mark"
    as_pid_1(screen, "sh", "-c", SAVER % mark)
    screen.wait_for("^saver: ready$")
    screen.hang_up()
    assert screen.status() == 3 and mark.read_text() == "saved\n"


@pytest.mark.parametrize("redirect", ["</dev/null >/dev/null", "</dev/null 2>/dev/null", ">/dev/null 2>/dev/null"],
                         ids=["stderr", "stdout", "stdin"])
def test_as_pid_1_one_descriptor_that_is_the_terminal_is_enough(screen, redirect):
    """The others are a pipe or a file, say."""
    screen.start("--", "sleep", "100000", script='exec setsid --ctty sh -c \'exec "$@" %s\' sh "$@"' % redirect)
    command = poll(lambda: [child for child in screen.namespace.children() if child.name == "sleep"], SECONDS, "COMMAND")[0]
    screen.wait_foreground(command)
    screen.type(CTRL_C)
    assert screen.status() == 130


def test_as_pid_1_with_pipes_only_the_terminal_is_not_asked_for(namespace):
    read_end, write_end = os.pipe()
    namespace.start("-v", "--", *READER, stdin=read_end)
    os.close(read_end)
    os.write(write_end, b"hello\n")
    namespace.wait_for("^read: hello$")
    os.close(write_end)
    assert namespace.wait() == 0
    assert "terminal" not in namespace.log.text


# ---- as a job of a shell

def test_as_a_job_ctrl_c_ends_command_and_the_shell_has_the_terminal_again(screen):
    ours, command = screen.shell().run("--", *READER)
    screen.wait_foreground(command)
    screen.reads("hello")
    screen.type(CTRL_C)
    screen.wait_for("pyinit1: the end: exit status 130$")
    assert screen.prompt() == 130


def test_as_a_job_ctrl_z_stops_both_and_fg_continues_both(screen):
    ours, command = screen.shell().run("--", *READER)
    for word in ("one", "two", "three"):
        screen.reads(word)
        screen.type(CTRL_Z)
        screen.wait_for("Stopped")
        wait_stopped(*screen.namespace.find(READER[0]))         # who reads still would take a key
        screen.prompt()
        wait_stopped(ours, command)
        assert "sed" in screen.said("jobs")
        screen.type("fg\n")
        screen.wait_foreground(command)
    screen.reads("four")
    screen.type(CTRL_D)
    screen.wait_for("pyinit1: the end: exit status 0$")
    screen.prompt()
    assert screen.said("jobs") == ""


PIPELINES = {"first": "%s | cat", "last": "sleep 100000 | %s", "script": "sh script", "script-in-a-script": "sh -c 'sh script; true'"}


@pytest.mark.parametrize("name", PIPELINES)
def test_as_a_job_ctrl_z_stops_all_of_it_as_the_key_would_have_and_fg_continues_it(screen, name):
    """A script around us, the other commands of a pipeline: else the shell takes the job for a running one, and never prompts."""
    ours = shlex.join([*PYTHON, str(PYINIT1), "--", "sh", "-c", shlex.join(READER) + " </dev/tty"])
    screen.namespace.script("script", ours + "\n")
    screen.shell(cwd=screen.namespace.directory)
    screen.type((PIPELINES[name] % ours if "%s" in PIPELINES[name] else PIPELINES[name]) + "\n")
    for word in ("one", "two"):
        screen.reads(word)
        screen.type(CTRL_Z)
        screen.wait_for("Stopped")
        wait_stopped(*screen.namespace.find(READER[0]))         # who reads still would take a key
        screen.prompt()
        screen.type("fg\n")
    screen.reads("three")


def test_as_a_job_the_status_that_the_shell_sees_is_that_of_the_signal_that_stopped_command(screen):
    screen.shell().run("--", *READER)
    screen.type(CTRL_Z)
    screen.wait_for("Stopped")
    assert screen.prompt() == 128 + signal.SIGTSTP


COUNTER = """
import time
number = 0
while True:
    number += 1
    with open("/run/count", "w") as file:
        file.write("%d" % number)
    time.sleep(0.02)
"""


def test_as_a_job_bg_continues_it_without_the_terminal_and_after_fg_ctrl_c_ends_it(screen):
    """A counter that forks nobody: one that ^Z stops between vfork(2) and exec would hold its parent, who is not stopped then."""
    ours, command = screen.shell().run("--", *PYTHON, "-c", COUNTER)
    count = screen.namespace.run_directory / "count"
    poll(count.exists, SECONDS, "it to count")
    screen.type(CTRL_Z)
    screen.wait_for("Stopped")
    wait_stopped(ours, command)
    before = count.read_text()
    screen.type("bg\n")
    poll(lambda: count.read_text() not in ("", before), SECONDS, "it to count again")
    screen.prompt()
    screen.type("fg\n")
    screen.wait_foreground(ours)
    screen.type(CTRL_C)                                 # which we forward
    screen.wait_for("pyinit1: the end: exit status 130$")
    screen.prompt()


def test_started_in_the_background_it_leaves_the_terminal_alone_and_fg_gives_it(screen):
    ours, command = screen.shell().run("--", "sh", "-c", "until [ -e /run/go ]; do sleep 0.05; done; exec " + shlex.join(READER), end=" &\n")
    for _ in range(3):
        screen.prompt()
    assert state(ours) not in "TZ" and state(command) not in "TZ"
    screen.type("fg\n")
    screen.wait_foreground(ours)                        # no signal tells us of that: bash continues nobody who is running
    (screen.namespace.run_directory / "go").touch()
    screen.reads("hello")
    screen.type(CTRL_D)
    screen.wait_for("pyinit1: the end: exit status 0$")
    screen.prompt()


def test_in_the_background_it_ends_without_touching_the_terminal(screen):
    screen.shell()
    screen.type("%s & sleep 100000\n" % shlex.join([*PYTHON, str(PYINIT1), "--", "true"]))
    screen.wait_for("pyinit1: the end: exit status 0$")
    sleep = poll(lambda: screen.namespace.find("sleep 100000"), SECONDS, "sleep")[0]
    poll(lambda: not screen.namespace.find(str(PYINIT1)), SECONDS, "our end")
    screen.wait_foreground(sleep)


@pytest.mark.parametrize("end", [" &\n", " </dev/tty | cat &\n"], ids=["alone", "pipeline"])
def test_who_reads_in_the_background_is_stopped_with_us_until_fg(screen, end):
    """By SIGTTIN, as any job: the shell says so, and `fg` is all that it takes."""
    screen.shell().type(shlex.join([*PYTHON, str(PYINIT1), "--", *READER]) + end)
    # It may read, and stop us, before we have logged that it is started.
    command = poll(lambda: [each for each in screen.namespace.processes() if each.name == READER[0]], SECONDS, "COMMAND")[0]
    ours = Process(command.parent)
    screen.type("\n")
    wait_stopped(ours, command)
    screen.type("\n")
    screen.wait_for("Stopped")
    screen.type("fg\n")
    screen.reads("hello")
    screen.type(CTRL_C)
    screen.wait_for("pyinit1: the end: exit status 130$")
    screen.prompt()


def test_a_stop_that_is_sent_to_the_job_stops_both(screen):
    ours, command = screen.shell().run("--", *READER)
    for word in ("once", "twice"):
        poll(lambda: state(command) == "S", SECONDS, "COMMAND to read")         # else it may be its next read that stops it
        os.kill(ours.outer, signal.SIGTSTP)
        screen.wait_for("Stopped")
        wait_stopped(ours, command)
        screen.prompt()
        screen.type("fg\n")
        screen.reads(word)


def test_a_command_that_stopped_while_we_were_stopped_goes_on_by_one_fg(screen):
    """Its stop and the SIGCONT that takes it back come in one wake-up."""
    ours, command = screen.shell().run("--", *READER)
    screen.wait_foreground(command)
    os.kill(ours.outer, signal.SIGSTOP)
    screen.wait_for("Stopped")
    os.kill(command.outer, signal.SIGTSTP)              # before anything is typed: it reads still
    wait_stopped(ours, command)
    screen.prompt()
    screen.type("fg\n")
    screen.reads("hello")


def test_a_script_has_the_terminal_while_somebody_lets_command_stand_still(screen):
    """Else its keys would go to a COMMAND that is stopped, and to nobody else."""
    script = screen.namespace.script("script", "#!/bin/sh\n%s\n" % shlex.join([*PYTHON, str(PYINIT1), "--", *READER]))
    screen.shell()
    screen.type("%s\n" % script)
    command = screen.started()
    ours = Process(command.parent)
    screen.wait_foreground(command)
    os.kill(command.outer, signal.SIGSTOP)
    wait_stopped(ours, command)
    screen.wait_foreground(ours)
    os.kill(ours.outer, signal.SIGCONT)
    screen.reads("hello")


@pytest.mark.parametrize("how, status", [("kill %1", 143), ("kill -INT %1; kill -CONT %1", 130)], ids=["TERM", "INT"])
def test_a_stopped_job_is_ended_by_the_shells_kill(screen, how, status):
    """bash sends SIGCONT after SIGTERM to a job that is stopped. COMMAND may read at once, and be stopped again by that."""
    screen.shell()
    for _ in range(5):
        ours, command = screen.run("--", *READER)
        screen.type(CTRL_Z)
        screen.wait_for("Stopped")
        wait_stopped(ours, command)
        screen.prompt()
        screen.type(how + "\n")
        screen.wait_for("pyinit1: the end: exit status %d$" % status)
        poll(lambda: not is_alive(ours.outer) and not is_alive(command.outer), SECONDS, "the end of both")
        screen.prompt()
        screen.said("jobs")


def test_command_that_is_killed_while_both_are_stopped_ends_us_after_fg(screen):
    ours, command = screen.shell().run("--", *READER)
    screen.type(CTRL_Z)
    screen.wait_for("Stopped")
    wait_stopped(ours, command)
    screen.prompt()
    os.kill(command.outer, signal.SIGKILL)
    screen.type("fg\n")
    screen.wait_for("pyinit1: the end: exit status 137$")
    assert screen.prompt() == 137


def test_two_of_us_one_in_the_other_stop_and_go_on_together(screen):
    """As a job around a job: each gives the terminal to its COMMAND, and takes it back."""
    screen.shell()
    screen.type(shlex.join([*PYTHON, str(PYINIT1), "--", *PYTHON, str(PYINIT1), "--", *READER]) + "\n")
    for word in ("one", "two"):
        screen.reads(word)
        screen.type(CTRL_Z)
        screen.wait_for("Stopped")
        wait_stopped(*screen.namespace.find(READER[0]))         # who reads still would take a key
        screen.prompt()
        screen.type("fg\n")
    screen.reads("three")
    screen.type(CTRL_C)
    screen.wait_for("pyinit1: the end: exit status 130$")
    screen.wait_for("pyinit1: the end: exit status 130$")
    screen.prompt()


def test_in_a_pipeline_all_of_it_is_said_and_the_shell_prompts_again(screen):
    ours = shlex.join([*PYTHON, str(PYINIT1), "--log-level", "error", "--"])
    screen.shell()
    screen.type("echo hello | %s %s | %s cat; echo status ${PIPESTATUS[*]}\n" % (ours, shlex.join(READER), ours))
    screen.wait_for("read: hello$")
    screen.wait_for("status 0 0 0$")
    screen.prompt()


def test_a_script_that_goes_on_after_us_has_the_terminal_again(screen):
    """Its group is ours, without job control: had we not taken the terminal back, its read would fail or stop it."""
    script = screen.namespace.script("script", "#!/bin/sh\n%s\nread line\necho \"script: $line\"\n" % shlex.join(
        [*PYTHON, str(PYINIT1), "--", "head", "-n", "1"]))
    screen.shell()
    screen.type("%s\n" % script)
    screen.wait_for("pyinit1: COMMAND started")
    screen.type("for command\n")
    screen.wait_for("pyinit1: the end: exit status 0$")
    screen.type("for the script\n")
    screen.wait_for("^script: for the script$")
    screen.prompt()


def test_ctrl_c_in_a_script_is_commands_only(screen):
    script = screen.namespace.script("script", "#!/bin/sh\n%s\necho \"script: status $?\"\n" % shlex.join(
        [*PYTHON, str(PYINIT1), "--", *READER]))
    screen.shell()
    screen.type("%s\n" % script)
    screen.reads("hello")
    screen.type(CTRL_C)
    screen.wait_for("^script: status 130$")
    screen.prompt()


def test_as_a_job_a_new_size_is_commands_sigwinch_once(screen):
    screen.shell().run("--", *screen.namespace.guinea_pig("command").split())
    screen.wait_for("^command: ready")
    screen.resize(50, 100)
    screen.wait_for("^command: got SIGWINCH$")
    screen.type(CTRL_C)
    screen.wait_for("command: got SIGINT$")
    assert screen.log.text.count("got SIGWINCH") == 1


def test_as_a_job_a_terminal_that_is_lost_ends_it_and_leaves_time_to_save(screen):
    """bash leads the session; here it is not PID 1, whose end would be everybody's."""
    mark = screen.namespace.directory / "mark"
    ours, command = screen.shell(script='setsid --ctty "$@"; exec sleep 100000').run("--", "sh", "-c", SAVER % mark)
    screen.wait_for("saver: ready$")
    screen.hang_up()
    poll(lambda: not is_alive(ours.outer) and not is_alive(command.outer), SECONDS, "our end")
    assert mark.read_text() == "saved\n"


# ---- as a plain process, and no shell to type `fg` to

def test_a_session_leader_that_is_no_pid_1_undoes_ctrl_z(screen):
    """`ssh -t HOST pyinit1.py ...`: nobody could continue it, and the kernel stops no orphaned process group by a key."""
    screen.start("--", *READER, script='setsid --ctty "$@"; exit')
    screen.reads("before")
    for word in ("once", "twice"):
        screen.type(CTRL_Z)
        screen.reads(word)
    screen.type(CTRL_C)
    screen.wait_for("pyinit1: the end: exit status 130$")


def test_pid_1_in_the_background_whose_command_reads_does_not_spin(screen):
    """Each read is a SIGTTIN: to continue COMMAND would be to stop it again, as fast as the processor can."""
    kinds = ["-Ur"] * screen.namespace.user
    screen.shell()
    screen.type(shlex.join(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *kinds, *PYTHON, str(PYINIT1), "--", *READER]) + " &\n")
    screen.wait_for("pyinit1: COMMAND started: pid")
    unshare = screen.namespace.find("unshare")[0]
    screen.prompt()
    assert screen.said("sleep 1; echo waited") == "waited"      # what is tested is that time passes
    assert screen.log.drain().count("COMMAND continued") < 20
    screen.type("fg\n")                                # bash sends no SIGCONT, as unshare is not stopped: we know nothing of it
    poll(lambda: screen.foreground() == unshare.outer, SECONDS, "unshare to have the terminal")
    screen.type(CTRL_Z)
    screen.wait_for("Stopped")
    screen.prompt()
    screen.type("fg\n")
    screen.reads("hello")


# Our process group is one of outside our PID namespace, and somebody else of it waits for the terminal's next line.
BESIDE_A_READER = """exec setsid --ctty sh -c '
    cat </dev/tty &
    until [ -e /run/go ]; do sleep 0.05; done
    exec unshare --pid --fork --kill-child --mount-proc %s "$@"' sh "$@\""""


def test_who_reads_from_the_terminal_does_not_hold_our_start(screen):
    """An engine's `attach`, a script's `cat &`: who reads has the terminal to itself until a line comes."""
    screen.start("--", "sleep", "100000", script=BESIDE_A_READER % ("-Ur" * screen.namespace.user))
    poll(lambda: [each for each in screen.namespace.processes() if each.argv == ["cat"] and each.state == "S"], SECONDS, "cat to wait in read(2)")
    (screen.namespace.run_directory / "go").touch()
    screen.wait_for(r"pyinit1: COMMAND started: pid \d+")
    poll(lambda: Process(screen.foreground()).argv == ["sleep", "100000"], SECONDS, "the terminal to be COMMAND's")
    screen.type(CTRL_C)
    assert screen.status() == 130


ORPHANED = """setsid --ctty sh -c 'bash -mc "\\"\\$0\\" \\"\\$@\\" &" "$@"; sleep 100000' sh "$@"; exit"""


def test_who_reads_in_a_background_that_no_shell_knows_stays_stopped(screen):
    """Its process group is orphaned: SIGTTIN stops COMMAND and not us, and to continue COMMAND would be to stop it again."""
    screen.start("--", *READER, script=ORPHANED)
    command = screen.started()
    ours = Process(command.parent)
    poll(lambda: Process(ours.outer).parent == screen.namespace.init, SECONDS, "the shell that started us to be gone")
    wait_stopped(command)
    before = busy_seconds(ours.outer)
    for _ in range(100):                # what is tested is that nothing happens
        assert state(command) == "T" and state(ours) in ("S", "R")
        time.sleep(0.01)
    assert busy_seconds(ours.outer) - before < 0.2
    os.kill(command.outer, signal.SIGKILL)
    poll(lambda: not is_alive(ours.outer), SECONDS, "our end")
