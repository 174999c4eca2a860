"""A disk of a chosen size: a tmpfs in a private mount namespace, for plain users through a user namespace.

Where namespaces are forbidden, changes of files are refused instead.
"""

import ctypes
import errno
import os
from pathlib import Path

from faults.events import on_change

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_REMOUNT, _PRIVATE_ALL = 0x20, 0x40000 | 0x4000
_LIBC = ctypes.CDLL(None, use_errno=True)


def may_mount():
    """Whether this process, which must then end, can have a small disk."""
    try:
        enter_private_mounts()
    except OSError:
        return False
    return True


def enter_private_mounts():
    """Give this process, which must have one thread, mounts of its own; raises OSError if forbidden."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _check(_LIBC.unshare(_NEW_MOUNTS))
        _check(_LIBC.mount(b"none", b"/", None, _PRIVATE_ALL, None))
        return
    _check(_LIBC.unshare(_NEW_USER | _NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def mount_disk(folder, size, files):
    """Mount an empty disk of `size` bytes for at most `files` files and folders."""
    _check(_LIBC.mount(b"small", os.fsencode(folder), b"tmpfs", 0, f"size={size},nr_inodes={files}".encode()))


def shrink_disk(folder, size, files):
    """Take away space and files, but for those in use."""
    found = os.statvfs(folder)
    size, files = (
        max(size, (found.f_blocks - found.f_bfree) * found.f_frsize),
        max(files, found.f_files - found.f_ffree),
    )
    _check(
        _LIBC.mount(
            b"small", os.fsencode(folder), b"tmpfs", _REMOUNT, f"size={size},nr_inodes={files}".encode()
        )
    )


def enlarge_disk(folder):
    """Make a disk large enough for anything."""
    _check(_LIBC.mount(b"small", os.fsencode(folder), b"tmpfs", _REMOUNT, b"size=64m,nr_inodes=10000"))


def refuse_changes(folder, number):
    """Let every change of this process below a folder fail as on a full disk, from change `number` on."""

    def refuse(count, path):
        if count >= number and "/" in path and not Path(path).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    on_change(folder, refuse)


def _check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
