"""Training recovers made functions; sampling, folds and errors by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.search.predictor_distillation import DistillationSettings, Teacher, distil
from effdl.search.predictor_errors import hold_out, measure_errors, near_duplicate_groups
from effdl.search.predictor_sampling import one_hot_inputs, sample_biased, sample_front
from effdl.search.predictor_training import PairSettings, fit_pairs
from effdl.search.space import Dimension, Gate, Population, SearchSpace

SPACE = SearchSpace(
    name="made",
    dimensions=(
        Dimension(name="depth", position=0, choices=(1, 2)),
        *(
            Dimension(
                name=name,
                position=i,
                choices=choices,
                gate=Gate(dimension=0, minimum=1) if i == 3 else None,
            )
            for name, choices in (("kernel_size", (3, 5, 7)), ("expand_ratio", (3, 4, 6)))
            for i in range(4)
        ),
        Dimension(name="resolution", position=None, choices=(160, 224)),
    ),
)
INPUTS = (("kernel_size", 4, (3.0, 5.0, 7.0)), ("expand_ratio", 4, (3.0, 4.0, 6.0)))


def encode(population: Population) -> NDArray[np.float32]:
    return one_hot_inputs(population, SPACE, inputs=INPUTS, anchors=(160, 224))


def made_accuracy(population: Population) -> NDArray[np.float64]:
    """Additive, but for one pair of neighbours that help each other; a fraction."""
    indices = population.astype(np.float64)
    together = indices[:, 1] * indices[:, 6]
    return 0.7 + 0.004 * indices.sum(axis=1) + 0.01 * together


def random_teacher(widths: tuple[int, ...], num_inputs: int) -> Teacher:
    rng = np.random.default_rng(1)
    return Teacher(
        [
            (
                rng.normal(0, (2 / before) ** 0.5, (before, after)).astype(np.float32),
                rng.normal(0, 0.1, after).astype(np.float32),
            )
            for before, after in pairwise((num_inputs, *widths, 1))
        ]
    )


def test_one_hot_inputs_by_hand() -> None:
    row = SPACE.encode(
        {
            "depth": [1],
            "kernel_size": [3, 5, 7, 7],
            "expand_ratio": [6, 4, 3, 6],
            "resolution": 224,
        }
    )
    kernels, ratios, anchors = "100 010 001 000", "001 010 100 000", "01"
    expected = [int(digit) for digit in f"{kernels}{ratios}{anchors}".replace(" ", "")]
    np.testing.assert_array_equal(encode(row[None]), [expected])


def test_pairs_of_a_made_function_are_recovered() -> None:
    """300 pairs; unseen ones within 0.1 pp, where the best line is 0.5 pp off or more."""
    rng = np.random.default_rng(0)
    train, test = SPACE.sample(300, rng), SPACE.sample(500, rng)
    settings = PairSettings(num_steps=500, weight_decay=0.1, ridge=1.0)
    networks = fit_pairs(encode(train), made_accuracy(train), settings=settings, seed=0)
    assert len(networks) == settings.num_networks
    predicted = np.mean([network(encode(test)) for network in networks], axis=0)
    design = np.c_[encode(test), np.ones(500)]
    line = design @ np.linalg.lstsq(design, made_accuracy(test), rcond=None)[0]
    assert measure_errors(line, made_accuracy(test)).rmse_pp > 0.5
    errors = measure_errors(predicted, made_accuracy(test))
    assert errors.rmse_pp < 0.1
    # Equal accuracies cannot be told apart, but their predictions can.
    assert errors.spearman > 0.998


def test_pairs_give_equal_networks_for_equal_seeds_only() -> None:
    population = SPACE.sample(50, np.random.default_rng(0))
    settings = PairSettings(hidden_sizes=(4,), num_networks=1, num_steps=5)

    def first_weights(seed: int) -> NDArray[np.float32]:
        targets = made_accuracy(population)
        (network,) = fit_pairs(encode(population), targets, settings=settings, seed=seed)
        return network.weights[0]

    np.testing.assert_array_equal(first_weights(1), first_weights(1))
    assert np.abs(first_weights(1) - first_weights(2)).max() > 0.01


def draw(num: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return encode(SPACE.sample(num, rng))


def test_a_narrower_student_learns_a_teacher() -> None:
    """It leaves a third of the deviation that a line leaves, at most."""
    teacher = random_teacher((16, 12, 8), 26)
    threads = torch.get_num_threads()
    settings = DistillationSettings(hidden_sizes=(14, 10, 8), num_samples=8192, num_threads=1)
    student = distil(teacher, draw, settings=settings, seed=3)
    assert [w.shape for w in student.weights] == [(26, 14), (14, 10), (24, 8), (32, 1)]
    assert torch.get_num_threads() == threads
    x = draw(4000, np.random.default_rng(77))
    wanted, found = teacher.predict(x), student(x)
    design = np.c_[x, np.ones(len(x))]
    line = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    assert np.std(found - wanted) < 0.35 * np.std(line - wanted)


def test_a_student_of_the_teachers_widths_is_equal() -> None:
    teacher = random_teacher((16, 12, 8), 26)
    settings = DistillationSettings(hidden_sizes=(16, 12, 8), num_samples=8192, num_threads=1)
    student = distil(teacher, draw, settings=settings, seed=3)
    x = draw(1000, np.random.default_rng(77))
    np.testing.assert_allclose(student(x), teacher.predict(x), atol=2e-2)


def test_equal_seeds_distil_equal_networks() -> None:
    teacher = random_teacher((6, 6), 26)
    settings = DistillationSettings(hidden_sizes=(4, 4), num_samples=512, num_threads=1)
    seen: list[tuple[int, int]] = []
    first = distil(
        teacher, draw, settings=settings, seed=3, report=lambda d, t: seen.append((d, t))
    )
    again = distil(teacher, draw, settings=settings, seed=3)
    for a, b in zip((*first.weights, *first.biases), (*again.weights, *again.biases), strict=True):
        np.testing.assert_array_equal(a, b)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("hidden_sizes", [(4,), (8, 8), (4, 9)])
def test_a_student_must_fit_inside_its_teacher(hidden_sizes: tuple[int, ...]) -> None:
    settings = DistillationSettings(hidden_sizes=hidden_sizes)
    with pytest.raises(ConfigError, match="at most"):
        distil(random_teacher((7, 8), 26), draw, settings=settings, seed=0)


def test_biased_rows_are_canonical_and_more_extreme_than_uniform_ones() -> None:
    rng = np.random.default_rng(0)
    biased, uniform = sample_biased(SPACE, 4000, rng), SPACE.sample(4000, rng)
    np.testing.assert_array_equal(biased, SPACE.canonicalize(biased.copy()))
    assert biased.dtype == np.uint8
    assert (biased < SPACE.num_choices).all()
    kernels = SPACE.columns("kernel_size")[:3]
    alike = [(p[:, kernels] == p[:, kernels[:1]]).all(axis=1).mean() for p in (biased, uniform)]
    assert alike[1] == pytest.approx(1 / 9, abs=0.02)
    assert alike[0] > 0.3


def test_front_rows_are_better_than_random_ones_of_their_cost() -> None:
    def cost(population: Population) -> NDArray[np.float64]:
        return 1.0 + (population * np.arange(1, 11)).sum(axis=1).astype(np.float64)

    rng = np.random.default_rng(0)
    front = sample_front(SPACE, [cost], made_accuracy, 1000, rng)
    assert front.shape == (1000, 10)
    np.testing.assert_array_equal(front, SPACE.canonicalize(front.copy()))
    uniform = SPACE.sample(20_000, rng)
    better = [
        made_accuracy(row[None])[0]
        > np.quantile(made_accuracy(uniform[np.abs(cost(uniform) - cost(row[None])[0]) < 3]), 0.8)
        for row in front[:300]
        if (np.abs(cost(uniform) - cost(row[None])[0]) < 3).sum() > 50
    ]
    assert len(better) > 100
    assert np.mean(better) > 0.6


def test_errors_by_hand() -> None:
    """Off by 1, -1 and 2 pp; ranks 1, 2.5, 2.5 against 1, 2, 3: 1.5 / sqrt(1.5 * 2)."""
    errors = measure_errors(np.array([0.71, 0.72, 0.72]), np.array([0.70, 0.73, 0.74]))
    assert errors.rmse_pp == pytest.approx(2**0.5)
    assert errors.max_pp == pytest.approx(2.0)
    assert errors.spearman == pytest.approx(1.5 / 3**0.5)


def test_near_duplicates_chain_into_one_group() -> None:
    base = {"depth": [2], "expand_ratio": [3] * 4, "resolution": 224}
    kernels = [[3, 3, 3, 3], [3, 3, 3, 5], [3, 3, 5, 5], [7, 7, 7, 7], [7, 7, 7, 3]]
    rows = [SPACE.encode({**base, "kernel_size": k}) for k in kernels]
    # Without its last block the network differs at two positions from its deeper twin.
    shallow = SPACE.encode({**base, "depth": [1], "kernel_size": [7, 7, 7, 7]})
    population = np.stack([*rows, shallow])
    one = near_duplicate_groups(population, SPACE, max_differences=1)
    assert one.tolist() == [0, 0, 0, 3, 3, 5]
    two = near_duplicate_groups(population, SPACE, max_differences=2)
    assert two.tolist() == [0, 0, 0, 3, 3, 3]


def test_folds_hold_whole_groups_out_and_every_row_once() -> None:
    groups = np.array([4, 4, 4, 1, 7, 7, 2, 9, 9, 3])
    folds = np.stack(list(hold_out(groups, 3, np.random.default_rng(0))))
    np.testing.assert_array_equal(folds.sum(axis=0), 1)
    assert sorted(folds.sum(axis=1).tolist()) == [3, 3, 4]
    for name in np.unique(groups):
        assert len({tuple(column) for column in folds[:, groups == name].T}) == 1
