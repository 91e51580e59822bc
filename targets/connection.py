"""How a device that is not this machine is reached, as its descriptor says."""

from typing import Literal

import msgspec

__all__ = ["BoardConnection", "Connection", "PhoneConnection"]


class PhoneConnection(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="via",
    tag="adb",
):
    """An Android phone on a cable, or reached by adb in another way.

    Attributes:
        program: ``onnxruntime_perf_test``, built for the phone: a file here.
        libraries: Shared libraries it needs: files here.
        serial: The phone's serial number; None: the only one connected.
        regime: ``"burst"``: measured cool; ``"sustained"``: heated up first.
    """

    program: str
    libraries: tuple[str, ...] = ()
    serial: str | None = None
    regime: Literal["burst", "sustained"] = "burst"


class BoardConnection(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="via",
    tag="tvm-rpc",
):
    """A board that serves TVM's RPC, behind a loopback address.

    Attributes:
        address: ``host:port`` of its server or tracker: an ssh tunnel's end here.
        key: The server's name; None: effdl-rpcd's own.
        tracker: Whether the address is a tracker's.
        token_file: The file with what effdl-rpcd wants to hear; None: nothing.
        triple: What to compile for; None: what effdl-rpcd says its device is.
    """

    address: str
    key: str | None = None
    tracker: bool = False
    token_file: str | None = None
    triple: str | None = None


Connection = PhoneConnection | BoardConnection
