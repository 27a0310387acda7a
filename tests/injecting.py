"""pyinit1.py with an exception at a line: a copy that traces itself, the lives that it is put through, and what must be true after.

/run/plan says what the copy does, in the words of injection.py: `record` (write each line that is executed to /run/executed), or
`ROLE LINE EXCEPTION`: raise that there, once.
"""

import contextlib
import os
import re
import signal
import tempfile
import time

from helpers import PYINIT1, SECONDS, Namespace, Process, is_alive, poll
from updating import ON_TRIAL, Updatable, from_here, quiet

import injection

# The copy's waits are shorter, where what is waited for is only that time passes.
SHORTER = """
RESPAWN_DELAY = 0.2
RPC_LIMIT = 1.0
LISTEN_LIMIT = 1.0
RESTART_LIMIT = 1.0
"""

SAYS = """
GENERATION = %d
if __name__ == "__main__":
    os.write(2, b"generation: %%d\\n" %% GENERATION)
"""


def traced(number, more=""):
    """The copy, of this generation; `more` is put before its last statement."""
    hook = injection.hook('read_file("/run/plan").decode().split()', "/run/executed", "/run/raised")
    return injection.with_statements(PYINIT1.read_text(), SHORTER + more + SAYS % number + hook)


# A copy that crashes by itself: once, at the first SIGHUP.
CRASHES_AT_HUP = """
answer_well = Init.answer
def answer(self, number):
    if number == signal.SIGHUP and not os.path.exists("/run/crashed"):
        os.close(os.open("/run/crashed", os.O_WRONLY | os.O_CREAT))
        raise ZeroDivisionError("the first crash")
    answer_well(self, number)
Init.answer = answer
"""

# A copy whose re-exec after an update fails once.
NO_EXEC = """
execve_well = os.execve
def execve(path, argv, environment):
    if os.getpid() == 1 and "--adopt-server" in argv and not %s and not os.path.exists("/run/refused"):
        os.close(os.open("/run/refused", os.O_WRONLY | os.O_CREAT))
        raise OSError(12, "Cannot allocate memory")
    execve_well(path, argv, environment)
os.execve = execve
""" % ON_TRIAL


class Life:
    """One life of the copy in a namespace, from its start to its end; a scenario of SCENARIOS drives it."""

    def __init__(self, namespace, plan):
        self.namespace, self.plan = namespace, plan
        (namespace.run_directory / "plan").write_text(plan)

    @property
    def text(self):
        return self.namespace.log.drain()

    def raised(self):
        return (self.namespace.run_directory / "raised").exists()

    def executed(self):
        """{(role, line)} of a life that was recorded."""
        text = (self.namespace.run_directory / "executed").read_text()
        return {(line.split()[1], int(line.split()[2])) for line in text.splitlines()}

    # -- steps

    def start(self, *words, more="", **options):
        """Start PID 1, with "web" as a service that must be given the time to save its work."""
        self.home = Updatable(self.namespace, traced(1, more))
        self.namespace.service("web", "exec " + self.namespace.guinea_pig("web", 0.1, "lock=/run/lock.web"))
        self.namespace.start("-v", "-w", "--stop-timeout", "4", "--grace", "3", *words, init=self.home.inside, ready=None, **options)

    def server(self):
        """Wait for the next server, until web is ready and PID 1 has nothing under way. -> its Process."""
        server = self.namespace.server()
        self.goes_on(server)
        return server

    def goes_on(self, server):
        """It is the only server, and web runs once."""
        self.quiet()
        servers = [each for each in self.namespace.children() if "zinit-server" in each.words]
        assert [each.pid for each in servers] == [server.pid], "servers: %s" % servers
        poll(lambda: ["web: ready: pid %d\n" % web.pid in self.text for web in self.namespace.find("guinea_pig.py web")] == [True], SECONDS, "one web")
        assert "RUNS TWICE" not in self.text

    def replaced(self, before):
        """Another server is there, after one soft restart or, if it came to a crash, two."""
        def another():
            self.quiet()
            return [each for each in self.namespace.children() if each.pid != before.pid and "server: ready: pid %d\n" % each.pid in self.text]
        self.goes_on(poll(another, SECONDS, "another server")[0])

    def quiet(self):
        """PID 1 has nothing under way, and there is no zombie of its."""
        quiet(self.namespace)
        poll(lambda: not [each for each in self.namespace.children() if each.state == "Z"], SECONDS, "all to be reaped")

    def hup(self, server=None):
        """A signal: answered, whatever it comes to."""
        asked = len(self.text)
        self.namespace.kill(signal.SIGHUP)
        poll(lambda: "signal: SIGHUP: ignored" in self.text[asked:], SECONDS, "SIGHUP to be answered")
        self.quiet()
        if server:
            self.goes_on(server)

    def end(self, number=signal.SIGTERM, status=0):
        """A request to end: all in order, and no server is started any more."""
        from_here(self.namespace)
        asked = self.namespace.log.position
        self.namespace.kill(number)
        poll(lambda: re.search("^pyinit1: (the end|crashed): ", self.text[asked:], re.M) or self.namespace.log.ended, SECONDS, "the end to begin")
        ended = self.namespace.wait(SECONDS)
        after = self.namespace.log.text[asked:]
        assert ended == status, "exit status %d" % ended
        assert "web: saved" in after and "server: service killed" not in after
        assert not re.search("^server: (ready|service)( started)?: ", after, re.M), "a server was started"


def kept(life):
    """A server that dies, orphans, signals."""
    life.start()
    server = life.server()
    life.namespace.enter("sh", "-c", "sleep 0.01 &").wait()
    life.hup(server)
    from_here(life.namespace)
    os.kill(server.outer, signal.SIGKILL)
    for web in life.namespace.find("guinea_pig.py web"):
        os.kill(web.outer, signal.SIGKILL)
    life.server()
    life.end(signal.SIGINT)


def restart(life, fault=""):
    """A soft restart."""
    life.namespace.fault(fault)
    life.start()
    server = life.server()
    life.namespace.fault("")
    from_here(life.namespace)
    life.namespace.kill(signal.SIGUSR1)
    life.replaced(server)
    life.end()


def update(life, more="", content=None):
    """A self-update."""
    life.start(more=more)
    server = life.server()
    life.home.offer(content or traced(2))
    from_here(life.namespace)
    life.namespace.kill(signal.SIGUSR2)
    poll(lambda: re.search("^generation: 2$|^pyinit1: (crashed|self-update: (refused|re-exec: ))", life.text[life.namespace.log.position:], re.M), SECONDS,
         "the update to come to something")
    life.goes_on(server)
    assert re.search("GENERATION = [12]", life.home.path.read_text())
    life.end()


def crash(life, more=CRASHES_AT_HUP):
    """A crash, so that a second exception comes in its handling or in the next start."""
    life.start(more=more)
    server = life.server()
    from_here(life.namespace)
    life.hup()
    poll(lambda: (life.namespace.run_directory / "crashed").exists(), SECONDS, "the first crash")
    life.goes_on(server)
    life.end()


def rollback(life):
    """An update that crashes, and is rolled back."""
    life.start()
    server = life.server()
    life.home.offer(traced(2, CRASHES_AT_HUP))
    from_here(life.namespace)
    life.namespace.kill(signal.SIGUSR2)
    poll(lambda: re.search("^generation: 2$|^pyinit1: (crashed|self-update: refused)", life.text[life.namespace.log.position:], re.M), SECONDS,
         "the update to come to something")
    life.goes_on(server)
    life.hup(server)
    life.end()


COMMAND = """
trap 'echo command: usr1' USR1
trap 'exit 7' TERM
(trap '' TERM USR1; while :; do sleep 0.05; done) &
echo command: ready: pid $$
while :; do sleep 0.02; done
"""


def command(life, **options):
    """A COMMAND that is run once, and leaves behind one who ignores SIGTERM."""
    life.start("--grace", "0.3", "-g", "--", "sh", "-c", COMMAND, **options)
    life.namespace.pid_said(r"^command: ready: pid (\d+)")
    life.quiet()
    life.namespace.kill(signal.SIGUSR1)
    poll(lambda: "command: usr1" in life.text, SECONDS, "the signal to be forwarded")
    life.quiet()
    life.namespace.kill(signal.SIGTERM)
    status = life.namespace.wait(SECONDS)
    assert status == 7, "exit status %d" % status
    assert len(re.findall("^command: ready", life.text, re.M)) <= 1


def stubborn(life):
    """A server that is hung and ignores SIGTERM."""
    life.namespace.fault("hung ignore-term")
    life.start("--stop-timeout", "0.6", "--grace", "1")
    life.server()
    life.end()


def impatient(life):
    """Seven SIGINT: it ends at once, or, after a crash, in order."""
    life.namespace.fault("hung ignore-term")
    life.start("--stop-timeout", "2", "--grace", "1")
    life.server()
    for _ in range(7):
        with contextlib.suppress(OSError):
            life.namespace.kill(signal.SIGINT)
            poll(lambda: signal.SIGINT not in Process(life.namespace.init).signals("ShdPnd"), SECONDS, "SIGINT to be taken")
    status = life.namespace.wait(SECONDS)
    assert status in (0, 1), "exit status %d" % status
    assert life.text.count("server: ready") == 1


SERVER = "#!/bin/sh\nexit 3\n"


def new_server(life):
    """A new server that dies too often."""
    server = Updatable(life.namespace, None, folder="server", name="zinit-server")
    from helpers import STAND_IN
    server.path.write_text(STAND_IN.read_text())
    life.start(PYINIT1_SERVER=server.inside)
    before = life.server()
    server.offer(SERVER)
    from_here(life.namespace)
    life.namespace.kill(signal.SIGUSR1)
    life.replaced(before)
    assert server.path.read_text() == STAND_IN.read_text()
    life.end()


def plain(life):
    life.start(plain=True)
    server = life.server()
    life.hup(server)
    life.end(37)


# The first in which a line is executed is the one in which it is tried: the cheapest come first.
SCENARIOS = {
    "command": command,
    "kept": kept,
    "stubborn": stubborn,
    "restart": restart,
    "restart, not saved": lambda life: restart(life, "unsaved"),
    "restart, garbage": lambda life: restart(life, "garbage unsaved"),
    "impatient": impatient,
    "plain": plain,
    "plain command": lambda life: command(life, plain=True),
    "update": update,
    "update, refused": lambda life: update(life, content="1 / 0\n"),
    "update, no exec": lambda life: update(life, NO_EXEC),
    "crash": crash,
    "rollback": rollback,
    "new server": new_server,
}


def live(scenario, plan):
    """One life by this plan; -> (Life, what was wrong with it: "" if nothing, "not started" if it ended before anything ran)."""
    with tempfile.TemporaryDirectory(prefix="pyinit1-") as directory, Namespace(directory) as namespace:
        life = Life(namespace, plan)
        try:
            SCENARIOS[scenario](life)
            wrong = ""
        except (AssertionError, OSError, StopIteration, IndexError) as why:
            wrong = "%s: %s" % (type(why).__name__, str(why).splitlines()[0] if str(why) else "")
        life.log = namespace.log.drain() if namespace.log else ""
        ended = namespace.log.ended and namespace.process.wait(SECONDS)
        life.was_raised = life.raised()
        life.lines = life.executed() if plan == "record" else set()
        if wrong and life.was_raised and not re.search("^(server|command|web): ready: pid", life.log, re.M) and ended:
            wrong = "not started"
        return life, wrong
