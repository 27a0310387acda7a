"""pyinit1.py as PID 1 of Docker containers: stops, exit codes, terminals, docker exec, and what a container may be denied.

The image is made of Debian packages by `docker import`, without any registry: pyinit1.py is /pyinit1.py in it, the
stand-in is /sbin/zinit-server. Where the order of lines counts the container has a terminal (--tty): all lines go
through it, while Docker collects stdout and stderr by two pipes.
"""

import os
import re
import signal
import statistics
import subprocess
import time

import pytest

from helpers import IMAGE, SECONDS, Container, Keyboard, Lines, Namespace, Process, build_image, docker, poll, why_no_docker

PIG = "python3 -IS /guinea_pig.py"
STOP_GOAL = 0.05            # s: docker stop of a prompt server, beyond the server's own time
PATIENCE = 5.0              # s: what takes less did not wait for the grace (10 s) or for Docker's SIGKILL (10 s)
WITH_ENTRYPOINT = IMAGE + ":entrypoint"
ENTRYPOINT = 'ENTRYPOINT ["env", "--block-signal", "python3", "-IS", "/pyinit1.py", "--"]'

# What a container may be denied. /tmp is the only place where the server can write: its socket and its state go there.
RESTRICTIONS = {
    "read-only": ("--read-only",),
    "user-1000": ("--user", "1000"),
    "no-capabilities": ("--cap-drop", "ALL"),
    "all-three": ("--read-only", "--user", "1000", "--cap-drop", "ALL"),
}
IN_TMP = ("--tmpfs", "/tmp", "--env", "ZINIT_SOCKET=/tmp/zinit.sock", "--env", "STANDIN_STATE=/tmp/state.json")
restricted = pytest.mark.parametrize("options", list(RESTRICTIONS.values()), ids=list(RESTRICTIONS))


@pytest.fixture(scope="module", autouse=True)
def image():
    """IMAGE, built once; removed at the end with all containers that were made of it."""
    if why_no_docker():
        pytest.skip(why_no_docker())
    remove_images()             # an interrupted run's
    build_image()
    yield
    remove_images()


def remove_images():
    """Remove our images, and all containers that were made of them."""
    for name in (WITH_ENTRYPOINT, IMAGE):
        docker("rm", "--force", *docker("ps", "--all", "--quiet", "--filter", "ancestor=" + name).split(), check=False)
        docker("rmi", "--force", name, check=False)


@pytest.fixture
def services(tmp_path):
    """services(web="sleep 1000"): docker run's options that give the container these services."""
    def configure(**commands):
        namespace = Namespace(tmp_path)
        for name, command in commands.items():
            namespace.service(name, command)
        return "--volume", "%s:/etc/zinit/services:ro" % namespace.services
    return configure


def run_on_terminal(*options):
    """docker run -it of pyinit1.py with a kept server, which listens already."""
    terminal = Keyboard("docker", "run", "--interactive", "--tty", *options, IMAGE, "python3", "-IS", "/pyinit1.py", "--container")
    for pattern in ("^pyinit1: ready", "^server: ready"):
        terminal.log.wait_for(pattern, SECONDS)
        terminal.log.position = 0       # they come in any order
    return terminal


def assert_order(text, *parts):
    """Each of `parts` stands in `text`, behind the one before."""
    position = 0
    for part in parts:
        assert part in text[position:], "%r does not follow what stands before it in %s:\n%s" % (part, parts, text)
        position = text.index(part, position) + len(part)


def with_server(*options, **more):
    """A Container whose server listens."""
    container = Container(*options, **more)
    container.wait_for("^server: ready")
    return container


def logs(identity, *options):
    """What docker logs says of a container so far, stdout and stderr together."""
    done = subprocess.run(["docker", "logs", *options, identity], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS)
    return done.stdout.decode()


def ended(container):
    """Wait for the end of a container; -> (exit status, all of its log)."""
    return container.status(), container.log.wait_end(SECONDS)


def running(container, word):
    """The pids of the processes in the container that have `word` in their command line."""
    lines = docker("exec", container.identity, "ps", "-o", "pid,args").splitlines()
    return [int(line.split()[0]) for line in lines if word in line]


# ---- docker stop

def logged_at(container, text):
    """When Docker read the first line with `text`, in seconds of its minute: RFC 3339 is "2030-01-31T23:59:59.123456789Z"."""
    log = logs(container.identity, "--timestamps")
    return float(re.search(r"^\S+:([0-9.]+)Z %s" % re.escape(text), log, re.M).group(1))


def stop_of_a_shell():
    """How long docker stop of a container takes, in seconds, whose PID 1 exits at SIGTERM at once."""
    identity = docker("run", "--detach", "--entrypoint", "sh", IMAGE, "-c",
                      "trap 'exit 0' TERM; echo shell: ready; while :; do sleep 1000 & wait $!; done")
    poll(lambda: "shell: ready" in logs(identity), SECONDS, "the shell")
    started = time.monotonic()
    docker("stop", identity)
    return time.monotonic() - started


def test_docker_stop_of_a_prompt_server_takes_no_longer_than_the_server(figure):
    """The stand-in without services ends at once: its own time is next to nothing.

    The time in the container is exact; docker's own, by a stop of a shell in turns with ours, is as noisy as docker is.
    """
    ours, inside, bare = [], [], []
    for _ in range(5):
        with with_server() as container:
            ours.append(container.stop())
            inside.append((logged_at(container, "pyinit1: the end: exit") - logged_at(container, "pyinit1: signal: SIGTERM")) % 60)
            assert container.status() == 0
        bare.append(stop_of_a_shell())
    ours, inside, bare = (statistics.median(each) for each in (ours, inside, bare))
    goal = "%.0f" % (1000 * STOP_GOAL)
    figure("docker stop, from SIGTERM to our end", 1000 * inside, "ms", goal)
    figure("docker stop, beyond the %.0f ms of a shell's" % (1000 * bare), 1000 * (ours - bare), "ms", goal)
    assert inside < 10 * STOP_GOAL and ours - bare < 10 * STOP_GOAL


def test_docker_stop_ends_the_services_then_the_server_then_all_others(services):
    options = services(first=PIG + " first 0", second=PIG + " second 0", third=PIG + " stray 0.2 orphan")
    with with_server("--tty", *options) as container:
        for name in ("first", "second", "stray"):
            container.wait_for("^%s: ready" % name)
            container.log.position = 0
        container.stop()
        status, text = ended(container)
    assert status == 0
    assert_order(text, "pyinit1: signal: SIGTERM: power off\n", "pyinit1: the end: power off: ", "server: asked: system.shutdown: ",
                 "second: got SIGTERM", "second: saved", "server: service stopped: second", "first: got SIGTERM", "first: saved",
                 "server: service stopped: first", "pyinit1: server ended: pid ", ": exit status 0\n",
                 "pyinit1: the end: server stopped: ", "stray: got SIGTERM", "stray: saved", "pyinit1: the end: others stopped: ",
                 "pyinit1: the end: exit status 0\n")
    assert text.count(": got SIGTERM") == 3 and "killed" not in text


@pytest.mark.parametrize("name", ["TERM", "INT", "37"])
def test_status_is_0_when_the_server_was_ended_by_request(name):
    with with_server() as container:
        docker("kill", "--signal", name, container.identity)
        assert container.status() == 0


@pytest.mark.parametrize("words, status", [
    (("true",), 0), (("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -9 $$"), 137), (("/no/such/program",), 127), (("no-such-program",), 127),
    (("/etc/passwd",), 126), (("/etc",), 126), (("sh", "-c", "trap 'exit 5' TERM; kill -TERM 1; while :; do sleep 1; done"), 5),
], ids=["true", "own", "killed", "no-such-path", "not-on-PATH", "not-executable", "directory", "own-after-SIGTERM"])
def test_status_is_the_one_of_COMMAND(words, status):
    with Container(words=("--container", "--", *words), ready=None) as container:
        assert container.status() == status


def test_status_is_2_for_a_bad_option_and_nothing_is_started():
    with Container(words=("--container", "--frobnicate"), ready=None) as container:
        status, text = ended(container)
    assert status == 2 and "--frobnicate" in text and "started" not in text


# ---- terminals

def test_ctrl_c_ends_the_container_in_order_and_the_server_never_gets_it(services):
    """A server that got it would be killed by it: it has no handler."""
    with run_on_terminal(*services(web=PIG + " web 0")) as terminal:
        terminal.log.wait_for("^web: ready", SECONDS)
        terminal.type("\x03")
        assert terminal.wait() == 0
        text = terminal.log.text
    assert_order(text, "pyinit1: signal: SIGINT: reboot\n", "server: asked: system.shutdown", "server: service stopped: web",
                 "pyinit1: server ended: pid ", ": exit status 0\n", "pyinit1: the end: exit status 0\n")
    assert "web: got SIGTERM" in text and "web: got SIGINT" not in text


def test_ctrl_z_and_ctrl_backslash_neither_stop_nor_end_anything():
    with run_on_terminal() as terminal:
        terminal.type("\x1a\x1c")
        terminal.log.wait_for("pyinit1: signal: SIGQUIT: ignored$", SECONDS)
        terminal.type("\x03")
        assert terminal.wait() == 0
    assert_order(terminal.log.text, "pyinit1: signal: SIGINT: reboot\n", "server: asked: system.shutdown", "exit status 0\n")


def test_docker_stop_does_not_wait_for_a_shell_that_is_logged_in():
    """Interactive shells ignore SIGTERM: they get SIGHUP."""
    with with_server() as container, Keyboard("docker", "exec", "-it", container.identity, "sh") as shell:
        shell.log.wait_for("[#$] ", SECONDS, partial=True)
        shell.type("echo logged $((1+1)) in\n")
        shell.log.wait_for("^logged 2 in$", SECONDS)
        assert container.stop("--time", "60") < PATIENCE
        assert container.status() == 0


# ---- docker exec

def start_pig(container, *words):
    """A guinea pig by docker exec, that is ready; -> (its Popen, its Lines)."""
    process = container.start_exec(*PIG.split(), *words)
    lines = Lines(process.stdout, "docker exec")
    lines.wait_for("^%s: ready" % words[0], SECONDS)
    return process, lines


def test_docker_execed_process_gets_sigterm_and_the_time_to_save_its_work():
    """It is no child of ours: waitpid(2) knows nothing of it."""
    with with_server() as container:
        process, lines = start_pig(container, "pig", "1")
        seconds = container.stop("--time", "60")
        status, text = ended(container)
        assert_order(lines.wait_end(SECONDS), "pig: got SIGTERM\n", "pig: saved\n")
        process.wait(SECONDS)
    assert status == 0 and 1 <= seconds < PATIENCE
    assert lines.text.count("pig: got SIGTERM") == 1 and "others killed" not in text


def test_docker_execed_process_that_never_ends_costs_the_grace_and_is_named():
    with with_server(words=("--container", "--grace", "1")) as container:
        process, lines = start_pig(container, "pig", "-1")
        container.stop("--time", "60")
        status, text = ended(container)
        lines.wait_end(SECONDS)
        process.wait(SECONDS)
    assert status == 0 and re.search(r"^pyinit1: others killed: still there after 1 s: pid \d+ python3", text, re.M)


# ---- what a container may be denied

@restricted
def test_denied_container_ends_in_order(services, options):
    with with_server(*options, *IN_TMP, "--tty", *services(web=PIG + " web 0")) as container:
        container.log.position = 0
        container.wait_for("^web: ready")
        process, lines = start_pig(container, "pig", "0.3")
        assert container.stop("--time", "60") < PATIENCE
        status, text = ended(container)
        assert_order(lines.wait_end(SECONDS), "pig: got SIGTERM\n", "pig: saved\n")
        process.wait(SECONDS)
    assert status == 0
    assert_order(text, "pyinit1: signal: SIGTERM: power off\n", "server: asked: system.shutdown: ", "web: got SIGTERM\n",
                 "server: service stopped: web", "pyinit1: the end: server stopped: ", "pyinit1: the end: others stopped: ",
                 "pyinit1: the end: exit status 0\n")
    assert not re.search("killed|not signalled|not asked|crashed", text)


@restricted
def test_denied_container_restarts_its_server_softly(services, options):
    with with_server(*options, *IN_TMP, *services(web="exec sleep 100000")) as container:
        before = running(container, "sleep 100000")
        docker("kill", "--signal", "USR1", container.identity)
        container.wait_for("^server: ready")
        assert running(container, "sleep 100000") == before and len(before) == 1
        container.stop()
        assert container.status() == 0


def test_read_only_container_without_any_place_for_a_socket_still_ends_in_order():
    with Container("--read-only", "--tty") as container:
        container.wait_for(r"^pyinit1: server ended: pid \d+: exit status 1$")
        assert container.stop("--time", "60") < PATIENCE
        assert container.status() == 0


def test_what_a_non_root_container_must_not_signal_costs_the_grace_and_no_more():
    """`docker exec --user 0` in a container of user 1000: kill(2) says EPERM."""
    with with_server("--user", "1000", *IN_TMP, words=("--container", "--grace", "1")) as container:
        with Keyboard("docker", "exec", "-it", "--user", "0", container.identity, "sh") as root:
            root.log.wait_for("# ", SECONDS, partial=True)
            assert container.stop("--time", "60") < 1 + PATIENCE
            status, text = ended(container)
    assert status == 0 and "pyinit1: not signalled: " in text and "pyinit1: the end: exit status 0\n" in text


# ---- soft restart, docker restart

def test_docker_kill_usr1_restarts_the_server_and_its_services_go_on(services):
    with with_server("--tty", *services(web="exec sleep 100000", mail=PIG + " mail 0")) as container:
        container.log.position = 0
        container.wait_for("^mail: ready")
        before = [running(container, word) for word in ("sleep 100000", "guinea_pig.py mail", "zinit-server")]
        docker("kill", "--signal", "USR1", container.identity)
        container.wait_for("^pyinit1: signal: SIGUSR1: soft restart$")
        container.wait_for("^server: ready")
        after = [running(container, word) for word in ("sleep 100000", "guinea_pig.py mail", "zinit-server")]
        container.stop()
        status, text = ended(container)
    assert after[:2] == before[:2] and [len(pids) for pids in after] == [1, 1, 1] and after[2] != before[2]
    assert status == 0 and text.count("mail: got SIGTERM") == 1
    assert {"web", "mail"} == set(re.findall("^server: service adopted: (.*?):", text, re.M))


def test_a_server_that_is_killed_is_started_again():
    with with_server() as container:
        docker("exec", container.identity, "killall", "-9", "zinit-server")
        container.wait_for(r"^server: ready")
        container.stop()
        assert container.status() == 0


@pytest.mark.parametrize("how", [("restart",), ("kill", "start")], ids=["restart", "kill-and-start"])
def test_docker_restart_brings_it_back_over_what_the_last_run_left(services, how):
    """The socket of a killed server is still there, and the state that nobody adopted."""
    with with_server(*services(web="exec sleep 100000")) as container:
        for word in how:
            docker(word, container.identity)
        poll(lambda: len(running(container, "sleep 100000")) == 1, SECONDS, "the service")
        container.stop()
        assert container.status() == 0
        log = logs(container.identity)
    assert log.count("pyinit1: ready: pid 1\n") == 2 and log.count("server: ready: ") == 2
    assert log.count("pyinit1: the end: exit status 0\n") == (2 if how == ("restart",) else 1)


# ---- where am I

@pytest.mark.parametrize("options, words, reason", [
    ((), ("--container",), "--container"),
    ((), (), "PID 1 of another PID namespace"),
    (("--env", "container=docker"), (), "$container is docker"),
    (("--env", "ZINIT_CONTAINER="), (), "ZINIT_CONTAINER is set"),
    (("--env", "container=docker", "--read-only", "--user", "1000", "--cap-drop", "ALL"), (), "$container is docker"),
    (("--cap-add", "SYS_BOOT"), (), "PID 1 of another PID namespace"),
], ids=["option", "namespace", "container", "ZINIT_CONTAINER", "denied", "may-reboot"])
def test_mode_is_container_for_this_reason(options, words, reason):
    with Container(*options, words=words) as container:
        assert "pyinit1: mode: container: %s\n" % reason in container.log.text


# ---- the start

@pytest.fixture(scope="module")
def entrypoint(image):
    """WITH_ENTRYPOINT: IMAGE with the ENTRYPOINT of the README."""
    identity = docker("create", IMAGE, "true")
    docker("commit", "--change", ENTRYPOINT, "--change", "CMD []", identity, WITH_ENTRYPOINT)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_sigterm_right_after_the_start_is_not_lost_with_the_entrypoint_that_blocks_signals(entrypoint, delay):
    """A tenth of a processor makes the interpreter's start long enough for `docker kill` to hit it.

    busybox's env cannot block signals, so this machine's stands before it on PATH.
    """
    identity = docker("create", "--cpus", "0.1", "--volume", "/usr/bin/env:/usr/local/bin/env:ro", WITH_ENTRYPOINT)
    docker("start", identity)
    outer = docker("inspect", "--format", "{{.State.Pid}}", identity)
    poll(lambda: signal.SIGTERM in Process(outer).signals("SigBlk"), SECONDS, "env to block SIGTERM")
    time.sleep(delay)           # not for luck: any moment is right
    docker("kill", "--signal", "TERM", identity)
    assert docker("wait", identity, seconds=SECONDS) == "0"
    assert "pyinit1: signal: SIGTERM: power off\n" in logs(identity)
    docker("rm", identity)
