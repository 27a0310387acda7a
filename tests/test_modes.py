"""Where it runs and how it is called: modes and what they may do, bad input, isolation, and what a poor environment lacks."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess

import pytest

from helpers import PYINIT1, PYTHON, SECONDS, SLACK, AtOnce, Namespace, Process, clean_environment, poll

# ---- modes

MODES = {
    "pid-1": ((), {}, r"container: PID 1 of another PID namespace"),
    "option": (("-c",), {}, r"container: --container"),
    "long-option": (("--container",), {"container": "lxc"}, r"container: --container"),
    "empty-variable": ((), {"ZINIT_CONTAINER": ""}, r"container: ZINIT_CONTAINER is set"),
    "podmans-variable": ((), {"container": "podman"}, r"container: \$container is podman"),
    "empty-container-is-no-word": ((), {"container": ""}, r"container: PID 1 of another PID namespace"),
    "plain": ((), {"plain": True}, r"plain process: PID \d+, not PID 1: .*"),
    "plain-and-empty-container": ((), {"plain": True, "container": ""}, r"plain process: PID \d+, not PID 1: .*"),
    "plain-and-option": (("-c",), {"plain": True}, r"container: --container, but PID \d+: .*"),
    "plain-and-variable": ((), {"plain": True, "ZINIT_CONTAINER": "0"}, r"container: ZINIT_CONTAINER is set, but PID \d+: .*"),
    "plain-and-container": ((), {"plain": True, "container": "docker"}, r"container: \$container is docker, but PID \d+: .*"),
}


def life_in_mode(name, directory):
    """Start, and end by SIGTERM; -> (exit status, log)."""
    words, options, _ = MODES[name]
    with Namespace(directory) as namespace:
        namespace.start(*words, **options)
        namespace.server()
        namespace.kill(signal.SIGTERM)
        return namespace.wait(), namespace.log.text


@pytest.fixture(scope="module")
def modes():
    return AtOnce(life_in_mode, MODES)


@pytest.mark.parametrize("name", MODES)
def test_mode_and_its_reason_are_the_first_line_and_the_end_is_an_exit(modes, name):
    status, log = modes.result(name)
    assert re.match("pyinit1: mode: %s\n" % MODES[name][2], log), log
    assert status == 0 and "pyinit1: the end: exit status 0" in log
    assert "--pid1-mode" not in log and "mode: VM" not in log


def test_a_plain_process_is_warned_that_it_is_not_pid_1(namespace):
    """A warning is seen at log level warn."""
    namespace.start("--log-level", "warn", plain=True, ready=None)
    namespace.server()
    assert re.search("^pyinit1: .*not PID 1", namespace.log.drain(), re.M)


# A server that asks for the end itself: strace must not be disturbed from outside.
ASKER = "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9; do kill -%s $PPID; sleep 0.1; done\nexec sleep 100000\n"
NO_PROC = "mount -t tmpfs none /proc; "
TRACED = {
    "power-off": ("TERM", "", ""), "reboot": ("2", "", ""), "halt": ("37", "", ""), "power-off-38": ("38", "", ""),
    "container": ("TERM", "", "-c"), "at-once": ("INT", "", "--stop-timeout=20"), "without-proc": ("TERM", NO_PROC, ""),
    "reboot-without-proc": ("39", NO_PROC, ""), "plain": ("TERM", "plain", ""), "plain-reboot": ("INT", "plain", ""),
    "plain-at-once": ("INT", "plain", "--stop-timeout=20"), "not-pid-1": ("TERM", "plain", "-c"),
    "plain-without-proc": ("TERM", "plain" + NO_PROC, "--grace=1"),
}


def trace(name, directory):
    """Run to the end under strace; -> the system calls from the execve of pyinit1.py on."""
    signal_name, setup, words = TRACED[name]
    server, output = os.path.join(directory, "server"), os.path.join(directory, "trace")
    with open(server, "w") as file:
        file.write(ASKER % signal_name)
    os.chmod(server, 0o755)
    plain = setup.startswith("plain")
    run = '"$@"; status=$?; exit $status' if plain else 'exec "$@"'
    argv = ["strace", "-f", "-s", "4096", "-o", output, "-e", "trace=execve,reboot,mount,umount2,kill",
            "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", *["-Ur"] * (os.getuid() != 0),
            "sh", "-c", setup.replace("plain", "") + run, "sh", *PYTHON, str(PYINIT1), "--stop-timeout=0.5", *words.split()]
    subprocess.run(argv, env={**clean_environment(), "PYINIT1_SERVER": server}, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS * 3, check=False)
    with open(output) as file:
        lines = [line.split(None, 1) for line in file]
    start = max(number for number, (_, text) in enumerate(lines) if text.startswith("execve(") and "pyinit1.py" in text)
    return [text for pid, text in lines[start:] if pid == lines[start][0]]


@pytest.fixture(scope="module")
def traces():
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    return AtOnce(trace, TRACED)


@pytest.mark.parametrize("name", TRACED)
def test_no_mode_but_vm_calls_reboot_or_mounts(traces, name):
    """One exception: PID 1 without /proc asks reboot(RB_DISABLE_CAD) whether this is a machine."""
    calls = traces.result(name)
    assert not [call for call in calls if call.startswith(("mount(", "umount"))]
    reboots = [call for call in calls if call.startswith("reboot(")]
    assert all("CMD_CAD_OFF" in call and "EINVAL" in call or "EPERM" in call for call in reboots)
    assert len(reboots) == ("without-proc" in name and "plain" not in name)


@pytest.mark.parametrize("name", TRACED)
def test_only_pid_1_signals_everybody(traces, name):
    everybody = [call for call in traces.result(name) if call.startswith("kill(-1,")]
    is_pid_1 = "plain" not in TRACED[name][1]
    assert bool(everybody) is is_pid_1, everybody


# ---- called wrongly

def run_once(directory, *words, plain=False, **environment):
    """Run pyinit1.py to its end in a namespace; -> (exit status, stdout, stderr, was the server started?)."""
    server, mark = os.path.join(directory, "server"), os.path.join(directory, "started")
    with open(server, "w") as file:
        file.write("#!/bin/sh\ntouch %s\nexec sleep 100000\n" % mark)
    os.chmod(server, 0o755)
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", *["-Ur"] * (os.getuid() != 0), "sh", "-c",
         '"$@"; status=$?; exit $status' if plain else 'exec "$@"', "sh", *PYTHON, str(PYINIT1), *words],
        env={**clean_environment(), "PYINIT1_SERVER": server, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=SECONDS, text=True)
    return done.returncode, done.stdout, done.stderr, os.path.exists(mark)


BAD = {
    "--frobnicate": (["--frobnicate"], {}), "-z": (["-z"], {}), "--grace x": (["--grace", "x"], {}), "--grace=-1": (["--grace=-1"], {}),
    "--grace": (["--grace"], {}), "--stop-timeout 1e9": (["--stop-timeout", "1e9"], {}), "--log-level loud": (["--log-level", "loud"], {}),
    "-r TERM": (["-r", "TERM"], {}), "-r NONE:TERM": (["-c", "-r", "NONE:TERM", "-v"], {}), "-e 256": (["-e", "256"], {}),
    "-p FOO": (["-p", "FOO"], {}), "--adopt-server one": (["--adopt-server", "one"], {}), "--container=yes": (["--container=yes"], {}),
    "PYINIT1_GRACE=soon": ([], {"PYINIT1_GRACE": "soon"}), "PYINIT1_STOP_TIMEOUT=1h": ([], {"PYINIT1_STOP_TIMEOUT": "1h"}),
    "--respawn=1": (["--respawn=1", "--", "sleep", "1"], {}),
}


def call_wrongly(parameter, directory):
    word, plain = parameter
    return run_once(directory, *BAD[word][0], plain=plain, **BAD[word][1])


@pytest.fixture(scope="module")
def bad_calls():
    return AtOnce(call_wrongly, itertools.product(BAD, (False, True)))


@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
@pytest.mark.parametrize("word", BAD)
def test_bad_input_is_2_usage_and_the_one_offending_word_on_stderr_and_nothing_is_started(bad_calls, word, plain):
    status, output, error, started = bad_calls.result((word, plain))
    assert status == 2
    assert output == ""
    first, usage = error.split("\n", 1)
    assert first.startswith("pyinit1: bad option: %s: " % word)
    assert usage.startswith("usage: pyinit1.py [OPTIONS] [--] [COMMAND [ARG...]]\n")
    assert not started


@pytest.mark.parametrize("words, expected", [
    (["-h"], "pyinit1: PID 1 in one file"), (["--help"], "usage: pyinit1.py"), (["-V"], "pyinit1 "), (["--version"], "pyinit1 "),
])
def test_help_and_version_are_answered_on_stdout_with_0_and_nothing_is_started(tmp_path, words, expected):
    status, output, error, started = run_once(tmp_path, *words)
    assert (status, error, started) == (0, "", False)
    assert expected in output and (words[0] not in ("-V", "--version") or re.fullmatch(r"pyinit1 \d+\.\d+\.\d+\n", output))


@pytest.mark.parametrize("words, variables, status, line", [
    (["--check"], {}, 0, "^would start: .*/server$"),
    (["--check", "--", "sh", "-c", "x"], {}, 0, "^would start: sh$"),
    (["--check"], {"PYINIT1_SERVER": "/no/such/server"}, 1, "^problem: /no/such/server: not found$"),
    (["--check"], {"PYINIT1_SERVER": "/etc/passwd"}, 1, "^problem: /etc/passwd: not an executable file$"),
    (["--check"], {"PYINIT1_SERVER": "./server"}, 1, "^problem: ./server: PYINIT1_SERVER: expected an absolute path$"),
    (["--check", "no-such-command"], {}, 1, "^problem: no-such-command: not found"),
])
@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
def test_check_says_what_a_start_would_find_and_starts_nothing(tmp_path, words, variables, status, line, plain):
    code, output, error, started = run_once(tmp_path, *words, plain=plain, **variables)
    assert code == status, output + error
    assert re.search("^mode: %s: " % ("plain process" if plain else "container"), output) and re.search(line, output, re.M)
    assert not started


def test_check_with_a_bad_option_is_2(tmp_path):
    assert run_once(tmp_path, "--check", "--frob")[0] == 2


# ---- isolation

# Modules that we import, and what those import, as far as the interpreter has not got them before our first line.
TRAPS = """signal _signal os sys json socket _socket select ctypes _ctypes errno fcntl stat time shlex resource hashlib enum
selectors struct _struct re collections functools types string codecs io abc posixpath genericpath array math operator""".split()
TRAP = 'import sys\nsys.stderr.write("TRAP: %s\\n" % __name__)\nsys.stderr.flush()\n'


@pytest.mark.parametrize("mode", ["container", "plain-process", "plain-with-c"])
@pytest.mark.parametrize("place", ["beside", "cwd", "PYTHONPATH"])
def test_no_file_that_others_can_place_becomes_a_part_of_us(namespace, mode, place):
    """Started without -I, through a soft restart (json, socket) to the end. A trap says its name."""
    traps, ours = namespace.directory / "traps", namespace.directory / "ours"
    traps.mkdir()
    ours.mkdir()
    shutil.copy(PYINIT1, ours / "pyinit1.py")
    folder = ours if place == "beside" else traps
    for number, name in enumerate(TRAPS):
        path = folder / (name + ".py") if number % 2 else folder / name / "__init__.py"       # modules and packages
        path.parent.mkdir(exist_ok=True)
        path.write_text(TRAP)
    namespace.start(*["-c"] * (mode == "plain-with-c"), init=ours / "pyinit1.py", python=PYTHON[:1], cwd=traps, plain=mode != "container",
                    **({"PYTHONPATH": str(traps)} if place == "PYTHONPATH" else {}))
    namespace.server()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    namespace.power_off()
    assert "TRAP" not in namespace.log.text, namespace.log.text
    assert "server: asked: system.shutdown" in namespace.log.text


def test_a_trap_would_speak(tmp_path):
    """The test above can fail: a script without our precautions steps into it."""
    (tmp_path / "socket.py").write_text(TRAP)
    (tmp_path / "script.py").write_text("import socket\n")
    done = subprocess.run([PYTHON[0], tmp_path / "script.py"], stderr=subprocess.PIPE, text=True, env=clean_environment())
    assert "TRAP: socket" in done.stderr


# ---- what a poor environment lacks

CLOSED = [fds for count in range(4) for fds in itertools.combinations((0, 1, 2), count)]


def life_with_closed(parameter, directory):
    """Start with these descriptors closed; -> (the server's descriptors, ours, exit status)."""
    fds, plain = parameter
    with Namespace(directory) as namespace:
        namespace.start(setup="exec" + "".join(" %d>&-" % fd for fd in fds), ready=None, plain=plain)
        poll(namespace.socket.exists, SECONDS, "the server's socket")       # its log may be closed
        server = [child for child in namespace.children() if "zinit-server" in child.words][0]
        found, ours = server.descriptors(), Process(namespace.init).descriptors()
        namespace.kill(signal.SIGTERM)
        return found, ours, namespace.wait()


@pytest.fixture(scope="module")
def closed():
    return AtOnce(life_with_closed, itertools.product(CLOSED, (False, True)))


@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
@pytest.mark.parametrize("fds", CLOSED, ids=lambda fds: "".join(map(str, fds)) or "none")
def test_closed_descriptors_are_open_on_nothing_and_all_goes_on(closed, fds, plain):
    server, ours, status = closed.result((fds, plain))
    assert status == 0
    for fd in (0, 1, 2):
        for found in (server, ours):
            assert (found[fd] == "/dev/null") is (fd in fds or fd == 0), found


OTHER_PROC = "umount /proc"             # under the one that unshare mounted is the one of the namespace around us


@pytest.mark.parametrize("setup", [NO_PROC, OTHER_PROC], ids=["no-proc", "proc-of-another-namespace"])
def test_without_a_proc_of_our_own_it_is_a_container_that_restarts_and_ends_in_order(namespace, setup):
    namespace.service("worker", namespace.guinea_pig("worker", 1, "orphan"))
    namespace.start("-v", setup=setup)
    namespace.wait_for("^pyinit1: mode: container: PID 1 of another PID namespace")
    namespace.server()
    namespace.wait_for("^worker: ready")
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    namespace.power_off()
    assert "server: asked: system.shutdown" in namespace.log.text
    assert namespace.log.text.count("worker: got SIGTERM") == 1 and "worker: saved" in namespace.log.text


def test_a_plain_process_without_proc_ends_within_its_limits_and_signals_nobody_else(namespace):
    unrelated = namespace.guinea_pig("unrelated", 0)
    namespace.start("--stop-timeout", "2", "--grace", "1", setup="%s &\n%s" % (unrelated, NO_PROC), plain=True)
    namespace.server()
    poll(lambda: "unrelated: ready" in namespace.log.drain(), SECONDS, "it to be ready")
    assert namespace.power_off() < 2 + 1 + 1 + SLACK
    assert "unrelated: got" not in namespace.log.text


def test_a_read_only_root_is_no_matter(namespace):
    namespace.marked_service("web")
    namespace.start(setup="mount -o remount,bind,ro / && ! touch /tmp/written 2>&1 || exit 98")
    namespace.server()
    before = namespace.settled()
    namespace.kill(signal.SIGUSR1)
    namespace.server()
    assert namespace.settled() == before
    namespace.power_off()


@pytest.mark.parametrize("ignored", ["--ignore-signal=CHLD", "--ignore-signal"], ids=["SIGCHLD", "all"])
@pytest.mark.parametrize("plain", [False, True], ids=["container", "plain-process"])
def test_signals_inherited_as_ignored_do_not_matter(tmp_path, ignored, plain):
    """With SIGCHLD ignored the kernel would reap for us, and no status would be known."""
    with Namespace(tmp_path) as namespace:
        namespace.start(prefix=("env", ignored), plain=plain)
        os.kill(namespace.server().outer, signal.SIGKILL)
        namespace.wait_for(r"^pyinit1: server ended: pid \d+: killed by SIGKILL")
        assert not namespace.server().signals("SigIgn") - {signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ}     # the stand-in's own
        namespace.power_off()


# execve(2) with an environment that has an entry without a name, which no shell and no os.execve would make.
NAMELESS = """
import ctypes, os, sys
words = [os.fsencode(word) for word in sys.argv[1:]]
entries = [b"=nameless", b"=", b"no equals sign"] + [name + b"=" + value for name, value in os.environb.items()]
argv, envp = (ctypes.c_char_p * (len(words) + 1))(*words), (ctypes.c_char_p * (len(entries) + 1))(*entries)
ctypes.CDLL(None).execve(words[0], argv, envp)
"""


def test_an_environment_entry_without_a_name_does_not_stop_the_start(namespace):
    namespace.start(prefix=(*PYTHON, "-c", NAMELESS), COLOUR="blue")
    server = namespace.server()
    assert "=nameless" in Process(namespace.init).read("environ").split("\0"), "the entry did not get here"
    assert "COLOUR=blue" in server.read("environ").split("\0")
    namespace.power_off()


TRACEE = """#!/usr/bin/python3 -IS
import ctypes, os, signal
if os.fork():
    os._exit(0)
while os.getppid() != %s:
    pass
ctypes.CDLL(None).ptrace(0, 0, None, None)
os.write(1, b"tracee: ready: pid %%d\\n" %% os.getpid())
os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_an_orphan_that_is_traced_by_us_and_stops_is_no_orphan_reaped(namespace):
    """It called ptrace(PTRACE_TRACEME): each of its signals is a status for us, and it lives. It costs the grace."""
    namespace.service("tracee", str(namespace.script("tracee", TRACEE % 1)))
    namespace.start("-v", "--grace", "1")
    namespace.server()
    poll(lambda: "tracee: ready" in namespace.log.drain(), SECONDS, "the tracee")
    pid = re.search(r"^tracee: ready: pid (\d+)", namespace.log.text, re.M).group(1)
    poll(lambda: namespace.by_pid(pid).state == "t", SECONDS, "it to stop")
    namespace.kill(signal.SIGUSR2)
    namespace.wait_for("^pyinit1: signal: SIGUSR2")
    assert "orphan reaped: pid %s:" % pid not in namespace.log.text
    namespace.power_off()
    assert "pyinit1: orphan reaped: pid %s: killed by SIGKILL" % pid in namespace.log.text


# ---- our links

@pytest.mark.parametrize("name, line", [
    ("poweroff", "signal: signal 38: power off"), ("reboot", "signal: signal 39: reboot"), ("halt", "signal: signal 37: halt")])
def test_a_link_under_this_name_ends_a_container_in_order(namespace, name, line):
    namespace.marked_service("web")
    link = namespace.directory / name
    link.symlink_to(PYINIT1)
    namespace.start()
    namespace.server()
    asker = namespace.enter(*PYTHON, str(link))
    assert namespace.wait() == 0
    assert asker.wait(SECONDS) in (0, -signal.SIGKILL, 128 + signal.SIGKILL, 143, -signal.SIGTERM)   # the end ends it, too
    assert "pyinit1: " + line in namespace.log.text and "server: service stopped: web" in namespace.log.text


@pytest.mark.parametrize("words, status, said", [((), 1, "poweroff: signal 38 to PID 1: Operation not permitted\n"),
                                                 (("-f",), 1, "poweroff: this is a container: leave out -f\n"),
                                                 (("-x",), 2, "poweroff: -x: not an option of poweroff\n")])
def test_a_link_that_cannot_do_what_it_is_asked_says_so(namespace, words, status, said):
    if os.getuid() != 0:
        pytest.skip("only root can become somebody who may not")
    link = namespace.directory / "poweroff"
    link.symlink_to(PYINIT1)
    for folder in (namespace.directory, *namespace.directory.parents):
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o011)
    namespace.start()
    server = namespace.server()
    asker = namespace.enter("setpriv", "--reuid=65534", "--clear-groups", *PYTHON, str(link), *words,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, error = asker.communicate(timeout=SECONDS)
    assert (asker.returncode, output) == (status, "") and error.startswith(said), error
    assert Process(server.outer).state != "Z"
