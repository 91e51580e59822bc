"""Fills a store where something forbids it, and says what came of it as JSON.

Usage: SCENE FOLDER [COMMAND ...]. Scenes that mount need a mount namespace of their own.
With a command, that replaces this process once the scene is set.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from effdl.errors import OutputError
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Round

SETTING = Setting(
    runtime="r", runtime_version="1", runtime_build="b", device="d",
    num_threads=1, batch_size=1, protocol="short",
)  # fmt: skip
NOBODY = 65534
# A line of a host that mounts its users' folders over the network.
NETWORK_LINE = "99 27 0:61 / {folder} rw,relatime shared:7 - nfs4 filer.lab:/home rw,vers=4.2\n"


def round_of(number: int) -> Round:
    return Round(seconds=(float(number),) * 20, interrupted=(False,) * 20, reference_s=1.0)


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True, timeout=10)


def set_scene(scene: str, folder: Path) -> None:
    path = folder / "measurements.sqlite"
    if scene == "full disk":
        mount("-t", "tmpfs", "-o", "size=1m", "none", str(folder))
    with MeasurementStore(path) as store:
        store.add_round(SETTING, "old", round_of(7))
    if scene == "file size limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    elif scene == "read-only mount":
        mount("--bind", str(folder), str(folder))
        mount("-o", "remount,bind,ro", str(folder))
    elif scene == "network":
        mounts = Path("/proc/self/mountinfo").read_text()
        made = folder / "mountinfo"
        made.write_text(mounts + NETWORK_LINE.format(folder=folder))
        mount("--bind", str(made), f"/proc/{os.getpid()}/mountinfo")
    elif scene == "read-only folder":
        folder.chmod(0o555)
        path.chmod(0o444)
    elif scene == "read-only file":
        folder.chmod(0o777)
        path.chmod(0o444)
    if scene.startswith("read-only ") and scene != "read-only mount" and os.getuid() == 0:
        os.setuid(NOBODY)


def fill(path: Path) -> dict[str, object]:
    """Add rounds until that fails."""
    kept = 0
    try:
        with MeasurementStore(path) as store:
            while kept < 50_000:
                store.add_round(SETTING, f"new {kept}", round_of(kept))
                kept += 1
    except OutputError as error:
        return {"kept": kept, "message": error.message, "hint": error.hint}
    return {"kept": kept}


if __name__ == "__main__":
    scene, folder = sys.argv[1], Path(sys.argv[2])
    set_scene(scene, folder)
    if sys.argv[3:]:
        os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
    found = fill(folder / "measurements.sqlite")
    if scene == "full disk":
        # There is room again, and the next run goes on.
        mount("-o", "remount,size=4m", str(folder))
        with MeasurementStore(folder / "measurements.sqlite") as store:
            store.add_round(SETTING, "later", round_of(8))
            items = ["old", *(f"new {i}" for i in range(int(str(found["kept"])))), "later"]
            found["stored"] = [r[0].seconds[0] for r in store.read_rounds(SETTING, items)]
    sys.stdout.write(json.dumps(found))
