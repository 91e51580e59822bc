"""How a long job says how far it is."""

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[int, int, str], None]
"""Called with how much is done, how much there is (0: unknown), and what is being done."""


def no_progress(done: int, total: int, what: str) -> None:
    """Say nothing."""
