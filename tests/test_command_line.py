"""parse_args: options as getopt_long(3) reads them, the environment, and that no word can stop a machine's boot."""

import getopt
import os
import random

import pytest

from helpers import load_pyinit1

pyinit1 = load_pyinit1()

# The kernel command lines, as the kernel hands them to PID 1
KERNEL_WORDS = (
    "splash single --frobnicate -z foo=bar one two --three",
    "-c -h -V --check --adopt-server 1 --grace x",
    "-p TERM -pTERM --parent-death=9 -- - --= -= --grace= -r -r: -r TERM:",
)

# What random words are made of: options, what looks like options, values, and what nobody types
PIECES = (
    "-", "--", "=", ":", "c", "g", "r", "e", "p", "s", "v", "w", "h", "V", "x", "grace", "stop-timeout", "log-level", "respawn",
    "adopt-server", "rewrite", "exit-ok", "check", "help", "TERM", "SIGTERM", "RTMIN+4", "0", "15", "143", "2.5", "-1", "1e9", "info",
    " ", "", "\n", "\0", "\x1b[2J", "é", "²", "\ud800", "9" * 5000, "%s", "{}", "../", "'", '"',
)


def parse(line, vm=False, **env):
    """parse_args for words separated by spaces: (options, complaints)."""
    return pyinit1.parse_args(line.split(), env, vm)


def options(line, vm=False, **env):
    """What parse() says when there is nothing to complain of."""
    found, complaints = parse(line, vm, **env)
    assert complaints == []
    return found


def random_words(seed, count=2000):
    """`count` lists of words; each is made of one to four PIECES. The seed is printed, PYINIT1_SEED repeats it."""
    print("PYINIT1_SEED=%d" % seed)
    chance = random.Random(seed)
    for _ in range(count):
        yield ["".join(chance.choices(PIECES, k=chance.randint(1, 4))) for _ in range(chance.randint(0, 8))]


def a_seed():
    return int(os.environ.get("PYINIT1_SEED") or random.randrange(2**32))


# ---- options

def test_nothing_given_means_the_defaults():
    assert options("") == {"command": [], "stop-timeout": 30.0, "grace": 10.0, "log-level": "info"}


EVERY_OPTION = [
    ("-c", "container", True), ("--container", "container", True),
    ("--respawn", "respawn", True),
    ("-g", "group", True), ("--group", "group", True),
    ("-r TERM:QUIT", "rewrite", [(15, 3)]), ("--rewrite 15:3", "rewrite", [(15, 3)]), ("--rewrite=sigterm:0", "rewrite", [(15, 0)]),
    ("-r 1:2 -r RTMIN+4:64", "rewrite", [(1, 2), (38, 64)]),
    ("-e 143", "exit-ok", [143]), ("--exit-ok=0", "exit-ok", [0]), ("-e143 -e 255", "exit-ok", [143, 255]),
    ("-p KILL", "parent-death", 9), ("-p15", "parent-death", 15), ("--parent-death SIGHUP", "parent-death", 1),
    ("--stop-timeout 6", "stop-timeout", 6.0), ("--stop-timeout=0", "stop-timeout", 0.0),
    ("--grace 2.5", "grace", 2.5), ("--grace=.5", "grace", 0.5),
    ("--log-level error", "log-level", "error"), ("--log-level=trace", "log-level", "trace"),
    ("--check", "check", True),
    ("--adopt-server 4194304", "adopt-server", (4194304, None)), ("--adopt-server=7:3", "adopt-server", (7, 3)),
    ("-s", "s", True), ("-v", "v", True), ("-w", "w", True),
    ("-h", "help", True), ("--help", "help", True), ("-V", "version", True), ("--version", "version", True),
]


@pytest.mark.parametrize("line, name, value", EVERY_OPTION, ids=[case[0] for case in EVERY_OPTION])
def test_an_option_is_read(line, name, value):
    assert options(line) == {**options(""), name: value}


def test_every_option_of_the_table_is_in_the_test_above():
    assert {name for _, name, _ in EVERY_OPTION} == {name or letter for letter, name, _ in pyinit1.OPTIONS}


@pytest.mark.parametrize("line, same", [
    ("-gv", "-g -v"), ("-vv", "-v"), ("-gvw", "-g -v -w"), ("-ge143", "-g -e 143"), ("-ge 143", "-g -e 143"),
    ("-gvrTERM:QUIT", "-g -v -r TERM:QUIT"), ("-e143 -gc", "-e 143 -g -c"),
    ("--gra 5", "--grace 5"), ("--gra=5", "--grace=5"), ("--stop=5", "--stop-timeout 5"), ("--l warn", "--log-level warn"),
    ("--a 7", "--adopt-server 7"), ("--respawn", "--resp"), ("--grace 1 --grace 2", "--grace 2"),
])
def test_clusters_and_abbreviations_mean_the_long_spelling(line, same):
    assert options(line) == options(same)


@pytest.mark.parametrize("line, given, command", [
    ("nginx -g daemon", (), "nginx -g daemon"), ("-g nginx -g -c", ("group",), "nginx -g -c"), ("-- -g", (), "-g"),
    ("-c -- -- x", ("container",), "-- x"), ("--", (), ""), ("- -g", (), "- -g"), ("--grace 5 7 --grace 6", (), "7 --grace 6"),
    ("-e 5 x", ("exit-ok",), "x"), ("NAME=value --help", (), "NAME=value --help"),
])
def test_the_first_word_that_is_no_option_begins_the_command(line, given, command):
    found = options(line)
    assert found["command"] == command.split()
    assert set(found) - set(options("")) == set(given)


def test_an_empty_word_is_a_command_not_an_option():
    assert pyinit1.parse_args(["", "-g"], {})[0]["command"] == ["", "-g"]


# ---- complaints

# (command line, the word or, for an argument that stands apart, the two words that the complaint begins with)
BAD = [
    ("--frob", "--frob"), ("-x", "-x"), ("-g --frob=1 -c", "--frob=1"), ("-gx", "-x"), ("-gxv", "-xv"), ("--=5", "--=5"),
    ("--c", "--c"), ("--g", "--g"), ("--re=TERM:QUIT", "--re=TERM:QUIT"),                                    # ambiguous
    ("--container=x", "--container=x"), ("--help=", "--help="),                                      # takes no argument
    ("--grace", "--grace"), ("-e", "-e"), ("-ge", "-e"), ("-c --log-level", "--log-level"),        # argument is missing
    ("--grace x", "--grace x"), ("--grace=", "--grace="), ("--grace=-1", "--grace=-1"), ("--grace=nan", "--grace=nan"),
    ("--grace=1e3", "--grace=1e3"), ("--grace=.", "--grace=."), ("--grace=1.2.3", "--grace=1.2.3"), ("--stop-timeout=inf", "--stop-timeout=inf"),
    ("--grace=٣", "--grace=٣"), ("--stop-timeout +5", "--stop-timeout +5"), ("--stop-timeout=5s", "--stop-timeout=5s"),
    ("-e 256", "-e 256"), ("-e -1", "-e -1"), ("-ex", "-ex"), ("-ge x", "-e x"), ("--exit-ok=1_0", "--exit-ok=1_0"), ("-e²", "-e²"),
    ("--log-level loud", "--log-level loud"), ("--log-level=INFO", "--log-level=INFO"), ("--log-level=", "--log-level="),
    ("-r TERM", "-r TERM"), ("-r TERM:", "-r TERM:"), ("-r :TERM", "-r :TERM"), ("-r TERM:FROB", "-r TERM:FROB"), ("-r 0:15", "-r 0:15"),
    ("-r 65:15", "-r 65:15"), ("-r KILL:TERM", "-r KILL:TERM"), ("-r STOP:TERM", "-r STOP:TERM"), ("-r CHLD:TERM", "-r CHLD:TERM"),
    ("-r SEGV:TERM", "-r SEGV:TERM"), ("-r TERM:QUIT:HUP", "-r TERM:QUIT:HUP"), ("-r RTMIN+99:1", "-r RTMIN+99:1"), ("-r TESIGRM:1", "-r TESIGRM:1"),
    ("-r TERM+1:1", "-r TERM+1:1"), ("-r _DFL:1", "-r _DFL:1"), ("-r _BLOCK:1", "-r _BLOCK:1"),
    ("-p FROB", "-p FROB"), ("-p 0", "-p 0"), ("-pTERM+1", "-pTERM+1"), ("-p RTMIN+", "-p RTMIN+"),
    ("--adopt-server 0", "--adopt-server 0"), ("--adopt-server 7:2", "--adopt-server 7:2"), ("--adopt-server x", "--adopt-server x"), ("--adopt-server=4194305", "--adopt-server=4194305"),
]


@pytest.mark.parametrize("line, offending", BAD, ids=[case[0] for case in BAD])
def test_a_complaint_names_the_offending_word_and_no_other(line, offending):
    _, complaints = parse("-v " + line)
    assert len(complaints) == 1
    word, colon, reason = complaints[0].partition(": ")
    assert (word, colon) == (offending, ": ") and reason


@pytest.mark.parametrize("line", ["-v-help", "-g-grace=5"])
def test_a_hyphen_in_a_cluster_is_no_option(line):
    found, complaints = parse(line)
    assert len(complaints) == 1 and "help" not in found and found["grace"] == 10.0


def test_complaints_come_in_the_order_of_the_words():
    assert [text.split(":")[0] for text in parse("--frob -e x --grace y")[1]] == ["--frob", "-e x", "--grace y"]


def test_a_bad_option_ends_with_2_usage_and_the_offending_word(capsys):
    for line in ("--frob", "--grace x -c", "-c --log-level loud"):
        with pytest.raises(SystemExit) as ended:
            pyinit1.answer_at_once(*parse(line), pyinit1.CONTAINER, "")
        out, err = capsys.readouterr()
        first, *usage = err.splitlines()
        assert ended.value.code == 2 and out == ""
        assert first.startswith("pyinit1: bad option: %s: " % line.replace(" -c", "").replace("-c ", ""))
        assert usage[0].startswith("usage: pyinit1.py [OPTIONS]")


def test_a_bad_option_cannot_draw_on_the_terminal(capsys):
    with pytest.raises(SystemExit):
        pyinit1.answer_at_once(*pyinit1.parse_args(["--\x1b[2J\nroot"], {}), pyinit1.CONTAINER, "")
    err = capsys.readouterr().err
    assert err.startswith(r"pyinit1: bad option: --\x1b[2J\nroot: ") and "\x1b" not in err


@pytest.mark.parametrize("line, output", [("-h", pyinit1.__doc__.strip() + "\n"), ("-V", "pyinit1 %s\n" % pyinit1.VERSION)])
def test_help_and_version_are_answered_with_0(line, output, capsys):
    with pytest.raises(SystemExit) as ended:
        pyinit1.answer_at_once(*parse(line), pyinit1.CONTAINER, "")
    assert not ended.value.code and capsys.readouterr() == (output, "")


def test_a_good_command_line_is_not_answered_at_once(capsys):
    assert pyinit1.answer_at_once(*parse("-c -g --grace 5"), pyinit1.CONTAINER, "") is None
    assert capsys.readouterr() == ("", "")


# ---- environment

@pytest.mark.parametrize("line, env, name, value", [
    ("", {"PYINIT1_GRACE": "5"}, "grace", 5.0),
    ("--grace 6", {"PYINIT1_GRACE": "5"}, "grace", 6.0),
    ("", {"PYINIT1_STOP_TIMEOUT": "0.5"}, "stop-timeout", 0.5),
    ("--stop-timeout=1", {"PYINIT1_STOP_TIMEOUT": "x"}, "stop-timeout", 1.0),
    ("", {"ZINIT_LOG_LEVEL": "debug"}, "log-level", "debug"),
    ("--log-level warn", {"ZINIT_LOG_LEVEL": "debug"}, "log-level", "warn"),
    ("", {"ZINIT_LOG_LEVEL": "nonsense"}, "log-level", "nonsense"),
])
def test_an_option_beats_its_variable_and_a_variable_the_default(line, env, name, value):
    assert options(line, **env)[name] == value


@pytest.mark.parametrize("variable, name", [("PYINIT1_GRACE", "grace"), ("PYINIT1_STOP_TIMEOUT", "stop-timeout")])
def test_an_empty_variable_is_as_none(variable, name):
    assert parse("", False, **{variable: ""}) == parse("", False)


@pytest.mark.parametrize("vm", [False, True])
@pytest.mark.parametrize("variable, name, default", [("PYINIT1_GRACE", "grace", 10.0), ("PYINIT1_STOP_TIMEOUT", "stop-timeout", 30.0)])
def test_a_bad_number_in_a_variable_is_complained_of_and_the_default_stands(variable, name, default, vm):
    for bad in ("x", "-1", "nan", "5s"):
        found, complaints = parse("", vm, **{variable: bad})
        assert found[name] == default
        assert [text.split(": ")[0] for text in complaints] == ["%s=%s" % (variable, bad)]


@pytest.mark.parametrize("line, env, level", [
    ("", {}, "info"), ("", {"ZINIT_LOG_LEVEL": "nonsense"}, "info"), ("", {"ZINIT_LOG_LEVEL": ""}, "info"),
    ("--log-level error", {}, "error"), ("--log-level warn", {}, "warn"), ("-v", {}, "debug"), ("-v --log-level error", {}, "debug"),
    ("", {"ZINIT_LOG_LEVEL": "trace"}, "debug"), ("", {"ZINIT_LOG_LEVEL": "debug"}, "debug"),
])
def test_our_own_log_level(line, env, level):
    assert pyinit1.LEVELS[pyinit1.own_level(options(line, **env))] == level


def test_a_machines_command_comes_from_its_variable_only():
    env = {"PYINIT1_COMMAND": """sh -c 'echo "a b"' c\\ d"""}
    assert options("", vm=True, **env)["command"] == ["sh", "-c", 'echo "a b"', "c d"]
    assert options("x y", vm=False, **env)["command"] == ["x", "y"]
    assert options("", vm=False, **env)["command"] == []
    assert options("", vm=True, PYINIT1_COMMAND="")["command"] == []


def test_a_machines_command_that_a_shell_could_not_split_is_ignored():
    found, complaints = parse("", vm=True, PYINIT1_COMMAND="sh -c 'x")
    assert found["command"] == [] and len(complaints) == 1 and complaints[0].startswith("PYINIT1_COMMAND=sh -c 'x: ")


# ---- in a VM

def check_that_it_boots(words, env=()):
    """parse_args in a VM: whatever the words are, there are usable options; -> what was complained of."""
    found, complaints = pyinit1.parse_args(words, dict(env), vm=True)
    assert found["command"] == [] and not set(found) & set(pyinit1.NOT_IN_A_VM)
    assert found["stop-timeout"] >= 0 and found["grace"] >= 0
    assert pyinit1.own_level(found) in range(len(pyinit1.LEVELS))
    for text in complaints:
        pyinit1.one_line(text).encode("utf-8", "backslashreplace")
    return complaints


@pytest.mark.parametrize("line", KERNEL_WORDS)
def test_these_kernel_command_lines_boot(line):
    check_that_it_boots(line.split(), {"foo": "bar", "container": "x", "ZINIT_CONTAINER": "1", "PYINIT1_GRACE": "x"})


def test_words_that_are_not_ours_are_complained_of_one_by_one():
    complaints = check_that_it_boots("splash --frobnicate -z foo=bar -- one".split())
    assert [text.split(": ")[0] for text in complaints] == ["splash", "--frobnicate", "-z", "foo=bar", "--", "one"]


@pytest.mark.parametrize("line", ["-c", "--check", "-h", "-V", "-p TERM", "--container", "--help", "--version", "--parent-death=9"])
def test_what_makes_no_sense_in_a_machine_is_complained_of_and_ignored(line):
    found, complaints = parse("splash " + line + " --grace 3", vm=True)
    assert len(complaints) == 2 and complaints[1].endswith(": not in a VM")
    assert found == {**options(""), "grace": 3.0}


def test_our_options_are_found_among_words_that_are_not_ours():
    found, _ = parse("quiet --grace 3 splash --log-level=debug -w - x", vm=True)
    assert (found["grace"], found["log-level"], found["w"], found["command"]) == (3.0, "debug", True, [])


@pytest.mark.parametrize("alphabet", [bytes(range(1, 256)), b"-=:cgrepsvwhV", b" -\n\x1b\xff\xed\xa0\x80"], ids=["all", "options", "odd"])
def test_two_kilobytes_of_noise_boot(alphabet):
    seed = a_seed()
    print("PYINIT1_SEED=%d" % seed)
    noise = os.fsdecode(bytes(random.Random(seed).choices(alphabet, k=2048)))
    check_that_it_boots([noise])
    check_that_it_boots(noise.split(" "))
    check_that_it_boots(["--grace", noise], {"PYINIT1_GRACE": noise, "ZINIT_LOG_LEVEL": noise, "PYINIT1_COMMAND": "'" + noise.replace("'", "")})


def test_two_thousand_random_word_lists_boot():
    for words in random_words(a_seed()):
        check_that_it_boots(words)


def test_outside_a_machine_random_word_lists_are_read_as_getopt_reads_them():
    """The same options and the same COMMAND as Python's getopt finds, or a complaint where it has one."""
    for words in random_words(a_seed()):
        words = [word for word in words if not (word[:1] == "-" and "-" in word[2:] and word[1:2] != "-")]  # see the hyphen above
        found, complaints = pyinit1.parse_args(words, {})
        try:
            expected, command = read_by_getopt(words)
        except (getopt.GetoptError, ValueError):
            assert complaints, words
        else:
            assert not complaints and found["command"] == command, words
            assert {**options(""), **expected, "command": command} == found, words


def read_by_getopt(words):
    """({long name: value}, COMMAND), read by Python's getopt. Raises GetoptError, ValueError."""
    takes = {name or letter: parse for letter, name, parse in pyinit1.OPTIONS}
    long_of = {"-" + letter: name or letter for letter, name, _ in pyinit1.OPTIONS if letter}
    letters = "".join(letter + ":" * bool(parse) for letter, _, parse in pyinit1.OPTIONS)
    pairs, command = getopt.getopt(words, letters, [name + "=" * bool(parse) for _, name, parse in pyinit1.OPTIONS if name])
    expected = {}
    for spelled, value in pairs:
        name = long_of.get(spelled) or spelled[2:]
        value = takes[name](value) if takes[name] else True
        if name in pyinit1.REPEATED:
            expected.setdefault(name, []).append(value)
        else:
            expected[name] = value
    return expected, command
