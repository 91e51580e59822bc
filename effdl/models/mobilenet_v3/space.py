"""Once-for-All's MobileNetV3 space: what can vary, and what each choice costs.

Five units of two to four inverted residual blocks; each block chooses its
expansion and its kernel, each unit its depth, and the input its resolution:
7371^5 architectures at each resolution. Source: Cai et al., ICLR 2020
(arXiv 1908.09791), and github.com/mit-han-lab/once-for-all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from effdl.models.mobilenet_v3.operators import (
    Activation,
    BlockShape,
    ConvShape,
    LinearShape,
    PoolShape,
    make_divisible,
)
from effdl.opspec import OpSpec, Slot
from effdl.search.space import Dimension, Gate, SearchSpace, SubnetConfig

__all__ = ["MobileNetV3Space", "UnitSpec", "ofa_mbv3_w10", "ofa_mbv3_w12"]

Shape = ConvShape | PoolShape | LinearShape | BlockShape


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """One elastic unit: blocks of one output width, the first of which may stride.

    Attributes:
        out_channels: Output channels at width multiplier 1.
        stride: Stride of the first block.
        squeeze_excite: Whether its blocks have a squeeze-excite gate.
        activation: Of its blocks.
    """

    out_channels: int
    stride: int
    squeeze_excite: bool
    activation: Activation


_OFA_UNITS = (
    UnitSpec(out_channels=24, stride=2, squeeze_excite=False, activation="relu"),
    UnitSpec(out_channels=40, stride=2, squeeze_excite=True, activation="relu"),
    UnitSpec(out_channels=80, stride=2, squeeze_excite=False, activation="hswish"),
    UnitSpec(out_channels=112, stride=1, squeeze_excite=True, activation="hswish"),
    UnitSpec(out_channels=160, stride=2, squeeze_excite=True, activation="hswish"),
)


@dataclass(frozen=True, kw_only=True)
class MobileNetV3Space:
    """A family of MobileNetV3 sub-networks.

    Attributes:
        name: Name of the space.
        width_mult: Multiplies every width, rounded to multiples of 8.
        resolutions: Input heights and widths, in pixels, increasing.
        units: The elastic units.
        depths: Numbers of blocks a unit may have, increasing.
        expand_ratios: Expansions a block may have, increasing.
        kernel_sizes: Depthwise kernels a block may have, increasing.
        stem_channels: Width of the first convolution and block at multiplier 1.
        final_expand_channels: Width of the last 1x1 convolution with batch norm.
        feature_channels: Width of the feature-mixing convolution.
        in_channels: Channels of the input image.
        num_classes: Outputs of the classifier.
    """

    name: str
    width_mult: float = 1.0
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    units: tuple[UnitSpec, ...] = _OFA_UNITS
    depths: tuple[int, ...] = (2, 3, 4)
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    stem_channels: int = 16
    final_expand_channels: int = 960
    feature_channels: int = 1280
    in_channels: int = 3
    num_classes: int = 1000

    def with_resolutions(self, resolutions: Iterable[int]) -> Self:
        """The same space at other input resolutions."""
        return replace(self, resolutions=tuple(resolutions))

    def width(self, channels: int) -> int:
        """Channels after the width multiplier."""
        return make_divisible(channels * self.width_mult)

    @property
    def blocks_per_unit(self) -> int:
        """Blocks of a unit at full depth."""
        return max(self.depths)

    @cached_property
    def search_space(self) -> SearchSpace:
        """Its dimensions: depths, then kernel sizes, then expansions, then resolution."""
        num_units, per_unit = len(self.units), self.blocks_per_unit
        depth = [Dimension(name="depth", position=u, choices=self.depths) for u in range(num_units)]
        elastic = [
            Dimension(name=name, position=u * per_unit + b, choices=choices, gate=self._gate(u, b))
            for name, choices in (
                ("kernel_size", self.kernel_sizes),
                ("expand_ratio", self.expand_ratios),
            )
            for u in range(num_units)
            for b in range(per_unit)
        ]
        resolution = Dimension(name="resolution", position=None, choices=self.resolutions)
        return SearchSpace(name=self.name, dimensions=(*depth, *elastic, resolution))

    def _gate(self, unit: int, block: int) -> Gate | None:
        needed = sum(depth <= block for depth in self.depths)
        return Gate(dimension=unit, minimum=needed) if needed else None

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every position of the network with its operators, first layer first."""
        space = self.search_space
        resolution = space.columns("resolution")[0]
        kernels, expands = space.columns("kernel_size"), space.columns("expand_ratio")
        fixed = [self._fixed_shapes(r) for r in self.resolutions]
        sizes = [self._unit_sizes(r) for r in self.resolutions]

        def fixed_slot(name: str) -> Slot:
            return Slot(
                name=name,
                dimensions=(resolution,),
                ops=tuple(shapes[name].spec() for shapes in fixed),
            )

        slots = [fixed_slot("stem"), fixed_slot("block0")]
        for u in range(len(self.units)):
            for b in range(self.blocks_per_unit):
                position = u * self.blocks_per_unit + b
                gate = self._gate(u, b)
                slots.append(
                    Slot(
                        name=f"unit{u + 1}.block{b + 1}",
                        dimensions=(resolution, kernels[position], expands[position]),
                        ops=tuple(self._block_specs(sizes, u, b)),
                        gate=None if gate is None else (gate.dimension, gate.minimum),
                    )
                )
        return (*slots, *map(fixed_slot, ("final_expand", "pool", "feature_mix", "classifier")))

    def _block_specs(self, sizes: list[list[int]], unit: int, block: int) -> Iterator[OpSpec]:
        for size in sizes:
            for kernel_size in self.kernel_sizes:
                for ratio in self.expand_ratios:
                    yield self.block_shape(size[unit], unit, block, kernel_size, ratio).spec()

    def block_shape(
        self, unit_in_size: int, unit: int, block: int, kernel_size: int, expand_ratio: float
    ) -> BlockShape:
        """Shape of block ``block`` of unit ``unit`` (both from 0).

        Args:
            unit_in_size: Height and width of the unit's input in pixels.
            unit: Which unit.
            block: Which block of it.
            kernel_size: Its depthwise kernel.
            expand_ratio: Its expansion.
        """
        spec = self.units[unit]
        out_channels = self.width(spec.out_channels)
        before = self.stem_channels if unit == 0 else self.units[unit - 1].out_channels
        in_channels = out_channels if block else self.width(before)
        stride = 1 if block else spec.stride
        return BlockShape(
            in_size=(unit_in_size - 1) // spec.stride + 1 if block else unit_in_size,
            in_channels=in_channels,
            mid_channels=make_divisible(round(in_channels * expand_ratio)),
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            squeeze_excite=spec.squeeze_excite,
            activation=spec.activation,
            skip=stride == 1 and in_channels == out_channels,
        )

    def _unit_sizes(self, resolution: int) -> list[int]:
        """Input sizes of every unit, then of the head, in pixels."""
        sizes = [(resolution - 1) // 2 + 1]
        for unit in self.units:
            sizes.append((sizes[-1] - 1) // unit.stride + 1)
        return sizes

    def _fixed_shapes(self, resolution: int) -> dict[str, Shape]:
        stem, last = self.width(self.stem_channels), self.width(self.units[-1].out_channels)
        wide, features = self.width(self.final_expand_channels), self.width(self.feature_channels)
        sizes = self._unit_sizes(resolution)
        return {
            "stem": ConvShape(
                name="Conv",
                in_size=resolution,
                in_channels=self.in_channels,
                out_channels=stem,
                kernel_size=3,
                stride=2,
            ),
            "block0": BlockShape(
                in_size=sizes[0],
                in_channels=stem,
                mid_channels=stem,
                out_channels=stem,
                kernel_size=3,
                stride=1,
                squeeze_excite=False,
                activation="relu",
                skip=True,
                expand=False,
            ),
            "final_expand": ConvShape(
                name="Conv_1", in_size=sizes[-1], in_channels=last, out_channels=wide
            ),
            "pool": PoolShape(in_size=sizes[-1], channels=wide),
            "feature_mix": ConvShape(
                name="Conv_2", in_size=1, in_channels=wide, out_channels=features, batch_norm=False
            ),
            "classifier": LinearShape(in_features=features, out_features=self.num_classes),
        }

    def shapes(self, config: SubnetConfig) -> list[tuple[str, Shape]]:
        """Slot names and layer shapes of one sub-network, first layer first."""
        (resolution,) = config.ints("resolution")
        fixed, sizes = self._fixed_shapes(resolution), self._unit_sizes(resolution)
        kernels, ratios = config.ints("kernel_size"), config["expand_ratio"]
        assert isinstance(ratios, tuple)
        layers: list[tuple[str, Shape]] = [(n, fixed[n]) for n in ("stem", "block0")]
        for u, depth in enumerate(config.ints("depth")):
            for b in range(depth):
                i = u * self.blocks_per_unit + b
                shape = self.block_shape(sizes[u], u, b, kernels[i], ratios[i])
                layers.append((f"unit{u + 1}.block{b + 1}", shape))
        head = ("final_expand", "pool", "feature_mix", "classifier")
        return [*layers, *((n, fixed[n]) for n in head)]


def ofa_mbv3_w12() -> MobileNetV3Space:
    """``ofa-mbv3-w1.2``: width 1.2, resolutions 160 to 224 in steps of 4."""
    return MobileNetV3Space(
        name="ofa-mbv3-w1.2", width_mult=1.2, resolutions=tuple(range(160, 225, 4))
    )


def ofa_mbv3_w10() -> MobileNetV3Space:
    """``ofa-mbv3-w1.0``: width 1.0, resolutions 128 to 224 in steps of 4."""
    return MobileNetV3Space(name="ofa-mbv3-w1.0", width_mult=1.0)
