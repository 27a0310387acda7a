"""The harness' filters: what they refuse and what they allow, by the numbers of each architecture."""

import errno
import struct
import subprocess
import sys

import pytest

import helpers  # noqa: F401  vm-test is on the path from here on

import packages
import scenarios
import seccomp
from seccomp import Refusal

MINUS_1 = 0xFFFFFFFFFFFFFFFF
EVERY_CALL = sorted(seccomp.NUMBERS["amd64"])


def judge(program, number, audit_arch, *arguments):
    """The errno with which the kernel would let the call of that number fail; 0 if it would let it through."""
    data = struct.pack("<iIQ6Q", number, audit_arch, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])      # struct seccomp_data
    words = list(struct.iter_unpack("<HBBI", program))
    loaded = place = 0
    while True:
        code, if_equal, if_not, constant = words[place]
        place += 1
        if code == seccomp.RETURN:
            assert constant == seccomp.ALLOW or constant & 0xFFFF0000 == seccomp.ERRNO
            return 0 if constant == seccomp.ALLOW else constant & 0xFFFF
        if code == seccomp.LOAD:
            loaded = struct.unpack_from("<I", data, constant)[0]
        else:
            assert code == seccomp.JUMP_IF_EQUAL
            place += if_equal if loaded == constant else if_not


def verdict(program, architecture, call, *arguments):
    return judge(program, seccomp.NUMBERS[architecture][call], seccomp.AUDIT_ARCH[architecture], *arguments)


both = pytest.mark.parametrize("architecture", ["amd64", "arm64"])


@both
def test_every_refused_call_fails_with_its_own_error_and_no_other_call_does(architecture):
    program = seccomp.program(Refusal("mount", errno.EPERM), Refusal("sync", errno.ENOSYS))
    failing = {call: verdict(program, architecture, call) for call in EVERY_CALL if seccomp.NUMBERS[architecture][call]}
    assert {call: error for call, error in failing.items() if error} == {"mount": errno.EPERM, "sync": errno.ENOSYS}


@both
def test_a_call_may_fail_for_one_value_of_an_argument_alone(architecture):
    program = seccomp.program(Refusal("reboot", errno.EIO, 2, 0x4321FEDC), Refusal("reboot", errno.EINVAL, 2, 0),
                              Refusal("kill", errno.EPERM, 0, 0xFFFFFFFF))
    assert verdict(program, architecture, "reboot", 1, 2, 0x4321FEDC) == errno.EIO
    assert verdict(program, architecture, "reboot", 1, 2, 0) == errno.EINVAL
    assert verdict(program, architecture, "reboot", 0x4321FEDC, 0x4321FEDC, 0x01234567) == 0
    assert verdict(program, architecture, "kill", MINUS_1, 15) == errno.EPERM
    assert verdict(program, architecture, "kill", 1, 15) == 0


@both
def test_a_call_that_an_architecture_lacks_refuses_nothing_there(architecture):
    program = seccomp.program(Refusal("poll", errno.ENOMEM), Refusal("symlink", errno.EPERM))
    missing = {"amd64": set(), "arm64": {"poll", "symlink"}}[architecture]
    assert {call for call, number in seccomp.NUMBERS[architecture].items() if not number} == missing
    assert verdict(program, architecture, "ioctl") == verdict(program, architecture, "sync") == 0


def test_a_number_means_its_own_architecture_s_call():
    program = seccomp.program(Refusal("mount", errno.EPERM))
    amd64, arm64 = (seccomp.AUDIT_ARCH[architecture] for architecture in ("amd64", "arm64"))
    assert judge(program, 165, amd64) == judge(program, 40, arm64) == errno.EPERM
    assert judge(program, 165, arm64) == judge(program, 40, amd64) == 0
    assert judge(program, 165, 0x40000003) == judge(program, 40, 0x40000003) == 0       # AUDIT_ARCH_I386


# Arguments that change nothing where the filter does not work.
HARMLESS = {
    "ioctl": "-1, 0", "kill": "0, 0", "memfd_create": "b'', 0", "mlockall": "0", "mount": "None, None, None, 0, None", "poll": "None, 0, 0",
    "ppoll": "None, 0, b'', None", "prctl": "0, 0", "prlimit": "0, 7, None, None", "reboot": "1", "sethostname": "None, 1000",
    "socket": "-1, 0, 0", "swapoff": "None", "symlink": "None, None", "symlinkat": "None, -1, None", "umount2": "None, 0", "unshare": "0",
}


def test_this_machine_s_kernel_does_as_it_is_told():
    """All but sync(2), which returns nothing, with an error that none of them has."""
    assert {*HARMLESS, "sync"} == {call.replace("64", "") for call in EVERY_CALL}
    calls = "\n".join("print(%r, libc.%s(%s), ctypes.get_errno())" % (call, call, words) for call, words in HARMLESS.items())
    alone = "did(libc.prctl(38, 1, 0, 0, 0))        # PR_SET_NO_NEW_PRIVS: for whoever is not root"
    refusals = [Refusal(call, errno.EXDEV) for call in EVERY_CALL]
    script = (scenarios.WRAPPER % "\n".join((alone, seccomp.install(*refusals), calls))).rpartition("os.execv")[0]
    done = subprocess.run([sys.executable, "-IS", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert packages.host_architecture() in seccomp.NUMBERS
    assert sorted(done.stdout.splitlines()) == sorted("%s -1 %d" % (call, errno.EXDEV) for call in HARMLESS)
