"""The walls around a learner's process: limits, files, network, processes. All notebooks.

    shut_in(memory=2 * 2**30, seconds=60, readable=[...], hidden=[...]) -> {"files", ...}

Everything is done by the process to itself, before it runs a line that a learner wrote; nothing of
it can be undone, and it needs no rights of an administrator.

limits: of memory, processor time, open files, and no byte into a file (any Unix). files: Landlock
(Linux 5.13): what is not listed cannot be opened, nothing can be written. network, processes: a
list of system calls that are refused (seccomp, Linux on x86_64), and a network namespace of its own
where one may be had. The names of the walls that stand are returned, and only those.
"""

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

WRITE, READ, LIST = 1 << 1, 1 << 2, 1 << 3  # Landlock's rights
SYSTEM = (
    "/usr /lib /lib64 /bin /etc/ld.so.cache /etc/localtime /etc/fonts /dev/null /dev/zero "
    "/dev/urandom /dev/random /proc/self /proc/cpuinfo /proc/meminfo /proc/stat "
    "/sys/devices/system /opt/homebrew"
).split()
# System calls of x86_64 that a learner's function has no use for: EPERM.
REFUSED = {
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101,
    "kill": 62, "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_send_signal": 424, "process_vm_readv": 310, "process_vm_writev": 311,
    "socket": 41, "connect": 42, "bind": 49, "io_uring_setup": 425,
    "mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298,
    "add_key": 248, "request_key": 249, "keyctl": 250, "userfaultfd": 323,
    "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240,  # these outlive a process
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
    "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "utime": 132, "utimes": 235,
    "futimesat": 261, "utimensat": 280,  # Landlock leaves these alone
}  # fmt: skip
CLONE, CLONE3, TGKILL, X86_64 = 56, 435, 234, 0xC000003E


def shut_in(memory: int, seconds: int, readable=(), hidden=()) -> set[str]:
    """Build the walls around this process, which has one thread; the names of those that stand.

    memory: bytes, besides those it has. seconds: of processor time. readable: files and folders,
    besides those of Python and the system. hidden: folders inside of these that are not.
    """
    stand = set()
    if _limits(AS=_size() + memory, CPU=seconds, FSIZE=0, NOFILE=256, CORE=0):
        stand.add("limits")
    if platform.system() != "Linux":
        return stand
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: killed when the grader dies
    if libc.unshare(0x40000000) == 0 or libc.unshare(0x50000000) == 0:  # CLONE_NEWNET, NEWUSER
        stand.add("network")
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # gives up all
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    rules = [(Path(os.path.devnull), WRITE | READ)]
    for path in (*SYSTEM, *_python_folders(), *readable):
        rules += _around(Path(path), [Path(p).resolve() for p in hidden])
    if _landlock(libc, rules):
        stand.add("files")
    if platform.machine() == "x86_64" and _seccomp(libc):
        stand |= {"processes", "network"}
    return stand


def _size() -> int:
    """Bytes of address space that this process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError):
        return 4 * 2**30


def _limits(**limits) -> bool:
    try:
        import resource
    except ImportError:
        return False
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS has no limit of address space
            pass
    return True


# ---------------------------------------------------------------- files


def _landlock(libc, rules) -> bool:
    """Refuse to open, write, make, remove and run anything, but for rules: (path, rights)."""
    version = libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    words = [handled] + [3] * (version >= 4) + [3] * (version >= 6)  # no TCP; signals, sockets
    about = struct.pack(f"{len(words)}Q", *words)
    ruleset = libc.syscall(444, about, ctypes.c_size_t(len(about)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    for path, rights in rules:
        _allow(libc, ruleset, path, rights)
    done = libc.syscall(446, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0
    os.close(ruleset)
    return done


def _python_folders() -> list[str]:
    own = [p for p in sys.path if p.rstrip("/").endswith(("-packages", ".zip"))]
    return [sys.prefix, sys.base_prefix, sys.exec_prefix, *own]


def _around(path: Path, hidden: list[Path]):
    """(path, rights) pairs that open `path` but for what is hidden inside."""
    path = path.resolve()
    if path in hidden or not path.exists():
        return
    if any(path in h.parents for h in hidden):
        yield path, LIST  # as imports do, but not read
        for child in path.iterdir():
            yield from _around(child, hidden) if not child.is_symlink() else ()
    else:
        yield path, READ | LIST


def _allow(libc, ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not path.is_dir():
        rights &= READ | WRITE
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12)
    libc.syscall(445, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    os.close(handle)


# ---------------------------------------------------------------- system calls


def _seccomp(libc) -> bool:
    """A program of the kernel's packet filter: EPERM for what is refused, and for new processes.

    Threads pass (clone with CLONE_THREAD); clone3, which hides its flags, is said not to exist.
    """
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent = 0x7FFF0000, 0x00050001, 0x00050026  # ERRNO(EPERM), ERRNO(ENOSYS)
    program = [
        (load, 0, 0, 4), (equal, 1, 0, X86_64), (end, 0, 0, refuse),  # arch
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (end, 0, 0, refuse),  # the x32 calls
        (equal, 0, 1, CLONE3), (end, 0, 0, absent),
        (equal, 0, 4, CLONE), (load, 0, 0, 16), (any_bit, 1, 0, 0x10000), (end, 0, 0, refuse),
        (end, 0, 0, allow),
        (equal, 0, 4, TGKILL), (load, 0, 0, 16), (equal, 1, 0, os.getpid()), (end, 0, 0, refuse),
        (end, 0, 0, allow),
    ]  # fmt: skip
    for number in REFUSED.values():
        program += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    program.append((end, 0, 0, allow))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    return libc.syscall(317, 1, 1, head) == 0  # SECCOMP_SET_MODE_FILTER for all threads
