"""PyTorch with one thread, for networks so small that more threads only wait."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body with one intra-op thread, and give the threads back after it.

    Beside other work on the same cores, two threads took 70 times as long as
    one for a forward pass of a batch of one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
