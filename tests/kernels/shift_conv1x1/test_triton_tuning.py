"""Tiles are timed where a person asks for it, and come back in order."""

import time
from collections.abc import Callable

import pytest
import torch

from effdl.kernels.triton_tiles import Tile

triton_tuning = pytest.importorskip("effdl.kernels.shift_conv1x1.triton_tuning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = tuple(
    Tile(rows=rows, columns=16, depth=16, num_warps=4, num_stages=2) for rows in (16, 32, 64)
)


def test_every_tile_is_timed_and_the_fastest_comes_first() -> None:
    results: list[torch.Tensor] = []

    def measure(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        result = run()
        assert isinstance(result, torch.Tensor)
        results.append(result)
        return (time.perf_counter() - start) * 1e3

    x, weight = torch.randn(2, 8, 2, 2, device=DEVICE), torch.randn(5, 8, device=DEVICE)
    sections = {"num_segments": 2, "fold_next": 1, "fold_previous": 1}
    grad_y = torch.randn(2, 5, 2, 2, device=DEVICE)
    for tune, tensor in ((triton_tuning.tune_forward, x), (triton_tuning.tune_grad_input, grad_y)):
        results.clear()
        timed = tune(tensor, weight, measure=measure, tiles=TILES, **sections)
        assert {each.tile for each in timed} == set(TILES)
        times = [each.latency_ms for each in timed]
        assert times == sorted(times)
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close(results[0], results[2])


def test_candidates_are_what_tensor_cores_take() -> None:
    for element_bytes in (1, 2, 4):
        tiles = triton_tuning.candidate_tiles(element_bytes=element_bytes, tensor_cores=True)
        assert len(tiles) == len(set(tiles))
        assert min(tile.depth * element_bytes for tile in tiles) >= 32
