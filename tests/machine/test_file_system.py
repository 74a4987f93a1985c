"""Where a path lies: mounts, file systems and what each promises, from texts that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dejavubench.machine.file_system import (
    MountedFolder,
    describe_durability,
    find_traits,
    locate_folder,
    search_mounts,
)

MOUNTINFO = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
22 27 0:21 / /proc rw - proc proc rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
30 25 0:27 / /dev/shm rw - tmpfs second rw
40 27 8:1 / /data rw shared:2 master:3 - xfs /dev/sda1 rw
41 40 0:50 / /data/hidden rw - nfs4 server:/old rw
42 40 8:17 /inner /data rw - xfs /dev/sdb1 rw
43 27 0:51 / /mnt/two\\040words rw - nfs4 server:/a\\040b rw,vers=4.2
44 27 0:52 / /mnt/back\\134slash rw - fuse.sshfs me@there: rw
45 27 254:0 /srv/cache /mnt/bound rw - ext4 /dev/vda rw
46 27 0:53 / /host rw - 9p share rw
47 27 0:54 / /var rw - overlay overlay rw,lowerdir=/l
a line that is cut o
"""


@pytest.mark.parametrize(
    ("path", "fstype", "point", "source"),
    [
        ("/home/me/logs", "ext4", "/", "/dev/vda"),
        ("/dev/shm/run", "tmpfs", "/dev/shm", "second"),  # the last of those stacked on one folder
        ("/dev/shmoo", "devtmpfs", "/dev", "devtmpfs"),  # no part of /dev/shm
        ("/data", "xfs", "/data", "/dev/sdb1"),
        # The second mount of /data hides what lay below the first.
        ("/data/hidden/x", "xfs", "/data", "/dev/sdb1"),
        ("/mnt/two words/x", "nfs4", "/mnt/two words", "server:/a b"),
        ("/mnt/back\\slash", "fuse.sshfs", "/mnt/back\\slash", "me@there:"),
        ("/mnt/bound/x", "ext4", "/mnt/bound", "/dev/vda"),
        ("/host", "9p", "/host", "share"),
        ("/var/lib", "overlay", "/var", "overlay"),
    ],
)
def test_the_mount_that_holds_a_path_is_found(
    path: str, fstype: str, point: str, source: str
) -> None:
    mount = search_mounts(path, MOUNTINFO)
    assert mount is not None
    assert (mount.type, mount.point, mount.source) == (fstype, point, source)


def test_a_path_is_followed_through_links_to_its_mount(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    text = tmp_path / "mountinfo"
    text.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:1 / {real} rw - ramfs none rw\n")
    place = locate_folder(tmp_path / "link" / "not there yet", text)
    assert place is not None
    assert (place.mount, place.type, place.source) == (str(real), "ramfs", "none")
    assert place.path == str(tmp_path / "link" / "not there yet")


def test_names_that_are_not_utf_8_can_be_recorded(tmp_path: Path) -> None:
    text = tmp_path / "mountinfo"
    text.write_bytes(b"1 0 8:1 / / rw - ext4 \xff/[disk] rw\n")
    place = locate_folder("/x", text, tmp_path)
    assert place == MountedFolder("/x", "/", "ext4", "\\udcff/[disk]", "8:1", "rw")
    str(place).encode()


def test_a_place_has_its_device_and_all_its_options(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    (tmp_path / "vda").mkdir()
    devices.mkdir()
    (devices / "254:0").symlink_to(tmp_path / "vda")
    text = tmp_path / "mountinfo"
    text.write_text(MOUNTINFO)
    place = locate_folder("/home/me/logs", text, devices)
    assert str(place) == (
        "/home/me/logs is on ext4, mounted at / from /dev/vda, device vda, "
        "options rw,relatime,discard"
    )
    shared = locate_folder("/mnt/two words", text, devices)
    assert shared is not None
    assert (shared.device, shared.options) == ("", "rw,vers=4.2")
    # Older records have neither.
    older_mount = MountedFolder("/x", "/", "ext4", "/dev/vda")
    assert str(older_mount) == "/x is on ext4, mounted at / from /dev/vda"
    long_mount = replace(older_mount, options="lowerdir=/" + 3000 * "l")
    assert str(long_mount).endswith("lll …")


def test_without_a_list_of_mounts_no_place_is_known(tmp_path: Path) -> None:
    assert locate_folder(tmp_path, tmp_path / "absent") is None
    assert search_mounts("/x", "") is None
    # A chroot need not be a mount.
    assert search_mounts("/x", "2 1 0:1 / /elsewhere rw - ext4 /dev/sda rw\n") is None


@pytest.mark.parametrize(
    ("types", "text"),
    [
        ("tmpfs ramfs", "memory"),
        ("overlay fuse.fuse-overlayfs", "a container's layered file system"),
        ("nfs nfs4 ceph lustre cifs fuse.sshfs fuse.s3fs glusterfs", "a network file system"),
        ("9p virtiofs", "shared by this virtual machine's host"),
        ("fuse.mergerfs fuseblk", "served by a program in user space"),
    ],
)
def test_file_systems_that_are_no_local_disk_are_named_for_what_they_are(
    types: str, text: str
) -> None:
    for fstype in types.split():
        traits = find_traits(fstype)
        assert traits is not None, fstype
        assert traits.text == text
        for durability in ("fdatasync", "direct"):
            assert f"{durability} on {fstype}: {fstype} is {text}; " in str(
                describe_durability(fstype, durability)
            )
        # The page cache promises nothing, so there is nothing to correct.
        assert describe_durability(fstype, "page-cache") is None


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "zfs", "f2fs"])
def test_a_local_disk_needs_no_note(fstype: str) -> None:
    assert describe_durability(fstype, "fdatasync") is None
