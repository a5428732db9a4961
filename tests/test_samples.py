"""Statistics of a few seeds, compared with cases worked out by hand."""

from itertools import product

import numpy as np
import pytest

from analysis.samples import compare_paired, interval


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # two values: the mean is 0 or 1 with probability 1/4 each, more than 2.5 %, so the interval has both
        ([0.0, 1.0], 0.0, 1.0),
        # three values: the mean is 1 or 3 with probability 1/27 = 3.7 % each
        ([1.0, 2.0, 3.0], 1.0, 3.0),
        # five values, one of them 1: P(no 1) = 32.8 %, P(2 or fewer) = 94.2 %, P(3 or fewer) = 99.3 %, by
        # Binomial(5, 1/5)
        ([0.0, 0.0, 0.0, 0.0, 1.0], 0.0, 0.6),
        # ten values, five of them 1: P(1 or fewer) = 1.07 %, P(2 or fewer) = 5.5 %, by Binomial(10, 1/2)
        ([0.0, 1.0] * 5, 0.2, 0.8),
    ],
)
def test_the_bootstrap_interval_of_the_mean_equals_cases_worked_out_by_hand(values, low, high):
    assert interval(values) == (pytest.approx(low), pytest.approx(high))
    assert interval(values[:1]) == (None, None)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # of 8 assignments of signs, all plus and all minus reach |sum| = 6
        ([3.0, -1.0], 1.0),  # the sums 2, 4, -2 and -4 all reach 2 in absolute value
        ([5.0, 4.0, -1.0], 0.5),  # 4 of 8 sums reach 8 in absolute value: 10, 8, -8 and -10
    ],
)
def test_the_paired_test_equals_cases_counted_by_hand(differences, p):
    first = {seed: 90.0 + seed for seed in range(len(differences))}
    second = {seed: first[seed] + difference for seed, difference in enumerate(differences)}
    paired = compare_paired(first, second)
    assert paired.p == pytest.approx(p)
    assert paired.difference == pytest.approx(sum(differences) / len(differences))
    assert compare_paired(second, first).p == pytest.approx(p)


@pytest.mark.parametrize("seed", [1, 2, 17])
def test_the_paired_test_equals_an_enumeration_of_all_signs(seed):
    """Accuracies are rounded to 0.01 %: equal differences count as ties although their floats differ."""
    random = np.random.default_rng(seed)
    first, second = (np.round(random.normal(90, 0.1, size=6), 2) for _ in range(2))
    differences = np.round(100 * (second - first)).astype(int)
    sums = [abs(int(np.dot(signs, differences))) for signs in product((1, -1), repeat=6)]
    exact = np.mean([total >= abs(differences.sum()) for total in sums])
    assert compare_paired(dict(enumerate(first)), dict(enumerate(second))).p == pytest.approx(min(1, exact))


def test_only_seeds_that_both_methods_have_are_compared():
    paired = compare_paired({0: 1.0, 1: 2.0, 2: 9.0}, {1: 3.0, 2: 11.0, 7: 50.0})
    assert (paired.pairs, paired.difference) == (2, 1.5)
    assert compare_paired({0: 1.0}, {1: 1.0}) is None
    assert compare_paired({0: 1.0}, {0: 3.0}) == (1, 2.0, None)


def test_the_p_value_of_many_pairs_is_sampled_and_never_zero():
    first = dict.fromkeys(range(20), 0.0)
    paired = compare_paired(first, {seed: 1.0 + 0.01 * seed for seed in range(20)})
    assert 0 < paired.p < 0.001
