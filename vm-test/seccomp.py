"""Seccomp filters: system calls that fail with an error to order, in a process and in all that it becomes and starts.

Nothing is installed here: program() is the filter as bytes, install() the statements of Python that put it in. One filter is
for both architectures, since it looks at the word that says whose numbers the kernel goes by.
"""

import collections
import struct

# <linux/audit.h>
AUDIT_ARCH = {"amd64": 0xC000003E, "arm64": 0xC00000B7}

# <asm/unistd_64.h>, <asm-generic/unistd.h>; 0: there is no such call, and libc makes another one.
NUMBERS = {
    "amd64": {
        "ioctl": 16, "kill": 62, "memfd_create": 319, "mlockall": 151, "mount": 165, "poll": 7, "ppoll": 271, "prctl": 157,
        "prlimit64": 302, "reboot": 169, "sethostname": 170, "socket": 41, "swapoff": 168, "symlink": 88, "symlinkat": 266,
        "sync": 162, "umount2": 166, "unshare": 272,
    },
    "arm64": {
        "ioctl": 29, "kill": 129, "memfd_create": 279, "mlockall": 230, "mount": 40, "poll": 0, "ppoll": 73, "prctl": 167,
        "prlimit64": 261, "reboot": 142, "sethostname": 161, "socket": 198, "swapoff": 225, "symlink": 0, "symlinkat": 36,
        "sync": 81, "umount2": 39, "unshare": 97,
    },
}

# <linux/bpf_common.h>: load a word of struct seccomp_data, compare with a constant, return one.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
# <linux/seccomp.h>: where the words of struct seccomp_data are, of an argument its lower half; what a filter says.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
# <linux/prctl.h>
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

# `call` fails with `error`; if `argument` is not None only where the argument of that index, its lower 32 bits, is `value`.
Refusal = collections.namedtuple("Refusal", "call error argument value", defaults=(None, 0))


def instruction(code, constant, if_not=0):
    """struct sock_filter; a comparison that fails passes over `if_not` instructions."""
    return struct.pack("<HBBI", code, 0, if_not, constant)


def block(number, refusal):
    """The instructions for one refusal. The call's number is loaded before them, and after."""
    refuse = [instruction(RETURN, ERRNO | refusal.error)]
    if refusal.argument is not None:
        refuse = [instruction(LOAD, ARGUMENTS + 8 * refusal.argument), instruction(JUMP_IF_EQUAL, refusal.value, 1), *refuse,
                  instruction(LOAD, NUMBER)]
    return [instruction(JUMP_IF_EQUAL, number, len(refuse)), *refuse]


def program(*refusals):
    """The filter under which these calls fail, an array of struct sock_filter. What no refusal is for is allowed."""
    words = [instruction(LOAD, ARCHITECTURE)]
    for architecture, numbers in NUMBERS.items():
        ours = [instruction(LOAD, NUMBER)]
        for refusal in refusals:
            if numbers[refusal.call]:
                ours += block(numbers[refusal.call], refusal)
        ours.append(instruction(RETURN, ALLOW))
        words += [instruction(JUMP_IF_EQUAL, AUDIT_ARCH[architecture], len(ours)), *ours]
    return b"".join([*words, instruction(RETURN, ALLOW)])


def install(*refusals):
    """Statements for scenarios.WRAPPER, or wherever there are `libc` and did(): from then on these calls fail."""
    data = program(*refusals)
    return "\n".join((
        "import struct",
        "program = ctypes.create_string_buffer(bytes.fromhex('%s'))" % data.hex(),
        "did(libc.prctl(%d, %d, struct.pack('HP', %d, ctypes.addressof(program)), 0, 0))       # struct sock_fprog" % (
            PR_SET_SECCOMP, SECCOMP_MODE_FILTER, len(data) // 8),
    ))
