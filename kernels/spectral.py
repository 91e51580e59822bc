"""Largest singular values of matrices: estimates from below and bounds from above.

Power iteration comes from below: what it returns never exceeds the largest singular
value. A guarantee needs a number that is never less: `norm_upper_bound` is one within about
one percent, `gram_bound` a differentiable one that closes in from above.
"""

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.validation import format_shape

__all__ = ["gram_bound", "norm_upper_bound", "power_iteration", "shrink_factor", "start_direction"]

# Up to this many rows or columns all eigenvalues are computed; beyond, Cholesky's test is faster.
_EIGENVALUE_SIZE = 64
_SLACK = 2e-3
_NUM_ESTIMATES = 64
_CHUNK_BYTES = 2**26
_SEED = 0


def start_direction(shape: tuple[int, ...], *, seed: int = _SEED) -> Tensor:
    """A made tensor of length one to start power iteration from: the same on every run."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x / x.norm().clamp_min(1e-12)


def power_iteration(
    matrix: Tensor, direction: Tensor, *, num_iterations: int = 1
) -> tuple[Tensor, Tensor]:
    """An estimate from below of the largest singular value, and a better direction.

    The gradient flows through ``matrix`` with the direction held still, which at the
    end of the iteration is the gradient of the singular value.

    Args:
        matrix: [m, n].
        direction: Where to start, [n]; not all zero.
        num_iterations: Products with the matrix and its transpose.

    Returns:
        sigma, [], at most the largest singular value, and the new direction, [n],
        detached, of length one.

    Raises:
        ConfigError: Shapes that do not fit.
    """
    if matrix.ndim != 2 or direction.shape != matrix.shape[1:]:
        raise ConfigError(
            "wanted a matrix [m, n] and a direction [n], got "
            f"{format_shape(matrix.shape)} and {format_shape(direction.shape)}"
        )
    with torch.no_grad():
        for _ in range(num_iterations):
            direction = _unit(matrix.t() @ (matrix @ direction), otherwise=direction)
    return (matrix @ direction).norm(), direction.detach()


def gram_bound(matrix: Tensor, *, num_iterations: int = 6) -> Tensor:
    """A differentiable bound from above of the largest singular value.

    With M_0 the matrix and M_(i+1) = M_i^H M_i, the bound is ||M_t||_F^(1 / 2^t): t
    squarings exceed the truth by at most rank^(1 / 2^(t+1)), such as 4 % at t = 6 and
    rank 256 where all singular values are equal. Each is scaled, so that nothing
    overflows. Source: Delattre et al., ICML 2023, arXiv:2305.16173.

    Args:
        matrix: [..., m, n], real or complex.
        num_iterations: t; with 0 the bound is the Frobenius norm, exact for one row or column.

    Returns:
        [...], real.
    """
    current = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mH
    largest = current.detach().abs().amax(dim=(-2, -1)).clamp_min(1e-30)
    current = current / largest[..., None, None]
    length = _safe_norm(current)
    log_scale = length.log()
    for _ in range(num_iterations):
        current = current / length[..., None, None]
        current = current.mH @ current
        length = _safe_norm(current)
        log_scale = 2 * log_scale + length.log()
    return largest * (log_scale / 2**num_iterations).exp()


@torch.no_grad()
def norm_upper_bound(matrices: Tensor) -> float:
    """A number that no singular value of any of the matrices exceeds, and hardly more.

    In double precision. Small matrices: the eigenvalues of the smaller Gram matrix G.
    Large ones: G <= t^2 is proved by a Cholesky factorization of t^2 - G, which exists
    for no smaller t than the largest singular value; t starts just above power
    iteration's estimate and grows until the factorization succeeds. Both are raised by
    more than their rounding errors.

    Args:
        matrices: [..., m, n], real or complex.

    Raises:
        ConfigError: There are numbers that are not finite.
    """
    if not bool(torch.isfinite(matrices).all()):
        raise ConfigError("a bound wanted finite weights, got NaN or infinity")
    if matrices.numel() == 0:
        return 0.0
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    flat = matrices.to(device="cpu", dtype=wide).reshape(-1, *matrices.shape[-2:])
    largest = float(flat.abs().max())
    if largest == 0.0:
        return 0.0
    flat = flat / largest
    rows, columns = flat.shape[-2:]
    if min(rows, columns) == 1:
        bound = float(torch.linalg.vector_norm(flat, dim=(-2, -1)).max())
        return largest * bound * (1 + 1e-12)
    bound = 0.0
    for chunk in flat.split(max(1, _CHUNK_BYTES // (16 * rows * columns))):
        gram = chunk @ chunk.mH if rows <= columns else chunk.mH @ chunk
        if gram.shape[-1] <= _EIGENVALUE_SIZE:
            top = float(torch.linalg.eigvalsh(gram)[..., -1].max())
            bound = max(bound, max(top, 0.0) ** 0.5)
        else:
            bound = _raise_until_proved(gram, bound)
    return largest * bound * (1 + 1e-13 * min(rows, columns))


def shrink_factor(sigma: Tensor, bound: float) -> Tensor:
    """What to multiply an operator of norm ``sigma`` with, so that it is at most ``bound``."""
    return bound / sigma.clamp_min(bound)


def _raise_until_proved(gram: Tensor, bound: float) -> float:
    """The smallest number tried, from ``bound`` on, whose square no eigenvalue exceeds."""
    unproved = _unproved(gram, bound) if bound > 0 else gram
    if not len(unproved):
        return bound
    x = start_direction((gram.shape[-1], 1)).to(gram.dtype).expand(*unproved.shape[:2], 1)
    length = torch.ones(())
    for _ in range(_NUM_ESTIMATES):
        x = unproved @ (x / length)
        length = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-300)
    estimate = float(length.max()) ** 0.5
    bound, slack = max(bound, estimate, 1e-300), _SLACK
    while len(unproved):
        bound, slack = bound * (1 + slack), 2 * slack
        unproved = _unproved(unproved, bound)
    return bound


def _unproved(gram: Tensor, bound: float) -> Tensor:
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    info = torch.linalg.cholesky_ex(bound**2 * identity - gram).info
    return gram[info != 0]


def _safe_norm(x: Tensor) -> Tensor:
    """The Frobenius norm, above 0 and with a finite gradient where x is 0."""
    squares = (x.real**2 + x.imag**2) if x.is_complex() else x**2
    tiny = torch.finfo(squares.dtype).tiny
    return (squares.sum(dim=(-2, -1)) + tiny).sqrt()


def _unit(x: Tensor, *, otherwise: Tensor) -> Tensor:
    length = x.norm()
    return torch.where(length > 0, x / length.clamp_min(torch.finfo(x.dtype).tiny), otherwise)
