"""The figures of event localization against the published arithmetic, a direct count, and the official annotations."""

import numpy as np
import pytest

from avvp_dist.metrics import localization
from avvp_dist.metrics.localization import FIGURES, counts, figures, gt_repeat, majority, per_class, repeat, score

BACKGROUND = 4  # four event classes


@pytest.fixture
def drawn():
    """Predictions and truth of 30 videos; a third of the truth is background."""
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((30, 10)) < 0.33, BACKGROUND, rng.integers(0, 4, (30, 1)))
    return np.where(rng.random((30, 10)) < 0.4, rng.integers(0, 5, (30, 10)), truth), truth


def test_published_figures(golden):
    vectors = np.load(golden / "A_localization.npz")
    found = score(vectors["predicted"], vectors["truth"], 28)
    assert list(found) == list(FIGURES)
    for name, value in found.items():
        assert value / 100 == pytest.approx(float(vectors[name]), abs=1e-12)


def test_figures_by_counting_segments(drawn):
    predicted, truth = (labels.ravel().tolist() for labels in drawn)
    pairs = list(zip(predicted, truth, strict=True))

    def f1(hits, found, wanted):
        return 2 * hits / (found + wanted) if found + wanted else 0

    hits = [sum(p == t == c for p, t in pairs) for c in range(5)]
    found, wanted = [predicted.count(c) for c in range(5)], [truth.count(c) for c in range(5)]
    events = (sum(hits[:4]), sum(found[:4]), sum(wanted[:4]))
    expected = {
        "accuracy": sum(hits) / len(pairs),
        "weighted_f1": sum(f1(hits[c], found[c], wanted[c]) * wanted[c] for c in range(5)) / len(pairs),
        "background_recall": hits[4] / wanted[4],
        "background_precision": hits[4] / found[4],
        "background_f1": f1(hits[4], found[4], wanted[4]),
        "event_recall": events[0] / events[2],
        "event_precision": events[0] / events[1],
        "event_f1": f1(*events),
    }
    assert score(*drawn, BACKGROUND) == pytest.approx({name: 100 * value for name, value in expected.items()})
    classes = per_class(counts(*drawn, BACKGROUND).sum(axis=0))
    np.testing.assert_allclose(classes["precision"], 100 * np.array(hits) / found)
    np.testing.assert_allclose(classes["recall"], 100 * np.array(hits) / wanted)
    np.testing.assert_allclose(classes["f1"], [100 * f1(*part) for part in zip(hits, found, wanted, strict=True)])


def test_figures_of_resamples_are_those_of_the_drawn_videos(drawn):
    predicted, truth = drawn
    of_videos = counts(predicted, truth, BACKGROUND)
    assert of_videos.shape == (30, 15)
    assert of_videos.dtype == np.int64
    rows = np.random.default_rng(1).integers(0, 30, (2, 3, 30))
    resampled = figures(of_videos[rows].sum(axis=2))
    for name, values in resampled.items():
        assert values.shape == (2, 3)
        for place in np.ndindex(2, 3):
            assert values[place] == pytest.approx(score(predicted[rows[place]], truth[rows[place]], BACKGROUND)[name])
    weights = np.bincount(rows[0, 0], minlength=30)  # a resample as weights of the videos
    assert figures(weights @ of_videos)["event_f1"] == pytest.approx(resampled["event_f1"][0, 0])


def test_the_background_can_have_any_number(drawn):
    order = np.array([3, 1, 0, 4, 2])  # the background becomes class 2
    assert score(order[drawn[0]], order[drawn[1]], 2) == pytest.approx(score(*drawn, BACKGROUND))


def test_figures_without_a_denominator():
    events = np.zeros((1, 10), np.int64)
    found = score(events, events, BACKGROUND)
    assert {name: value for name, value in found.items() if name.startswith("background")} == {
        "background_recall": 0,
        "background_precision": 0,
        "background_f1": 0,
    }
    assert found["accuracy"] == found["event_f1"] == 100
    assert set(score(np.zeros((0, 10), int), np.zeros((0, 10), int), BACKGROUND).values()) == {0}
    classes = per_class(counts(events, events + 1, BACKGROUND).sum(axis=0))
    np.testing.assert_array_equal(classes["precision"], [0, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(classes["recall"], [np.nan, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(classes["f1"], [0, 0, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros((2, 9), int), r"\(2, 9\) and truth \(2, 10\)"),
        (np.zeros((2, 10)), "predicted: expected integers, got float64"),
        (np.full((2, 10), 5), "predicted: classes 5 to 5, expected 0 to 4"),
        (np.full((2, 10), -1), "predicted: classes -1 to -1, expected 0 to 4"),
    ],
)
def test_labels_that_are_not_classes_are_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        counts(predicted, np.zeros((2, 10), int), BACKGROUND)
    with pytest.raises(ValueError, match="one shape"):
        counts(np.zeros(10, int), np.zeros(10, int), BACKGROUND)


def test_naive_predictors():
    truth = np.array([[4, 2, 2, 4], [4, 4, 4, 4], [3, 4, 4, 4], [1, 1, 0, 0]])
    assert gt_repeat(truth, BACKGROUND).tolist() == [[2] * 4, [4] * 4, [3] * 4, [0] * 4]
    assert gt_repeat(truth[:0], BACKGROUND).shape == (0, 4)
    assert majority(truth, (2, 3)).tolist() == [[4] * 3] * 2
    assert repeat(np.array([3, 1]), 2).tolist() == [[3, 3], [1, 1]]


@pytest.fixture
def official_test_split(ave_annotations):
    """The classes of the segments of AVE's test split, [402,10]."""
    rows = [line.split("&") for line in (ave_annotations / "Annotations.txt").read_text().splitlines() if line.strip()]
    assert len(rows) == 4143
    numbers = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    truth = np.full((len(rows), 10), 28)
    for segments, (name, _, _, onset, offset) in zip(truth, rows, strict=True):
        segments[int(onset) : int(offset)] = numbers[name]
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(ave_annotations / "test_order.h5") as file:
        return truth[file["order"][:]]


def test_gt_repeat_has_the_published_accuracy(official_test_split):
    found = score(gt_repeat(official_test_split, 28), official_test_split, 28)
    assert round(found["accuracy"], 1) == 82.2  # the paper's GT-repeat
    assert found["event_recall"] == 100
    assert found["background_f1"] == 0


def test_figures_are_those_of_the_module_documentation():
    for name in FIGURES:
        stem = "background_*" if name.startswith("background") else name
        assert stem in localization.__doc__
