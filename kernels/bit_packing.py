"""Several small integers in one byte: two of 4 bits or four of 2, the first in the lowest bits."""

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.quantization import integer_range
from effdl.kernels.validation import check_dtype

__all__ = ["pack_bits", "unpack_bits"]

_PACKED_BITS = (2, 4)


def pack_bits(q: Tensor, num_bits: int) -> Tensor:
    """Several small integers in each byte, the first in the lowest bits.

    Args:
        q: Integers, [..., K], int8 (kept in two's complement) or uint8. K is filled up
            with zeros to whole bytes.
        num_bits: 4 or 2.

    Returns:
        uint8, [..., ceil(K * num_bits / 8)].

    Raises:
        ConfigError: Wrong type, or an integer that does not fit.
    """
    per_byte = _per_byte(num_bits)
    check_dtype("q", q, (torch.int8, torch.uint8))
    low, high = integer_range(num_bits, signed=q.dtype == torch.int8)
    if q.numel() and (int(q.min()) < low or int(q.max()) > high):
        raise ConfigError(
            f"q: wanted integers of {num_bits} bits, {low} to {high}, "
            f"got {int(q.min())} to {int(q.max())}"
        )
    fill = -q.shape[-1] % per_byte
    parts = torch.nn.functional.pad(q, (0, fill)).view(torch.uint8) & (2**num_bits - 1)
    parts = parts.unflatten(-1, ((q.shape[-1] + fill) // per_byte, per_byte))
    packed = parts[..., 0].clone()
    for i in range(1, per_byte):
        packed |= parts[..., i] << (num_bits * i)
    return packed


def unpack_bits(packed: Tensor, num_bits: int, *, size: int, signed: bool = True) -> Tensor:
    """What `pack_bits` packed.

    Args:
        packed: uint8, [..., bytes].
        num_bits: 4 or 2.
        size: K, the integers in a row.
        signed: int8 from two's complement, or uint8.

    Raises:
        ConfigError: Wrong type, or fewer bytes than ``size`` needs.
    """
    per_byte = _per_byte(num_bits)
    check_dtype("packed", packed, (torch.uint8,))
    if packed.shape[-1] != -(-size // per_byte):
        raise ConfigError(
            f"packed: wanted {-(-size // per_byte)} bytes in a row for {size} integers of "
            f"{num_bits} bits, got {packed.shape[-1]}"
        )
    mask = 2**num_bits - 1
    parts = torch.stack([(packed >> (num_bits * i)) & mask for i in range(per_byte)], dim=-1)
    q = parts.flatten(-2)[..., :size]
    if not signed:
        return q.contiguous()
    wide = q.to(torch.int16)
    return torch.where(wide > mask // 2, wide - mask - 1, wide).to(torch.int8)


def _per_byte(num_bits: int) -> int:
    if num_bits not in _PACKED_BITS:
        raise ConfigError(f"num_bits: wanted 2 or 4 to pack, got {num_bits}")
    return 8 // num_bits
