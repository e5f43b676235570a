"""Precision and recall of removed labels, for whole videos, windows and segments."""

import math

import numpy as np
import pytest

from avvp_dist.metrics.denoising import compare_labels, refinement_row, removal_row, removal_scores


def test_precision_and_recall():
    weak = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    true = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)  # class 0 is always noise
    removed = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    scores = removal_scores(weak, removed, true)
    assert (scores["removed"], scores["noise"]) == (3, 3)
    assert math.isclose(scores["precision"], 200 / 3)
    assert math.isclose(scores["recall"], 200 / 3)
    assert (scores["labels"], scores["baseline"]) == (6, 50)


def test_scores_without_removed_labels_or_noise():
    weak, none = np.ones((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool)
    assert math.isnan(removal_scores(weak, none, none)["precision"])
    assert removal_scores(weak, none, none)["recall"] == 0
    assert math.isnan(removal_scores(weak, none, weak)["recall"])
    assert math.isnan(removal_scores(none, none, none)["baseline"])


def seconds(*rows):
    """Ground truth of videos of four seconds, one string for Speech and one for Dog; "..x." is an event in second 3."""
    return np.array([[[letter == "x" for letter in second] for second in zip(*row, strict=True)] for row in rows])


WEAK = np.array([[1, 1], [1, 0]], dtype=bool)
AUDIO = seconds(("xx..", "...."), ("xxxx", "...."))
VISUAL = seconds(("....", ".x.x"), ("x...", "...."))
WINDOWS = ((0, 2), (1, 3), (2, 4))


def by_track(audio, visual):
    return {"audio": audio, "visual": visual}


TRUTH = by_track(AUDIO, VISUAL)


def test_a_window_has_an_event_if_any_of_its_seconds_has_it():
    audio_labels = np.array([[[1, 1], [1, 0], [0, 0]], [[1, 0], [1, 0], [1, 0]]], dtype=np.float32)
    # first video: Speech is removed from all windows, and is not visual; Dog is visual in all windows but kept in one only
    visual_labels = np.array([[[0, 1], [0, 0], [0, 0]], [[1, 0], [0, 0], [1, 0]]], dtype=np.float32)
    row = refinement_row(compare_labels(WEAK, by_track(audio_labels, visual_labels), TRUTH, WINDOWS))
    assert row == pytest.approx(
        {
            # 9 labels in windows. True are Speech in windows 0 and 1 of the first video and in all of the second
            "removed_windows/audio": 3,
            "removed_windows/audio_labels": 9,
            "removed_windows/audio_noise": 4,
            "removed_windows/audio_precision": 100,
            "removed_windows/audio_recall": 75,
            "removed_windows/audio_baseline": 400 / 9,
            # noise: Speech in all windows of the first video, in windows 1 and 2 of the second
            "removed_windows/visual": 6,
            "removed_windows/visual_labels": 9,
            "removed_windows/visual_noise": 5,
            "removed_windows/visual_precision": 400 / 6,
            "removed_windows/visual_recall": 80,
            "removed_windows/visual_baseline": 500 / 9,
            # whole videos: 3 labels; the first video's Dog is not audible but stays in a window
            "removed/audio": 0,
            "removed/audio_labels": 3,
            "removed/audio_noise": 1,
            "removed/audio_recall": 0,
            "removed/audio_baseline": 100 / 3,
            "removed/visual": 1,
            "removed/visual_labels": 3,
            "removed/visual_noise": 1,
            "removed/visual_precision": 100,
            "removed/visual_recall": 100,
            "removed/visual_baseline": 100 / 3,
        }
    )


def test_segment_level_labels_are_scored_per_second():
    audio_labels = np.where(seconds(("xxx.", "...."), ("xx..", "x...")), 0.5, 0.4)  # a probability of 0.5 keeps a label
    row = refinement_row(compare_labels(WEAK, by_track(audio_labels, np.ones((2, 4, 2))), TRUTH))
    audio = {name: value for name, value in row.items() if "/audio" in name}
    assert audio == pytest.approx(
        {
            # 12 labels in seconds, 6 of them true; Dog in the second video is not a weak label and is ignored
            "removed_segments/audio": 1 + 4 + 2,
            "removed_segments/audio_labels": 12,
            "removed_segments/audio_noise": 2 + 4,
            "removed_segments/audio_precision": 500 / 7,
            "removed_segments/audio_recall": 500 / 6,
            "removed_segments/audio_baseline": 50,
            "removed/audio": 1,
            "removed/audio_labels": 3,
            "removed/audio_noise": 1,
            "removed/audio_precision": 100,
            "removed/audio_recall": 100,
            "removed/audio_baseline": 100 / 3,
        }
    )
    assert row["removed_segments/visual"] == 0
    assert "removed_segments/visual_precision" not in row


def test_video_level_labels_have_no_finer_level_and_agree_with_the_metrics_of_an_epoch():
    audio_labels, visual_labels = np.array([[1, 0], [0, 0]]), np.array([[0, 1], [1, 0]])
    row = refinement_row(compare_labels(WEAK, by_track(audio_labels, visual_labels), TRUTH))
    epoch = removal_row(WEAK, by_track(WEAK & (audio_labels == 0), WEAK & (visual_labels == 0)), TRUTH)
    assert {name.split("/")[0] for name in row} == {"removed"}
    assert {name: row[name] for name in epoch} == epoch
    assert row["removed/audio_precision"] == 50


def test_each_modality_can_be_labeled_at_its_own_level():
    levels = compare_labels(WEAK, by_track(AUDIO, VISUAL.any(axis=1)), TRUTH)
    assert {level: list(modalities) for level, modalities in levels.items()} == {
        "removed": ["audio", "visual"],
        "removed_segments": ["audio"],
    }


def test_without_ground_truth_only_counts_are_reported():
    row = refinement_row(compare_labels(WEAK, by_track(np.zeros((2, 3, 2)), np.ones((2, 3, 2))), None, WINDOWS))
    assert row == {
        "removed/audio": 3,
        "removed/audio_labels": 3,
        "removed/visual": 0,
        "removed/visual_labels": 3,
        "removed_windows/audio": 9,
        "removed_windows/audio_labels": 9,
        "removed_windows/visual": 0,
        "removed_windows/visual_labels": 9,
    }
