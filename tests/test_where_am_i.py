"""Where pyinit1 is, and what it may do there: reboot(2) and kill(-1) are PID 1's alone."""

import errno
import os
from types import SimpleNamespace

import pytest

from helpers import load_pyinit1

pyinit1 = load_pyinit1()
VM, CONTAINER, PLAIN = pyinit1.VM, pyinit1.CONTAINER, pyinit1.PLAIN

INITIAL = 4026531836        # include/linux/proc_ns.h: PROC_PID_INIT_INO


@pytest.mark.parametrize("pid, vm, word, mode, reason", [
    (1, True, "", VM, "PID 1 of the initial PID namespace"),
    (1, True, "--container", VM, "PID 1 of the initial PID namespace"),
    (1, False, "", CONTAINER, "PID 1 of another PID namespace"),
    (1, False, "ZINIT_CONTAINER is set", CONTAINER, "ZINIT_CONTAINER is set"),
    (7, False, "--container", CONTAINER, "--container, but PID 7: "),
    (7, False, "", PLAIN, "PID 7, not PID 1: "),
])
def test_mode(pid, vm, word, mode, reason):
    found = pyinit1.where_am_i(pid, vm, word)
    assert found[0] == mode and found[1].startswith(reason)


@pytest.mark.parametrize("options, env, word", [
    ({}, {}, ""),
    ({"container": True}, {}, "--container"),
    ({"container": True}, {"ZINIT_CONTAINER": "1", "container": "docker"}, "--container"),
    ({}, {"ZINIT_CONTAINER": ""}, "ZINIT_CONTAINER is set"),            # present at all
    ({}, {"ZINIT_CONTAINER": "0"}, "ZINIT_CONTAINER is set"),
    ({}, {"container": "podman"}, "$container is podman"),
    ({}, {"container": ""}, ""),
    ({}, {"CONTAINER": "x"}, ""),
])
def test_word_for_a_container(options, env, word):
    assert pyinit1.container_word(options, env) == word


def stub(monkeypatch, inode, answer=None, second=None):
    """/proc/self/ns/pid has this inode (None: there is no /proc), and reboot(2) answers with this errno (0: done).

    `second`: session and group of process 2 (None: there is no such process).
    """
    asked = []

    def of_2(pid, index):
        if second is None or pid != 2:
            raise ProcessLookupError(errno.ESRCH, "not there")
        return second[index]

    def stat(path):
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "not there", path)
        return SimpleNamespace(st_ino=inode)

    def reboot(command):
        asked.append(command)
        if answer:
            raise OSError(answer, os.strerror(answer))
    monkeypatch.setattr(pyinit1, "os", SimpleNamespace(stat=stat, getsid=lambda pid: of_2(pid, 0), getpgid=lambda pid: of_2(pid, 1)))
    monkeypatch.setattr(pyinit1, "load_libc", lambda: None)
    monkeypatch.setattr(pyinit1, "reboot", reboot)
    return asked


@pytest.mark.parametrize("inode, vm", [(INITIAL, True), (INITIAL - 1, False), (1, False)])
def test_with_proc_the_namespace_decides_and_reboot_is_not_called(monkeypatch, inode, vm):
    asked = stub(monkeypatch, inode)
    assert pyinit1.in_initial_pid_namespace() is vm and asked == []


@pytest.mark.parametrize("answer, second, vm", [
    (0, None, True), (errno.EINVAL, None, False), (errno.EINVAL, (0, 0), False),
    # Who may not ask looks whether process 2 is kthreadd.
    (errno.EPERM, None, False), (errno.EPERM, (2, 2), False), (errno.EPERM, (0, 2), False), (errno.EPERM, (0, 0), True),
])
def test_without_proc_reboot_is_asked_whether_ctrl_alt_del_is_ours(monkeypatch, answer, second, vm):
    asked = stub(monkeypatch, None, answer, second)
    assert pyinit1.in_initial_pid_namespace() is vm
    assert asked == [pyinit1.RB_DISABLE_CAD]


def test_without_proc_and_without_ctypes_it_is_taken_for_a_machine(monkeypatch):
    stub(monkeypatch, None, errno.ENOSYS)
    assert pyinit1.in_initial_pid_namespace() is True


# ---- what no process but PID 1 does

def as_pid(monkeypatch, pid):
    """pyinit1 believes to have this pid, and cannot send anything; -> the list of what it would have done."""
    done = []

    def kill(target, number):
        done.append((target, number))
    monkeypatch.setattr(os, "getpid", lambda: pid)
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(pyinit1, "call", lambda *words: done.append(words))
    return done


def test_reboot_is_refused_to_all_but_pid_1(monkeypatch):
    done = as_pid(monkeypatch, 7)
    for command in [command for _, command, *_ in pyinit1.ENDINGS.values()] + [pyinit1.RB_DISABLE_CAD]:
        with pytest.raises(PermissionError):
            pyinit1.reboot(command)
    assert done == []


def test_reboot_is_not_refused_to_pid_1(monkeypatch):
    done = as_pid(monkeypatch, 1)
    pyinit1.reboot(0x4321FEDC)
    assert done == [("reboot", 0x4321FEDC)]


def test_nobody_but_pid_1_sends_a_signal_to_everybody(monkeypatch):
    done = as_pid(monkeypatch, 7)
    assert pyinit1.kill(-1, 15) and pyinit1.kill(-1, 0)
    assert done == []


def test_pid_1_ends_others_by_one_kill(monkeypatch):
    done = as_pid(monkeypatch, 1)
    init = pyinit1.Init({"command": []}, CONTAINER)
    init.signal_others(15, [SimpleNamespace(pid=7), SimpleNamespace(pid=8)])
    assert done == [(-1, 15)]


def test_a_plain_process_ends_only_its_own_descendants(monkeypatch):
    done = as_pid(monkeypatch, 9)
    init = pyinit1.Init({"command": []}, PLAIN)
    init.signal_others(15, [SimpleNamespace(pid=7), SimpleNamespace(pid=8)])
    assert done == [(7, 15), (8, 15)]


def test_in_a_container_that_is_not_pid_1_the_others_are_the_descendants(monkeypatch):
    as_pid(monkeypatch, 9)
    table = [SimpleNamespace(pid=pid, ppid=ppid) for pid, ppid in ((1, 0), (5, 1), (10, 9), (11, 10), (12, 1))]
    monkeypatch.setattr(pyinit1, "processes", lambda: table)
    assert [process.pid for process in pyinit1.Init({"command": []}, CONTAINER).others()] == [10, 11]


def test_only_a_machine_powers_off(monkeypatch):
    """The end of a container: nothing is synced, reboot(2) is not called, it exits."""
    monkeypatch.setattr(os, "_exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    monkeypatch.setattr(pyinit1, "try_reboot", lambda how: pytest.fail("reboot(2)"))
    for mode in (CONTAINER, PLAIN):
        init = pyinit1.Init({"command": [], "stop-timeout": 1.0, "grace": 1.0}, mode)
        init.request = pyinit1.POWER_OFF
        init.stop_others = init.stop_server = lambda: None
        init.sync = lambda: pytest.fail("sync(2)")
        with pytest.raises(SystemExit) as ended:
            init.end()
        assert ended.value.code == 0
