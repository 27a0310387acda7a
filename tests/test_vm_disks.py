"""The harness' disks: made without root, and judged rightly."""

import contextlib
import os
import pathlib
import re
import tempfile

import pytest

import helpers  # noqa: F401  vm-test is on the path from here on

import disk_scenarios
import disks
import image
import machine

HEADER = "Filesystem features:      has_journal ext_attr%s extent 64bit\nFilesystem state:         %s\n"


@pytest.mark.parametrize("features, state, why", [
    ("", "clean", ""), (" needs_recovery", "clean", "its journal needs recovery"), ("", "not clean", "its state is: not clean"),
    ("", "clean with errors", "its state is: clean with errors"),
])
def test_header_tells_what_needs_recovery(features, state, why):
    assert disks.needs_recovery(HEADER % (features, state)) == why


def written(folder):
    """A small disk in `folder` with a file, a link and a device node on it."""
    tree = {}
    image.add(tree, "etc/two words", image.file("text\n", 0o640))
    image.add(tree, "etc/link", image.link("two words"))
    image.add(tree, "dev/console", image.device(5, 1))
    disks.write(tree, folder / "disk", 16)
    return folder / "disk"


def test_disk_holds_the_tree_and_is_clean(tmp_path):
    disk = written(tmp_path)
    assert disks.read(disk, "etc/two words") == "text\n"
    assert disks.fault(disk, disks.CLEAN) == ""
    said = disks.ask("debugfs", "-R", 'stat "/etc/two words"', str(disk))[1]
    assert "User:     0" in said and "Mode:  0640" in said
    assert "Device major/minor number: 05:01" in disks.ask("debugfs", "-R", "stat /dev/console", str(disk))[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="already another user than root")
def test_disk_of_another_user_is_roots():
    with tempfile.TemporaryDirectory() as folder:       # pytest's own folders are root's alone
        os.chown(folder, 1000, 1000)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                os.setgid(1000)
                os.setuid(1000)
                written(pathlib.Path(folder))
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        disk = folder + "/disk"
        assert os.stat(disk).st_uid == 1000
        assert re.search("User: +0 +Group: +0 ", disks.ask("debugfs", "-R", 'stat "/etc/two words"', disk)[1])
        assert disks.fault(disk, disks.CLEAN) == ""


def test_a_broken_disk_is_found(tmp_path):
    disk = written(tmp_path)
    disks.packages.run([disks.tool("debugfs"), "-w", "-R", "clri /etc/link", disk])
    assert disks.fault(disk, disks.CLEAN).startswith("e2fsck -fn: exit status 4")
    assert disks.fault(disk, disks.FROZEN) == ""        # its header says nothing


def test_a_disk_that_was_only_synced_is_judged_and_read_after_its_recovery(tmp_path):
    disk = written(tmp_path)
    disks.packages.run([disks.tool("debugfs"), "-w", "-R", "feature needs_recovery", disk])
    assert disks.fault(disk, disks.CLEAN) == disks.fault(disk, disks.FROZEN) == "its journal needs recovery"
    assert disks.fault(disk, disks.SYNCED) == "" and disks.read(disk, "etc/two words") == "text\n"
    assert disks.fault(disk, disks.CLEAN) != "", "the disk itself was recovered"
    disks.packages.run([disks.tool("debugfs"), "-w", "-R", "clri /etc", disk])
    assert disks.fault(disk, disks.SYNCED) != ""


def test_the_worst_case_is_the_readme_s():
    stated = re.search(r"^\| formula \|.*\| stop-timeout \+ grace \+ ([\d.]+) s \|$", (helpers.ROOT / "README.md").read_text(), re.MULTILINE)
    measured = disk_scenarios.WORST_SECONDS - disk_scenarios.STOP_TIMEOUT - disk_scenarios.GRACE
    assert measured == float(stated[1])


def test_disks_in_qemus_command_line():
    argv = machine.qemu_argv("amd64", "kernel", "initramfs", "words", ["/a,b", "/c"])
    drives = [argv[index + 1] for index, word in enumerate(argv) if word == "-drive"]
    assert [drive.rpartition("file=")[2] for drive in drives] == ["/a,,b", "/c"]
    assert [word for word in argv if word.startswith("virtio-blk-pci")] == [
        "virtio-blk-pci,request-merging=off,id=vda,drive=drive0", "virtio-blk-pci,request-merging=off,id=vdb,drive=drive1"]


def test_a_module_comes_with_all_that_it_needs(tmp_path):
    for name, needs in ("a", b"b,c"), ("b", b"c"), ("c", b""), ("d", b""):
        (tmp_path / (name + ".ko")).write_bytes(b"\x7fELF\0depends=" + needs + b"\0name=\0")
    assert image.with_dependencies(tmp_path, "a") == ["a.ko", "b.ko", "c.ko"]
