"""Oracles: scikit-learn, the krippendorff package, crowd-kit, counts by hand, and labels with known errors."""

import itertools
from collections import Counter

import krippendorff
import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene as CrowdKit
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import cohen_kappa_score

from rlhf_lab.label_quality import cohen_kappa, dawid_skene, krippendorff_alpha, majority

NAN = float("nan")


def with_gaps(classes: int, most_labelers: int = 5):
    """Arrays (L, N) of labels, some of them nan."""
    shapes = st.tuples(st.integers(2, most_labelers), st.integers(1, 12))
    label = st.one_of(st.just(NAN), st.integers(0, classes - 1).map(float))
    return shapes.flatmap(lambda shape: arrays(float, shape, elements=label))


def crowd(rng, accuracy, items: int, classes: int = 2, judged: float = 1.0):
    """The true classes (N,), and labels (L, N) of labelers who err alike towards every wrong class."""
    truth = rng.integers(classes, size=items)
    wrong = (truth + rng.integers(1, classes, size=(len(accuracy), items))) % classes
    labels = np.where(rng.random(wrong.shape) < np.array(accuracy)[:, None], truth, wrong).astype(float)
    return truth, np.where(rng.random(wrong.shape) < judged, labels, NAN)


# --- kappa ---


def test_kappa_by_hand():
    # 20 + 15 of 50 agree: .7; the first says 1 in half of them, the second in .6: chance .3 + .2 = .5; (.7 - .5) / .5
    cells = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    first, second = zip(*[cell for cell, count in cells.items() for _ in range(count)], strict=True)
    assert cohen_kappa(first, second) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_kappa_equals_scikit_learns(pairs):
    first, second = zip(*pairs, strict=True)
    assume(len({*first, *second}) > 1)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_kappa_counts_only_items_that_both_have_judged():
    first, second = [0, 1, 1, NAN, 0, 1], [0, 1, 0, 1, NAN, 1]
    assert cohen_kappa(first, second) == cohen_kappa([0, 1, 1, 1], [0, 1, 0, 1])


def test_kappa_is_zero_for_independent_labelers_however_often_they_agree():
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 200_000)) < 0.9).astype(int)
    assert (first == second).mean() > 0.8
    assert cohen_kappa(first, second) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ([0, 1], [0, 1, 1], r"shapes \(2,\) and \(3,\)"),
        ([NAN, 1], [1, NAN], "No item has two labels: let both labelers judge the same items"),
        ([1, 1], [1, 1], "All labels are of one class, so kappa is not defined"),
        ([0, 0.5], [1, 1], "Labeler 0 calls item 1 0.5: a label is 0, 1, 2, ... or nan"),
    ],
)
def test_kappa_refuses_what_it_cannot_measure(first, second, message):
    with pytest.raises(ValueError, match=message):
        cohen_kappa(first, second)


# --- alpha ---


def test_alpha_of_krippendorffs_own_example():
    # Krippendorff (2011), section C: four observers, twelve units, nominal alpha .743.
    table = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    labels = np.array([[NAN if mark == "." else float(mark) for mark in row] for row in table])
    assert krippendorff_alpha(labels) == pytest.approx(0.743, abs=5e-4)


@given(with_gaps(classes=4))
def test_alpha_equals_the_krippendorff_package(labels):
    paired = labels[:, (~np.isnan(labels)).sum(axis=0) >= 2]
    assume(len(set(paired[~np.isnan(paired)])) > 1)
    expected = krippendorff.alpha(reliability_data=labels, level_of_measurement="nominal")
    assert krippendorff_alpha(labels) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_two_labelers_nears_scotts_pi():
    # With two labelers and many items alpha is Scott's pi: kappa with the classes' pooled shares.
    rng = np.random.default_rng(1)
    _, (first, second) = crowd(rng, (0.8, 0.7), 20_000, classes=3)
    pooled = [np.concatenate([first, second]) == c for c in range(3)]
    expected = sum(share.mean() ** 2 for share in pooled)
    pi = ((first == second).mean() - expected) / (1 - expected)
    assert krippendorff_alpha(np.stack([first, second])) == pytest.approx(pi, abs=1e-4)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([[0, NAN], [NAN, 1]], "No item has two labels"),
        ([[1, 1, NAN], [1, 1, 0]], "All labels are of one class, so alpha is not defined"),
        ([[0, -1], [0, 1]], "Labeler 0 calls item 1 -1"),
        ([[0, 1], [0, float("inf")]], "Labeler 1 calls item 1 inf"),
        ([0, 1], r"got shape \(2,\)"),
        ([[NAN, NAN]], "not all nan"),
    ],
)
def test_alpha_refuses_what_it_cannot_measure(labels, message):
    with pytest.raises(ValueError, match=message):
        krippendorff_alpha(labels)


# --- majority ---


@given(with_gaps(classes=3))
def test_majority_equals_counting(labels):
    assume(not np.isnan(labels).all())
    for found, column in zip(majority(labels), labels.T, strict=True):
        counts = Counter(column[~np.isnan(column)]).most_common()
        leads = len(counts) == 1 or len(counts) > 1 and counts[0][1] > counts[1][1]
        assert found == counts[0][0] if leads else np.isnan(found)


# --- Dawid-Skene ---


def log_likelihood(labels, prior, confusion) -> float:
    """log P(labels) by brute force: for every item the sum over its possible classes."""
    total = 0.0
    for item in range(labels.shape[1]):
        chance = 0.0
        for j, share in enumerate(prior):
            for labeler in range(len(labels)):
                if not np.isnan(label := labels[labeler, item]):
                    share = share * confusion[labeler, j, int(label)]
            chance += share
        total += np.log(chance)
    return total


def test_dawid_skene_is_exact_where_labels_occur_exactly_as_often_as_expected():
    prior = np.array([3, 5]) / 8
    confusion = np.array([[[6, 2], [1, 7]], [[5, 3], [2, 6]], [[7, 1], [3, 5]]]) / 8
    labels = []
    for said in itertools.product((0, 1), repeat=3):
        chances = prior * np.prod([confusion[labeler, :, label] for labeler, label in enumerate(said)], axis=0)
        labels += [said] * round(chances.sum() * 8**4)
    found = dawid_skene(np.array(labels).T, tolerance=1e-12)
    np.testing.assert_allclose(found.prior, prior, atol=1e-6)
    np.testing.assert_allclose(found.confusion, confusion, atol=1e-6)
    first = prior * np.prod([confusion[labeler, :, 0] for labeler in range(3)], axis=0)  # all three say 0
    np.testing.assert_allclose(found.posterior[0], first / first.sum(), atol=1e-6)
    np.testing.assert_allclose(found.accuracy[0], 3 / 8 * 6 / 8 + 5 / 8 * 7 / 8, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # crowd-kit calls pandas as earlier versions wanted it
@pytest.mark.parametrize("classes, judged", [(2, 1.0), (2, 0.6), (4, 0.6)])
def test_dawid_skene_goes_the_way_of_crowd_kit(classes, judged):
    _, labels = crowd(np.random.default_rng(classes), (0.9, 0.8, 0.6, 0.5, 0.85), 150, classes, judged)
    where = np.argwhere(~np.isnan(labels))  # (labeler, item)
    rows = {"worker": where[:, 0], "task": where[:, 1], "label": labels[tuple(where.T)].astype(int)}
    peer = CrowdKit(n_iter=20, tol=-np.inf).fit(pd.DataFrame(rows))
    posterior = dawid_skene(labels, iterations=20, tolerance=0).posterior[np.unique(where[:, 1])]
    np.testing.assert_allclose(posterior, peer.probas_.sort_index().sort_index(axis=1), atol=1e-6)
    after = dawid_skene(labels, iterations=21, tolerance=0)  # the M step that follows
    errors = peer.errors_.sort_index().sort_index(axis=1)  # rows (worker, said), columns true class
    theirs = np.stack([errors.loc[labeler].to_numpy().T for labeler in range(len(labels))])
    np.testing.assert_allclose(after.confusion, theirs, atol=1e-6)


def test_every_iteration_raises_the_likelihood():
    _, labels = crowd(np.random.default_rng(3), (0.8, 0.6, 0.7), 40, classes=3, judged=0.8)
    found = [dawid_skene(labels, iterations=n, tolerance=0) for n in range(1, 30)]
    likelihoods = [log_likelihood(labels, fit.prior, fit.confusion) for fit in found]
    assert (np.diff(likelihoods) > -1e-7).all()
    assert likelihoods[-1] > likelihoods[0] + 0.1


def test_the_labelers_true_accuracies_are_recovered_and_beat_majority():
    """Two careful labelers among careless ones, one who always says 0, and one who turns every answer round."""
    rng = np.random.default_rng(4)
    accuracy = np.array([0.95, 0.9, 0.6, 0.55, 0.55, 0.5, 0.1])
    truth, labels = crowd(rng, accuracy, 4000)
    labels[5] = 0
    found = dawid_skene(labels)
    error = 4 * np.sqrt(accuracy * (1 - accuracy) / len(truth))
    assert (abs(found.accuracy - accuracy) < error + 0.005).all()
    np.testing.assert_allclose(found.confusion[5], [[1, 0], [1, 0]], atol=1e-6)
    by_vote = (majority(labels) == truth).mean()
    by_best = (labels[0] == truth).mean()
    ours = (found.labels == truth).mean()
    assert by_vote < 0.85 < 0.95 < ours
    assert ours > by_best


def test_an_item_nobody_judged_gets_the_prior():
    _, labels = crowd(np.random.default_rng(5), (0.9, 0.8, 0.7), 60)
    found, more = dawid_skene(labels, tolerance=1e-10), dawid_skene(np.c_[labels, [NAN] * 3], tolerance=1e-10)
    np.testing.assert_allclose(more.posterior[-1], found.prior, atol=1e-6)
    np.testing.assert_allclose(more.confusion, found.confusion, atol=1e-6)


def test_labels_of_one_class_are_no_puzzle():
    found = dawid_skene([[0, 0, 0], [0, 0, NAN]])
    assert found.posterior.tolist() == [[1.0]] * 3
    assert found.accuracy.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("labels, message", [([0, 1], r"got shape \(2,\)"), ([[0, 1.5]], "calls item 1 1.5")])
def test_dawid_skene_refuses_what_are_no_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        dawid_skene(labels)
