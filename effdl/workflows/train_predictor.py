"""Trains the shipped accuracy predictors from what others published.

Width 1.2 learns the official predictor as a function; width 1.0 learns true
ImageNet accuracies. Each file appears whole when its training is done, so a run
that was stopped goes on with the predictor that is missing.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from effdl.data.ofa_published import OFFICIAL_BINS, read_imagenet_top1, read_official_predictor
from effdl.errors import ConfigError, CorruptFileError
from effdl.export.threads import one_thread
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.search.accuracy_predictor import AccuracyCalibration, PredictorInfo
from effdl.search.cost import LookupCost
from effdl.search.predictor_distillation import DistillationSettings, Teacher, distil
from effdl.search.predictor_errors import (
    PredictionErrors,
    hold_out,
    measure_errors,
    near_duplicate_groups,
)
from effdl.search.predictor_file import (
    SCHEMA_VERSION,
    Network,
    read_predictor,
    write_predictor,
)
from effdl.search.predictor_sampling import one_hot_inputs, sample_biased, sample_front
from effdl.search.predictor_training import PairSettings, fit_pairs
from effdl.search.space import Population
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.progress import Progress, no_progress

__all__ = ["PublishedSettings", "TrainedPredictor", "train_published_predictors"]

OFFICIAL_FILE = "ofa/acc_predictor_mbv3_w1.2.pth"
TOP1_FILE = "ofa/imagenet_top1_w1.0.csv"

_HINT = "it wants the published figures: the folder that holds ofa/acc_predictor_mbv3_w1.2.pth"
# Bins below 160 pixels of the official predictor were never trained.
_ANCHORS_W12 = (160, 176, 192, 208, 224)
_ANCHORS_W10 = (224,)
_NUM_FOLDS = 5
_NEAR_DIFFERENCES = 3

_STRAIGHT = AccuracyCalibration(
    slope=1.0988,
    intercept_percent=-12.537,
    rmse_pp=0.16,
    num_points=7,
    source="networks of table 5 of HELP (arXiv 2106.08630), evaluated without fine-tuning",
)
_FINE_TUNED = AccuracyCalibration(
    slope=1.1239,
    intercept_percent=-13.636,
    rmse_pp=0.15,
    num_points=8,
    source="networks of width 1.2 published by mit-han-lab/once-for-all, fine-tuned for 75 epochs",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSettings:
    """How both predictors are trained.

    Attributes:
        distillation: Of the width-1.2 predictor.
        pairs: Of the width-1.0 predictor.
        num_test: Random architectures that the width-1.2 errors are taken over.
        num_front: Architectures near Pareto fronts that training draws from,
            and a tenth as many that errors are taken over.
    """

    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    pairs: PairSettings = field(default_factory=PairSettings)
    num_test: int = 50_000
    num_front: int = 120_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPredictor:
    """One trained predictor.

    Attributes:
        space: Name of its space.
        path: Its file.
        rmse_pp: Held-out error in percentage points.
        spearman: Held-out rank correlation.
        num_pairs: Pairs it learned from.
        resumed: Whether the file was there already, made by an equal run.
    """

    space: str
    path: Path
    rmse_pp: float
    spearman: float
    num_pairs: int
    resumed: bool


# Sums on another number of threads differ in their last bits, and the bytes with them.
@one_thread()
@threadpool_limits.wrap(limits=1, user_api="blas")
def train_published_predictors(
    data_dir: Path,
    out_dir: Path,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
    settings: PublishedSettings | None = None,
) -> tuple[TrainedPredictor, TrainedPredictor]:
    """Train the predictors of ``ofa-mbv3-w1.2`` and ``ofa-mbv3-w1.0``.

    Args:
        data_dir: Folder of the published figures, with ``ofa/`` in it.
        out_dir: Where the two safetensors files go.
        seed: Equal seeds make equal files on one machine.
        progress: Told how far each predictor is.
        settings: How to train; the shipped files are made with the defaults.

    Returns:
        Width 1.2, then width 1.0.

    Raises:
        ConfigError: A published file is not in ``data_dir``.
        CorruptFileError: A published file is malformed.
        OutputError: A predictor cannot be written.
    """
    chosen = settings or PublishedSettings()
    sources = [data_dir / OFFICIAL_FILE, data_dir / TOP1_FILE]
    missing = [str(path) for path in sources if not path.is_file()]
    if missing:
        raise ConfigError(f"no published figures at {' and '.join(missing)}", hint=_HINT)

    def finish(
        source: Path,
        space: MobileNetV3Space,
        how: object,
        make: Callable[[str], tuple[PredictorInfo, tuple[Network, ...]]],
    ) -> TrainedPredictor:
        path = out_dir / f"{space.name}.safetensors"
        made_from = _fingerprint(source, how, seed)
        info = _finished(path, made_from)
        resumed = info is not None
        if info is None:
            info, networks = make(made_from)
            write_predictor(path, info, networks)
        return TrainedPredictor(
            space=space.name,
            path=path,
            rmse_pp=info.rmse_pp,
            spearman=info.spearman,
            num_pairs=info.num_pairs,
            resumed=resumed,
        )

    w12, w10 = ofa_mbv3_w12().with_resolutions(_ANCHORS_W12), ofa_mbv3_w10()
    return (
        finish(
            sources[0],
            w12,
            (chosen.distillation, chosen.num_test, chosen.num_front),
            lambda made_from: _train_w12(sources[0], w12, chosen, seed, made_from, progress),
        ),
        finish(
            sources[1],
            w10,
            chosen.pairs,
            lambda made_from: _train_w10(sources[1], w10, chosen.pairs, seed, made_from, progress),
        ),
    )


def _fingerprint(source: Path, how: object, seed: int) -> str:
    digest = hashlib.sha256(source.read_bytes())
    digest.update(f"{SCHEMA_VERSION} {seed} {how!r}".encode())
    return digest.hexdigest()


def _finished(path: Path, made_from: str) -> PredictorInfo | None:
    """What the file says that an equal run left behind, or None."""
    try:
        info, _ = read_predictor(path)
    except (ConfigError, CorruptFileError):
        return None
    return info if info.made_from == made_from else None


def _inputs(space: MobileNetV3Space) -> tuple[tuple[str, int, tuple[float, ...]], ...]:
    num_blocks = len(space.units) * space.blocks_per_unit
    return (
        ("kernel_size", num_blocks, tuple(map(float, space.kernel_sizes))),
        ("expand_ratio", num_blocks, tuple(map(float, space.expand_ratios))),
    )


def _official(path: Path, num_one_hot: int) -> Teacher:
    """The official predictor over our inputs: only the anchors' bins of its resolution."""
    (weight, bias), *layers = read_official_predictor(path)
    bins = [num_one_hot + OFFICIAL_BINS.index(anchor) for anchor in _ANCHORS_W12]
    return Teacher([(weight[[*range(num_one_hot), *bins]], bias), *layers])


def _front_costs(space: MobileNetV3Space, rng: np.random.Generator) -> list[LookupCost]:
    """MACs, and MACs with random prices on every operator, as devices have them."""
    macs = SpaceCosts(space=space, batch_size=1).macs
    prices = rng.lognormal(0.0, 0.5, (7, len(macs.values)))
    return [macs, *(_priced(macs, price) for price in prices)]


def _priced(cost: LookupCost, price: NDArray[np.float64]) -> LookupCost:
    return LookupCost(name=f"priced_{cost.name}", index=cost.index, values=cost.values * price)


def _train_w12(
    source: Path,
    space: MobileNetV3Space,
    settings: PublishedSettings,
    seed: int,
    made_from: str,
    progress: Progress,
) -> tuple[PredictorInfo, tuple[Network, ...]]:
    inputs, search_space = _inputs(space), space.search_space
    official = _official(source, sum(n * len(choices) for _, n, choices in inputs))

    def encode(population: Population) -> NDArray[np.float32]:
        return one_hot_inputs(population, search_space, inputs=inputs, anchors=_ANCHORS_W12)

    def official_raw(population: Population) -> NDArray[np.float64]:
        return official.predict(encode(population))

    progress(0, 0, f"{space.name}: climbing to Pareto fronts")
    front_rng, test_rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    front = sample_front(
        search_space,
        _front_costs(space, front_rng),
        official_raw,
        settings.num_front,
        front_rng,
    )

    def draw(num: int, rng: np.random.Generator) -> NDArray[np.float32]:
        third = num // 3
        near = front[rng.integers(len(front), size=third)]
        changed = rng.random(near.shape) < 1.0 / near.shape[1]
        near = search_space.canonicalize(np.where(changed, search_space.sample(third, rng), near))
        biased = sample_biased(search_space, third, rng)
        uniform = search_space.sample(num - 2 * third, rng)
        return rng.permutation(encode(np.concatenate([near, biased, uniform])))

    network = distil(
        official,
        draw,
        settings=settings.distillation,
        seed=seed,
        report=lambda done, total: progress(done, total, f"{space.name}: learning"),
    )

    def errors(population: Population) -> PredictionErrors:
        predicted = network(encode(population)).astype(np.float64)
        return measure_errors(predicted, official_raw(population))

    uniform = errors(search_space.sample(settings.num_test, test_rng))
    near = errors(
        sample_front(
            search_space,
            _front_costs(space, test_rng),
            official_raw,
            max(settings.num_front // 10, 1),
            test_rng,
        )
    )
    info = PredictorInfo(
        schema_version=SCHEMA_VERSION,
        space=space.name,
        inputs=inputs,
        anchors=_ANCHORS_W12,
        num_networks=1,
        metric=(
            "ImageNet validation top-1 of width-1.2 sub-networks, calibrated from the predicted "
            "accuracy on 10,000 held-out training images (raw)"
        ),
        source=(
            "learned by effdl from the official accuracy predictor of mit-han-lab/once-for-all "
            "(copy: gatech-sysml/CompOFA, Apache-2.0)"
        ),
        licence="Apache-2.0",
        rmse_pp=uniform.rmse_pp,
        spearman=uniform.spearman,
        num_pairs=settings.distillation.num_samples,
        held_out=f"{settings.num_test} uniformly random architectures, against the official output",
        method=(
            "layers fitted by least squares to the responses of the official predictor's most "
            "influential hidden units"
        ),
        seed=seed,
        made_from=made_from,
        errors={
            "uniform_max_pp": uniform.max_pp,
            "front_rmse_pp": near.rmse_pp,
            "front_max_pp": near.max_pp,
        },
        straight=_STRAIGHT,
        fine_tuned=_FINE_TUNED,
    )
    return info, (network,)


def _train_w10(
    source: Path,
    space: MobileNetV3Space,
    settings: PairSettings,
    seed: int,
    made_from: str,
    progress: Progress,
) -> tuple[PredictorInfo, tuple[Network, ...]]:
    search_space, inputs = space.search_space, _inputs(space)
    population, top1_percent = read_imagenet_top1(source, search_space)
    resolutions = {search_space.decode(row)["resolution"] for row in population}
    if resolutions != set(_ANCHORS_W10):
        raise CorruptFileError(
            f"{source}: wanted resolution {_ANCHORS_W10[0]} only, got "
            f"{', '.join(sorted(map(str, resolutions)))}"
        )
    features = one_hot_inputs(population, search_space, inputs=inputs, anchors=_ANCHORS_W10)
    targets = top1_percent / 100.0
    num = len(targets)
    near = near_duplicate_groups(population, search_space, max_differences=_NEAR_DIFFERENCES)
    splits = {"random": np.arange(num), "grouped": near}
    total, done = _NUM_FOLDS * len(splits) + 1, 0
    measured: dict[str, PredictionErrors] = {}
    for name, groups in splits.items():
        predicted = np.empty(num)
        rng = np.random.default_rng([seed, 3])
        for fold in hold_out(groups, _NUM_FOLDS, rng):
            progress(done, total, f"{space.name}: {name} fold")
            networks = fit_pairs(features[~fold], targets[~fold], settings=settings, seed=seed)
            predicted[fold] = np.mean([net(features[fold]) for net in networks], axis=0)
            done += 1
        measured[name] = measure_errors(predicted, targets)
    progress(done, total, f"{space.name}: all pairs")
    networks = fit_pairs(features, targets, settings=settings, seed=seed)
    progress(total, total, f"{space.name}: done")
    info = PredictorInfo(
        schema_version=SCHEMA_VERSION,
        space=space.name,
        inputs=inputs,
        anchors=_ANCHORS_W10,
        num_networks=len(networks),
        metric="ImageNet validation top-1 of width-1.0 sub-networks straight from the supernet",
        source="measured accuracies of Once-for-All sub-networks, IntelLabs/DyNAS-T (Apache-2.0)",
        licence="Apache-2.0",
        rmse_pp=measured["random"].rmse_pp,
        spearman=measured["random"].spearman,
        num_pairs=num,
        held_out=(
            f"{_NUM_FOLDS} random folds, each held out once; the shipped networks learned all pairs"
        ),
        method="random weights; ridge regression, then AdamW on what it leaves over",
        seed=seed,
        made_from=made_from,
        errors={
            "random_max_pp": measured["random"].max_pp,
            "grouped_rmse_pp": measured["grouped"].rmse_pp,
            "grouped_max_pp": measured["grouped"].max_pp,
            "grouped_spearman": measured["grouped"].spearman,
        },
    )
    return info, networks
