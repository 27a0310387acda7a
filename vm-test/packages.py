"""Debian packages, fetched and unpacked into the cache: without root, for any architecture of the table.

root(ARCHITECTURE) is the whole contract: a directory that holds one file tree with a kernel, Python, libc and busybox,
its library byte-compiled. apt does the fetching, with state directories of its own: the machine's package lists and its
foreign architectures are neither read nor changed. A tree is built under another name and renamed when it is complete, with a
lock held: neither an interrupted run nor a second one at the same time can leave half of it behind.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

# The package whose dependency is the kernel. The line of Ubuntu is untested.
KERNELS = {
    ("debian", "amd64"): "linux-image-cloud-amd64",
    ("debian", "arm64"): "linux-image-cloud-arm64",
    ("ubuntu", "amd64"): "linux-image-virtual",
    ("ubuntu", "arm64"): "linux-image-virtual",
}
ARCHITECTURES = sorted({architecture for _, architecture in KERNELS})

# The rest of the tree; @ stands for python3's version. libgcc-s1 is what the real zinit-server needs beside libc.
WANTED = ("bash", "busybox-static", "libc6", "libexpat1", "libffi8", "libgcc-s1", "libpython@-minimal", "libpython@-stdlib",
          "libtinfo6", "python@-minimal", "zlib1g")

# Glob patterns of what is deleted after unpacking: nothing here runs it, and unpacking is most of a boot. Only what weighs
# something; ascii, idna, latin_1 and utf_* stay of the encodings.
LIBRARY = "usr/lib/python3.[0-9]*/"
DROPPED = (
    "etc", "usr/share", "var", "usr/lib/valgrind",
    *("%s/*-linux-gnu/%s" % (top, name) for top in ("lib", "usr/lib") for name in (
        "audit", "gconv", "libexpatw*", "libmvec*", "perl-base")),
    *(LIBRARY + name for name in (
        "_pydecimal.py", "asyncio", "config-3*", "ctypes/test", "distutils", "email", "ensurepip", "html", "http", "idlelib",
        "lib2to3", "multiprocessing", "pydoc_data", "sqlite3", "test", "turtle*", "unittest", "xml", "xmlrpc")),
    *(LIBRARY + "encodings/" + name for name in ("[!_ailu]*", "iso*")),
    *(LIBRARY + "lib-dynload/" + name for name in (
        "_codecs_*", "_curses*", "_decimal*", "_hashlib*", "_sqlite3*", "_ssl*", "_test*", "audioop*")),
)


class HarnessError(Exception):
    """The harness cannot do what it was asked for; the text is meant for the person at the terminal."""


def cache_dir():
    """Where downloads and builds live, outside the checkout; made if missing."""
    path = os.environ.get("PYINIT1_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "pyinit1")
    directory = pathlib.Path(path).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def host_architecture():
    """This machine's architecture as Debian names it."""
    return output(["dpkg", "--print-architecture"]).strip()


def root(architecture):
    """The unpacked tree of `architecture`, as a Path; fetched and byte-compiled at the first call, a minute or so."""
    distribution, release = host_distribution()
    if (distribution, architecture) not in KERNELS:
        raise HarnessError("no packages known for %s on %s: this needs Debian or Ubuntu, and one of %s"
                           % (architecture, distribution or "this system", ", ".join(ARCHITECTURES)))
    # This file is the recipe: another one makes another tree.
    recipe = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:8]
    tree = cache_dir() / "packages" / "-".join((distribution, release, architecture, recipe))
    if tree.is_dir():
        return tree
    tree.parent.mkdir(exist_ok=True)
    with locked(tree.parent / (architecture + ".lock")):
        if not tree.is_dir():           # another run may have made it meanwhile
            build(architecture, KERNELS[distribution, architecture], tree)
    return tree


def host_distribution():
    """("debian", "12"), ("ubuntu", "24.04"), ...: ID and VERSION_ID of os-release(5), "" where it has none."""
    with contextlib.suppress(OSError):
        words = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', pathlib.Path("/etc/os-release").read_text(), re.MULTILINE))
        return words.get("ID", ""), words.get("VERSION_ID", "")
    return "", ""


@contextlib.contextmanager
def locked(path):
    """Hold an exclusive lock on the file `path`; it goes with the process, so nothing stale can stay. flock(2)."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that fetches packages (%s)" % path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(architecture, kernel, tree):
    """Fetch, unpack, prune and byte-compile into `tree`, which appears whole or not at all."""
    say("fetching %s packages (once; kept in %s)" % (architecture, tree.parent))
    work = tree.with_name(tree.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)         # an interrupted run's: we hold the lock
    debs, unpacked = work / "debs", work / "tree"
    debs.mkdir(parents=True)
    apt = Apt(architecture, tree.with_name("apt-" + architecture))
    apt.update()
    version = dependency(apt, "python3-minimal", r"python(3\.\d+)-minimal")
    names = [name.replace("@", version) for name in WANTED]
    apt.download(names + kernel_packages(apt, kernel), debs)
    for deb in sorted(debs.iterdir()):
        run(["dpkg-deb", "-x", deb, unpacked])
    prune(unpacked)
    byte_compile(unpacked, unpacked if architecture == host_architecture() else root(host_architecture()))
    unpacked.rename(tree)
    shutil.rmtree(work)


class Apt:
    """apt for one architecture, with lists and state of its own under `directory`, and the machine's sources and keys."""

    def __init__(self, architecture, directory):
        for name in ("lists/partial", "archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.configuration = directory / "apt.conf"
        self.configuration.write_text("\n".join((
            '#clear APT::Architectures;', '#clear APT::Update;',    # hooks there expect the machine's own directories
            'APT { Architecture "%s"; Architectures { "%s"; }; Sandbox::User "root"; };' % (architecture, architecture),
            'Dir { State "%s"; State::lists "lists"; State::status "/dev/null"; Cache "%s"; };' % (directory, directory),
            'Acquire { Languages "none"; Retries "3"; };', "")))

    def command(self, program, *words):
        return [program, "-c", self.configuration, *words]

    def update(self):
        """Fetch the package lists. A third party's broken source is no reason to stop: download() fails if it matters."""
        done = subprocess.run(self.command("apt-get", "update"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            say("apt-get update: exit status %d, going on:\n%s" % (done.returncode, done.stdout[-2000:]))

    def depends(self, package):
        """The dependencies of the newest `package`, one string as in its control file; "" if there is no such package."""
        done = subprocess.run(self.command("apt-cache", "--no-all-versions", "show", package),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return " , ".join(re.findall(r"^(?:Pre-)?Depends: (.*)$", done.stdout, re.MULTILINE))

    def download(self, names, directory):
        """The newest version of each package, its hash checked by apt, as a .deb file in `directory`."""
        run(self.command("apt-get", "download", *names), cwd=directory)


def dependency(apt, package, pattern):
    """The one dependency of `package` that matches `pattern`: its first group, or all of it."""
    match = re.search(r"(?<!\S)(?:%s)(?![^\s,])" % pattern, apt.depends(package))
    if not match:
        raise HarnessError("apt knows no package %s that depends on %s: does apt-get update work here?" % (package, pattern))
    return match[1] if match.re.groups else match[0]


def kernel_packages(apt, package):
    """The real kernel package behind the meta-package, and Ubuntu's separate package of its modules."""
    kernel = dependency(apt, package, r"linux-image-\d[^\s,]*")
    return [kernel, *re.findall(r"linux-modules-\d[^\s,]*", apt.depends(kernel))[:1]]


def prune(tree):
    """Delete what DROPPED names."""
    for pattern in DROPPED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def byte_compile(tree, host_tree):
    """Compile the Python library of `tree` by the interpreter of `host_tree`, which this machine can run.

    A .pyc file does not depend on the architecture, only on the version. Each stands beside its source
    (-b), so an image needs no source. Unchecked: the library of an image never changes.
    """
    library, host_library = python_library(tree), python_library(host_tree)
    if library.name != host_library.name:
        say("not byte-compiled: the tree has %s and this machine's has %s" % (library.name, host_library.name))
        return
    directories = ":".join(str(path.parent) for path in host_tree.glob("**/lib*.so.*"))
    run([first(host_tree, "**/ld-linux*.so.*"), "--library-path", directories, host_tree / "usr/bin" / library.name, "-ISB",
         "-m", "compileall", "-b", "-q", "--invalidation-mode", "unchecked-hash", "-s", tree, "-p", "/", library])


def python_library(tree):
    """The library's directory, usr/lib/python3.N: its name is the interpreter's too."""
    return first(tree, LIBRARY.rstrip("/"))


def first(tree, pattern):
    """The first path under `tree` that matches the glob pattern."""
    for path in sorted(tree.glob(pattern)):
        return path
    raise HarnessError("%s: no %s in it" % (tree, pattern))


def run(argv, **keywords):
    """Run a program to its end; HarnessError with the end of its output if it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **keywords)
    if done.returncode:
        raise HarnessError("%s: exit status %d\n%s" % (" ".join(map(str, argv)), done.returncode, done.stdout[-4000:]))


def output(argv):
    """What a program writes to its standard output."""
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout


def say(message):
    """A word to the person at the terminal; standard output belongs to results."""
    print("vm-test: %s" % message, file=sys.stderr, flush=True)
