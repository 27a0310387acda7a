"""What is said in several places agrees: the code's tables, its docstring, the README. And pyinit1.py keeps to its style."""

import ast
import os
import re
import subprocess

import pytest

from helpers import PYINIT1, PYTHON, ROOT, load_pyinit1

TEXT = PYINIT1.read_text()
TREE = ast.parse(TEXT)
README = (ROOT / "README.md").read_text()
FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]

pyinit1 = load_pyinit1()

# What the start needs, and what comes later. STYLE: nothing that costs more than it gives.
AT_THE_TOP = {"_signal", "sys", "errno", "fcntl", "marshal", "os", "posix", "select", "stat", "time"}
LATER = {"ctypes", "hashlib", "json", "resource", "shlex", "socket"}
BANNED = {"argparse", "asyncio", "collections.namedtuple", "dataclasses", "logging", "multiprocessing", "optparse", "pathlib", "shutil",
          "subprocess", "tempfile", "threading", "traceback", "typing"}


def between(text, start, end):
    """The lines of `text` behind the first that begins with `start`, up to the next that begins with `end`."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(start)) + 1
    last = next(number for number, line in enumerate(lines[first:], first) if line.startswith(end))
    return lines[first:last]


def readme_rows(header):
    """The rows of the README's table whose header begins with `header`: lists of cells, without `code` marks."""
    lines = README.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| " + header + " |")) + 2
    last = next(number for number, line in enumerate(lines[first:], first) if not line.startswith("|"))
    return [[cell.strip() for cell in line.replace("`", "").strip("|").split("|")] for line in lines[first:last]]


def docstring_rows(header):
    """The rows of the docstring's table whose header begins with `header`: lists of cells, two spaces or more between them."""
    joined = re.sub(r",\n", ", ", "\n".join(paragraph(header)[1:]))
    return [re.split(r"\s{2,}", line) for line in joined.splitlines()]


def paragraph(start):
    """The lines of the docstring's paragraph that begins with `start`."""
    return next(text for text in pyinit1.__doc__.split("\n\n") if text.startswith(start)).splitlines()


def docstring_options():
    """[(how it is spelled, meaning)] of the docstring's list."""
    return [re.fullmatch(r"(\S.*?)\s{2,}(.*)", line.strip()).groups() for line in paragraph("  -c, --container")]


def letters_and_names(spelled):
    """The letters, the long names and the argument's name of "-r, --rewrite FROM:TO"."""
    return re.findall(r"(?<!\S)-(\w)", spelled), re.findall(r"--([\w-]+)", spelled), re.findall(r" ([A-Z][A-Z:]*)$", spelled)


# ---- options

def test_the_docstring_lists_the_options_of_the_table_in_its_order():
    listed = [letters_and_names(spelled) for spelled, _ in docstring_options()]
    flags = next(letters for letters, names, _ in listed if not names)       # -s, -v, -w: tini has no long names for them
    rows = [row for row in pyinit1.OPTIONS if row[0] not in flags]
    assert [(letters, names) for letters, names, _ in listed if names] == [([letter] * bool(letter), [name]) for letter, name, _ in rows]
    assert flags == [letter for letter, _, parse in pyinit1.OPTIONS if letter in flags and parse is None] == ["s", "v", "w"]


def test_the_docstring_names_an_argument_where_the_table_has_one():
    takes = {name: parse is not None for _, name, parse in pyinit1.OPTIONS}
    for spelled, _ in docstring_options():
        _, names, argument = letters_and_names(spelled)
        assert bool(argument) == any(takes[name] for name in names), spelled


def test_the_docstrings_defaults_are_the_constants():
    defaults = {spelled.split()[0]: default for spelled, meaning in docstring_options()
                for default in re.findall(r" \(([\w.]+)\)$", meaning)}
    found, _ = pyinit1.parse_args([], {})
    assert defaults == {
        "--stop-timeout": "%g" % found["stop-timeout"], "--grace": "%g" % found["grace"], "--log-level": found["log-level"]}
    assert (found["stop-timeout"], found["grace"]) == (pyinit1.STOP_TIMEOUT, pyinit1.GRACE) == (30, 10)


def test_the_readmes_options_are_the_docstrings():
    rows = [(spelled, meaning + (" (%s)" % default if default and default != "detected" else ""))
            for spelled, meaning, default in readme_rows("option")]
    assert rows == docstring_options()


def test_options_that_make_no_sense_in_a_machine_are_options():
    names = {name for _, name, _ in pyinit1.OPTIONS}
    assert set(pyinit1.NOT_IN_A_VM) | set(pyinit1.REPEATED) <= names
    assert set(pyinit1.NOT_IN_A_VM) == {"container", "check", "help", "version", "parent-death"}


# ---- environment

def variables(text):
    return set(re.findall(r"\b(?:ZINIT|PYINIT1)_[A-Z_]+\b", text))


def test_docstring_and_readme_have_the_variables_that_the_code_reads():
    read = {node.value for node in ast.walk(TREE) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            and re.fullmatch(r"(ZINIT|PYINIT1)_[A-Z0-9_]+", node.value)}
    assert variables("\n".join(paragraph("environment:"))) == read
    assert {row[0] for row in readme_rows("environment")} == read


def test_the_readmes_defaults_of_variables_are_the_constants():
    defaults = {row[0]: row[2] for row in readme_rows("environment") if row[2]}
    assert defaults == {
        "PYINIT1_STOP_TIMEOUT": "%g" % pyinit1.STOP_TIMEOUT, "PYINIT1_GRACE": "%g" % pyinit1.GRACE, "ZINIT_LOG_LEVEL": "info",
        "ZINIT_CONFIG_DIR": pyinit1.CONFIG_DIR, "ZINIT_SOCKET": pyinit1.SOCKET}


def test_docstring_and_readme_have_the_servers_places():
    assert paragraph("files:")[0].startswith("files: %s, %s, %s" % (pyinit1.CONFIG_DIR, pyinit1.SOCKET, pyinit1.STATE_PATH))
    folders = [os.path.dirname(path) for path in pyinit1.SERVER_PATHS]
    assert {os.path.basename(path) for path in pyinit1.SERVER_PATHS} == {"zinit-server"}
    assert "`%s`, `%s`, `%s` and `%s`\n+ `/zinit-server`" % tuple(folders) in README


# ---- modes and signals

def test_the_readmes_modes_are_the_docstrings():
    assert docstring_rows("mode ") == readme_rows("mode")
    assert [row[0] for row in readme_rows("mode")] == [pyinit1.VM, pyinit1.CONTAINER, pyinit1.PLAIN]


def test_the_docstrings_signals_are_the_tables():
    """Every row, in any order: the same signals, and a meaning that begins with the action's name (or is its beginning)."""
    table = {frozenset(number for number in pyinit1.ACTIONS if pyinit1.ACTIONS[number] == action): action
             for action in pyinit1.ACTIONS.values()}
    rows = {cells[0]: cells[1] for cells in docstring_rows("signal ")}
    assert rows.pop("others") == "logged"
    assert {frozenset(pyinit1.parse_signal(word) for word in words.split(", ")) for words in rows} == set(table)
    for words, meaning in rows.items():
        action = table[frozenset(pyinit1.parse_signal(word) for word in words.split(", "))]
        assert meaning.startswith(action) or action.startswith(meaning), words


def test_the_readmes_signals_are_the_docstrings():
    assert readme_rows("signal") == docstring_rows("signal ")


def test_of_two_signals_that_end_the_docstring_has_the_first_on_top():
    actions = list(dict.fromkeys(pyinit1.ACTIONS.values()))
    meanings = [cells[1] for cells in docstring_rows("signal ")]
    assert [action for action in actions if action in pyinit1.ENDINGS] == [text for text in meanings if text in pyinit1.ENDINGS]


def test_our_links_send_what_the_table_understands():
    for how, (_, _, number, _) in pyinit1.ENDINGS.items():
        assert pyinit1.action_for(number) == how
    assert pyinit1.LINKS == {"poweroff": "power off", "reboot": "reboot", "halt": "halt"}
    said = re.search(r"signals (\d+), (\d+) and (\d+)", README).groups()
    assert [int(number) for number in said] == [number for _, _, number, _ in pyinit1.ENDINGS.values()]


def test_each_way_to_end_has_its_reboot_command():
    """The numbers of <sys/reboot.h>."""
    assert {how: row[:2] for how, row in pyinit1.ENDINGS.items()} == {
        "power off": ("RB_POWER_OFF", 0x4321FEDC), "reboot": ("RB_AUTOBOOT", 0x01234567), "halt": ("RB_HALT_SYSTEM", 0xCDEF0123)}


def test_a_file_system_is_mounted_after_the_one_it_lies_on():
    places = [row[1] for row in pyinit1.API_MOUNTS]
    assert sorted(places) == ["/dev", "/dev/pts", "/dev/shm", "/proc", "/run", "/sys", "/sys/fs/cgroup"]
    assert all(places.index(parent) < places.index(place) for place in places for parent in places if place.startswith(parent + "/"))


# ---- limits

def test_the_readmes_worst_case_is_what_the_constants_add_up_to():
    """stop-timeout and 0.5 s after SIGKILL; grace and 0.5 s after SIGKILL; the log's last lines; in a VM our own pages and the disks."""
    container = 2 * pyinit1.KILL_WAIT + pyinit1.DRAIN_LIMIT
    fixed = (container, container + pyinit1.LOCK_LIMIT + pyinit1.DISKS_LIMIT)
    formula, *rows = readme_rows("worst case")
    assert formula == ["formula"] + ["stop-timeout + grace + %g s" % seconds for seconds in fixed]
    options = [("by default", pyinit1.STOP_TIMEOUT, pyinit1.GRACE), ("--stop-timeout 6 --grace 2", 6, 2),
               ("--grace 25", pyinit1.STOP_TIMEOUT, 25)]
    for row, (words, stop_timeout, grace) in zip(rows, options):
        assert row[0].startswith(words) and row[1:] == ["%g s" % (stop_timeout + grace + seconds) for seconds in fixed]
    assert len(rows) == len(options) and "with %g s after each SIGKILL" % pyinit1.KILL_WAIT in README


def test_the_engines_patience_that_the_readme_names_is_enough():
    fixed = 2 * pyinit1.KILL_WAIT + pyinit1.DRAIN_LIMIT
    worst = pyinit1.STOP_TIMEOUT + pyinit1.GRACE + fixed
    assert "docker stop -t 45" in README and "terminationGracePeriodSeconds: 45" in README
    assert worst < 45 and 6 + 2 + fixed < 10        # docker's own 10 s


def test_the_readmes_other_limits_are_the_constants():
    assert "%s SIGINT within %g s" % ({7: "Seven"}[pyinit1.INTERRUPTS], pyinit1.INTERRUPTS_WITHIN) in README
    assert "syncs for at most %g s" % pyinit1.HURRY_LIMIT in README
    assert "at most %g s for all of them together" % pyinit1.DISKS_LIMIT in README
    assert "at most %d bytes" % pyinit1.LINE_BYTES in README
    assert "(`system.prepare_restart`, %g s)" % pyinit1.RPC_LIMIT in README
    assert "SIGKILL %g s later" % pyinit1.RESTART_LIMIT in README


# ---- the README's commands

def test_every_python_command_of_the_readme_is_isolated():
    commands = re.findall(r'python3(?:\.\d+)?"?,? "?(-\S+|\S*pyinit1\.py)', README)
    assert commands and all(word.strip('",').startswith("-I") for word in commands)
    assert TEXT.startswith("#!/usr/bin/python3 -IS\n") and "#!/usr/bin/python3 -IS`" in README


def test_the_readmes_entry_point_blocks_signals():
    assert 'ENTRYPOINT ["env", "--block-signal", "python3", "-IS", "/pyinit1.py", "--"]' in README


def test_what_the_readme_names_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^    )make ([a-z]+)", README, re.M)):
        assert re.search("^%s:" % target, makefile, re.M), target
    for path in set(re.findall(r"(?:tests|vm-test)/[\w/.-]*\w", README)):
        assert (ROOT / path).exists(), path


# ---- style

def test_every_banner_stands_once_and_in_the_order_of_the_plan():
    banners = re.findall(r"^# ---- ([^:,\n]+)", TEXT, re.M)
    plan = ["imports", "policy", "the kernel's constants", "signals", "the log", "libc", "the command line", "where am I", "boot",
            "other processes", "children", "disks", "the server's RPC", "re-exec", "updates", "the last things", "PID 1", "main"]
    assert banners == plan


def test_nothing_is_imported_but_what_is_allowed_and_the_start_imports_little():
    at_the_top = {alias.name for node in TREE.body if isinstance(node, ast.Import) for alias in node.names}
    everywhere = {alias.name for node in ast.walk(TREE) if isinstance(node, ast.Import) for alias in node.names}
    everywhere |= {node.module for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)}
    assert at_the_top == AT_THE_TOP
    assert everywhere <= AT_THE_TOP | LATER and not everywhere & BANNED


def test_no_banned_module_comes_in_by_another():
    """An interpreter of its own, for this one has imported everything."""
    code = ("import sys; sys.path.insert(0, %r); import pyinit1; pyinit1.load_libc(); pyinit1.load_the_rest(); import resource, shlex\n"
            "print(*sys.modules)" % str(PYINIT1.parent))
    done = subprocess.run([*PYTHON, "-B", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert "pyinit1" in done.stdout.split() and not set(done.stdout.split()) & BANNED


def test_nothing_runs_at_import_but_definitions():
    allowed = (ast.Import, ast.FunctionDef, ast.ClassDef, ast.Assign)
    for node in TREE.body[1:]:
        guarded = isinstance(node, ast.If) and '__name__ == "__main__"' in ast.get_source_segment(TEXT, node.test)
        assert guarded or isinstance(node, allowed), "line %d" % node.lineno


STATE = """
import os, signal, sys
def state():
    umask = os.umask(0o077)
    os.umask(umask)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return (signal.pthread_sigmask(signal.SIG_BLOCK, []), handlers, list(sys.path), dict(os.environ), os.getcwd(), umask,
            os.listdir("/proc/self/fd"), os.listdir("/proc/self/task"))
sys.path.insert(0, sys.argv[1])
signal.pthread_sigmask(signal.SIG_SETMASK, [])      # what our parent blocks is inherited
before = state()
import pyinit1
print("changed" if state() != before else "unchanged")
"""


@pytest.mark.parametrize("flags", ["-IS", "-S"])
def test_import_leaves_the_process_unchanged(flags):
    """Signal mask, handlers, sys.path, environment, folder, umask, descriptors and threads, isolated or not."""
    done = subprocess.run([PYTHON[0], flags, "-B", "-c", STATE, str(PYINIT1.parent)], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "unchanged\n"


def test_nothing_sleeps():
    """The one blocking call is poll(2) in Init.sleep, which signals end; a time.sleep would be deaf to them."""
    called = {ast.unparse(node.func) for node in ast.walk(TREE) if isinstance(node, ast.Call)}
    assert {name for name in called if "sleep" in name.lower()} == {"self.sleep"}
    assert len(re.findall(r"\bpoll\.poll\(", TEXT)) == 2        # and is_ready, which waits only for a dying log and in children


def test_no_function_is_over_40_lines_and_main_is_under_25():
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in FUNCTIONS}
    assert {name: length for name, length in lengths.items() if length > 40} == {}
    assert lengths["main"] < 25
    assert sorted(lengths.values())[len(lengths) // 2] <= 10


def test_every_policy_constant_says_on_its_line_what_it_is_for():
    for line in between(TEXT, "# ---- policy", "# ---- the kernel's constants"):
        if re.match(r"[A-Z_, ]+ = [\d.]", line):
            assert re.search(r"  # \S", line), line


def test_nothing_is_used_before_it_is_met():
    met = {node.name: node.lineno for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    met.update({target.id: node.lineno for node in TREE.body if isinstance(node, ast.Assign)
                for target in ast.walk(node.targets[0]) if isinstance(target, ast.Name)})
    early = {"%s, line %d" % (node.id, node.lineno) for top in TREE.body for node in ast.walk(top)
             if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and met.get(node.id, 0) > node.lineno}
    assert early == set()
