"""A phone's warmth: it slows down when it is warm, so every run is watched, and cold ones wait."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from effdl.errors import CorruptFileError, TargetUnavailableError
from effdl.targets.measure.adb_output import parse_thermal_status
from effdl.targets.measure.adb_phone import read_thermal_status
from effdl.targets.measure.adb_transport import Adb, Answer
from effdl.targets.timing import Progress

__all__ = ["Heat", "Watched", "rest", "run_cold", "run_watched"]

_PART = "effdl-part"
_NUM_PARTS = 4
_MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """How the phone's warmth is dealt with.

    Attributes:
        rest_limit_s: In the burst regime, how long to wait at a time for the phone to cool.
        poll_s: How often to look meanwhile, in seconds.
        heat_up_s: In the sustained regime, how long it works before measuring.
        progress: Told of rests and of heating up, in seconds.
        sleep: Waits so many seconds.
    """

    rest_limit_s: float = 900.0
    poll_s: float = 5.0
    heat_up_s: float = 600.0
    progress: Progress | None = None
    sleep: Callable[[float], None] = time.sleep

    def tell(self, done_s: float, of_s: float, text: str) -> None:
        """Report progress, where somebody listens."""
        if self.progress is not None:
            self.progress(round(done_s), round(of_s), text)


class Watched(NamedTuple):
    """What a program did, and how warm the phone was.

    Attributes:
        answer: What it printed, and its exit status.
        result: What it wrote to its result file.
        status_before: Thermal status right before it.
        status_after: Thermal status right after it.
    """

    answer: Answer
    result: str
    status_before: int
    status_after: int

    @property
    def was_throttled(self) -> bool:
        """Whether the phone held back."""
        return max(self.status_before, self.status_after) > 0


def rest(adb: Adb, heat: Heat, *, name: str) -> None:
    """Wait until Android holds nothing back.

    Args:
        adb: The phone.
        heat: How long and how often.
        name: The phone, for people.

    Raises:
        TargetUnavailableError: It stays warm, or the phone is lost.
    """
    waited_s = 0.0
    while (status := read_thermal_status(adb)) > 0:
        if waited_s >= heat.rest_limit_s:
            raise TargetUnavailableError(
                f"{name} does not cool down: wanted thermal status 0, got {status} after "
                f"{waited_s:.0f} s",
                hint="take it out of its case and off the charger and run it again: it goes on "
                "where it stopped; or measure the sustained regime",
            )
        heat.tell(waited_s, heat.rest_limit_s, f"the phone cools down (status {status})")
        heat.sleep(heat.poll_s)
        waited_s += heat.poll_s


def run_watched(adb: Adb, command: str, *, result: str | None = None, limit_s: float) -> Watched:
    """Run a program, with the thermal status right before and right after it.

    Args:
        adb: The phone.
        command: A line of the phone's shell; its parts are quoted.
        result: A file on the phone that the program writes; removed before and after.
        limit_s: Seconds it may take.

    Raises:
        TargetUnavailableError: The phone is lost, or does not answer in time.
        CorruptFileError: The output is cut off.
    """
    thermal, part = "dumpsys thermalservice", f"echo; echo {_PART}"
    clear = "" if result is None else f"rm -f {shlex.quote(result)}"
    show = "" if result is None else f"cat {shlex.quote(result)}\n"
    answer = adb.script(
        f"{clear}\n{thermal}; {part}\n{command}\ncode=$?; {part}\n"
        f"{show}{clear}\n{part}; {thermal}; exit $code",
        limit_s=limit_s,
    )
    parts = answer.text.split(f"\n{_PART}\n")
    if len(parts) != _NUM_PARTS:
        raise CorruptFileError(
            f"the output of a program on the phone is not whole: wanted {_NUM_PARTS} parts, got "
            f"{len(parts)}: {answer.text[:300]!r}"
        )
    before, said, written, after = parts
    statuses = parse_thermal_status(before), parse_thermal_status(after)
    return Watched(Answer(said, answer.exit_code), written, *statuses)


def run_cold(adb: Adb, heat: Heat, run: Callable[[], Watched], *, name: str) -> Watched:
    """Run until the phone did not hold back, with a rest in between, at most three times.

    Args:
        adb: The phone.
        heat: How long it may rest.
        run: Runs the program.
        name: The phone, for people.

    Raises:
        TargetUnavailableError: The phone stays warm, or is lost.
    """
    watched = run()
    for _ in range(_MAX_ATTEMPTS - 1):
        if watched.was_throttled:
            rest(adb, heat, name=name)
            watched = run()
    return watched
