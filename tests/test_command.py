"""COMMAND run once: its exit status is ours, whatever it is and wherever we run; and what it leaves has time to save its work."""

import itertools
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import PYTHON, SECONDS, AtOnce, Lines, Namespace, Process, pending, poll

PLACES = {"container": {}, "plain-process": {"plain": True}}
GRACE = 10.0                # s: what takes less did not wait for the grace
everywhere = pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))


def run(namespace, *words, **options):
    """Run pyinit1.py with these words to its end; -> its exit status. What everybody said is in namespace.log."""
    return namespace.start(*words, ready=None, **options).wait()


# ---- the exit status

KILLING = [number for number in (*range(1, 32), 34, 50, 64) if number not in (
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH)]

# What COMMAND does, our options before it, and the exit status.
STATUSES = {
    **{"exit-%d" % code: (("sh", "-c", "exit %d" % code), (), code) for code in (0, 1, 2, 3, 126, 127, 128, 143, 255)},
    **{"signal-%d" % number: (("sh", "-c", "ulimit -c 0; kill -%d $$" % number), (), 128 + number) for number in KILLING},
    "e-own": (("sh", "-c", "exit 3"), ("-e", "3"), 0),
    "e-another": (("sh", "-c", "exit 4"), ("-e", "3"), 4),
    "e-signal": (("sh", "-c", "kill -TERM $$"), ("-e", "143"), 0),
    "e-another-signal": (("sh", "-c", "kill -KILL $$"), ("-e", "143"), 137),
    "e-twice": (("sh", "-c", "kill -TERM $$"), ("-e", "3", "-e143"), 0),
    "e-0": (("true",), ("-e", "0"), 0),
    "with-a-dash": (("sh", "-c", "exit $#", "-g", "-e", "--", "-h"), (), 3),
}


def life_with_status(parameter, directory):
    """Run to the end; -> (exit status, log)."""
    name, place = parameter
    command, options, _ = STATUSES[name]
    with Namespace(directory) as namespace:
        return run(namespace, *options, "--", *command, **PLACES[place]), namespace.log.text


@pytest.fixture(scope="module")
def statuses():
    return AtOnce(life_with_status, itertools.product(STATUSES, PLACES))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", STATUSES)
def test_status_is_commands_own_or_128_and_the_signal_and_0_if_e_says_so(statuses, name, place):
    status, text = statuses.result((name, place))
    assert status == STATUSES[name][2], text
    assert text.rstrip().endswith("pyinit1: the end: exit status %d" % status)




@pytest.mark.parametrize("words", [
    ("sh", "-c", "exit 7"), ("--", "sh", "-c", "exit 7"), ("-s", "--", "sh", "-c", "exit 7"), ("-g", "-v", "sh", "-c", "exit 7"),
    ("-svwg", "-e", "1", "--", "sh", "-c", "exit 7"), ("--", "env", "--", "sh", "-c", "exit 7"),
], ids=" ".join)
def test_command_is_found_with_and_without_two_dashes(namespace, words):
    assert run(namespace, *words) == 7


# ---- what cannot be started

def broken_loader(folder):
    """A copy of true(1) whose loader has another name, which there is not."""
    loaders = re.compile(rb"/lib[\w/.-]*/ld-[\w.-]+(?=\0)")
    data = Path("/bin/true").read_bytes()
    missing = re.sub(rb".", b"x", loaders.search(data)[0][1:])
    return loaders.sub(b"/" + missing, data, count=1)


def things(folder):
    """Files of all kinds in `folder`, for NOT_STARTED and SCRIPTS."""
    def file(name, content, mode=0o755):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
    file("plain", "echo plain: $0: $1\nexit 5\n")
    file("empty", "")
    file("comment", "#\nexit 6\n")
    file("script", "#!/bin/sh\necho script: $0: $1\nexit 7\n")
    file("with space", "#!/bin/sh\nexit 8\n")
    file("no-x", "#!/bin/sh\nexit 0\n", 0o644)
    file("no-interpreter", "#!/no/such/interpreter -x\nexit 0\n")
    file("windows", "#!/bin/sh\r\nexit 0\r\n")
    file("no-loader", broken_loader(folder))
    file("interpreter-no-x", "#!%s/no-x\n" % folder)
    (folder / "loop").symlink_to("loop")
    (folder / "directory").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    file("first/tool", "exit 1", 0o644)
    file("first/only", "exit 1", 0o644)
    file("second/tool", "#!/bin/sh\nexit 9\n")
    (folder / "second/folder").mkdir()
    file("third/folder", "#!/bin/sh\nexit 10\n")
    file("third/broken", "#!/no/such/interpreter\n")


# COMMAND, the exit status, and what the one line says after "COMMAND not started: "; {} is the folder of things().
NOT_STARTED = {
    "no-such-path": ("{}/nothing", 127, "{}/nothing: not found"),
    "no-such-name": ("no-such-command", 127, "no-such-command: not found"),
    "empty-string": ("", 127, ".*not found"),
    "below-a-file": ("{}/script/x", 127, "{}/script/x: not found"),
    "dangling-link": ("{}/dangling", 127, "{}/dangling: not found"),
    "directory": ("{}/directory", 126, "{}/directory: is a directory"),
    "directory-on-PATH": ("only-folder", 126, ".*/only-folder: is a directory"),
    "dot": (".", 126, ".*is a directory"),
    "slash": ("/", 126, "/: is a directory"),
    "no-x-bit": ("{}/no-x", 126, "{}/no-x: not executable"),
    "no-x-bit-on-PATH": ("only", 126, "{}/first/only: not executable"),
    "no-interpreter": ("{}/no-interpreter", 126, "{}/no-interpreter: its interpreter is missing: /no/such/interpreter"),
    "no-interpreter-on-PATH": ("broken", 126, "{}/third/broken: its interpreter is missing: /no/such/interpreter"),
    "windows-line-ends": ("{}/windows", 126, r"{}/windows: its interpreter is missing: /bin/sh\\r"),
    "no-loader": ("{}/no-loader", 126, "{}/no-loader: its interpreter is missing: .*"),
    "interpreter-not-executable": ("{}/interpreter-no-x", 126, "{}/interpreter-no-x: .*"),
    "loop-of-links": ("{}/loop", 126, "{}/loop: .*"),
    "long-name": ("x" * 300, 126, ".*/x*: File name too long"),
    "line-end-in-it": ("a\nb", 127, r"a\\nb: not found"),
}


def life_of_a_failure(parameter, directory):
    """Run to the end; -> (exit status, log, the folder of things())."""
    name, place = parameter
    folder = Path(directory, "things")
    folder.mkdir()
    things(folder)
    (folder / "second/only-folder").mkdir()
    path = ":".join([*(str(folder / name) for name in ("first", "second", "third")), os.environ["PATH"]])
    with Namespace(directory) as namespace:
        return run(namespace, "--", NOT_STARTED[name][0].format(folder), "x", PATH=path, **PLACES[place]), namespace.log.text, folder


@pytest.fixture(scope="module")
def failures():
    return AtOnce(life_of_a_failure, itertools.product(NOT_STARTED, PLACES))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NOT_STARTED)
def test_what_is_not_found_is_127_and_what_cannot_be_run_126_with_a_word(failures, name, place):
    status, text, folder = failures.result((name, place))
    _, expected, line = NOT_STARTED[name]
    assert status == expected, text
    lines = re.findall("^pyinit1: COMMAND not started: (.*)$", text, re.M)
    assert len(lines) == 1 and re.fullmatch(line.replace("{}", re.escape(str(folder))), lines[0]), text
    assert "started: pid" not in text and "Traceback" not in text and "crashed" not in text


# COMMAND and its words, in the folder of things(); the exit status, and what is said.
SCRIPTS = {
    "plain": (("./plain", "one"), 5, "plain: ./plain: one"),
    "plain-by-its-path": (("{}/plain", "-x"), 5, "plain: {}/plain: -x"),
    "plain-on-PATH": (("plain", "one"), 5, "plain: {}/plain: one"),
    "empty": (("./empty",), 0, ""), "empty-on-PATH": (("empty",), 0, ""),
    "comment": (("./comment",), 6, ""),
    "script": (("./script", "one"), 7, "script: ./script: one"),
    "script-on-PATH": (("script", "one"), 7, "script: {}/script: one"),
    "space-in-its-name": (("./with space",), 8, ""),
    "passed-over-without-x": (("tool",), 9, ""),
    "passed-over-as-a-directory": (("folder",), 10, ""),
}


@everywhere
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_an_interpreter_line_is_run_by_sh_and_path_is_searched_as_by_execvp(namespace, name, place):
    words, status, line = SCRIPTS[name]
    folder = namespace.directory / "things"
    folder.mkdir()
    things(folder)
    path = ":".join([*(str(folder / name) for name in ("first", "second", "third")), str(folder), os.environ["PATH"]])
    assert run(namespace, "--", *(word.format(folder) for word in words), cwd=folder, PATH=path, **place) == status, namespace.log.text
    assert not line or line.format(folder) in namespace.log.lines
    assert "not started" not in namespace.log.text


@pytest.mark.parametrize("path, there, elsewhere", [
    ("unset PATH", 0, 0), ("PATH=", 11, 127), ("PATH=/no/such/folder", 127, 127), ("PATH=:/no/such/folder", 11, 127),
    ("PATH=/etc/passwd:/usr/bin", 0, 0), ("PATH=/no/such/folder::/usr/bin", 11, 0),
])
def test_without_path_there_is_a_default_and_an_empty_entry_is_the_working_directory(tmp_path, path, there, elsewhere):
    """As execvp(3) says. COMMAND's working directory, that is; one folder has a `true` of its own."""
    for folder, status in ((tmp_path / "there", there), (tmp_path / "elsewhere", elsewhere)):
        with Namespace(folder) as namespace:
            if folder.name == "there":
                namespace.script("true", "#!/bin/sh\nexit 11\n")
            assert run(namespace, "true", setup=path, cwd=folder) == status, path


# ---- what is left when COMMAND has ended

def leave(namespace, *pigs, code=3, options=(), how="%s &", **place):
    """Start COMMAND, which starts these guinea pigs by `how`; when they are ready it exits with `code`.

    -> (our exit status, how long the end took in seconds, the log).
    """
    go = namespace.directory / "go"
    lines = [how % namespace.guinea_pig(*pig) for pig in pigs] + ["until [ -e %s ]; do sleep 0.01; done" % go, "exit %d" % code]
    namespace.start(*options, "--", str(namespace.script("leaver", "#!/bin/sh\n%s\n" % "\n".join(lines))), **place)
    namespace.wait_ready(*(pig[0] for pig in pigs))
    started = time.monotonic()
    go.touch()
    return namespace.wait(), time.monotonic() - started, namespace.log.text


@everywhere
@pytest.mark.parametrize("how", ["%s &", "setsid %s &", "setsid sh -c '%s & exit' &", "sh -c '%s; exit' &"],
                         ids=["child", "session", "daemon", "grandchild"])
def test_a_background_worker_that_needs_a_second_saves_its_state_and_the_status_stays(namespace, how, place):
    """tini, dumb-init and catatonit exit at once, and the kernel kills it."""
    status, took, text = leave(namespace, ("worker", 1), how=how, **place)
    assert status == 3
    assert text.count("worker: got SIGTERM") == 1 and "worker: saved" in text
    assert 1 <= took < GRACE and "killed" not in text
    assert re.findall("^pyinit1: the end: (.*?)(?:: [0-9.]+ s)?$", text, re.M)[-2:] == ["others stopped", "exit status 3"]


@everywhere
def test_who_does_not_end_within_the_grace_is_killed_and_named_and_the_status_stays(namespace, place):
    status, took, text = leave(namespace, ("stubborn", -1), ("worker", 0.5), code=6, options=("--grace", "2"), **place)
    assert status == 6 and took >= 2
    assert "worker: saved" in text and text.count("stubborn: got SIGTERM") == 1
    assert re.search(r"^pyinit1: others killed: still there after 2 s: pid \d+ python3", text, re.M)


@everywhere
def test_with_nobody_left_nothing_is_waited_for(namespace, place):
    started = time.monotonic()
    assert run(namespace, "-v", "--grace", "600", "--", "true", **place) == 0
    assert time.monotonic() - started < SECONDS and "orphan reaped" not in namespace.log.text


def test_who_was_started_from_outside_has_the_same_time(namespace):
    """`docker exec`: no child of ours, and no SIGCHLD when it ends."""
    namespace.start("--", "sh", "-c", "until [ -e %s ]; do sleep 0.01; done; exit 5" % (namespace.directory / "go"))
    guest = namespace.enter(*namespace.guinea_pig("guest", 0.5).split(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    lines = Lines(guest.stdout, "the guest")
    lines.wait_for("^guest: ready", SECONDS)
    (namespace.directory / "go").touch()
    assert namespace.wait() == 5
    text = lines.wait_end(SECONDS)
    guest.wait(SECONDS)
    guest.stdout.close()
    assert text.count("guest: got SIGTERM") == 1 and "guest: saved" in text


THOUSAND = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
for _ in range(1000):
    if os.fork() == 0:
        signal.pause()
sys.exit(4)
"""


@everywhere
def test_a_thousand_children_that_ignore_sigterm_cost_the_grace_and_are_counted(namespace, place):
    status = run(namespace, "--grace", "1", "--", *PYTHON, "-c", THOUSAND, **place)
    assert status == 4, namespace.log.text[-2000:]
    assert re.search(r"^pyinit1: others killed: still there after 1 s: pid .* and 980 more$", namespace.log.text, re.M)


# ---- a COMMAND with ways of its own

UNWILLING = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.write(1, b"unwilling: ready\\n")
sys.stdin.read()
signal.pthread_sigmask(signal.SIG_SETMASK, ())
"""


@everywhere
def test_a_command_that_blocks_every_signal_is_not_killed_before_its_time(namespace, place):
    """A forwarded SIGTERM starts no timeout: the end begins when COMMAND has ended, and never otherwise."""
    read_end, write_end = os.pipe()
    namespace.start("--stop-timeout", "0.2", "--grace", "0.2", "--", *PYTHON, "-c", UNWILLING, stdin=read_end, **place)
    os.close(read_end)
    namespace.wait_for("^unwilling: ready")
    command = namespace.children()[0]
    namespace.kill(signal.SIGTERM)
    poll(lambda: signal.SIGTERM in pending(command), SECONDS, "SIGTERM to be forwarded")
    time.sleep(2)               # what is tested is that time passes
    assert Process(command.outer).state == "S" and "the end" not in namespace.log.drain()
    os.close(write_end)
    assert namespace.wait() == 128 + signal.SIGTERM


def test_a_command_that_is_stopped_gets_only_sigterm_and_acts_when_it_is_continued(namespace):
    """SIGSTOP is no job control's: who sent it to COMMAND of a container did so on purpose, and will send SIGCONT."""
    namespace.start("--stop-timeout", "0.2", "--", *namespace.guinea_pig("command").split())
    command, = namespace.wait_ready("command")
    os.kill(command.outer, signal.SIGSTOP)
    poll(lambda: Process(command.outer).state == "T", SECONDS, "COMMAND to stop")
    namespace.kill(signal.SIGTERM)
    poll(lambda: signal.SIGTERM in pending(command), SECONDS, "SIGTERM to be forwarded")
    time.sleep(1)               # what is tested is that time passes
    assert Process(command.outer).state == "T" and pending(command) == {signal.SIGTERM}
    os.kill(command.outer, signal.SIGCONT)
    assert namespace.wait() == 0
    assert "command: got SIGTERM" in namespace.log.text


@pytest.mark.parametrize("options", [(), ("-g",)], ids=["alone", "group"])
def test_a_session_of_its_own_is_out_of_our_groups_reach_and_gets_its_sigterm_in_the_end(namespace, options):
    """`setsid --wait` forks, as COMMAND leads a group; it dies of the forwarded SIGTERM, and what it started saves its work."""
    namespace.start(*options, "--", "setsid", "--wait", *namespace.guinea_pig("leader", 0.5).split())
    leader, = namespace.wait_ready("leader")
    assert leader.session == leader.pid
    namespace.kill(signal.SIGTERM)
    assert namespace.wait() == 143
    assert namespace.log.text.count("leader: got SIGTERM") == 1 and "leader: saved" in namespace.log.text


# ---- descriptors and files that fail

@everywhere
@pytest.mark.parametrize("setup", [
    "exec 0<&-", "exec 1>&-", "exec 2>&-", "exec 0<&- 1>&- 2>&-", "exec 1>/dev/full 2>/dev/full", "exec 2</dev/null",
    "mount -t tmpfs -o size=4k none /mnt; head -c 4096 /dev/zero >/mnt/log; exec 2>>/mnt/log", "mount -o remount,bind,ro / || exit 98",
], ids=["no-stdin", "no-stdout", "no-stderr", "none-at-all", "full-device", "stderr-read-only", "full-file-system", "read-only-root"])
def test_status_is_commands_whatever_becomes_of_our_descriptors(namespace, setup, place):
    assert run(namespace, "--", "sh", "-c", ": >/run/ran; exit 9", setup=setup, **place) == 9
    assert (namespace.run_directory / "ran").exists()


@everywhere
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_status_is_commands_when_stdout_and_stderr_are_full_and_nobody_reads(namespace, kind, place):
    read_end, write_end = os.pipe() if kind == "pipe" else pty.openpty()
    os.set_blocking(write_end, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write_end, b"#" * 4096)
    os.set_blocking(write_end, True)
    assert namespace.start("-v", "--", "sh", "-c", "exit 9", stdout=write_end, stderr=write_end, ready=None, **place).process.wait(SECONDS) == 9
    os.close(read_end)
    os.close(write_end)
