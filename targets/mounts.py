"""Which file system a file lies on, and whether SQLite may share memory over it.

The store's write-ahead log needs memory that all its users see at once and locks
that the kernel honours. File systems that several machines mount give neither:
SQLite's own documentation rules them out, and databases on them come to harm.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["Mount", "find_mount", "is_shared_between_machines", "parse_mounts"]

_MOUNTINFO = Path("/proc/self/mountinfo")

# What virtual machines and containers have for a local disk (overlay, virtiofs, 9p,
# fuse-overlayfs, tmpfs) is not among them: the write-ahead log works there, or SQLite
# says by itself that it does not.
_SHARED = re.compile(
    r"afs|beegfs|ceph|cifs|coda|davfs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|pvfs2"
    r"|smb3|smbfs|wekafs"
    r"|fuse\.(blobfuse2?|ceph(-fuse)?|curlftpfs|davfs|gcsfuse|glusterfs|goofys|juicefs|mount-s3"
    r"|mfs|rclone|s3fs|seaweedfs|smbnetfs|sshfs)"
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of Linux's list of mounts.

    Attributes:
        folder: Where it is mounted.
        kind: Type of the file system, such as ``ext4`` or ``fuse.sshfs``.
        source: What is mounted, such as ``/dev/vda`` or ``server:/home``.
    """

    folder: PurePosixPath
    kind: str
    source: str


def parse_mounts(mountinfo: str) -> tuple[Mount, ...]:
    """The mounts in the text of ``/proc/self/mountinfo``, in its order.

    Lines that do not have its form are passed over. Source: proc(5) of the Linux
    manual pages: optional fields end at a lone hyphen, and blanks are escaped.
    """
    mounts = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, described = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(described) >= 2:
            folder = PurePosixPath(_unescape(fields[4]))
            mounts.append(Mount(folder=folder, kind=described[0], source=_unescape(described[1])))
    return tuple(mounts)


def find_mount(path: Path, mountinfo: str | None = None) -> Mount | None:
    """The mount that a file lies on, or would; None where the system does not say.

    Args:
        path: The file; links are followed.
        mountinfo: The list of mounts; None: this process's own.
    """
    if mountinfo is None:
        try:
            mountinfo = _MOUNTINFO.read_text(errors="surrogateescape")
        except OSError:
            return None
    real = PurePosixPath(path.resolve())
    found = None
    for mount in parse_mounts(mountinfo):
        # Of several on the same folder, the last hides the others.
        deeper = found is None or len(mount.folder.parts) >= len(found.folder.parts)
        if deeper and real.is_relative_to(mount.folder):
            found = mount
    return found


def is_shared_between_machines(mount: Mount) -> bool:
    """Whether it is a file system that several machines mount at once."""
    return _SHARED.fullmatch(mount.kind) is not None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
