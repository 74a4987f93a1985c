"""Ground floor: which mount a folder lies on, and what a disk's number is of there.

Needs the standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """One mount, as ``/proc/self/mountinfo`` lists it (proc(5)).

    Attributes:
        point: folder that it is mounted at.
        type: file system type, such as ``ext4`` or ``fuse.sshfs``.
        source: device, server or name that it was mounted from.
    """

    id: int
    parent: int
    point: str
    type: str
    source: str


def mount_of(path: str | os.PathLike[str], mountinfo: Path = MOUNTINFO) -> Mount | None:
    """Return the mount that holds ``path``, which need not exist yet; None if the kernel does not tell."""
    try:
        text = os.fsdecode(mountinfo.read_bytes())
    except OSError:
        return None
    return find_mount(os.path.realpath(path), text)


def find_mount(resolved: str, mountinfo: str) -> Mount | None:
    """Return the mount that holds an absolute path without links, by the text of ``/proc/self/mountinfo``.

    Goes down the tree of mounts as the kernel does. The longest mount point alone would not do: a later mount hides
    earlier ones at the same folder and below it.
    """
    mounts = list(_mounts(mountinfo))
    listed = {mount.id for mount in mounts}
    here, candidates = (
        None,
        [mount for mount in mounts if mount.parent not in listed or mount.parent == mount.id],
    )
    while on_path := [mount for mount in candidates if _holds(mount.point, resolved)]:
        nearest = min(len(mount.point) for mount in on_path)
        here = [mount for mount in on_path if len(mount.point) == nearest][-1]
        candidates = [mount for mount in mounts if mount.parent == here.id != mount.id]
    return here


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _mounts(mountinfo: str) -> Iterator[Mount]:
    for line in mountinfo.split("\n"):
        fields, separator, rest = line.partition(" - ")
        before, after = fields.split(" "), rest.split(" ")
        if separator and len(before) >= 6 and len(after) >= 2:
            id, parent, _, _, point, *_ = before
            yield Mount(
                int(id), int(parent), _unescape(point), _unescape(after[0]), _unescape(after[1])
            )


def _unescape(field: str) -> str:
    r"""Blanks, tabs, newlines and backslashes are written as ``\040`` and so on."""
    return re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), field)


@dataclass(frozen=True)
class Place:
    """A folder, and the mount that holds it: what is recorded of it."""

    path: str
    mount: str
    type: str
    source: str

    def __str__(self) -> str:
        return f"{self.path} is on {self.type}, mounted at {self.mount} from {self.source}"


def place_of(path: str | os.PathLike[str], mountinfo: Path = MOUNTINFO) -> Place | None:
    """Return the place of a folder that need not exist yet; None if the kernel does not tell."""
    mount = mount_of(path, mountinfo)
    if mount is None:
        return None
    return Place(*map(_writable, (os.path.abspath(path), mount.point, mount.type, mount.source)))


def _writable(name: str) -> str:
    """A name that need not be UTF-8 as one that can be recorded and shown."""
    return name.encode(errors="backslashreplace").decode()


# ---- what a number is of ----


@dataclass(frozen=True)
class Nature:
    """Properties of a kind of file system that matter to a timed write.

    Attributes:
        types: patterns of file system types.
        text: what such a file system is, to follow "… is".
        durable: what a durable write is worth there; ``{durability}`` stands for the option.
    """

    types: tuple[str, ...]
    text: str
    durable: str


NATURES = (
    Nature(
        ("tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"),
        "memory",
        "{durability} waits for no device there, so the number is of copying in memory, not of a disk",
    ),
    Nature(
        ("overlay", "aufs", "fuse.fuse-overlayfs", "fuse.unionfs*", "unionfs"),
        "a container's layered file system",
        "the number is of the container's storage on its host, through one more layer",
    ),
    Nature(
        (
            *(
                "nfs*",
                "cifs",
                "smb*",
                "ceph",
                "lustre",
                "gpfs",
                "beegfs*",
                "glusterfs",
                "afs",
                "orangefs",
                "pvfs2",
            ),
            *(
                "panfs",
                "wekafs",
                "ocfs2",
                "gfs2",
                "davfs",
                "coda",
                "fuse.ceph*",
                "fuse.glusterfs",
                "fuse.sshfs",
            ),
            *(
                "fuse.s3fs",
                "fuse.gcsfuse*",
                "fuse.goofys*",
                "fuse.rclone",
                "fuse.juicefs",
                "fuse.mountpoint-s3",
            ),
            *("fuse.beegfs*", "fuse.davfs*", "fuse.blobfuse*", "fuse.curlftpfs"),
        ),
        "a network file system",
        "the number includes the network and the server, and the server decides what {durability} makes durable",
    ),
    Nature(
        (
            "9p",
            "virtiofs",
            "vboxsf",
            "vmhgfs",
            "fuse.vmhgfs*",
            "prl_fs",
            "drvfs",
            "fakeowner",
            "fuse.grpcfuse",
        ),
        "shared by this virtual machine's host",
        "the number includes the way to the host, and the host decides what {durability} makes durable",
    ),
    Nature(
        ("fuse", "fuseblk", "fuse.*"),
        "served by a program in user space",
        "the number includes the program, and the program decides what {durability} makes durable",
    ),
)
"""The first one with a fitting type counts. A type that fits none is taken for one of a local disk."""

WAITING = ("fdatasync", "direct")
"""Durability options that claim that a write has reached a device."""


def nature(type: str) -> Nature | None:
    """Return what is special about a file system type; None for one of a local disk."""
    for known in NATURES:
        if any(fnmatchcase(type, pattern) for pattern in known.types):
            return known
    return None


def durability_note(type: str, durability: str) -> str | None:
    """Say what a durability option is worth on a file system type; None if it is what it says."""
    found = nature(type)
    if found is None or durability not in WAITING:
        return None
    return f"{durability} on {type}: {type} is {found.text}; {found.durable.format(durability=durability)}"
