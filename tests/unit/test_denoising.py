"""Precision and recall of removed labels."""

import math

import numpy as np

from avvp_dist.metrics.denoising import removal_scores


def test_precision_and_recall():
    weak = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    true = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)  # class 0 is noise throughout
    removed = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    scores = removal_scores(weak, removed, true)
    assert (scores["removed"], scores["noise"]) == (3, 3)
    assert math.isclose(scores["precision"], 200 / 3)
    assert math.isclose(scores["recall"], 200 / 3)


def test_nothing_removed_and_nothing_to_remove():
    weak, none = np.ones((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool)
    assert math.isnan(removal_scores(weak, none, none)["precision"])
    assert removal_scores(weak, none, none)["recall"] == 0
    assert math.isnan(removal_scores(weak, none, weak)["recall"])
