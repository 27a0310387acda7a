"""The QEMU harness: its pure functions, its archives, and that a machine that fails is found to fail."""

import io
import re
import select
import socket
import subprocess
import sys
import tarfile
import threading

import pytest

from helpers import ROOT, SECONDS, STAND_IN, poll

import disk_scenarios  # noqa: F401  enters its scenarios
import fault_scenarios  # noqa: F401  as well
import image
import machine
import packages
import scenarios
import update_scenarios  # noqa: F401  as well
import waiting

QEMU = machine.BOARDS[packages.host_architecture()].program
needs_qemu = pytest.mark.skipif(not machine.has_qemu(packages.host_architecture()), reason=QEMU + " is not installed")


# ---- ring 1: QEMU's command line, and what an end means

def value_of(argv, option):
    return argv[argv.index(option) + 1]


def argv_for(architecture="amd64", **keywords):
    return machine.qemu_argv(architecture, "KERNEL", "INITRD", "WORDS", **keywords)


@pytest.mark.parametrize("architecture, program", [("amd64", "qemu-system-x86_64"), ("arm64", "qemu-system-aarch64")])
def test_each_architecture_has_its_qemu_and_its_console(architecture, program):
    assert argv_for(architecture)[0] == program
    assert machine.kernel_words(architecture).startswith("console=tty")


def test_kvm_is_used_only_when_asked_for():
    assert value_of(argv_for(), "-accel") == "tcg" and value_of(argv_for(), "-cpu") == "max"
    assert value_of(argv_for(kvm=True), "-accel") == "kvm" and value_of(argv_for(kvm=True), "-cpu") == "host"


def test_a_reset_ends_qemu_so_that_a_panic_is_no_endless_loop():
    assert "-no-reboot" in argv_for()
    assert "panic=-1" in machine.kernel_words("amd64").split()


def test_a_person_gets_the_monitor_and_a_test_gets_qmp():
    assert value_of(argv_for(), "-serial") == "mon:stdio"
    assert "socket,id=qmp,fd=7" in argv_for(qmp=7) and "mon:stdio" not in argv_for(qmp=7)


def test_the_kernel_s_words_are_one_argument_and_the_printed_command_keeps_them_so():
    argv = machine.qemu_argv("amd64", "KERNEL", "INITRD", "a 'b' $(c)")
    assert value_of(argv, "-append") == "a 'b' $(c)"
    shown = subprocess.run(["sh", "-c", "printf '%s\\n' " + machine.shell_line(argv)], stdout=subprocess.PIPE, text=True)
    assert shown.stdout.splitlines() == argv


def test_the_console_can_be_left_out():
    assert "console=ttyS0" in machine.kernel_words("amd64").split()
    assert "console=ttyS0" not in machine.kernel_words("amd64", console=machine.NONE).split()


@pytest.mark.parametrize("reason, console, kind", [
    ("guest-shutdown", "[ 9.1] reboot: Power down\n", "guest-shutdown"),
    ("guest-reset", "[ 9.1] reboot: Restarting system\n", "guest-reset"),
    ("guest-reset", "[ 4.9] Kernel panic - not syncing: Attempted to kill init!\n", "panic"),
    (None, "qemu: could not load kernel\n", "QEMU's own end"),
])
def test_what_an_end_means(reason, console, kind):
    assert machine.meaning(reason, console)[0] == kind


def test_every_scenario_has_a_claim_of_one_line_and_a_name_that_is_a_file_name():
    for name, scenario in scenarios.SCENARIOS.items():
        assert re.fullmatch("[a-z0-9-]+", name) and len(scenario.says) <= 120, name


def test_the_noise_fits_what_the_kernel_takes():
    """Else it would be cut off, or the kernel would panic by itself at the 33rd word for /init."""
    words = machine.kernel_words("amd64", scenarios.NOISE)
    assert 1024 < len(words.encode(errors="surrogateescape")) < 2048
    assert len(words.split()) <= 32


class Ended:
    """A machine that is over, as play() sees it; it ended as expected."""

    def __init__(self, text):
        self.console = self
        self.text = text

    def wait_end(self, expected):
        pass


@pytest.mark.parametrize("text", ["", "vm-test: ok other\n", "vm-test: ok boot, or so\n"])
def test_the_right_end_without_the_guest_s_own_ok_is_no_success(text):
    scenario = scenarios.SCENARIOS["boot"]._replace(run=lambda running: None)
    with pytest.raises(machine.Failure) as caught:
        scenarios.play(scenario, Ended(text))
    assert caught.value.judgement == "early power-off"
    assert scenarios.play(scenario, Ended("vm-test: ok boot\n")) == ""


# ---- ring 1: trees and archives

def small_tree():
    """A little of everything: a directory, a device, links, an executable file."""
    tree = {"bin": image.link("usr/bin")}
    for path, node in image.DEVICES.items():
        image.add(tree, path, image.device(*node))
    image.add(tree, "/bin/tool", image.file("#!/bin/sh\n", 0o755))
    image.add(tree, "tmp", image.directory(0o1777))
    return tree


def test_a_node_has_its_parents_and_goes_with_what_is_below():
    tree = small_tree()
    assert {"usr", "usr/bin", "usr/bin/tool", "dev"} <= set(tree) and "bin/tool" not in tree
    image.remove(tree, "dev")
    assert not [path for path in tree if path.startswith("dev")]
    with pytest.raises(KeyError):
        image.remove(tree, "dev")


def test_busybox_reads_our_cpio_archive():
    busybox = packages.root(packages.host_architecture()) / "bin/busybox"
    listing = subprocess.run([busybox, "cpio", "-tv"], input=image.cpio(small_tree()), stdout=subprocess.PIPE, check=True).stdout.decode()
    for line in "crw-------.* dev/console", "drwxrwxrwt.* tmp", "-rwxr-xr-x.* 10 .* usr/bin/tool", "lrwxrwxrwx.* bin -> usr/bin":
        assert re.search("^" + line + "$", listing, re.MULTILINE), (line, listing)


@pytest.mark.parametrize("path", image.DEVICES)
def test_a_device_has_its_numbers_where_the_kernel_reads_them(path):
    """c_rdevmajor and c_rdevminor are the tenth and eleventh number of a header of 110 bytes; busybox does not show them."""
    archive = image.cpio(small_tree())
    start = archive.index(path.encode() + b"\0") - 110
    numbers = [int(archive[start + 6 + 8 * n:start + 14 + 8 * n], 16) for n in range(13)]
    assert tuple(numbers[9:11]) == image.DEVICES[path]


def test_a_tar_holds_the_same_tree():
    stream = io.BytesIO()
    image.write_tar(small_tree(), stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        assert archive.getnames() == sorted(small_tree())
        assert archive.extractfile("usr/bin/tool").read() == b"#!/bin/sh\n"
        assert archive.getmember("usr/bin/tool").mode == 0o755 and archive.getmember("bin").linkname == "usr/bin"
        assert archive.getmember("dev/null").ischr() and archive.getmember("dev/null").devminor == 3


def test_a_machine_has_our_links_and_not_busybox_s():
    tree = image.machine_tree(packages.host_architecture(), ROOT / "pyinit1.py")
    for name in image.POWER_LINKS:
        assert tree["usr/sbin/" + name].data == b"/init" and "usr/bin/" + name not in tree
    assert tree["usr/bin/sh"].data == b"busybox" and tree["init"].mode & 0o777 == 0o755
    assert [path for path in tree if path.endswith("/json/__init__.pyc")], "the library is not byte-compiled"


# ---- ring 1: packages

class KnownDependencies:
    """apt that knows these dependencies."""

    def __init__(self, **depends):
        self.known = {name.replace("_", "-"): text for name, text in depends.items()}

    def depends(self, package):
        return self.known.get(package, "")


def test_versions_are_found_in_dependencies():
    apt = KnownDependencies(python3_minimal="python3.11-minimal (>= 3.11.2-1~) , dpkg (>= 1.13.20)")
    assert packages.dependency(apt, "python3-minimal", r"python(3\.\d+)-minimal") == "3.11"
    with pytest.raises(packages.HarnessError, match="no package python3-full"):
        packages.dependency(apt, "python3-full", "python3")


@pytest.mark.parametrize("depends, expected", [
    ("linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)", ["linux-image-6.1.0-56-cloud-amd64"]),
    ("linux-image-6.8.0-40-generic, linux-firmware", ["linux-image-6.8.0-40-generic", "linux-modules-6.8.0-40-generic"]),
])
def test_the_kernel_is_behind_its_meta_package(depends, expected):
    apt = KnownDependencies(meta=depends)
    apt.known["linux-image-6.8.0-40-generic"] = "kmod, linux-base, linux-modules-6.8.0-40-generic"
    assert packages.kernel_packages(apt, "meta") == expected


def test_an_interrupted_fetch_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("PYINIT1_CACHE", str(tmp_path))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(packages.Apt, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packages.root(packages.host_architecture())
    left = [path.name for path in (tmp_path / "packages").iterdir() if path.is_dir() and not path.name.startswith("apt-")]
    assert [name for name in left if not name.endswith(".partial")] == []


def test_two_runs_at_once_take_turns(tmp_path, capfd):
    order = []

    def second():
        with packages.locked(tmp_path / "lock"):
            order.append("second")

    with packages.locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        poll(lambda: "waiting for another run" in capfd.readouterr().err, 20, "the second one says that it waits")
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


# ---- ring 3: a machine that fails is found to fail

FAILING = {
    "panic": "exit 3",
    "early power-off": "/bin/busybox poweroff -f",
    "hang": "exec /bin/busybox sleep 1000",
}


# A line to the console may be lost when a panic follows it; what goes to the kernel's log stands on the console when write(2) returns.
SAY_SURELY = "/bin/busybox mknod /dev/kmsg c 1 11; echo '<0>%s' >/dev/kmsg"


def small_machine(tmp_path, statement):
    """A machine of busybox alone, whose /init says `begun` and then runs one statement."""
    architecture = packages.host_architecture()
    tree = {"bin": image.link("usr/bin")}
    image.add(tree, "bin/busybox", image.file(packages.root(architecture) / "bin/busybox", 0o755))
    image.add(tree, "bin/sh", image.link("busybox"))
    image.add(tree, "dev/console", image.device(5, 1))
    image.add(tree, "init", image.file("#!/bin/sh\n%s\n%s\n" % (SAY_SURELY % "begun", statement), 0o755))
    image.write_initramfs(tree, tmp_path / "initramfs")
    return machine.Machine(architecture, image.kernel(architecture), tmp_path / "initramfs", machine.kernel_words(architecture))


@needs_qemu
@pytest.mark.parametrize("judgement", FAILING)
def test_waiting_for_a_line_that_never_comes_says_why_it_did_not(tmp_path, judgement):
    with small_machine(tmp_path, FAILING[judgement]) as running:
        running.wait_for(" begun$")
        with pytest.raises(machine.Failure) as caught:
            running.wait_for("^ready$", seconds=5.0 if judgement == "hang" else machine.DEADLINE)
    assert caught.value.judgement == judgement
    assert running.process.returncode is not None, "QEMU outlived the with statement"


@needs_qemu
@pytest.mark.parametrize("statement, judgement", [("exit 3", "panic"), ("/bin/busybox reboot -f", "wrong end"),
                                                  ("exec /bin/busybox sleep 1000", "hang")])
def test_another_end_than_the_expected_one_is_a_failure(tmp_path, statement, judgement):
    with small_machine(tmp_path, statement) as running:
        running.wait_for(" begun$")
        with pytest.raises(machine.Failure) as caught:
            running.wait_end("guest-shutdown", seconds=5.0 if judgement == "hang" else machine.DEADLINE)
    assert caught.value.judgement == judgement


def run(*words):
    return subprocess.run([sys.executable, str(ROOT / "vm-test/run"), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=600)


@needs_qemu
def test_a_failing_scenario_shows_the_console_and_the_command_that_repeats_it(tmp_path):
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\n%s\nexit 3\n" % (SAY_SURELY % "this is not pyinit1"))
    done = run("--init", str(init), "boot")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed"
    for words in ("boot: FAILED: ", "panic: ", " this is not pyinit1\n", "repeat it: vm-test/run boot --keep --arch ", "--init %s" % init):
        assert words in done.stdout, (words, done.stdout)


# An init of somebody else: it mounts, runs the guest's script, and ends the machine at SIGTERM.
FOREIGN = """#!/bin/busybox sh
for type_folder in proc:proc sysfs:sys devtmpfs:dev tmpfs:run; do
    busybox mount -t ${type_folder%%:*} ${type_folder%%:*} /${type_folder#*:}
done
trap 'busybox killall5 -9; sync; RELEASE; busybox poweroff -f' TERM
sh /etc/rc.scenario &
while :; do wait; busybox usleep 10000; done
"""


@needs_qemu
@pytest.mark.parametrize("release, result", [("busybox umount -a -r", "1 passed, 0 failed"), (":", "0 passed, 1 failed")])
def test_another_init_is_put_through_the_same_scenarios_and_its_disks_are_judged(tmp_path, release, result):
    init = tmp_path / "init"
    init.write_text(FOREIGN.replace("RELEASE", release))
    done = run("--init", str(init), "--foreign", "disk-names")
    assert done.stdout.splitlines()[-1] == result, done.stdout
    assert ("unclean disk: vda: its journal needs recovery" in done.stdout) == (release == ":"), done.stdout


@pytest.mark.parametrize("words, complaint", [(["no-such-scenario"], "no scenario no-such-scenario"), (["zinit"], "zinit needs --zinit DIR"),
                                              (["--arch", "z80"], "invalid choice: 'z80'")])
def test_bad_words_are_refused_before_anything_is_fetched(words, complaint):
    done = run(*words)
    assert done.returncode == 2 and complaint in done.stdout


# ---- the stand-in for the server

def test_the_stand_in_outlives_a_client_that_hangs_up_with_an_answer_unread(tmp_path):
    path = str(tmp_path / "socket")
    server = subprocess.Popen([str(STAND_IN), "-c", str(tmp_path), "-s", path, "--log-level", "info"], stdout=subprocess.PIPE)
    try:
        log = waiting.Lines(server.stdout, "the stand-in")
        log.wait_for("^server: ready", SECONDS)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b'{"jsonrpc":"2.0","id":1,"method":"system.ping"}\n')
                poll(lambda: select.select([client], [], [], 0)[0], SECONDS, "an answer, that is not read")
            log.wait_for("^server: asked: system.ping", SECONDS)
            log.wait_for("^server: client gone", SECONDS)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
