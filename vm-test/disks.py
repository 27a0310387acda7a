"""Disks of a machine: ext4 images, made, read and judged on this machine by e2fsprogs, without root and without a mount."""

import contextlib
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile

import image
import packages

PACKAGE = "e2fsprogs"
BLOCK_BYTES = 4096          # a page: Linux takes a swap file on smaller blocks only where they happen to be aligned

# What a disk must be like after the end of the machine.
CLEAN = "clean"             # as if unmounted by hand: no journal recovery, and e2fsck finds nothing
FROZEN = "frozen"           # no journal recovery; an orphan inode may be left, which the next mount frees
SYNCED = "synced"           # no more than sync(2) was promised: after the journal's recovery e2fsck finds nothing
UNJUDGED = "unjudged"       # the machine could not reach it


def tool(name):
    """The path of a program of e2fsprogs; a user's PATH has no sbin."""
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if not path:
        raise packages.HarnessError("no %s here: apt-get install --no-install-recommends %s" % (name, PACKAGE))
    return path


def ask(name, *words):
    """(exit status, output) of a program of e2fsprogs that changes nothing; what it says of its version goes nowhere."""
    done = subprocess.run([tool(name), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True, errors="replace")
    return done.returncode, done.stdout


def write(tree, path, mebibytes):
    """Make `path` an ext4 disk of that size that holds the tree; everything in it is root's."""
    with tempfile.TemporaryDirectory(prefix="vm-test-disk.") as folder:
        unpack(tree, pathlib.Path(folder))
        packages.run([tool("mke2fs"), "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-E", "root_owner=0:0",
                      "-d", folder, path, "%dM" % mebibytes])
    if tree:
        become_roots(tree, path)


def unpack(tree, folder):
    """Write a tree's directories, files and links into `folder`. Device nodes need root: become_roots() makes them."""
    for name, node in sorted(tree.items()):
        where, kind = folder / name, stat.S_IFMT(node.mode)
        if kind == stat.S_IFDIR:
            where.mkdir()
        elif kind == stat.S_IFLNK:
            os.symlink(os.fsdecode(node.data), where)
        elif kind == stat.S_IFREG:
            where.write_bytes(image.content(node))
    for name, node in tree.items():         # last: a directory that may not be written could not be filled
        if stat.S_ISDIR(node.mode) or stat.S_ISREG(node.mode):
            (folder / name).chmod(stat.S_IMODE(node.mode))


def become_roots(tree, path):
    """Make the device nodes of the tree, and root the owner of all: mke2fs copies the owners that this machine has."""
    lines = []
    for name, node in sorted(tree.items()):
        if stat.S_ISCHR(node.mode):
            folder, _, last = name.rpartition("/")
            lines += ['cd "/%s"' % folder, 'mknod "%s" c %d %d' % (last, *node.device), "cd /",
                      'set_inode_field "/%s" mode 0%o' % (name, node.mode)]
        if os.geteuid() != 0:
            lines += ['set_inode_field "/%s" %s 0' % (name, field) for field in ("uid", "gid")]
    with tempfile.NamedTemporaryFile("w", prefix="vm-test-debugfs.") as script:
        script.write("\n".join(lines) + "\n")
        script.flush()
        packages.run([tool("debugfs"), "-w", "-f", script.name, path])


def read(path, name):
    """The text of the file `name` on the disk as its next mount would show it; empty if it is not there."""
    with recovered(path) as copy:
        return ask("debugfs", "-R", 'cat "%s"' % name, copy)[1]


@contextlib.contextmanager
def recovered(path):
    """The path of a copy of the disk whose journal was recovered; of the disk itself where that needs no recovery."""
    if not needs_recovery(ask("dumpe2fs", "-h", path)[1]):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vm-test-disk.") as folder:
        packages.run(["cp", "--sparse=always", path, folder + "/disk"])
        ask("e2fsck", "-p", folder + "/disk")
        yield folder + "/disk"


def needs_recovery(header):
    """What dumpe2fs -h says against a disk: it was not unmounted, or has errors. Empty if nothing."""
    fields = dict(re.findall(r"^([^:\n]+):[ \t]*(.*)$", header, re.MULTILINE))
    if "needs_recovery" in fields["Filesystem features"].split():
        return "its journal needs recovery"
    return "" if fields["Filesystem state"] == "clean" else "its state is: " + fields["Filesystem state"]


def fault(path, wanted):
    """What is wrong with the disk after the machine's end; empty if it is as wanted."""
    if wanted == UNJUDGED:
        return ""
    if wanted == SYNCED:
        with recovered(path) as copy:
            return fault(copy, CLEAN)
    why = needs_recovery(ask("dumpe2fs", "-h", path)[1])
    if why or wanted == FROZEN:
        return why
    status, said = ask("e2fsck", "-f", "-n", path)
    return "" if status == 0 else "e2fsck -fn: exit status %d: %s" % (status, said.strip())
