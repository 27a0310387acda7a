"""Self-update by SIGUSR2: what is refused, what is kept, the way back. And the server's own update at its soft restart.

pyinit1.py and what is new stand in /run/init of the namespace: a folder that, all the way up, only root can write.
"""

import contextlib
import fcntl
import itertools
import os
import pty
import re
import signal
import stat
import statistics
import subprocess
import time
import types

import pytest

from helpers import PYTHON, SECONDS, STAND_IN, AtOnce, Lines, Namespace, Process, is_alive, load_pyinit1, poll
from updating import HOLD, NAMELESS, ON_TRIAL, Updatable, from_here, generation, inject, let_go, nested, quiet

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="not root: every folder has an owner who is neither root nor us")

FAR = 10                    # times the goal: then a test fails
UPDATE_GOAL = 0.3           # s: from SIGUSR2 to the new one's loop
BLOCKED_GOAL = 0.05         # s: of that with signals blocked
UPDATE_LIMIT = 10.0         # SPEC.md 8 and 10: what an update may take until it is given up
KEPT = ("--respawn", "--")


@pytest.fixture
def home(namespace):
    """pyinit1.py, generation 1, in a namespace that is not started yet."""
    return Updatable(namespace)


def start(home, *words, **more):
    """Start PID 1 with a guinea pig as its kept COMMAND, that says every signal it gets; -> its Process."""
    words = words or (*KEPT, *home.namespace.guinea_pig("kept", 0.2).split())
    home.namespace.start(*words, init=home.inside, **more)
    return home.namespace.pid_said(r"^kept: ready: pid (\d+)")


def start_server(home, *words, **more):
    """Start PID 1 with the stand-in; -> the server's Process."""
    home.namespace.start(*words, init=home.inside, **more)
    return home.namespace.server()


def update(home, number=2, content=None):
    """Offer this generation, ask for it, and wait until it is in its loop."""
    home.offer(content or generation(number))
    from_here(home.namespace)
    home.namespace.kill(signal.SIGUSR2)
    home.namespace.wait_for("^generation: %d$" % number)
    home.namespace.wait_for("^pyinit1: ready: ")


def answers(namespace, number=signal.SIGHUP, seconds=SECONDS):
    """PID 1 answers signals."""
    from_here(namespace)
    namespace.kill(number)
    namespace.wait_for("^pyinit1: signal: ", seconds)


def untouched(namespace, process):
    """It is still there, is soon the only child again, and has never got a signal."""
    try:
        poll(lambda: [each.pid for each in namespace.children()] == [process.pid], SECONDS, "%r to be the only child" % process)
    except AssertionError as why:
        raise AssertionError("%s: %s" % (why, namespace.children())) from None
    assert is_alive(process.outer)
    assert "kept: got" not in namespace.log.drain()


def refused(namespace):
    """Ask for an update, and wait for the one line that refuses it; -> the reason in it."""
    from_here(namespace)
    start_of_it = namespace.log.position
    namespace.kill(signal.SIGUSR2)
    reason = namespace.wait_for("^pyinit1: self-update: refused: (.*)$", 3 * UPDATE_LIMIT)[1]
    answers(namespace)
    lines = [line for line in namespace.log.text[start_of_it:].splitlines() if line.startswith("pyinit1: ")]
    said = [line for line in lines if not re.match("pyinit1: (signal: |self-update: /run/|(COMMAND|server) started: )", line)]
    assert len(said) == 1, lines
    return reason


# ---- what is refused

def at(suffix, deed, *arguments):
    """deed(path, *arguments) for the file beside ours with this suffix."""
    return lambda home: deed(home.beside(suffix), *arguments)


def replace(path, make):
    path.unlink()
    make(path)


def link(path):
    """The same file under another name, and a link to that."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def above(home, mode=None, owner=None):
    """Change the folder above the file's folder."""
    if mode:
        home.path.parent.parent.chmod(mode)
    if owner:
        os.chown(home.path.parent.parent, owner, 0)


def dies(early="", late=""):
    return lambda home: home.offer(generation(2, early, late))


# It starts what it finds, as a first start does, and says that it is ready, though not to who tries it.
TAKES_NOBODY_OVER = "def handed_over(words):\n    return {}\n"

# what is wrong -> (how it comes to that, what the reason must say)
REFUSED = {
    "no-new-file": (at(".new", os.unlink), r"\.new"),
    "no-sum": (at(".new.sha256", os.unlink), r"\.new\.sha256"),
    "wrong-sum": (at(".new", lambda path: path.write_text(path.read_text() + "#\n")), "SHA-256"),
    "empty-sum": (at(".new.sha256", lambda path: path.write_text("")), "SHA-256"),
    "sum-of-another-kind": (at(".new.sha256", lambda path: path.write_text("0" * 32)), "SHA-256"),
    "huge-sum": (at(".new.sha256", lambda path: path.write_text(path.read_text() + "x" * 10000)), r"\.new\.sha256"),
    "others-may-write-it": (at(".new", os.chmod, 0o757), r"\.new: .*write"),
    "group-may-write-it": (at(".new", os.chmod, 0o775), r"\.new: .*write"),
    "another-owner": (at(".new", os.chown, 4711, 0), r"\.new: .*4711"),
    "others-may-write-the-sum": (at(".new.sha256", os.chmod, 0o666), r"\.new\.sha256: .*write"),
    "another-owner-of-the-sum": (at(".new.sha256", os.chown, 4711, 0), r"\.new\.sha256: .*4711"),
    "others-may-write-the-folder": (lambda home: home.path.parent.chmod(0o757), "/run/above/init: .*write"),
    "group-may-write-the-folder": (lambda home: home.path.parent.chmod(0o775), "/run/above/init: .*write"),
    "sticky-folder": (lambda home: home.path.parent.chmod(0o1777), "/run/above/init: .*write"),
    "another-owner-of-the-folder": (lambda home: os.chown(home.path.parent, 4711, 0), "/run/above/init: .*4711"),
    "others-may-write-a-folder-above": (lambda home: above(home, mode=0o757), "/run/above: .*write"),
    "another-owner-of-a-folder-above": (lambda home: above(home, owner=4711), "/run/above: .*4711"),
    "a-link": (at(".new", link), r"\.new: .*link"),
    "a-link-to-the-sum": (at(".new.sha256", link), r"\.new\.sha256: .*link"),
    "a-fifo": (at(".new", replace, os.mkfifo), r"\.new"),
    "a-folder": (at(".new", replace, os.mkdir), r"\.new"),
    "larger-than-1-MB": (lambda home: home.offer(generation(2) + "#" * (1 << 20)), r"\.new: .*1048576 bytes"),
    "does-not-compile": (lambda home: home.offer(generation(2, "def:\n")), "syntax"),
    "null-bytes": (lambda home: home.offer(generation(2, '"\0"\n')), "null"),
    "is-no-python": (lambda home: home.offer("#!/bin/sh\nexec sleep 1000\n"), "syntax"),
    "is-empty": (lambda home: home.offer(""), "did not start"),
    "dies-in-its-first-statement": (dies("1 / 0\n"), "did not start: ZeroDivisionError"),
    "imports-what-is-not-there": (dies("import no_such_module\n"), "did not start: ModuleNotFoundError"),
    "exits": (dies("os._exit(0)\n"), "did not start"),
    "is-killed": (dies("os.abort()\n"), "did not start"),
    "does-not-know-our-options": (dies(late="OPTIONS = ()\n"), "did not start"),
    "crashes-before-it-is-ready": (dies(late="def given_descriptors():\n    1 / 0\n"), "did not start: .*crashed"),
    "cannot-take-over-a-server": (dies(late="def is_our_child(pid):\n    1 / 0\n"), "did not start"),
    "hangs-in-its-start": (dies("time.sleep(1000)\n"), "not ready within 5 s"),
    "spins-in-its-start": (dies("while True: pass\n"), "not ready within 5 s"),
    "takes-nobody-over": (dies(late=TAKES_NOBODY_OVER), "not ready within 5 s"),
    "is-never-ready": (dies(late="Init.listen = lambda self: time.sleep(1000)\n"), "not ready within 5 s"),
}

def try_refused(name, directory):
    """Offer it, and ask for it; -> what was seen, as a dictionary."""
    with Namespace(directory) as namespace:
        home = Updatable(namespace, folder="above/init")
        kept = start(home)
        home.offer(generation(2))
        REFUSED[name][0](home)
        before = home.files()
        reason = refused(namespace)
        untouched(namespace, kept)
        poll(lambda: not nested(namespace), SECONDS, "what the trial started to be gone")
        seen = {"reason": reason, "before": before, "after": home.files()}
        namespace.power_off()
        return {**seen, "log": namespace.log.text}


@pytest.fixture(scope="module")
def refusals():
    return AtOnce(try_refused, REFUSED, workers=6)


@pytest.mark.parametrize("name", REFUSED)
def test_a_new_file_is_refused_with_one_line_and_nothing_changed_if_it(refusals, name):
    seen = refusals.result(name)
    assert re.search(REFUSED[name][1], seen["reason"], re.I), seen["log"]
    assert seen["before"] == seen["after"]
    assert seen["log"].count("\ngeneration: ") == 0 and seen["log"].count("pyinit1: ready") == 1
    assert seen["log"].count("kept: ready: ") == 1, "COMMAND was started by the trial, too:\n" + seen["log"]


POWERLESS = ("setpriv", "--bounding-set", "-sys_admin", *PYTHON)        # Docker's default


@pytest.mark.parametrize("early, late, limit", [
    ("1 / 0\n", "", SECONDS / 6), ("while True: pass\n", "", 3 * UPDATE_LIMIT), ("", TAKES_NOBODY_OVER, 3 * UPDATE_LIMIT),
], ids=["dies", "spins", "takes-nobody-over"])
def test_the_trial_leaves_nothing_behind_where_pid_namespaces_are_not_allowed(home, early, late, limit):
    kept = start(home, python=POWERLESS)
    home.offer(generation(2, early, late))
    began = time.monotonic()
    refused(home.namespace)
    assert time.monotonic() - began < limit
    poll(lambda: [each.pid for each in home.namespace.processes()] == [kept.pid], SECONDS, "what the trial started to be gone")
    assert home.namespace.log.drain().count("kept: ready: ") == 1
    update(home)
    untouched(home.namespace, kept)


@pytest.mark.parametrize("python", [PYTHON, POWERLESS], ids=["PID namespaces", "none"])
def test_a_trial_that_takes_nobody_over_starts_no_server_and_leaves_the_socket_alone(namespace, python):
    home = Updatable(namespace)
    namespace.marked_service("web")
    server = start_server(home, python=python)
    services, socket = namespace.settled(), namespace.socket.stat().st_ino
    home.offer(generation(2, late=TAKES_NOBODY_OVER))
    assert "not ready within 5 s" in refused(namespace)
    assert is_alive(server.outer) and namespace.services_running() == services and namespace.socket.stat().st_ino == socket
    namespace.power_off()
    assert namespace.log.text.count("server: ready: ") == namespace.log.text.count("server: asked: system.shutdown") == 1
    assert namespace.log.text.count("server: service started: ") == 1


@pytest.mark.parametrize("mode, owner, trusted", [(0o757, 0, False), (0o775, 0, False), (0o755, 4711, False), (0o1777, 4711, False),
                                                  (0o1777, 0, True)])
def test_where_others_may_write_the_root_nothing_is_trusted(tmp_path, mode, owner, trusted):
    """But where it is sticky: the kernel's own is, of an initramfs. The folders below it are good, in here."""
    good, root = os.stat_result((0o040755, *[0] * 9)), os.stat_result((stat.S_IFDIR | mode, 0, 0, 0, owner, *[0] * 5))
    pyinit1, file = load_pyinit1(), tmp_path / "file"
    file.write_text("content")
    pyinit1.os = types.SimpleNamespace(**{**vars(os), "stat": lambda path: root if path == "/" else good})      # pytest looks at files, too
    with contextlib.nullcontext() if trusted else pytest.raises(ValueError, match="^/: not only ours to write"):
        assert pyinit1.read_trusted(str(file), 100) == b"content"


def test_two_that_update_the_same_file_exclude_each_other(tmp_path):
    """The lock is the helper's, as long as it lives: here a descriptor that is open or closed."""
    pyinit1, file = load_pyinit1(), tmp_path / "pyinit1.py"
    file.write_text("old")
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another update is under way"):
        pyinit1.update(str(file), 100, lambda *_: None, True)
    os.close(other)
    with pytest.raises(FileNotFoundError):          # it goes on, and there is no new file
        pyinit1.update(str(file), 100, lambda *_: None, True)
    assert file.read_text() == "old"


@pytest.mark.parametrize("kind", ["missing", "broken"])
def test_a_python_that_was_replaced_and_does_not_run_refuses_the_update(home, kind):
    python = home.namespace.run_directory / "python3"
    subprocess.run(["cp", "-L", PYTHON[0], str(python)], check=True)
    kept = start(home, python=("/run/python3", *PYTHON[1:]))
    python.unlink()
    if kind == "broken":
        home.namespace.script("run/python3", "#!/bin/sh\necho 'python: cannot start' >&2\nexit 1\n")
    home.offer(generation(2))
    assert re.search("python", refused(home.namespace))
    untouched(home.namespace, kept)


READ_ONLY = "mount --bind /run/init /run/init && mount -o remount,bind,ro /run/init"
ALONE = "touch /run/init/pyinit1.py && mount --bind /run/elsewhere/pyinit1.py /run/init/pyinit1.py"


@pytest.mark.parametrize("how", ["read-only", "bind-mounted-alone"])
def test_where_the_file_cannot_be_replaced_the_update_is_refused(namespace, how):
    """A read-only root; a container whose engine mounts our file alone."""
    home = Updatable(namespace)
    if how == "bind-mounted-alone":
        Updatable(namespace, folder="elsewhere")
    home.offer(generation(2))
    kept = start(home, setup=READ_ONLY if how == "read-only" else ALONE)
    before = home.files()
    assert "/run/init/pyinit1.py" in refused(namespace)
    assert {name: of[2] for name, of in before.items()} == {name: of[2] for name, of in home.files().items()}
    untouched(namespace, kept)


# ---- what is kept

def test_an_update_replaces_the_file_and_keeps_the_old_one(home):
    kept = start(home)
    before = home.path.read_text()
    home.path.chmod(0o711)
    update(home)
    assert home.path.read_text() == generation(2) and home.beside(".old").read_text() == before
    assert home.names() == {"", ".old"}
    assert home.path.stat().st_mode & 0o7777 == 0o711
    untouched(home.namespace, kept)
    home.namespace.power_off()
    assert "kept: got SIGTERM" in home.namespace.log.text


@pytest.mark.parametrize("probation, kept", [("60.0", 1), ("0.0", 2)], ids=["on probation", "after it"])
def test_the_second_update_keeps_the_last_file_that_was_not_on_probation(home, probation, kept):
    def numbered(number):
        return generation(number, late="PROBATION = " + probation)
    home.path.write_text(numbered(1))
    start(home)
    for number in (2, 3):
        update(home, number, numbered(number))
    assert home.path.read_text() == numbered(3) and home.beside(".old").read_text() == numbered(kept)
    assert home.names() == {"", ".old"}


def test_on_probation_an_old_file_that_is_gone_is_replaced_by_the_one_on_probation(home):
    """It is not proven, but nothing else is left."""
    start(home)
    update(home, 2)
    home.beside(".old").unlink()
    update(home, 3)
    assert home.names() == {"", ".old"} and home.beside(".old").read_text() == generation(2)


def test_a_refused_update_can_be_tried_again(home):
    start(home)
    home.offer(generation(2, "1 / 0\n"))
    refused(home.namespace)
    update(home)


@pytest.mark.parametrize("plain", [False, True], ids=["pid-1", "plain"])
def test_the_server_and_its_services_go_on(namespace, plain):
    home = Updatable(namespace)
    namespace.marked_service("web")
    server = start_server(home, plain=plain)
    services = namespace.settled()
    update(home)
    assert namespace.services_running() == services and is_alive(server.outer)
    from_here(namespace)
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    quiet(namespace)
    assert namespace.services_running() == services
    namespace.power_off()
    assert namespace.log.text.count("server: asked: system.shutdown") == 1


def test_options_and_environment_are_the_same_afterwards(home):
    words = ("--stop-timeout", "7", "--grace=3", "-r", "TERM:QUIT", "-w", *KEPT, "sh", "-c", "echo kept: ready: pid $$: $PLACE; exec sleep 1000")
    kept = start(home, *words, PLACE="here")
    update(home)
    from_here(home.namespace)
    os.kill(kept.outer, signal.SIGKILL)
    home.namespace.wait_for(r"^kept: ready: pid \d+: here$")
    home.namespace.power_off()
    assert "COMMAND has 7 s, others have 3 s" in home.namespace.log.text
    assert "killed by SIGQUIT" in home.namespace.log.text


def test_the_next_command_starts_as_clean_as_the_first(home):
    """Its folder, its descriptors, its signals."""
    kept = start(home, *KEPT, "sh", "-c", "echo kept: ready: pid $$; exec sleep 1000", setup="cd /usr; exec 7</etc/passwd",
                 prefix=("env", "--block-signal", "--ignore-signal"))
    update(home, 2)
    update(home, 3)
    from_here(home.namespace)
    os.kill(kept.outer, signal.SIGKILL)
    pid = home.namespace.wait_for(r"^kept: ready: pid (\d+)$")[1]
    again = poll(lambda: [each for each in home.namespace.find("sleep 1000") if each.pid == int(pid) and each.name == "sleep"], SECONDS, "sleep")[0]
    assert again.link("cwd") == "/usr"
    assert again.descriptors().keys() == {0, 1, 2, 7} and again.descriptors()[7] == "/etc/passwd"
    assert again.signals("SigBlk") | again.signals("SigIgn") | again.signals("SigCgt") == set()


def test_pid_1_itself_is_as_after_its_start(home):
    """Its folder, its descriptors, what it blocks and catches."""
    start(home)
    def self_portrait():
        init = Process(home.namespace.init)
        return init.link("cwd"), sorted(re.sub(r"\d+", "N", what) for what in init.descriptors().values()), init.signals("SigBlk"), \
            init.signals("SigCgt"), init.signals("SigIgn")
    before = self_portrait()
    update(home, 2)
    update(home, 3)
    assert poll(lambda: self_portrait() == before, SECONDS, "%r, not %r" % (before, self_portrait()))


@pytest.mark.parametrize("script", ['exec setsid --ctty "$@"'])
def test_the_terminal_is_given_to_the_next_command_too(home, script):
    master, slave = pty.openpty()
    command = "echo kept: ready: pid $$; exec sed -u 's/^/read: /'"
    namespace = home.namespace
    namespace.start(*KEPT, "sh", "-c", command, init=home.inside, prefix=("sh", "-c", script, "sh"), ready=None,
                    stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    namespace.log = Lines(master, "the terminal")
    try:
        kept = namespace.pid_said(r"^kept: ready: pid (\d+)$")
        update(home)
        for what in ("the one that was kept", "the next one"):
            poll(lambda: os.tcgetpgrp(master) == kept.outer, SECONDS, "the terminal to be COMMAND's: " + what)
            os.write(master, b"hello\n")
            namespace.wait_for("^read: hello$")
            from_here(namespace)
            os.kill(kept.outer, signal.SIGKILL)
            kept = namespace.pid_said(r"^kept: ready: pid (\d+)$")
    finally:
        namespace.log = None
        namespace.__exit__()
        namespace.process = None
        os.close(master)


def test_a_variable_without_a_name_is_left_out(namespace):
    """A kernel's word "==x": execve(2) takes it from others, and os.execve() from nobody."""
    home = Updatable(namespace)
    server = start_server(home, prefix=NAMELESS)
    assert "=x" in Process(namespace.init).read("environ").split("\0")
    update(home)
    assert is_alive(server.outer) and [each.pid for each in namespace.children()] == [server.pid]


@pytest.mark.parametrize("start_as", ["by its path", "by a link", "by its shebang", "not isolated", "by a relative path"])
def test_it_works_however_it_was_started(namespace, start_as):
    home = Updatable(namespace)
    (namespace.run_directory / "sbin").mkdir()
    for name in ("init", "poweroff"):
        (namespace.run_directory / "sbin" / name).symlink_to(home.inside)
    how = {"by a link": {"init": "/run/sbin/init"}, "by its shebang": {"python": ()}, "not isolated": {"python": PYTHON[:1]},
           "by a relative path": {"init": "pyinit1.py", "setup": "cd /run/init"}}.get(start_as, {})
    namespace.start(**{"init": home.inside, **how})
    server = namespace.server()
    for number in (2, 3):
        update(home, number)
    assert is_alive(server.outer)
    assert namespace.enter(*PYTHON, "/run/sbin/poweroff").wait(SECONDS) == 0
    assert namespace.wait() == 0


@pytest.mark.parametrize("level", ["error", "warn", "debug"])
def test_it_works_at_every_log_level(home, level):
    kept = start(home, "--log-level", level, *KEPT, *home.namespace.guinea_pig("kept").split(), ready=None)
    home.offer(generation(2))
    home.namespace.kill(signal.SIGUSR2)
    home.namespace.wait_for("^generation: 2$")
    poll(lambda: not Process(home.namespace.init).signals("SigBlk"), SECONDS, "signals to be answered again")
    untouched(home.namespace, kept)


# ---- nothing is lost

def held(home, *words, number=2):
    """Ask for an update, and wait until the new one, all signals being blocked, waits for release()."""
    home.offer(generation(number, HOLD))
    from_here(home.namespace)
    home.namespace.kill(signal.SIGUSR2)
    home.namespace.wait_for("^held$")


def release(home):
    from_here(home.namespace)
    (home.namespace.run_directory / "go").touch()
    home.namespace.wait_for("^pyinit1: ready")
    home.namespace.log.position = 0


def test_orphans_that_died_meanwhile_are_reaped(home):
    namespace = home.namespace
    start(home, "-w", *KEPT, "sh", "-c", "for n in $(seq 50); do (sleep 1000 &); done; echo kept: ready: pid $$; exec sleep 2000")
    orphans = poll(lambda: [each for each in namespace.find("sleep 1000") if each.parent == namespace.init and len(namespace.find("sleep 1000")) == 50],
                   SECONDS, "50 orphans")
    held(home)
    for orphan in orphans[:25]:
        os.kill(orphan.outer, signal.SIGKILL)
    poll(lambda: [each.state for each in namespace.children()].count("Z") == 25, SECONDS, "25 zombies")
    release(home)
    for orphan in orphans[25:]:
        os.kill(orphan.outer, signal.SIGKILL)
    poll(lambda: len(namespace.children()) == 1, SECONDS, "all to be reaped")
    reaped = re.findall(r"^pyinit1: orphan reaped: pid (\d+): killed by SIGKILL$", namespace.log.drain(), re.M)
    assert {str(orphan.pid) for orphan in orphans} <= set(reaped)


def test_a_server_that_died_meanwhile_is_started_again(home):
    kept = start(home)
    held(home)
    os.kill(kept.outer, signal.SIGKILL)
    release(home)
    home.namespace.wait_for(r"^pyinit1: COMMAND ended: pid %d: killed by SIGKILL$" % kept.pid)
    home.namespace.wait_for(r"^kept: ready")
    assert len(home.namespace.children()) == 1


@pytest.mark.parametrize("number, said", [
    (signal.SIGHUP, "SIGHUP: ignored"), (signal.SIGWINCH, "SIGWINCH: ignored"), (signal.SIGURG, "SIGURG: ignored"), (40, "signal 40: ignored"), (64, "SIGRTMAX: ignored"),
    (signal.SIGUSR1, "SIGUSR1: soft restart"), (signal.SIGTERM, "SIGTERM: power off"), (signal.SIGINT, "SIGINT: reboot"), (37, "signal 37: halt"),
])
def test_a_signal_that_came_meanwhile_is_answered(home, number, said):
    start(home)
    held(home)
    home.namespace.kill(number)
    release(home)
    home.namespace.wait_for("^pyinit1: signal: " + said)


# The old file gets a signal at the last moment: it has seen it, and does not answer it any more; or signals are blocked already.
LAST_MOMENTS = {"seen": "Log.drain", "blocked": "Init.state"}
AT_THE_LAST_MOMENT = """
def last(well):
    def method(self):
        if os.getpid() == 1:
            os.kill(1, signal.SIGHUP)
        return well(self)
    return method
{0} = last({0})
"""


@pytest.mark.parametrize("moment", LAST_MOMENTS)
def test_a_signal_that_comes_just_before_the_re_exec_is_answered_after_it(home, moment):
    home.path.write_text(generation(1, late=AT_THE_LAST_MOMENT.format(LAST_MOMENTS[moment])))
    start(home)
    update(home)
    home.namespace.wait_for("^pyinit1: signal: SIGHUP: ignored")


def test_a_request_for_an_update_that_came_meanwhile_is_the_next_update(home):
    kept = start(home)
    held(home)
    home.offer(generation(3))
    home.namespace.kill(signal.SIGUSR2)
    release(home)
    home.namespace.wait_for("^generation: 3$")
    home.namespace.wait_for("^pyinit1: ready")
    untouched(home.namespace, kept)


def together(home, *numbers):
    """All these signals, and SIGUSR2, come in one wake-up of PID 1."""
    os.kill(home.namespace.init, signal.SIGSTOP)
    poll(lambda: Process(home.namespace.init).state == "T", SECONDS, "PID 1 to stand still")
    for number in (signal.SIGUSR2, *numbers):
        home.namespace.kill(number)
    os.kill(home.namespace.init, signal.SIGCONT)


def test_an_update_and_a_soft_restart_that_come_together_are_both_done(namespace):
    home = Updatable(namespace)
    namespace.marked_service("web")
    start_server(home)
    services = namespace.settled()
    home.offer(generation(2))
    from_here(namespace)
    together(home, signal.SIGUSR1, signal.SIGHUP)
    namespace.wait_for("^server: asked: system.prepare_restart")
    namespace.wait_for("^generation: 2$")
    poll(lambda: namespace.log.drain().count("server: ready") == 2, SECONDS, "the next server")
    namespace.wait_for("^pyinit1: ready")
    assert namespace.services_running() == services
    assert "pyinit1: signal: SIGHUP: ignored" in namespace.log.text


def test_an_update_and_a_request_to_end_that_come_together_are_an_end(home):
    start(home)
    home.offer(generation(2))
    together(home, signal.SIGTERM)
    assert home.namespace.wait() == 0
    assert home.path.read_text() == generation(1)


def test_a_soft_restart_under_way_is_finished_first(namespace):
    home = Updatable(namespace)
    namespace.marked_service("web")
    namespace.fault("hung")
    start_server(home)
    services = namespace.settled()
    home.offer(generation(2))
    namespace.fault("")
    from_here(namespace)
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^server: asked: system.prepare_restart")
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^pyinit1: signal: SIGUSR2")
    namespace.wait_for("^pyinit1: server started: ")
    namespace.wait_for("^generation: 2$")
    namespace.wait_for("^pyinit1: ready")
    assert namespace.services_running() == services
    update(home, 3)
    from_here(namespace)
    namespace.fault("unsaved")
    namespace.kill(signal.SIGUSR1)              # the services are ours since then, and known over two updates
    namespace.server()
    after = namespace.settled()
    assert {name: len(pids) for name, pids in after.items()} == {"web": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, 37])
def test_a_request_to_end_during_the_trial_goes_first(home, number):
    """What was tried is not installed, or is installed whole."""
    start(home)
    home.offer(generation(2, "time.sleep(1000)\n"))
    home.namespace.kill(signal.SIGUSR2)
    poll(lambda: nested(home.namespace), SECONDS, "the trial to start")
    began = time.monotonic()
    assert home.namespace.power_off(number=number) < UPDATE_LIMIT / 2, began
    assert home.path.read_text() == generation(1)


SLOW_TO_GO = "go_well = go_with_parent\ndef go_with_parent():\n    time.sleep(UPDATE_LIMIT)\n    go_well()\n"


def test_a_trial_that_has_not_yet_tied_itself_to_its_parent_does_not_outlive_it(home):
    """A busy machine: the end comes between fork(2) and prctl(2). It would last as long as the grace of those who ignore SIGTERM."""
    home.path.write_text(generation(1, late=SLOW_TO_GO))
    start(home)
    home.offer(generation(2))
    home.namespace.kill(signal.SIGUSR2)
    poll(lambda: nested(home.namespace), SECONDS, "the trial to start")
    home.namespace.power_off()
    assert "others killed" not in home.namespace.log.text


def test_a_file_offered_during_the_trial_is_the_next_update(home):
    kept = start(home)
    home.offer(generation(2, "if %s: time.sleep(1)\n" % ON_TRIAL))
    home.namespace.kill(signal.SIGUSR2)
    poll(lambda: nested(home.namespace), SECONDS, "the trial to start")
    for suffix in (".new", ".new.sha256"):
        home.beside(suffix).unlink()
    home.offer(generation(3))
    home.namespace.wait_for("^generation: 2$")
    home.namespace.wait_for("^pyinit1: ready")
    home.namespace.kill(signal.SIGUSR2)
    home.namespace.wait_for("^generation: 3$")
    home.namespace.wait_for("^pyinit1: ready")
    untouched(home.namespace, kept)


def test_a_file_offered_while_another_one_is_read_is_the_next_update(monkeypatch, tmp_path):
    """The one that was read goes in, and the one that came goes on waiting."""
    pyinit1, path = load_pyinit1(), tmp_path / "file"
    for suffix, text in (("", "1"), (".new", "2"), (".new.sha256", "sum of 2")):
        (tmp_path / ("file" + suffix)).write_text(text)

    def verify(path, most):
        for suffix, text in ((".new", "3"), (".new.sha256", "sum of 3")):
            replace(tmp_path / ("file" + suffix), lambda new: new.write_text(text))
        return b"2"
    monkeypatch.setattr(pyinit1, "verify", verify)
    pyinit1.update(str(path), 100, lambda *_: None, True)
    pyinit1.tidy_up(str(path))
    texts = {each.name[len("file"):]: each.read_text() for each in tmp_path.iterdir()}
    assert texts == {"": "2", ".old": "1", ".new": "3", ".new.sha256": "sum of 3"}


def test_an_update_whose_tidying_up_takes_too_long_is_done_all_the_same(home):
    """The disk holds who waits for it; the file is in its place."""
    home.path.write_text(generation(1, late="UPDATE_LIMIT = 4.0\ndef tidy_up(path):\n    time.sleep(1000)\n"))
    kept = start(home)
    home.offer(generation(2))
    home.namespace.kill(signal.SIGUSR2)
    home.namespace.wait_for("^pyinit1: self-update: tidying up: not done within 4 s$")
    home.namespace.wait_for("^generation: 2$")
    home.namespace.wait_for("^pyinit1: ready")
    assert home.path.read_text() == generation(2) and home.beside(".old").exists()
    untouched(home.namespace, kept)


def test_a_soft_restart_asked_for_during_the_trial_is_done_after_the_update(namespace):
    home = Updatable(namespace)
    start_server(home)
    home.offer(generation(2, "if %s: time.sleep(1)\n" % ON_TRIAL))
    from_here(namespace)
    namespace.kill(signal.SIGUSR2)
    poll(lambda: nested(namespace), SECONDS, "the trial to start")
    namespace.kill(signal.SIGUSR1)
    namespace.wait_for("^generation: 2$")
    namespace.wait_for("^server: asked: system.prepare_restart")
    namespace.server()


CHURN = "while :; do (sleep 0.01 &); (true &); done"


def test_ten_updates_in_a_row_under_load_lose_nothing(namespace, figure):
    """Orphans that come and go all the time, and with each update a signal that must be answered."""
    home = Updatable(namespace)
    namespace.service("churn", CHURN)
    namespace.marked_service("web")
    server = start_server(home)
    services, descriptors = namespace.settled(), len(Process(namespace.init).descriptors())
    took = []
    for number in range(2, 12):
        home.offer(generation(number))
        from_here(namespace)
        began = time.monotonic()
        namespace.kill(signal.SIGUSR2)
        namespace.wait_for("^pyinit1: self-update")
        time.sleep(0.02 * (number - 2))         # another moment each time: what is tested is that none is a bad one
        namespace.kill(40 + number)
        namespace.wait_for("^generation: %d$" % number)
        namespace.wait_for("^pyinit1: ready")
        took.append(time.monotonic() - began)
        poll(lambda: "pyinit1: signal: signal %d: ignored" % (40 + number) in namespace.log.drain(), SECONDS, "signal %d" % (40 + number))
    assert is_alive(server.outer) and namespace.services_running() == services
    assert len(Process(namespace.init).descriptors()) == descriptors
    namespace.power_off()
    assert namespace.log.text.count("server: asked: system.shutdown") == 1 and namespace.log.text.count("server: ready") == 1
    figure("self-update under load, the longest of 10", max(took), "s", UPDATE_GOAL)


# ---- the way back

def crashes_at(number, gone=ON_TRIAL):
    """A new file that crashes when it answers this signal."""
    return """
answer_well = Init.answer
def answer(self, number):
    if number == %d and not (%s):
        raise ZeroDivisionError("on purpose")
    answer_well(self, number)
Init.answer = answer
""" % (number, gone)


def came_back(home, kept):
    """The old file runs again, and nothing else has changed."""
    home.namespace.wait_for("^pyinit1: crashed: ")
    home.namespace.wait_for("^generation: 1$")
    home.namespace.wait_for("^pyinit1: ready")
    assert home.path.read_text() == generation(1)
    assert home.names() == {""}
    untouched(home.namespace, kept)


def test_a_new_file_that_crashes_in_its_loop_is_rolled_back(home):
    kept = start(home)
    update(home, content=generation(2, late=crashes_at(signal.SIGHUP)))
    home.namespace.kill(signal.SIGHUP)
    came_back(home, kept)
    home.namespace.wait_for("^pyinit1: signal: SIGHUP: ignored")    # by the old one
    update(home, 3)


BAD_STARTS = {
    "takes nothing over": "def is_our_child(pid):\n    return %s\n" % ON_TRIAL,
    "crashes while it takes over": "adopt_well = Init.adopt\ndef adopt(self, state):\n    return adopt_well(self, state) if %s else 1 / 0\nInit.adopt = adopt\n" % ON_TRIAL,
    "crashes before that": "def given_descriptors():\n    return [] if %s else 1 / 0\n" % ON_TRIAL,
    "crashes with SystemExit": "listen_well = Init.listen\ndef listen(self):\n    listen_well(self) if %s else sys.exit(3)\nInit.listen = listen\n" % ON_TRIAL,
    "exits before it takes over": "def given_descriptors():\n    return [] if %s else sys.exit(3)\n" % ON_TRIAL,
    "crashes at its first turn": "turn_well = Init.turn\ndef turn(self, *more):\n    return turn_well(self, *more) if %s else 1 / 0\nInit.turn = turn\n" % ON_TRIAL,
}


@pytest.mark.parametrize("how", BAD_STARTS)
def test_a_new_file_is_rolled_back_if_it(home, how):
    kept = start(home)
    home.offer(generation(2, late=BAD_STARTS[how]))
    from_here(home.namespace)
    home.namespace.kill(signal.SIGUSR2)
    came_back(home, kept)


def test_a_new_file_that_crashes_in_its_end_is_rolled_back_and_the_end_is_finished(home):
    start(home)
    update(home, content=generation(2, late="def end(self):\n    self.ending = True\n    1 / 0\nInit.end = end\n"))
    assert home.namespace.power_off() < SECONDS
    assert home.path.read_text() == generation(1)
    text = home.namespace.log.text
    assert text.count("kept: ready") == 1 and text.count("pyinit1: the end: exit status 0") == 1


def test_a_crash_after_the_probation_rolls_nothing_back(home):
    shorter = "PROBATION = 0.5\n"                    # the old one starts the probation of the new one
    home.path.write_text(generation(1, late=shorter))
    kept = start(home)
    crashes = generation(2, late=shorter + crashes_at(signal.SIGHUP, "self.crashes"))
    update(home, content=crashes)
    over = time.monotonic() + 1
    poll(lambda: time.monotonic() > over, SECONDS, "the probation to be over")
    from_here(home.namespace)
    home.namespace.kill(signal.SIGHUP)
    home.namespace.wait_for("^pyinit1: crashed: ZeroDivisionError")
    home.namespace.wait_for("^generation: 2$")
    home.namespace.wait_for("^pyinit1: signal: SIGHUP: ignored")
    assert home.path.read_text() == crashes and home.names() == {"", ".old"}
    untouched(home.namespace, kept)


STATE_CRASHES = "def state(self):\n    return 1 / 0\nInit.state = state\n"


def test_a_new_file_that_cannot_even_say_its_state_is_rolled_back(home):
    kept = start(home)
    update(home, content=generation(2, late=STATE_CRASHES + crashes_at(signal.SIGHUP)))
    home.namespace.kill(signal.SIGHUP)
    came_back(home, kept)
    update(home, 3)


# The old file crashes once, when it has a child do this; `after`: when that has done it, and nobody knows yet.
CRASHES_AT_HELPER = """
start_helper_well = start_helper
def start_helper(what, deed, helpers):
    pid = start_helper_well(what, deed, helpers)
    if what == %r and not os.path.exists("/run/crashed"):
        os.close(os.open("/run/crashed", os.O_WRONLY | os.O_CREAT))
        %s
        raise ZeroDivisionError("on purpose")
    return pid
"""
AFTER = "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)"


@pytest.mark.parametrize("what, when", [("self-update: refused", AFTER), ("self-update: tidying up", "pass"), ("self-update: tidying up", AFTER)],
                         ids=["after the renaming", "before the tidying up", "after the tidying up"])
def test_a_crash_of_the_old_file_while_the_new_one_is_installed_brings_the_old_one_back(home, what, when):
    """Else the new one would be started by the crash, and without a probation."""
    old = generation(1, late=CRASHES_AT_HELPER % (what, when))
    home.path.write_text(old)
    kept = start(home)
    home.offer(generation(2))
    from_here(home.namespace)
    home.namespace.kill(signal.SIGUSR2)
    home.namespace.wait_for("^pyinit1: crashed: ZeroDivisionError: on purpose")
    home.namespace.wait_for("^pyinit1: self-update: a crash: the old file comes back")
    home.namespace.wait_for("^generation: 1$")
    home.namespace.wait_for("^pyinit1: ready")
    assert home.path.read_text() == old and ".old" not in home.names()
    untouched(home.namespace, kept)
    update(home, 3)
    untouched(home.namespace, kept)


@pytest.mark.parametrize("error", ["ENOMEM", "ENOENT", "EACCES", "E2BIG"])
def test_a_failed_exec_puts_the_old_file_back_and_goes_on(home, error):
    kept = start(home)
    home.offer(generation(2))
    tracer = inject(home.namespace.init, ["-e", "trace=execve", "-e", "inject=execve:error=" + error])
    try:
        from_here(home.namespace)
        home.namespace.kill(signal.SIGUSR2)
        home.namespace.wait_for("^pyinit1: self-update: re-exec: .*: the old file comes back")
        answers(home.namespace, seconds=UPDATE_LIMIT / 2)       # at once, not after the helper's limit
        poll(lambda: home.names() == {""}, SECONDS, "the old file to be back")
    finally:
        let_go(tracer)
    assert home.path.read_text() == generation(1)
    untouched(home.namespace, kept)
    update(home, 3)


@pytest.mark.parametrize("call, when", [("fsync", 1), ("fsync", 2), ("linkat,link", 1), ("rename,renameat,renameat2", 1), ("rename,renameat,renameat2", 2),
                                        ("unlink,unlinkat", 1)])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_file_system_that_fails_while_the_file_is_installed_changes_nothing_or_all(home, call, when, error):
    """Refused with the old file in its place, or updated: never the one said and the other done."""
    kept = start(home)
    home.offer(generation(2))
    tracer = inject(home.namespace.init, ["-f", "-e", "trace=" + call, "-e", "inject=%s:error=%s:when=%d" % (call, error, when)])
    try:
        from_here(home.namespace)
        home.namespace.kill(signal.SIGUSR2)
        said = home.namespace.wait_for("^(generation: 2|pyinit1: self-update: refused: .*)$", 3 * UPDATE_LIMIT)[1]
        answers(home.namespace)
    finally:
        let_go(tracer)
    assert home.path.read_text() == generation(2 if said == "generation: 2" else 1)
    untouched(home.namespace, kept)


# ---- figures

def longest_blocked(pid, until):
    """Look at PID 1 until until(); -> the longest time, in seconds, in which it blocked SIGTERM."""
    since, longest = None, 0.0
    while not until():
        blocked = signal.SIGTERM in Process(pid).signals("SigBlk")
        now = time.monotonic()
        since = (since or now) if blocked else None
        longest = max(longest, now - since if since else 0.0)
    return longest


def test_an_update_takes_little_and_signals_are_blocked_for_less(home, figure):
    took, blocked = [], []
    start_server(home)
    for number in range(2, 9):
        home.offer(generation(number))
        from_here(home.namespace)
        began = time.monotonic()
        home.namespace.kill(signal.SIGUSR2)
        if number % 2:
            home.namespace.wait_for("^generation: %d$" % number)
            home.namespace.wait_for("^pyinit1: ready")
            took.append(time.monotonic() - began)
        else:
            blocked.append(longest_blocked(home.namespace.init, lambda: home.namespace.log.drain() and home.namespace.log.find("^pyinit1: ready")))
    figure("self-update, from SIGUSR2 to the new loop", statistics.median(took), "s", UPDATE_GOAL)
    figure("self-update, of that with signals blocked", statistics.median(blocked), "s", BLOCKED_GOAL)
    assert statistics.median(took) < FAR * UPDATE_GOAL, took
    assert statistics.median(blocked) < FAR * BLOCKED_GOAL, blocked


# ---- the server's own update, at its soft restart

def server_text(number, more=""):
    """The stand-in, that says which generation it is; `more`: its first statements."""
    first = 'import os, time\nos.write(1, b"server generation: %d\\n")\n%s' % (number, more)
    text, count = re.subn("(?m)^import time$", lambda _: first, STAND_IN.read_text(), count=1)
    assert count == 1
    return text


@pytest.fixture
def server(namespace):
    """The server's file, in a namespace with PID 1 and one service."""
    it = Updatable(namespace, server_text(1), folder="server", name="zinit-server")
    namespace.marked_service("web")
    namespace.start(PYINIT1_SERVER=it.inside)
    namespace.server()
    namespace.settled()
    return it


def soft_restart(server, content=None):
    """Offer a new server, and ask for a soft restart."""
    if content is not None:
        server.offer(content)
    from_here(server.namespace)
    server.namespace.kill(signal.SIGUSR1)


def test_a_new_server_is_installed_at_a_soft_restart_and_its_services_go_on(server):
    before = server.namespace.services_running()
    soft_restart(server, server_text(2))
    server.namespace.wait_for("^server generation: 2$")
    server.namespace.server()
    assert server.path.read_text() == server_text(2) and server.beside(".old").read_text() == server_text(1)
    assert server.names() == {"", ".old"} and server.path.stat().st_mode & 0o7777 == 0o755
    assert server.namespace.services_running() == before
    soft_restart(server)
    server.namespace.wait_for("^server generation: 2$")


def test_a_new_server_waits_for_the_soft_restart(server):
    """A server that dies is started again as it was."""
    server.offer(server_text(2))
    from_here(server.namespace)
    os.kill(server.namespace.find("zinit-server")[0].outer, signal.SIGKILL)
    server.namespace.wait_for("^server generation: 1$")
    soft_restart(server)
    server.namespace.wait_for("^server generation: 2$")


@pytest.mark.parametrize("what", ["wrong-sum", "no-sum", "others-may-write-it", "another-owner", "a-link", "others-may-write-the-folder", "a-folder"])
def test_a_new_server_is_refused_with_one_line_and_the_old_one_starts(server, what):
    server.offer(server_text(2))
    if what == "others-may-write-the-folder":
        server.path.parent.chmod(0o757)
    else:
        REFUSED[what][0](server)
    before = server.files()
    soft_restart(server)
    reason = server.namespace.wait_for("^pyinit1: server not updated: (.*)$")[1]
    server.namespace.wait_for("^server generation: 1$")
    assert "zinit-server.new" in reason or "/run/server" in reason
    assert server.files() == before
    assert "web" in server.namespace.settled()


BAD_SERVERS = {
    "exits": "#!/bin/sh\nexit 3\n", "is-killed": "#!/bin/sh\nkill -9 $$\n", "has-no-interpreter": "#!/no/such/thing\n", "is-empty": "",
    "dies-later": "#!/bin/sh\nsleep 0.3\nexit 3\n",
}


@pytest.mark.parametrize("how", BAD_SERVERS)
def test_the_old_server_comes_back_if_the_new_one_dies_more_than_three_times_because_it(server, how):
    soft_restart(server, BAD_SERVERS[how])
    server.namespace.wait_for("^pyinit1: .*the old file comes back")
    server.namespace.wait_for("^server generation: 1$")
    server.namespace.server()
    assert server.path.read_text() == server_text(1) and server.names() == {""}
    assert len(server.namespace.settled()["web"]) == 1


def test_a_new_server_that_dies_three_times_is_kept(server):
    """Its fourth start works."""
    (server.namespace.run_directory / "left").write_text("xxx")
    dies = "left = open('/run/left').read()\nif left:\n    open('/run/left', 'w').write(left[1:])\n    os._exit(3)\n"
    soft_restart(server, server_text(2, dies))
    server.namespace.server()
    assert server.namespace.log.text.count("server generation: 2") == 4
    assert server.path.read_text() == server_text(2, dies) and server.names() == {"", ".old"}


def test_deaths_of_a_new_server_are_remembered_over_a_self_update(namespace):
    home, server = Updatable(namespace), Updatable(namespace, server_text(1), folder="server", name="zinit-server")
    start_server(home, PYINIT1_SERVER=server.inside)
    soft_restart(server, BAD_SERVERS["exits"])
    namespace.wait_for("^pyinit1: server ended: .*exit status 3")
    home.offer(generation(2))
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^generation: 2$")
    namespace.wait_for("^pyinit1: .*died 4 times.*the old file comes back")
    namespace.wait_for("^server generation: 1$")
