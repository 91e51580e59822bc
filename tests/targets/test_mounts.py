"""Which file system a file lies on, from recorded lists of mounts."""

from pathlib import Path, PurePosixPath

import pytest

from effdl.targets.mounts import Mount, find_mount, is_shared_between_machines, parse_mounts

# A workstation: home folders by NFS under an automounter, a stick with a blank in its name,
# and a file server's share mounted over a local folder.
WORKSTATION = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,discard
41 27 0:35 / /home rw,relatime shared:22 master:3 - autofs systemd-1 rw,fd=35
96 41 0:61 / /home/ada rw,relatime shared:7 - nfs4 filer.lab:/export/ada rw,vers=4.2,sec=sys
97 27 0:62 / /media/ada/USB\040DISK rw,nosuid - fuseblk /dev/sda1 rw,user_id=0
98 27 0:63 / /mnt/phone rw,nosuid - fuse.sshfs ada@board:/home/ada rw,user_id=1000
99 27 0:64 / /srv rw,relatime - xfs /dev/sdb1 rw
100 99 0:65 / /srv rw,relatime - cifs //filer/share rw,vers=3.1.1
"""
# What containers and virtual machines have for a root, as they write it themselves.
DOCKER = (
    "612 540 0:52 / / rw,relatime master:262 - overlay overlay rw,lowerdir=/l/A:/l/B\n"
    "700 612 254:1 /volumes/x /data rw,relatime - ext4 /dev/vda1 rw\n"
)
KATA = "28 1 0:26 / / rw,relatime - virtiofs kataShared rw\n"
WSL = (
    "60 50 8:32 / / rw,relatime - ext4 /dev/sdc rw,discard\n"
    "90 60 0:44 / /mnt/c rw,noatime - 9p drvfs rw,dirsync,aname=drvfs;path=C:\\\n"
)


@pytest.mark.parametrize(
    ("mounts", "path", "folder", "kind", "shared"),
    [
        (WORKSTATION, "/var/lib/x", "/", "ext4", False),
        (WORKSTATION, "/home/ada/.local/share/effdl/m.sqlite", "/home/ada", "nfs4", True),
        (WORKSTATION, "/home/ada", "/home/ada", "nfs4", True),
        (WORKSTATION, "/home/adam/m.sqlite", "/home", "autofs", False),
        (WORKSTATION, "/media/ada/USB DISK/m.sqlite", "/media/ada/USB DISK", "fuseblk", False),
        (WORKSTATION, "/mnt/phone/m.sqlite", "/mnt/phone", "fuse.sshfs", True),
        (WORKSTATION, "/srv/m.sqlite", "/srv", "cifs", True),
        (DOCKER, "/root/m.sqlite", "/", "overlay", False),
        (DOCKER, "/data/m.sqlite", "/data", "ext4", False),
        (KATA, "/root/m.sqlite", "/", "virtiofs", False),
        (WSL, "/mnt/c/Users/m.sqlite", "/mnt/c", "9p", False),
    ],
)
def test_the_innermost_and_last_mount_counts(
    mounts: str, path: str, folder: str, kind: str, shared: bool
):
    found = find_mount(Path(path), mounts)
    assert found is not None
    assert (found.folder, found.kind) == (PurePosixPath(folder), kind)
    assert is_shared_between_machines(found) is shared


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("nfs", True), ("lustre", True), ("fuse.s3fs", True), ("fuse.fuse-overlayfs", False),
     ("tmpfs", False), ("btrfs", False), ("fuse.nfs", False), ("sshfs", False)],
)  # fmt: skip
def test_kinds(kind: str, shared: bool):
    mount = Mount(folder=PurePosixPath("/"), kind=kind, source="x")
    assert is_shared_between_machines(mount) is shared


def test_lines_of_another_form_are_passed_over():
    text = "\n".join(["", "nonsense", "1 2 0:3 / /a rw", "1 2 0:3 / /b rw - ", DOCKER])
    assert [mount.kind for mount in parse_mounts(text)] == ["overlay", "ext4"]
    assert find_mount(Path("/x"), "") is None


def test_links_are_followed(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    line = f"9 1 0:9 / {tmp_path.resolve()}/real rw - nfs4 filer:/x rw\n"
    found = find_mount(tmp_path / "link" / "m.sqlite", line)
    assert found is not None
    assert found.source == "filer:/x"


def test_this_machine_has_a_root():
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("the system lists no mounts")
    assert find_mount(Path("/")) is not None
