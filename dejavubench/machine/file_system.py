"""The mount of a folder, and the meaning of a timed write on its file system."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
BLOCK_DEVICES = Path("/sys/dev/block")
"""Links to the block devices, by their numbers."""

MOST_OPTION_CHARACTERS = 100
"""Characters of a mount's options that a note shows."""


@dataclass(frozen=True)
class Mount:
    """One mount, as ``/proc/self/mountinfo`` lists it (proc(5)).

    Attributes:
        point: the folder at which it is mounted.
        type: file system type, such as ``ext4`` or ``fuse.sshfs``.
        source: the device, server or name from which it was mounted.
        number: major and minor number of the device, as ``254:0``.
        options: options of the mount, then those of the file system that the mount does not name.
    """

    id: int
    parent: int
    point: str
    type: str
    source: str
    number: str
    options: str


def find_mount(path: str | os.PathLike[str], mountinfo: Path = MOUNTINFO) -> Mount | None:
    """Return the mount of ``path``, which may not exist yet; None if the kernel lists no mounts."""
    try:
        text = os.fsdecode(mountinfo.read_bytes())
    except OSError:
        return None
    return search_mounts(os.path.realpath(path), text)


def search_mounts(path: str, mountinfo: str) -> Mount | None:
    """Return the mount of an absolute path without links.

    The function goes down the tree of mounts as the kernel does. The longest mount point is not
    enough: a later mount hides earlier ones at the same folder and below.

    Args:
        path: absolute, without links.
        mountinfo: the text of ``/proc/self/mountinfo``.
    """
    mounts = list(_parse_mounts(mountinfo))
    listed_ids = {mount.id for mount in mounts}
    mount_of_path = None
    # Roots: in a container, the parent of the topmost mount is not listed.
    candidates = [
        mount for mount in mounts if mount.parent not in listed_ids or mount.parent == mount.id
    ]
    while on_path := [mount for mount in candidates if _is_inside(mount.point, path)]:
        shortest_length = min(len(mount.point) for mount in on_path)
        mount_of_path = [mount for mount in on_path if len(mount.point) == shortest_length][-1]
        candidates = [mount for mount in mounts if mount.parent == mount_of_path.id != mount.id]
    return mount_of_path


def _is_inside(mount_point: str, path: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip("/") + "/")


def _parse_mounts(mountinfo: str) -> Iterator[Mount]:
    """Yield the mounts of a text in their order; lines of another form are left out."""
    for line in mountinfo.split("\n"):
        fields, separator, source_text = line.partition(" - ")
        mount_fields = fields.split(" ")
        source_fields = source_text.split(" ")
        if separator and len(mount_fields) >= 6 and len(source_fields) >= 2:
            mount_id, parent, device_number, _, point, options, *_ = mount_fields
            all_options = dict.fromkeys(
                f"{options},{source_fields[2] if len(source_fields) > 2 else ''}".split(",")
            )
            yield Mount(
                id=int(mount_id),
                parent=int(parent),
                point=_unescape(point),
                type=_unescape(source_fields[0]),
                source=_unescape(source_fields[1]),
                number=device_number,
                options=",".join(_unescape(option) for option in all_options if option),
            )


def _unescape(field: str) -> str:
    r"""Undo the kernel's escapes of blanks, tabs, newlines and backslashes, as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), field)


@dataclass(frozen=True)
class MountedFolder:
    """A folder and its mount, as records hold them. Older records have neither device nor options.

    Attributes:
        path, mount: the folder, and where its file system is mounted.
        type: type of the file system.
        source: what is mounted.
        options: options of the mount.
        device: name of the block device, as ``vda``; its numbers if the kernel names none.
    """

    path: str
    mount: str
    type: str
    source: str
    device: str = ""
    options: str = ""

    def __str__(self) -> str:
        mount_text = f"{self.path} is on {self.type}, mounted at {self.mount} from {self.source}"
        device = f", device {self.device}" if self.device else ""
        # Those of a container's layers are thousands of characters long; the record has all.
        shown_options = (
            f"{self.options[:MOST_OPTION_CHARACTERS]} …"
            if len(self.options) > MOST_OPTION_CHARACTERS
            else self.options
        )
        return mount_text + device + (f", options {shown_options}" if shown_options else "")

    def describe_durability(self, durability: str) -> str | None:
        """Return a note on a durability option that the file system weakens."""
        return describe_durability(self.type, durability)


def locate_folder(
    path: str | os.PathLike[str], mountinfo: Path = MOUNTINFO, devices: Path = BLOCK_DEVICES
) -> MountedFolder | None:
    """Return the place of a folder, which may not exist yet; None if the kernel lists no mounts."""
    mount = find_mount(path, mountinfo)
    if mount is None:
        return None
    return MountedFolder(
        path=_escape(os.path.abspath(path)),
        mount=_escape(mount.point),
        type=_escape(mount.type),
        source=_escape(mount.source),
        device=_escape(_find_device_name(mount.number, devices)),
        options=_escape(mount.options),
    )


def _find_device_name(device_number: str, devices: Path) -> str:
    """Return the name of a block device by its numbers, which are ``0:…`` for what has none."""
    try:
        return (devices / device_number).resolve(strict=True).name
    except OSError:
        return "" if device_number.startswith("0:") else device_number


def _escape(name: str) -> str:
    """Return a name as UTF-8, with other bytes escaped, so that it can be recorded."""
    return name.encode(errors="backslashreplace").decode()


# ---- the meaning of a number ----


@dataclass(frozen=True)
class FileSystemTraits:
    """Properties of a kind of file system that matter to a timed write.

    Attributes:
        types: patterns of file system types.
        text: a noun phrase for it, to follow "… is".
        durable: the worth of a durable write there; ``{durability}`` stands for the option.
    """

    types: tuple[str, ...]
    text: str
    durable: str


NETWORK_FILE_SYSTEM = "a network file system"
"""The text of that kind, whose folders several hosts may share."""

KNOWN_TRAITS = (
    FileSystemTraits(
        ("tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"),
        "memory",
        "{durability} waits for no device there, so the number is that of copying in memory, "
        "not of a disk",
    ),
    FileSystemTraits(
        ("overlay", "aufs", "fuse.fuse-overlayfs", "fuse.unionfs*", "unionfs"),
        "a container's layered file system",
        "the number is that of the container's storage on its host, through one more layer",
    ),
    FileSystemTraits(
        (
            *("nfs*", "cifs", "smb*", "ceph", "lustre", "gpfs", "beegfs*", "glusterfs", "afs"),
            *("orangefs", "pvfs2", "panfs", "wekafs", "ocfs2", "gfs2", "davfs", "coda"),
            *("fuse.ceph*", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse*"),
            *("fuse.goofys*", "fuse.rclone", "fuse.juicefs", "fuse.mountpoint-s3"),
            *("fuse.beegfs*", "fuse.davfs*", "fuse.blobfuse*", "fuse.curlftpfs"),
        ),
        NETWORK_FILE_SYSTEM,
        "the number includes the network and the server, and the server decides what "
        "{durability} makes durable",
    ),
    FileSystemTraits(
        (
            *("9p", "virtiofs", "vboxsf", "vmhgfs", "fuse.vmhgfs*", "prl_fs", "drvfs"),
            *("fakeowner", "fuse.grpcfuse"),
        ),
        "shared by this virtual machine's host",
        "the number includes the way to the host, and the host decides what {durability} makes "
        "durable",
    ),
    FileSystemTraits(
        ("fuse", "fuseblk", "fuse.*"),
        "served by a program in user space",
        "the number includes the program, and the program decides what {durability} makes durable",
    ),
)
"""The first entry that fits counts. A type that fits none is taken for a local disk's."""

WAITING_DURABILITIES = ("fdatasync", "direct")
"""Durability options that promise that a write has reached a device."""


def find_traits(fstype: str) -> FileSystemTraits | None:
    """Return the properties of a file system type; None for that of a local disk."""
    for traits in KNOWN_TRAITS:
        if any(fnmatchcase(fstype, pattern) for pattern in traits.types):
            return traits
    return None


def describe_durability(fstype: str, durability: str) -> str | None:
    """Return a note on a durability option that a file system type weakens; None if it holds."""
    traits = find_traits(fstype)
    if traits is None or durability not in WAITING_DURABILITIES:
        return None
    durability_text = traits.durable.format(durability=durability)
    return f"{durability} on {fstype}: {fstype} is {traits.text}; {durability_text}"
