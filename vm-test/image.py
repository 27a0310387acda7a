"""The guest's file tree as a value, and its archives: cpio "newc" for the kernel, tar for `docker import`.

A tree is a dict from path ("usr/bin/python3", no slash in front) to Node. /bin, /sbin, /lib and /lib64 are links into /usr, as
in Debian. add() and remove() keep a tree whole: a node has its parents, and goes with what is below it.
"""

import collections
import fnmatch
import gzip
import io
import os
import pathlib
import re
import stat
import tarfile

import packages

GUEST = pathlib.Path(__file__).resolve().parent / "guest"
MERGED = ("bin", "lib", "lib64", "sbin")        # links to usr/...
DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin")
NOT_IN_IMAGE = ("boot/", "lib/modules/")        # of the packages: QEMU takes the kernel itself, modules are added one by one
EXTRAS = ("bin/bash", "bin/rbash", "lib/*/libtinfo.so.*")       # patterns of what only some images have, see add_extras()

# pyinit1 replaces these applets; as links to it they send what it understands, busybox's own do not.
POWER_LINKS = ("halt", "poweroff", "reboot")

DISK_MODULES = ("virtio_pci", "virtio_blk")     # ext4 is built in
MORE_MODULES = ("loop", "overlay")

# Without console the kernel starts /init with descriptors 0 to 2 closed, and without urandom Python may refuse to start.
DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3), "dev/urandom": (1, 9)}

# The type is in the mode, as in st_mode. `data`: a file's bytes or the Path that has them, a link's target. `device`: (major, minor).
Node = collections.namedtuple("Node", "mode data device")


def directory(mode=0o755):
    return Node(stat.S_IFDIR | mode, b"", (0, 0))


def file(data, mode=0o644):
    """A regular file: its bytes, its text, or a Path to copy from when the archive is written."""
    return Node(stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data, (0, 0))


def link(target):
    return Node(stat.S_IFLNK | 0o777, os.fsencode(target), (0, 0))


def device(major, minor, mode=0o600):
    return Node(stat.S_IFCHR | mode, b"", (major, minor))


def merged(path):
    """`path` with the links of MERGED followed: sbin/init is usr/sbin/init."""
    return "usr/" + path if path.split("/", 1)[0] in MERGED else path


def add(tree, path, node):
    """Put `node` at `path`, in the place of what is there; parents that are missing are made."""
    path = merged(path.strip("/"))
    parent = path.rpartition("/")[0]
    if parent and parent not in tree:
        add(tree, parent, directory())
    tree[path] = node


def remove(tree, path):
    """Take `path` and all below it out of the tree. KeyError if it is not there."""
    path = merged(path.strip("/"))
    for name in [name for name in tree if name.startswith(path + "/")]:
        del tree[name]
    del tree[path]


def add_directory(tree, top, skip):
    """Add all that is below the host's directory `top`, except what begins with a word of `skip`; owners become root.

    A module whose .pyc stands beside it comes without its source: half of the library's size, for nothing imports it.
    """
    for path in sorted(pathlib.Path(top).rglob("*")):
        where = path.relative_to(top).as_posix()
        if where in MERGED or where.startswith(skip) or path.suffix == ".py" and path.with_suffix(".pyc").exists():
            continue
        if not any(fnmatch.fnmatchcase(where, pattern) for pattern in EXTRAS):
            add_path(tree, where, path)


def add_path(tree, where, path):
    """Add one file, link or directory of the host at `where`."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        add(tree, where, link(os.readlink(path)))
    else:
        add(tree, where, directory(stat.S_IMODE(mode)) if stat.S_ISDIR(mode) else file(path, stat.S_IMODE(mode)))


def add_extras(tree, architecture, patterns):
    """Add what these patterns of EXTRAS match."""
    root = packages.root(architecture)
    for pattern in patterns:
        for path in root.glob(pattern):
            add_path(tree, path.relative_to(root).as_posix(), path)


def python_tree(architecture):
    """The base of every image: python3 with its library, libc and its like, busybox with a link for each applet."""
    root = packages.root(architecture)
    tree = {name: link("usr/" + name) for name in MERGED}
    for name in DIRECTORIES:
        add(tree, name, directory({"root": 0o700, "tmp": 0o1777}.get(name, 0o755)))
    add_directory(tree, root, NOT_IN_IMAGE)
    add(tree, "usr/bin/python3", link(packages.python_library(root).name))
    # This machine cannot run another architecture's busybox, but it has the same applets.
    for applet in packages.output([packages.root(packages.host_architecture()) / "bin/busybox", "--list"]).split():
        if applet not in POWER_LINKS and merged("bin/" + applet) not in tree:
            add(tree, "bin/" + applet, link("busybox"))
    add(tree, "etc/passwd", file("root:x:0:0:root:/root:/bin/sh\n"))
    add(tree, "etc/group", file("root:x:0:\ntty:x:5:\n"))
    return tree


def machine_tree(architecture, init, server_directory=None):
    """A machine's whole tree: `init` (a Path) as /init, and zinit-server, the stand-in or the real one of a directory."""
    tree = python_tree(architecture)
    for path, (major, minor) in DEVICES.items():
        add(tree, path, device(major, minor))
    add(tree, "init", file(init, 0o755))
    for name in POWER_LINKS:
        add(tree, "sbin/" + name, link("/init"))
    add(tree, "etc/hostname", file("vm-test\n"))
    add(tree, "etc/zinit/services", directory())
    source = pathlib.Path(server_directory or GUEST)
    for name in ("zinit-server", "zinit") if server_directory else ("zinit-server",):
        if not (source / name).is_file():
            raise packages.HarnessError("no %s in %s" % (name, source))
        add(tree, "sbin/" + name, file(source / name, 0o755))
    return tree


# The beginning of a script that is the machine's first process.
MOUNTS = """#!/bin/busybox sh
for type_folder in proc:proc sysfs:sys devtmpfs:dev tmpfs:run; do
    busybox mount -t ${type_folder%%:*} ${type_folder%%:*} /${type_folder#*:}
done
"""
# What a distribution's initramfs does, and no more. $ROOT, a word on the kernel's command line: how to mount it, rw or ro.
SWITCH_ROOT = MOUNTS + """busybox modprobe virtio_pci && busybox modprobe virtio_blk && busybox mount -t ext4 -o ${ROOT:-rw} /dev/vda /root || exit
for folder in proc sys dev run; do busybox mount -o move /$folder /root/$folder; done
exec busybox switch_root /root /sbin/init "$@"
"""


def on_a_disk(tree, architecture):
    """Split a machine's tree: (the root that a disk holds, the small initramfs that switches to it)."""
    root = dict(tree)
    init = root.pop("init")
    add(root, "sbin/init", init)
    for name in POWER_LINKS:
        add(root, "sbin/" + name, link("init"))
    small = {name: link("usr/" + name) for name in MERGED}
    for name in ("dev", "proc", "root", "run", "sys"):
        add(small, name, directory())
    for path, (major, minor) in DEVICES.items():
        add(small, path, device(major, minor))
    add(small, "bin/busybox", tree["usr/bin/busybox"])
    add(small, "init", file(SWITCH_ROOT, 0o755))
    add_modules(small, architecture, DISK_MODULES)
    return root, small


def add_modules(tree, architecture, names):
    """Add these modules of the kernel, what they depend on, and the modules.dep that modprobe(8) reads; {name: with_dependencies()}."""
    top = packages.first(packages.root(architecture), "lib/modules/*")
    files = {name: with_dependencies(top, name) for name in names}
    for path in {path for paths in files.values() for path in paths}:
        add(tree, "lib/modules/%s/%s" % (top.name, path), file(top / path))
    if files:
        lines = ["%s: %s\n" % (first, " ".join(needed)) for first, *needed in files.values()]
        add(tree, "lib/modules/%s/modules.dep" % top.name, file("".join(lines)))
    return files


def with_dependencies(top, name):
    """The path below `top` of a module's file, then those of all that it needs: what is needed most, last (modules.dep(5))."""
    path = packages.first(top, "**/%s.ko" % name)
    depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())[1].decode()
    found = []
    for each in filter(None, depends.split(",")):
        found += with_dependencies(top, each)
    # One that several need is wanted before all of them, so its last place counts.
    return [path.relative_to(top).as_posix(), *reversed(list(dict.fromkeys(reversed(found))))]


def kernel(architecture):
    """The kernel's file on this machine, as QEMU's -kernel wants it."""
    return packages.first(packages.root(architecture), "boot/vmlinuz-*")


def content(node):
    """A node's bytes as they stand in an archive: a file's content, a link's target."""
    return node.data.read_bytes() if isinstance(node.data, pathlib.Path) else node.data


def cpio(tree):
    """The tree as a cpio archive, format "newc": Documentation/driver-api/early-userspace/buffer-format.rst of the kernel."""
    out = bytearray()
    for inode, (path, node) in enumerate(sorted(tree.items()), 1):      # sorted: a directory stands before what is in it
        write_entry(out, inode, path, node)
    write_entry(out, 0, "TRAILER!!!", Node(0, b"", (0, 0)))
    return bytes(out)


def write_entry(out, inode, path, node):
    """Append one entry: 13 numbers of 8 hexadecimal digits, the name, the data, both padded to 4 bytes."""
    data, name = content(node), path.encode() + b"\0"
    numbers = (inode, node.mode, 0, 0, 1, 0, len(data), 0, 0, *node.device, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % number for number in numbers)
    for part in (name, data):
        out += part
        out += bytes(-len(out) % 4)


def write_initramfs(tree, path):
    """Write the tree as the file that QEMU's -initrd wants: cpio, gzip level 1."""
    pathlib.Path(path).write_bytes(gzip.compress(cpio(tree), compresslevel=1, mtime=0))


def write_tar(tree, stream):
    """Write the tree as a tar to a binary stream: the standard input of `docker import -`."""
    types = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE}
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for path, node in sorted(tree.items()):
            data = content(node)
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode, (entry.devmajor, entry.devminor) = types[stat.S_IFMT(node.mode)], stat.S_IMODE(node.mode), node.device
            if entry.type == tarfile.REGTYPE:
                entry.size = len(data)
            elif entry.type == tarfile.SYMTYPE:
                entry.linkname = os.fsdecode(data)
            archive.addfile(entry, io.BytesIO(data))
