"""Runs commands in turns, and says for each run its number and how many seconds it took, from the start to its status.

    python3 -IS whole.py "PID 1"|"a plain process" TURNS COMMAND [ARG...] [+ COMMAND [ARG...]]...

A program of its own, which imports little, as what starts a process should be small. As PID 1 each run has a PID namespace,
whose making is not counted; its end is, as every process's.
"""

import ctypes
import os
import sys
import time

CLONE_NEWPID = 0x20000000   # <linux/sched.h>
NULL = os.open("/dev/null", os.O_RDWR)
SILENT = [(os.POSIX_SPAWN_DUP2, NULL, fd) for fd in (0, 1, 2)]


def run(argv, as_pid_1):
    """One run, in a child, whose next child is the first process of a new namespace; -> seconds."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        if as_pid_1 and ctypes.CDLL(None).unshare(CLONE_NEWPID):
            os._exit(1)
        started = time.monotonic()
        status = os.waitpid(os.posix_spawn(argv[0], argv, os.environ, file_actions=SILENT), 0)[1]
        os.write(write_end, b"%.6f" % (time.monotonic() - started))
        os._exit(status != 0)
    os.close(write_end)
    if os.wait()[1]:
        sys.exit("failed: %s" % " ".join(argv))
    seconds = os.read(read_end, 64)
    os.close(read_end)
    return seconds.decode()


def main(place, turns, *words):
    commands = [[]]
    for word in words:
        if word == "+":
            commands.append([])
        else:
            commands[-1].append(word)
    for turn in range(int(turns)):
        for at in range(len(commands)):
            number = (turn + at) % len(commands)        # nobody always comes after the same one
            print(number, run(commands[number], place == "PID 1"), flush=True)


main(*sys.argv[1:])
