"""The README's recipes, word for word: their blocks are cut out of it and given to a shell. Only names and /tmp/pyinit1 change.

The Docker ones run over two images, made of the same Debian packages: Debian's own layout, /usr/bin/python3, and python:slim's, whose
only interpreter is /usr/local/bin/python3. Their containers are left as a reader leaves them, and removed at the end.
"""

import os
import platform
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import PYINIT1, ROOT, SECONDS, STAND_IN, Lines, docker, poll, why_no_docker

import image
import packages

README = (ROOT / "README.md").read_text()
NAME = "pyinit1-readme-%d" % os.getpid()        # two runs at once do not remove each other's
NEW_VERSION = "99.0"
BOOT = 180.0                # s: QEMU without KVM, on a busy machine


def blocks(heading):
    """[(language, text)] of the fenced blocks of one section."""
    section = re.search(r"^## %s.*?(?=^## |\Z)" % heading, README, re.M | re.S)[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S)


def quoted(pattern):
    """The one command in `backticks` that matches, in one line."""
    commands = [" ".join(command.split()) for command in re.findall(r"(?<!`)`([^`]+)`(?!`)", README.replace("```", "\0"))]
    command, = [command for command in commands if re.search(pattern, command)]
    return command


def new_version():
    """pyinit1.py's text, of another version."""
    return re.sub("^VERSION = .*", 'VERSION = "%s"' % NEW_VERSION, PYINIT1.read_text(), flags=re.M)


# ---- Docker

def slim_tree():
    """python:slim's layout: everything of Python is below /usr/local, and /usr/bin has none."""
    tree = image.python_tree(packages.host_architecture())
    for path in [path for path in tree if re.match(r"usr/(bin|lib)/python3", path)]:
        image.add(tree, path.replace("usr/", "usr/local/", 1), tree.pop(path))
    return tree


LAYOUTS = {"debian": lambda: image.python_tree(packages.host_architecture()), "slim": slim_tree}


class Recipe:
    """A folder with what the Dockerfile copies, an image to build on, and names that nobody else has."""

    def __init__(self, layout, folder):
        self.folder, self.base = folder, "%s-%s" % (NAME, layout)
        self.image, self.example, self.command = ("%s-%s" % (self.base, what) for what in ("image", "example", "command"))
        (folder / "vm-test/guest").mkdir(parents=True)
        shutil.copy(PYINIT1, folder / "pyinit1.py")
        shutil.copy(STAND_IN, folder / "vm-test/guest/zinit-server")
        (folder / "new-pyinit1.py").write_text(new_version())
        tree = LAYOUTS[layout]()
        image.add(tree, "usr/bin/env", image.file(Path("/usr/bin/env"), 0o755))     # busybox's has no --block-signal
        with open(folder / "base.tar", "wb") as stream:
            image.write_tar(tree, stream)
        subprocess.run(["docker", "import", "base.tar", self.base], cwd=folder, stdout=subprocess.DEVNULL, check=True, timeout=300)
        (folder / ".dockerignore").write_text("base.tar\n")
        (folder / "Dockerfile").write_text(blocks("Docker")[0][1])

    def __call__(self, script, status=0):
        """Give a shell these lines of the README; -> what it says."""
        names = {"pyinit1-example": self.image, "debian-python": self.base, "example": self.example, "command": self.command}
        script = re.sub(r"pyinit1-example|debian-python|\bexample\b|\bcommand\b", lambda match: names[match[0]], script)
        done = subprocess.run(["sh", "-ec", script], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=300)
        assert done.returncode == status, "%s: exit status %d:\n%s" % (script, done.returncode, done.stdout)
        return done.stdout

    def inside(self, script):
        """What `docker exec -it example sh` does with these lines; -> what it says."""
        done = subprocess.run(["docker", "exec", "-i", self.example, "sh", "-e"], input=script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def logs(self):
        return self("docker logs example")

    def wait_ready(self, count):
        poll(lambda: self.logs().count("pyinit1: ready: pid 1\n") >= count, SECONDS, "ready, %d times" % count)

    def remove(self):
        docker("rm", "--force", self.example, self.command, check=False)
        for name in (self.image, self.base):
            docker("rm", "--force", *docker("ps", "--all", "--quiet", "--filter", "ancestor=" + name).split(), check=False)
            docker("rmi", "--force", name, check=False)


@pytest.fixture(scope="module", params=LAYOUTS)
def recipe(request, tmp_path_factory):
    """The image that the README's Dockerfile makes, built by the README's command for who has no registry."""
    if why_no_docker():
        pytest.skip(why_no_docker())
    it = Recipe(request.param, tmp_path_factory.mktemp("readme"))
    try:
        it(quoted("--build-arg BASE=debian-python"))
        yield it
    finally:
        it.remove()


def test_docker_the_container_is_started_stopped_and_has_logged_both(recipe):
    _, (_, script) = blocks("Docker")
    build, *others = script.splitlines()
    assert build == "docker build -t pyinit1-example ."
    log = recipe("\n".join(others))
    assert "pyinit1: signal: SIGTERM: power off\n" in log and "pyinit1: the end: exit status 0\n" in log
    assert docker("wait", recipe.example, seconds=SECONDS) == "0"


def test_docker_words_after_the_images_name_are_command(recipe):
    recipe(quoted("^docker run pyinit1-example"), status=3)


def test_command_its_own_status_is_ours(recipe):
    (_, script), = blocks("COMMAND")
    assert recipe(script).splitlines()[-1] == script.split()[-4].rstrip(":") == "3"


def test_updating_the_new_file_takes_over_and_the_links_work(recipe):
    """After the first test its container is stopped. The links run by the shebang: there must be a /usr/bin/python3."""
    started = recipe.logs().count("pyinit1: ready: pid 1\n") if docker("ps", "-aq", "--filter", "name=%s$" % recipe.example) else 0
    if not started:
        recipe("docker run -d --name example pyinit1-example")
    recipe(quoted("^docker start example"))
    recipe.wait_ready(started + 1)
    recipe(quoted("^docker cp "))
    assert quoted("^docker exec -it") == "docker exec -it example sh"
    (_, script), = blocks("Updating it in place")
    recipe.inside(script)
    poll(lambda: "pyinit1: taken over: server: pid " in recipe.logs(), SECONDS, "the new file to take over")
    recipe.wait_ready(started + 2)
    assert recipe.inside("/pyinit1.py -V") == "pyinit1 %s\n" % NEW_VERSION
    docker("exec", recipe.example, "/sbin/poweroff", check=False)      # which may be ended before it has ended
    assert docker("wait", recipe.example, seconds=SECONDS) == "0"
    assert "pyinit1: signal: signal 38: power off\n" in recipe.logs()


# ---- the initramfs

def why_no_initramfs():
    """Why the recipe, which is for Debian 12 on amd64, cannot be run here; "" if it can."""
    if (packages.host_distribution(), platform.machine()) != (("debian", "12"), "x86_64"):
        return "the README's initramfs is for Debian 12, amd64"
    missing = [program for program in ("cpio", "fakeroot", "qemu-system-x86_64") if not shutil.which(program)]
    return "not installed: " + ", ".join(missing) if missing else ""


class Machine:
    """What a shell script leaves on a terminal of ours: a machine's console, at last; use it in a with statement."""

    def __init__(self, script, folder):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvp("sh", ["sh", "-ec", script])
        self.log = Lines(self.master, "the machine")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.master)               # the session has lost its terminal: SIGHUP
        deadline = time.monotonic() + SECONDS
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            time.sleep(0.05)
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)

    def type(self, text):
        os.write(self.master, text.encode())

    def prompt(self):
        """Wait for the next prompt of the guest's shell."""
        self.log.wait_for("^/ # ", BOOT, partial=True)


@pytest.fixture
def checkout(tmp_path):
    """A folder with what the blocks of "Initramfs" take from the checkout, and the new file of "Updating it in place"."""
    (tmp_path / "vm-test/guest").mkdir(parents=True)
    shutil.copy(PYINIT1, tmp_path / "pyinit1.py")
    shutil.copy(STAND_IN, tmp_path / "vm-test/guest/zinit-server")
    (tmp_path / "new-pyinit1.py").write_text(new_version())
    return tmp_path


@pytest.mark.skipif(bool(why_no_initramfs()), reason=why_no_initramfs())
def test_initramfs_boots_to_a_shell_is_updated_in_place_and_powers_off(checkout):
    """The first block fetches Debian packages, the second ends with QEMU; then "Updating it in place", typed on the console."""
    tree, archive = (text for _, text in blocks("Initramfs"))
    (_, update), = blocks("Updating it in place")
    script = (tree + quoted("^install new-pyinit1.py") + "\n" + archive).replace("/tmp/pyinit1", str(checkout / "pyinit1"))
    with Machine(script, checkout) as machine:
        machine.log.wait_for("pyinit1: mode: VM", BOOT)
        for line in update.splitlines():
            machine.prompt()
            machine.type(line + "\n")
        server = machine.log.wait_for(r"pyinit1: taken over: server: pid (\d+)$", BOOT)[1]
        machine.log.wait_for("pyinit1: ready: pid 1", BOOT)
        machine.type("/init -V\n")
        machine.log.wait_for("^pyinit1 %s" % re.escape(NEW_VERSION), BOOT)
        machine.prompt()
        machine.type("poweroff\n")
        text = machine.log.wait_end(BOOT)
    assert re.findall(r"pyinit1: server started: pid (\d+): ", text) == [server], text
    assert "pyinit1: signal: signal 38: power off\n" in text and "pyinit1: the end: reboot(2): RB_POWER_OFF\n" in text, text
    assert "reboot: Power down" in text and "Kernel panic" not in text, text
