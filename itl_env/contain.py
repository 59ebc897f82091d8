r"""Gives a process a root folder of its own, gives up all rights, and becomes another program.

`SubprocessExecutor` starts it under `unshare`, in namespaces in which it may mount; it imports
nothing but the standard library, as it runs without the package:

    unshare --map-user=65534 --keep-caps --mount ... -- python -I -S -B contain.py \
        cpu=3 fsize=0 ... /usr /dev/null ... -- python -c CODE

Before the `--` stand limits of the process and what of the file system is seen inside, read-only.
The rest of the root is a file system in memory that ends with the process, and holds empty files
and folders at most.
"""

# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH120, PTH211
# Every run would wait another 10 ms for pathlib.
import ctypes
import os
import resource
import sys

TROUBLE = "contain.py: "
"""How its complaint begins if it fails."""

_HOME = "/tmp"  # where the program starts
# Files and folders that the program can make, beside what it is given.
_MAX_FILES = 10_000
# Over which the new root is put together: a folder that is there, and in which nothing is needed.
_PLACE = "/proc"

# Of linux/mount.h, linux/fcntl.h and linux/prctl.h.
_NOSUID, _NODEV, _BIND, _RECURSIVE = 2, 4, 4096, 16384
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_READ_ONLY, _ATTR_NOSUID = 1, 2
_NO_NEW_PRIVILEGES, _AMBIENT, _AMBIENT_CLEAR = 38, 47, 4
# System calls that libc has no function for; the first has one number everywhere.
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    """Do what `arguments` say; raises OSError, and KeyError on an unknown kind of machine."""
    split = arguments.index("--")
    given, command = arguments[:split], arguments[split + 1 :]
    os.setsid()  # a signal to the program's process group is not to reach `unshare`
    _enter([each for each in given if each.startswith("/")])
    _must(_libc.prctl(_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0), "prctl")  # they end with the `exec` below
    _must(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    for name, _, value in (each.partition("=") for each in given if not each.startswith("/")):
        limit = getattr(resource, f"RLIMIT_{name.upper()}")
        resource.setrlimit(limit, (int(value), int(value)))
    os.execv(command[0], command)


def _enter(shown: list[str]) -> None:
    """Make a root in which nothing but `shown` is seen, and enter it."""
    options = f"size=4k,nr_inodes={_MAX_FILES},mode=755"
    _mount("tmpfs", _PLACE, "tmpfs", _NOSUID | _NODEV, options)
    for folder in (_HOME, "/proc"):
        os.makedirs(_PLACE + folder)
    for path in shown:
        _show(path)
    os.chdir(_PLACE)
    _must(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _must(_libc.umount2(b".", _DETACH), "umount2")  # the old root, which now lies over the new one
    os.chdir(_HOME)


def _show(path: str) -> None:
    """Put what is at `path`, if anything, at the same path of the new root."""
    inside = _PLACE + path
    if not os.path.exists(path) or os.path.lexists(inside):
        return
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        os.mkdir(inside)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
    _mount(path, inside, None, _BIND | _RECURSIVE)
    attributes = (ctypes.c_uint64 * 4)(_ATTR_READ_ONLY | _ATTR_NOSUID)
    _must(
        _libc.syscall(
            _MOUNT_SETATTR,
            _AT_FDCWD,
            os.fsencode(inside),
            _AT_RECURSIVE,
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        f"mount_setattr of {path}",
    )


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind and kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _must(done, f"mount of {source}")


def _must(status: int, what: str) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{TROUBLE}{error}")
