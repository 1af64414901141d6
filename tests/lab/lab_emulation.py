"""Runs a command whose system calls are refused where qemu-user would answer them as no kernel does.

    python lab_emulation.py COMMAND...

The command ends with its parent.

Three such answers keep systemd from running, and each caller has a way round that it takes when it is refused:

- glibc asks `waitid` whether processes have descriptors, hears yes, and then cannot clone with CLONE_PIDFD
  (qemu-user 7.2: EINVAL): systemd of Trixie starts nothing.
- `getsockopt(SO_PEERGROUPS)` is passed on with a length of 4 bytes: ERANGE for ever, whatever room there is, and
  systemd's user manager asks again without end.
- `statx` says that it tells the number of a mount and leaves it at 0 (qemu-user 7.2): systemd of Trixie then takes
  every bind mount of the root for the root, and gives no service a mount namespace.

The filter is the kernel's (seccomp) and looks at the calls of this x86-64 machine, which qemu makes for the guest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 22, 2
AUDIT_ARCH_X86_64 = 0xC000003E
WAITID, GETSOCKOPT, STATX = 247, 55, 332
P_PIDFD, INT_MAX = 3, 2**31 - 1
SOL_SOCKET, SO_PEERGROUPS = 1, 59
STATX_MNT_ID = 0x1000
LOAD, EQUAL, HAS_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, ARCH = 0, 4  # where struct seccomp_data has them
ARGUMENTS = (16, 24, 32, 40)  # their lower halves

# system call, its arguments as (position, test, value), error
REFUSED = (
    (WAITID, ((0, EQUAL, P_PIDFD), (1, EQUAL, INT_MAX)), errno.EINVAL),
    (GETSOCKOPT, ((1, EQUAL, SOL_SOCKET), (2, EQUAL, SO_PEERGROUPS)), errno.ENOPROTOOPT),
    (STATX, ((3, HAS_BIT, STATX_MNT_ID),), errno.EOPNOTSUPP),
)


def program() -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, value)."""
    code = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, AUDIT_ARCH_X86_64), (RETURN, 0, 0, ALLOW)]
    for call, arguments, error in REFUSED:
        rest = 2 * len(arguments) + 1  # instructions after the first comparison, to jump over
        code += [(LOAD, 0, 0, NUMBER), (EQUAL, 0, rest, call)]
        for position, test, value in arguments:
            rest -= 2
            code += [(LOAD, 0, 0, ARGUMENTS[position]), (test, 0, rest, value)]
        code.append((RETURN, 0, 0, ERRNO | error))
    return [*code, (RETURN, 0, 0, ALLOW)]


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def install() -> None:
    """Filter this process and all it starts; needs root."""
    instructions = b"".join(struct.pack("HBBI", *one) for one in program())
    buffer = ctypes.create_string_buffer(instructions)
    count = len(instructions) // 8
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", count, ctypes.addressof(buffer)))
    if libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot filter system calls: {os.strerror(number)}")


if __name__ == "__main__":
    libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    install()
    os.execvp(sys.argv[1], sys.argv[1:])
