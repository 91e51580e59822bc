"""Builds effdl-rpcd, the server of TVM code for boards.

``python -m effdl.targets.measure.rpc_daemon_build --triple aarch64-linux-gnu -o FOLDER``
writes a folder to copy to the board: the daemon, TVM's runtime for that processor, and a
token. For another processor than this machine's, the runtime is downloaded from the
package index, by digest; that is the only download, and only this command makes it.
"""

import argparse
import importlib.util
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from effdl.compilers import TVM_FFI_VERSION, TVM_VERSION
from effdl.errors import BackendUnavailableError, EffdlError, OutputError
from effdl.targets.measure.tvm_target import (
    TRIPLES,
    TvmTarget,
    find_linker,
    find_tvm,
    host_triple,
)

__all__ = ["DAEMON_NAME", "TOKEN_NAME", "build_daemon", "write_token"]

DAEMON_NAME = "effdl-rpcd"
TOKEN_NAME = "token"  # noqa: S105
_SOURCE = Path(__file__).parent / "rpc_daemon" / "effdl_rpcd.cpp"
_LIBRARIES = {"tvm": "libtvm_runtime.so", "tvm_ffi": "libtvm_ffi.so"}
_DOWNLOAD_LIMIT_S = 600
# ziglang compiles its C++ library at first use.
_BUILD_LIMIT_S = 600
_MAX_LIBRARY_BYTES = 64 << 20

_WHEELS = {
    "aarch64-linux-gnu": {
        f"apache-tvm=={TVM_VERSION}": (
            "4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7"
        ),
        f"apache-tvm-ffi=={TVM_FFI_VERSION}": (
            "c7a759781d4fbf2b99fa12f2741f250b882b06acc2747bb02831d491d1ac7d3c"
        ),
    }
}
_PLATFORM = "manylinux_2_28_aarch64"


def build_daemon(triple: str, folder: Path, *, linker: tuple[str, ...] | None = None) -> Path:
    """Build the daemon with the runtime that it needs beside it.

    Args:
        triple: The board's processor and system.
        folder: Where to put ``effdl-rpcd`` and ``lib``; made if missing.
        linker: The start of the compiler's command line; None: `find_linker`'s.

    Returns:
        The daemon's path.

    Raises:
        BackendUnavailableError: TVM or a compiler is missing, or the runtime cannot
            be downloaded.
        OutputError: The folder cannot be written.
        UnknownNameError: There is no such triple.
    """
    TvmTarget(triple=triple)
    find_tvm()
    linker = linker or find_linker(triple, cpp=True)
    libraries = folder / "lib"
    try:
        libraries.mkdir(parents=True, exist_ok=True)
        if triple == host_triple():
            for package, name in _LIBRARIES.items():
                shutil.copyfile(_package_folder(package) / "lib" / name, libraries / name)
        else:
            _fetch_runtime(triple, libraries)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="choose a folder that is writable and has space left",
        ) from error
    daemon = folder / DAEMON_NAME
    command = [
        *linker,
        "-std=c++17",
        "-O2",
        "-isystem",
        str(_package_folder("tvm_ffi") / "include"),
        str(_SOURCE),
        "-o",
        str(daemon),
        f"-L{libraries}",
        "-Wl,--no-as-needed",
        "-ltvm_runtime",
        "-ltvm_ffi",
        "-pthread",
        "-Wl,-rpath,$ORIGIN/lib",
    ]
    done = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_BUILD_LIMIT_S, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise BackendUnavailableError(
            f"{linker[0]} cannot build {DAEMON_NAME} for {triple}: {said[:300]}",
            hint="pip install ziglang brings a compiler and every C library it needs",
        )
    return daemon


def write_token(path: Path) -> str:
    """A new random token, in a file that only its owner can read.

    Raises:
        OutputError: The file cannot be written.
    """
    token = secrets.token_hex(32)
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(token + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return token


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _fetch_runtime(triple: str, folder: Path) -> None:
    """The two runtime libraries out of TVM's wheels for another processor."""
    if importlib.util.find_spec("pip") is None:
        raise BackendUnavailableError(
            f"fetching TVM's runtime for {triple} wanted pip, which is not installed",
            hint=f"{sys.executable} -m ensurepip",
        )
    with tempfile.TemporaryDirectory(prefix="effdl-wheels-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        pins = [f"{pin} --hash=sha256:{digest}\n" for pin, digest in _WHEELS[triple].items()]
        wanted.write_text("".join(pins))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
        command += ["--require-hashes", "--platform", _PLATFORM]
        command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
        done = subprocess.run(  # noqa: S603
            [*command, "--dest", scratch, "--requirement", str(wanted)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DOWNLOAD_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise BackendUnavailableError(
                f"pip cannot download TVM's runtime for {triple}: {(lines or [''])[-1][:300]}",
                hint="the package index must be reachable, once for each board",
            )
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for package, name in _LIBRARIES.items():
                    _extract(archive, f"{package}/lib/{name}", folder / name)


def _extract(archive: zipfile.ZipFile, member: str, destination: Path) -> None:
    if member in archive.namelist():
        with archive.open(member) as file:
            destination.write_bytes(file.read(_MAX_LIBRARY_BYTES))


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build effdl-rpcd for a board.")
    parser.add_argument("--triple", default="aarch64-linux-gnu", choices=TRIPLES)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    try:
        daemon = build_daemon(arguments.triple, arguments.output)
        write_token(arguments.output / TOKEN_NAME)
    except EffdlError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}\n")
        return error.exit_code
    sys.stdout.write(f"{daemon}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
