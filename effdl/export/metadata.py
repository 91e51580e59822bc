"""What an exported file says of itself: space, configuration, weights, target.

Stored as ``metadata_props`` under ``effdl.`` keys; they survive ONNX Runtime
(``get_modelmeta().custom_metadata_map``) and the usual graph simplifiers.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

import effdl
from effdl.errors import ConfigError, CorruptFileError
from effdl.search.space import SubnetConfig

__all__ = [
    "EXPORTER_KEY",
    "GRAPH_SHA256_KEY",
    "PRECISION_KEY",
    "ModelMetadata",
    "WeightsNote",
    "file_sha256",
]

PREFIX = "effdl."
GRAPH_SHA256_KEY = PREFIX + "graph_sha256"
EXPORTER_KEY = PREFIX + "exporter"
PRECISION_KEY = PREFIX + "precision"
_SCHEMA_VERSION = "1"
_OWN = ("schema_version", "version", "space", "config", "precision", "weights")
# Written by the exporter itself: they describe the file, not the network.
_OF_FILE = tuple(key.removeprefix(PREFIX) for key in (EXPORTER_KEY, GRAPH_SHA256_KEY))
_WEIGHTS = re.compile(r"untrained seed=(\d{1,18})|sha256:([0-9a-f]{64})")
_Config = dict[str, int | float | list[int | float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsNote:
    """Where the weights are from: a file, or nowhere.

    Attributes:
        sha256: Of the supernet's weights file, in hexadecimal, or None.
        seed: Seed of the untrained initialisation where there is no file.
    """

    sha256: str | None = None
    seed: int = 0

    @property
    def trained(self) -> bool:
        """Whether the weights came from a file."""
        return self.sha256 is not None

    def __str__(self) -> str:
        return f"untrained seed={self.seed}" if self.sha256 is None else f"sha256:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str``.

        Raises:
            CorruptFileError: The text is neither of the two forms.
        """
        match = _WEIGHTS.fullmatch(text)
        if match is None:
            raise CorruptFileError(
                f"{PREFIX}weights wanted 'untrained seed=N' or 'sha256:...', got {text[:80]!r}"
            )
        seed, sha256 = match.groups()
        return cls(seed=int(seed)) if sha256 is None else cls(sha256=sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What an exported file says of the network in it.

    Attributes:
        space: Name of the search space.
        config: The sub-network, canonical in that space.
        weights: Where the weights are from.
        precision: Number format of weights and arithmetic.
        version: Version of effdl that wrote the file.
        target: What the network was chosen for, such as ``target``,
            ``latency_ms`` and ``latency_source``; names are lower case.
    """

    space: str
    config: SubnetConfig
    weights: WeightsNote
    precision: str = "fp32"
    version: str = effdl.__version__
    target: Mapping[str, str] = field(default_factory=dict)

    def to_props(self) -> dict[str, str]:
        """The entries for ``metadata_props``.

        Raises:
            ValueError: A key of ``target`` is malformed or taken.
        """
        wrong = [
            k for k in self.target if not re.fullmatch(r"[a-z0-9_]+", k) or k in _OWN + _OF_FILE
        ]
        if wrong:
            raise ValueError(f"target keys must be free lower-case names, got {', '.join(wrong)}")
        config = json.dumps(self.config.to_json(), sort_keys=True, separators=(",", ":"))
        props = {
            "schema_version": _SCHEMA_VERSION,
            "version": self.version,
            "space": self.space,
            "config": config,
            "precision": self.precision,
            "weights": str(self.weights),
            **self.target,
        }
        return {PREFIX + key: value for key, value in props.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> Self | None:
        """Read the entries back; None where effdl wrote none.

        Raises:
            CorruptFileError: Entries are missing, malformed, or of another version.
        """
        own = {k.removeprefix(PREFIX): v for k, v in props.items() if k.startswith(PREFIX)}
        if not own:
            return None
        missing = [PREFIX + key for key in _OWN if key not in own]
        if missing:
            raise CorruptFileError(f"metadata are incomplete: no {', '.join(missing)}")
        if own["schema_version"] != _SCHEMA_VERSION:
            raise CorruptFileError(
                f"metadata wanted schema version {_SCHEMA_VERSION}, "
                f"got {own['schema_version'][:20]!r}",
                hint="upgrade effdl: pip install --upgrade effdl",
            )
        try:
            config = msgspec.json.decode(own["config"], type=_Config)
        except (msgspec.DecodeError, RecursionError) as error:
            raise CorruptFileError(f"{PREFIX}config is not a configuration: {error}") from error
        return cls(
            space=own["space"],
            config=SubnetConfig(config),
            weights=WeightsNote.parse(own["weights"]),
            precision=own["precision"],
            version=own["version"],
            target={k: v for k, v in own.items() if k not in _OWN + _OF_FILE},
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        ConfigError: The file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
