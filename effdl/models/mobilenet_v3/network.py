"""MobileNetV3 as a plain network, and Once-for-All's supernet of all of them.

Source: Howard et al. 2019 (arXiv 1905.02244); Cai et al., ICLR 2020 (arXiv
1908.09791). Names and shapes of the weights are those of Once-for-All's
checkpoints (github.com/mit-han-lab/once-for-all, MIT).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.layers import (
    InvertedResidual,
    activation,
    classifier,
    convolution,
)
from effdl.models.mobilenet_v3.operators import BlockShape, ConvShape, LinearShape
from effdl.models.mobilenet_v3.space import MobileNetV3Space, Shape
from effdl.search.space import SubnetConfig
from effdl.supernet.checkpoint import load_weights, save_weights
from effdl.supernet.elastic_inverted_residual import ElasticInvertedResidual
from effdl.supernet.global_mean import global_mean
from effdl.supernet.initialization import calibrate_batch_norm, initialize_he_fan_out

__all__ = [
    "MobileNetV3",
    "MobileNetV3Supernet",
    "build_subnet",
    "load_supernet",
    "save_supernet",
]


_KIND = "supernet"


def _check_images(x: Tensor, in_channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ConfigError(
            f"images do not fit the network: wanted [batch, {in_channels}, height, width], "
            f"got {list(x.shape)}"
        )


class _Network(nn.Module):
    """Stem, blocks and head; what the plain network and the supernet share."""

    def __init__(self, shapes: Mapping[str, Shape], blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        stem, wide, mix = shapes["stem"], shapes["final_expand"], shapes["feature_mix"]
        linear = shapes["classifier"]
        assert isinstance(stem, ConvShape)
        assert isinstance(wide, ConvShape)
        assert isinstance(mix, ConvShape)
        assert isinstance(linear, LinearShape)
        self.in_channels = stem.in_channels
        self.first_conv = convolution(stem)
        self.blocks = nn.ModuleList(blocks)
        self.final_expand_layer = convolution(wide)
        self.feature_mix_layer = convolution(mix)
        self.classifier = classifier(linear)

    def _head(self, x: Tensor) -> Tensor:
        x = self.feature_mix_layer(global_mean(self.final_expand_layer(x)))
        return self.classifier(x.flatten(1))


class MobileNetV3(_Network):
    """A plain MobileNetV3 of fixed shape.

    Args:
        shapes: Slot names and layer shapes, first layer first, as
            `MobileNetV3Space.shapes` gives them.
        seed: Of the first weights (He fan-out); None leaves them uninitialised,
            for a loader to fill.
    """

    def __init__(self, shapes: Sequence[tuple[str, Shape]], *, seed: int | None = 0) -> None:
        blocks = [InvertedResidual(shape) for _, shape in shapes if isinstance(shape, BlockShape)]
        super().__init__(dict(shapes), blocks)
        if seed is not None:
            initialize_he_fan_out(self, np.random.default_rng(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, num_classes] of images [batch, in_channels, height, width].

        Raises:
            ConfigError: Another rank, or another number of channels.
        """
        _check_images(x, self.in_channels)
        x = self.first_conv(x)
        for block in self.blocks:
            x = block(x)
        return self._head(x)


class MobileNetV3Supernet(_Network):
    """All sub-networks of a space in one set of weights.

    It holds no choice: `forward` and `extract` take the configuration. The
    configuration's resolution is not looked at; images may have any size.

    Args:
        space: What can vary.
        seed: Of the first weights (He fan-out); None leaves them uninitialised,
            for a loader to fill.
    """

    def __init__(self, space: MobileNetV3Space, *, seed: int | None = 0) -> None:
        smallest = np.zeros(len(space.search_space.dimensions), dtype=np.uint8)
        fixed = dict(space.shapes(space.search_space.decode(smallest)))
        block0 = fixed["block0"]
        assert isinstance(block0, BlockShape)
        blocks: list[nn.Module] = [InvertedResidual(block0)]
        for unit in range(len(space.units)):
            for block in range(space.blocks_per_unit):
                # Weights do not depend on the size of the image: 1 stands for any.
                widest = space.block_shape(
                    1, unit, block, max(space.kernel_sizes), max(space.expand_ratios)
                )
                blocks.append(_elastic_block(widest, space.kernel_sizes))
        super().__init__(fixed, blocks)
        self.space = space
        if seed is not None:
            initialize_he_fan_out(self, np.random.default_rng(seed))

    def forward(self, x: Tensor, config: SubnetConfig) -> Tensor:
        """Logits [batch, num_classes] of one sub-network.

        Args:
            x: Images [batch, in_channels, height, width].
            config: Which sub-network.

        Raises:
            ConfigError: The configuration is not of this space, or the images
                have another rank or number of channels.
        """
        _check_images(x, self.in_channels)
        x = self.blocks[0](self.first_conv(x))
        for index, shape in _active_blocks(self.space, config):
            x = self.blocks[index](
                x,
                mid_channels=shape.mid_channels,
                kernel_size=shape.kernel_size,
                squeeze_channels=shape.squeeze_channels,
            )
        return self._head(x)

    @torch.no_grad()
    def extract(self, config: SubnetConfig) -> MobileNetV3:
        """One sub-network as a plain network with its own copy of the weights.

        In evaluation mode it computes what the supernet computes, bit for bit.
        It is in training or evaluation mode as the supernet is.

        Args:
            config: Which sub-network.

        Raises:
            ConfigError: The configuration is not of this space.
        """
        reference = next(self.parameters())
        config = _canonical(self.space, config)
        subnet = MobileNetV3(self.space.shapes(config), seed=None).train(self.training)
        if reference.device.type != "cpu" or reference.dtype != torch.float32:
            subnet = subnet.to(reference)
        sources = dict(self._slices(config))
        for name, tensor in _tensors(subnet):
            tensor.copy_(sources[name])
        return subnet

    def _slices(self, config: SubnetConfig) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the plain network that a configuration stands for."""
        for part in (
            "first_conv",
            "blocks.0",
            "final_expand_layer",
            "feature_mix_layer",
            "classifier",
        ):
            for name, tensor in _tensors(self.get_submodule(part)):
                yield f"{part}.{name}", tensor
        for place, (index, shape) in enumerate(_active_blocks(self.space, config), start=1):
            block = self.blocks[index]
            assert isinstance(block, ElasticInvertedResidual)
            for name, tensor in block.slices(
                mid_channels=shape.mid_channels,
                kernel_size=shape.kernel_size,
                squeeze_channels=shape.squeeze_channels,
            ):
                yield f"blocks.{place}.{name}", tensor


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _elastic_block(widest: BlockShape, kernel_sizes: Sequence[int]) -> ElasticInvertedResidual:
    return ElasticInvertedResidual(
        in_channels=widest.in_channels,
        out_channels=widest.out_channels,
        max_mid_channels=widest.mid_channels,
        max_squeeze_channels=widest.squeeze_channels if widest.squeeze_excite else None,
        kernel_sizes=kernel_sizes,
        stride=widest.stride,
        activation=activation(widest.activation),
        skip=widest.skip,
    )


def _canonical(space: MobileNetV3Space, config: SubnetConfig) -> SubnetConfig:
    """The configuration checked, at the space's first resolution."""
    choices = {n: value for n, value in config.items() if n not in ("resolution", "r")}
    row = space.search_space.encode({**choices, "resolution": space.resolutions[0]})
    return space.search_space.decode(row)


def _active_blocks(
    space: MobileNetV3Space, config: SubnetConfig
) -> Iterator[tuple[int, BlockShape]]:
    """Index among the supernet's blocks and shape of every elastic block in use."""
    names = [
        f"unit{u + 1}.block{b + 1}"
        for u in range(len(space.units))
        for b in range(space.blocks_per_unit)
    ]
    shapes = dict(space.shapes(_canonical(space, config)))
    for index, name in enumerate(names, start=1):
        shape = shapes.get(name)
        if isinstance(shape, BlockShape):
            yield index, shape


def build_subnet(space: MobileNetV3Space, config: SubnetConfig, *, seed: int) -> MobileNetV3:
    """An untrained sub-network in evaluation mode.

    Weights are He fan-out; the batch norms' running statistics are of made
    images, so that activations keep about the scale of a trained network's.

    Args:
        space: The space.
        config: Which sub-network.
        seed: Same seed, same weights.

    Raises:
        ConfigError: The configuration is not of this space.
    """
    network = MobileNetV3(space.shapes(_canonical(space, config)), seed=seed)
    calibrate_batch_norm(network, space.in_channels, np.random.default_rng([seed, 1]))
    return network


def save_supernet(
    supernet: MobileNetV3Supernet, path: Path, *, notes: Mapping[str, str] | None = None
) -> None:
    """Write a supernet's weights as safetensors, whole or not at all.

    Args:
        supernet: The supernet.
        path: The file to write.
        notes: Further facts for the file's metadata, such as ``source`` and ``licence``.

    Raises:
        CorruptFileError: A weight is NaN or infinite.
        OutputError: The file cannot be written.
    """
    save_weights(supernet, path, kind=_KIND, space=supernet.space.name, notes=notes)


def load_supernet(path: Path, space: MobileNetV3Space) -> MobileNetV3Supernet:
    """The supernet of a file that `save_supernet` wrote, in evaluation mode.

    Args:
        path: The file.
        space: The space that the weights are of.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file is truncated or altered, of another kind,
            version or space, or a weight is NaN or infinite.
    """
    supernet = MobileNetV3Supernet(space, seed=None)
    load_weights(supernet, path, kind=_KIND, space=space.name)
    return supernet.eval()
