"""The real zinit in a namespace: what all tests over it share.

Every service has SERVICE=its name in its environment and is one process group: that is how it is counted, from outside.
"""

import contextlib
import datetime
import json
import os
import re
import shlex
import signal
import socket
import sys
from collections import namedtuple
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from helpers import PYTHON, SECONDS, Namespace, poll  # noqa: E402

# A PID 1: its words, start()'s arguments, and what its log says when it answers signals, begins a soft restart, sees its
# server die, starts one.
Kind = namedtuple("Kind", "name words start ready restarting died started")
PYINIT1 = Kind("pyinit1", ("--container",), {"python": PYTHON},
               "^pyinit1: ready", "^pyinit1: signal: SIGUSR1", "^pyinit1: server ended", "^pyinit1: server started")
ORIGINAL = Kind("zinit-pid1", ("--container",), {"python": (), "init": "/usr/local/bin/zinit-pid1"},
                "Spawned zinit-server", "Received SIGUSR1", "zinit-server died", "Spawned zinit-server")


class ZinitNamespace(Namespace):
    """PID 1 over the real zinit-server, which is on the search path in there."""

    def __init__(self, directory, programs):
        super().__init__(directory)
        self.programs, self.kind = programs, None
        self.diary = self.directory / "diary"
        self.diary.touch()
        self.saving = set()

    # -- before the start

    def service(self, name, command="sleep 100000", after=()):
        """Configure a service: `command` for /bin/sh, started after the services `after`."""
        words = {"name": name, "exec": command}
        lines = ["[service]"] + ["%s = %s" % (key, json.dumps(words[key])) for key in words]
        lines += ['env = { SERVICE = "%s" }' % name, "[dependencies]", "after = %s" % json.dumps(list(after))]
        (self.services / (name + ".toml")).write_text("\n".join(lines) + "\n")

    def saving_service(self, name, seconds=0.0, after=()):
        """Configure a service that writes "NAME started" into the diary, and at SIGTERM, `seconds` later, "NAME saved".

        It closes its standard error: the server's end of that pipe goes with the server, and a shell that then reports
        its child's end dies of SIGPIPE.
        """
        self.saving.add(name)
        note = "echo %s %%s >> %s" % (name, shlex.quote(str(self.diary)))
        self.service(name, "trap 'sleep %g; %s; exit 0' TERM; exec 2>&-; %s; while :; do sleep 1000 & wait; done"
                     % (seconds, note % "saved", note % "started"), after)

    def start(self, kind=PYINIT1, **environment):
        """Start PID 1 and wait until it answers signals and every service runs."""
        self.kind, self.socket = kind, Path(environment.get("ZINIT_SOCKET", self.socket))
        super().start(*kind.words, ready=kind.ready, setup="mount --bind %s /usr/local/bin" % shlex.quote(str(self.programs)),
                      PYINIT1_SERVER=None, **kind.start, **environment)
        self.wait_until_all_run_once()

    # -- what is there

    def zombies(self):
        return [process for process in self.processes() if process.state == "Z"]

    def server(self):
        """The server's Process."""
        return poll(lambda: [process for process in self.processes() if process.name == "zinit-server"], SECONDS, "a server")[0]

    def processes_of_services(self):
        """[(service, Process)] of all that are alive."""
        found = []
        for process in self.processes():
            with contextlib.suppress(OSError):
                words = process.read("environ").split("\0") if process.state != "Z" else ()
                found += [(word[8:], process) for word in words if word.startswith("SERVICE=")]
        return found

    def running(self):
        """{service: the groups in which it runs}: one group each, if all is well."""
        found = {path.stem: set() for path in self.services.glob("*.toml")}
        for service, process in self.processes_of_services():
            found[service].add(process.group)
        return found

    def server_says(self):
        """{service: pid} as the server has them; empty while it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(SECONDS)
                connection.connect(str(self.socket))
                connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"service.list_full"}\n')
                listed = json.loads(connection.makefile().readline())["result"]
        except (OSError, ValueError):
            return {}
        return {service["name"]: service["state"].get("pid") for service in listed}

    def wait_until_all_run_once(self):
        """Wait until every service runs in the one group that the server knows, and is ready; -> {service: {group}}."""
        def settled():
            self.log.drain()            # a full pipe would stop the server
            running = self.running()
            return running == {name: {pid} for name, pid in self.server_says().items()} and self.saving <= ready() and running

        def ready():
            """The saving services that have set their trap: the last word about them is "started"."""
            deeds = dict(map(str.split, self.diary.read_text().splitlines()))
            return {name for name, deed in deeds.items() if deed == "started"}
        try:
            return poll(settled, SECONDS, "every service to run exactly once")
        except AssertionError as why:
            raise AssertionError("%s; running: %s; the server says: %s; log:\n%s" % (
                why, self.running(), self.server_says(), self.log.drain())) from None

    def server_time(self):
        """Seconds from the request to shut down to the server's last word, by its log: its own time, not ours."""
        def when(words):
            stamp = re.findall(r"^\S*?([0-9-]+T[0-9:.]+)Z.*" + words, self.log.text, re.MULTILINE)[-1]
            return datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f")
        return (when("zinit-server stopped") - when("shutdown requested via IPC")).total_seconds()

    def saved_by(self):
        """The services that had time to save their work, in that order."""
        return [line.split()[0] for line in self.diary.read_text().splitlines() if line.endswith("saved")]

    def overlaps(self):
        """The saving services that were started while an earlier one of that name was still at work, by the diary."""
        at_work, found = set(), []
        for name, deed in map(str.split, self.diary.read_text().splitlines()):
            if deed == "started" and name in at_work:
                found.append(name)
            (at_work.add if deed == "started" else at_work.discard)(name)
        return found

    # -- what happens to it

    def forbid_state(self):
        """From now on no server can save its state: there is a file in the place of its directory."""
        if self.state.parent.is_dir():
            self.state.parent.rmdir()
        self.state.parent.touch()

    def replace_server(self):
        """SIGUSR1; back when PID 1 has started another server."""
        self.kill(signal.SIGUSR1)
        for line in self.kind.restarting, self.kind.started:
            self.wait_for(line)

    def soft_restart(self):
        """A soft restart; -> were all services adopted? After it all of them run exactly once, and none ever ran twice."""
        before = self.running()
        self.replace_server()
        after = self.wait_until_all_run_once()
        assert not self.overlaps(), self.log.text
        return after == before

    def adopting_restart(self):
        """Soft restarts until the services were adopted: the real server loses their state every second time."""
        for _ in range(40):
            if self.soft_restart():
                return
        raise AssertionError("40 soft restarts, and none adopted the services:\n" + self.log.text)

    def freeze_server(self):
        """SIGSTOP the server; back when it has stopped."""
        os.kill(self.server().outer, signal.SIGSTOP)
        poll(lambda: self.server().state == "T", SECONDS, "the server to stop")

    def kill_server(self):
        """SIGKILL the server; back when PID 1 has seen that."""
        os.kill(self.server().outer, signal.SIGKILL)
        self.wait_for(self.kind.died)
