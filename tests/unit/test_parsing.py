"""The official scores against the published code and against a literal implementation of its rules."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avvp_dist.datasets.llp import read_annotations
from avvp_dist.metrics.parsing import apply_protocol, per_class, score

KINDS = ("audio", "visual", "audio_visual")


# A literal implementation of the official rules, one video, class and second at a time.


def events(line):
    """Maximal runs of True as sets of seconds."""
    found, current = [], set()
    for second, active in enumerate([*line, False]):
        if active:
            current.add(second)
        elif current:
            found.append(current)
            current = set()
    return found


def counts(pred, true, level):
    """TP, FP, FN of one video and class."""
    if level == "segment":
        return np.array([(pred & true).sum(), (pred & ~true).sum(), (~pred & true).sum()])

    def match(p, t):
        return len(p & t) >= 0.5 * len(p | t)

    predicted, annotated = events(pred), events(true)
    hits = sum(any(match(p, t) for t in annotated) for p in predicted)
    missed = sum(not any(match(p, t) for p in predicted) for t in annotated)
    return np.array([hits, len(predicted) - hits, missed])


def all_counts(pred_audio, pred_visual, true_audio, true_visual, level):
    """[TP, FP, FN] by kind, each [N,C,3]."""
    pairs = {
        "audio": (pred_audio, true_audio),
        "visual": (pred_visual, true_visual),
        "audio_visual": (pred_audio & pred_visual, true_audio & true_visual),
    }
    n, _, c = pred_audio.shape
    found = {
        kind: np.array([[counts(p[i, :, j], t[i, :, j], level) for j in range(c)] for i in range(n)])
        for kind, (p, t) in pairs.items()
    }
    found["event"] = found["audio"] + found["visual"]
    return found


def f1(tp, fp, fn):
    return 2 * tp / (2 * tp + fp + fn)


def reference(*arrays_, level):
    """F-scores by kind, each a list of N."""
    return {
        kind: [np.mean([f1(*row) for row in video if sum(row)]) if video.any() else 1.0 for video in rows]
        for kind, rows in all_counts(*arrays_, level).items()
    }


def annotations_of(records, classes=25, segments=10):
    true = np.zeros((2, len(records), segments, classes), dtype=bool)
    for i, record in enumerate(records):
        for modality, found in enumerate(record.events.values()):
            for event in found:
                true[modality, i, int(event.onset) : int(event.offset), event.label] = True
    return true


def golden_arrays(golden):
    with np.load(golden / "A_metrics.npz") as file:
        shape = tuple(file["shape"])
        packed = [file[name] for name in ("pred_audio", "pred_visual", "gt_audio", "gt_visual")]
        unpacked = [np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool) for bits in packed]
        return unpacked, file["per_video"]


@st.composite
def scenes(draw, max_videos=4):
    shape = (draw(st.integers(1, max_videos)), draw(st.integers(1, 14)), draw(st.integers(1, 4)))
    return [draw(arrays(np.bool_, shape)) for _ in range(4)]


def test_equals_the_published_code(golden):
    scene, per_video = golden_arrays(golden)
    scores = score(*scene)
    np.testing.assert_allclose(scores.per_video, per_video, rtol=0, atol=1e-12)
    for offset, figures in ((0, scores.segment), (4, scores.event)):
        audio, visual, event, audio_visual = 100 * per_video[:, offset : offset + 4].mean(axis=0)
        expected = [audio, visual, audio_visual, (audio + visual + audio_visual) / 3, event]
        assert list(figures) == ["audio", "visual", "audio_visual", "type", "event"]
        np.testing.assert_allclose(list(figures.values()), expected, rtol=0, atol=1e-10)


def test_scores_of_naive_predictors_on_the_test_split(golden, llp_annotations):
    anchors = json.loads((golden / "A_llp_anchors.json").read_text())
    records = [record for record in read_annotations(llp_annotations).records if record.split == "test"]
    true = annotations_of(records)
    weak = np.zeros((len(records), 25), dtype=bool)
    for i, record in enumerate(records):
        weak[i, list(record.weak)] = True
    without_speech = weak & (np.arange(25) != 0)

    def everywhere(audio, visual):
        return [np.repeat(present[:, None], 10, axis=1) for present in (audio, visual)]

    predictions = {
        "nothing": everywhere(np.zeros_like(weak), np.zeros_like(weak)),
        "weak_labels": everywhere(weak, weak),
        "weak_labels_without_visual_speech": everywhere(weak, without_speech),
        "modality_oracle": everywhere(*true.any(axis=2)),
    }
    assert {f"test/{name}" for name in predictions} == set(anchors)
    for name, predicted in predictions.items():
        scores = score(*predicted, *true)
        assert scores.segment == pytest.approx(anchors[f"test/{name}"]["segment"], abs=1e-9)
        assert scores.event == pytest.approx(anchors[f"test/{name}"]["event"], abs=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scenes())
def test_equals_the_literal_implementation(scene):
    scores = score(*scene)
    for offset, level in ((0, "segment"), (4, "event")):
        expected = reference(*scene, level=level)
        for column, kind in enumerate(("audio", "visual", "event", "audio_visual")):
            np.testing.assert_allclose(scores.per_video[:, offset + column], expected[kind], rtol=0, atol=1e-12)


def test_event_matching_of_every_pair_of_sequences():
    bits = ((np.arange(128)[:, None] >> np.arange(7)) & 1).astype(bool)
    pred = np.repeat(bits, 128, axis=0)[:, :, None]
    true = np.tile(bits, (128, 1))[:, :, None]
    nothing = np.zeros_like(pred)
    scores = score(pred, nothing, true, nothing)
    expected = reference(pred, nothing, true, nothing, level="event")
    np.testing.assert_allclose(scores.per_video[:, 4], expected["audio"], rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scenes(), st.integers(2, 4))
def test_repeating_the_videos_changes_no_mean(scene, times):
    once, repeated = score(*scene), score(*[np.concatenate([array] * times) for array in scene])
    assert repeated.segment == pytest.approx(once.segment, abs=1e-9)
    assert repeated.event == pytest.approx(once.event, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scenes(max_videos=3))
def test_a_perfect_prediction_scores_100(scene):
    _, _, audio, visual = scene
    scores = score(audio, visual, audio, visual)
    assert set(scores.segment.values()) | set(scores.event.values()) == {100.0}


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 2), (2, 10, 25)])
def test_videos_without_events_score_100(shape):
    nothing = np.zeros(shape, dtype=bool)
    scores = score(nothing, nothing, nothing, nothing)
    assert (scores.per_video == 1).all()
    assert scores.per_video.shape == (shape[0], 8)


def test_half_of_the_union_is_enough_and_less_is_not():
    true = np.zeros((2, 5, 1), dtype=bool)
    true[:, :4] = True
    pred = np.zeros_like(true)
    pred[0, :2] = True  # 2 of 4
    pred[1, 3:] = True  # 1 of 5
    nothing = np.zeros_like(true)
    scores = score(pred, nothing, true, nothing)
    assert scores.per_video[:, 4].tolist() == [1, 0]


def test_audio_visual_events_are_events_in_both_modalities():
    pred_audio, pred_visual, true_audio, true_visual = np.zeros((4, 1, 4, 1), dtype=bool)
    pred_audio[0, :2], pred_visual[0, 2:] = True, True  # nothing in common
    true_audio[0, :3], true_visual[0, 1:] = True, True  # seconds 1 and 2 in common
    scores = score(pred_audio, pred_visual, true_audio, true_visual)
    audio, visual, event, audio_visual = scores.per_video[0, :4]
    assert (audio, visual, event, audio_visual) == pytest.approx((0.8, 0.8, 0.8, 0.0))
    assert scores.segment["type"] == pytest.approx(160 / 3)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda a: a[:1], "pred_visual: expected bool"),
        (lambda a: a[..., :3], "pred_visual: expected bool"),
        (lambda a: a[0], "pred_visual: expected bool"),
        (lambda a: a.astype(float), "float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(broken, message):
    good = np.zeros((2, 10, 4), dtype=bool)
    with pytest.raises(ValueError, match=message):
        score(good, broken(good), good, good)
    with pytest.raises(ValueError, match=message):
        per_class(good, broken(good), good, good)


def test_an_empty_split_is_refused():
    empty = np.zeros((0, 10, 4), dtype=bool)
    with pytest.raises(ValueError, match="nothing to score"):
        score(empty, empty, empty, empty)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scenes())
def test_per_class_pools_the_counts_of_all_videos(scene):
    found = per_class(*scene)
    for level in ("segment", "event"):
        pooled = {kind: rows.sum(axis=0) for kind, rows in all_counts(*scene, level).items()}
        assert set(found[level]) == set(KINDS)
        for kind in KINDS:
            expected = [100 * f1(*row) if row.sum() else np.nan for row in pooled[kind]]
            np.testing.assert_allclose(found[level][kind], expected, rtol=0, atol=1e-9)


def two_videos():
    """Probabilities of 2 videos, 2 seconds, 2 classes; every head differs."""
    return SimpleNamespace(
        video=np.array([[0.5, 0.4], [0.9, 0.1]]),
        audio=np.array([[0.4, 0.6], [0.6, 0.6]]),
        visual=np.array([[0.7, 0.2], [0.1, 0.5]]),
        segments=np.array([[[[0.5, 0.5], [0.9, 0.9]], [[0.49, 0.6], [0.1, 0.9]]]] * 2),
    )


SECONDS_AUDIO = np.array([[[1, 1], [0, 1]]] * 2, dtype=bool)
SECONDS_VISUAL = np.array([[[1, 1], [0, 1]]] * 2, dtype=bool)


@pytest.mark.parametrize(
    ("protocol", "passes_audio", "passes_visual"),
    [
        ("joint", [[1, 0], [1, 0]], [[1, 0], [1, 0]]),
        ("modality", [[0, 1], [1, 1]], [[1, 0], [0, 1]]),
        ("none", [[1, 1], [1, 1]], [[1, 1], [1, 1]]),
    ],
)
def test_a_protocol_passes_videos_that_reach_its_threshold(protocol, passes_audio, passes_visual):
    p = two_videos()
    audio, visual = apply_protocol(p.video, p.audio, p.visual, p.segments, protocol)
    np.testing.assert_array_equal(audio, SECONDS_AUDIO & np.array(passes_audio, dtype=bool)[:, None])
    np.testing.assert_array_equal(visual, SECONDS_VISUAL & np.array(passes_visual, dtype=bool)[:, None])


def test_thresholds_of_seconds_and_videos_are_separate():
    p = two_videos()
    low, _ = apply_protocol(p.video, p.audio, p.visual, p.segments, "joint", segment_threshold=0.3)
    assert low[0].tolist() == [[True, False], [True, False]]
    unfiltered, _ = apply_protocol(p.video, p.audio, p.visual, p.segments, "joint", video_threshold=0.0)
    np.testing.assert_array_equal(unfiltered, SECONDS_AUDIO)


def test_unknown_protocols_and_shapes_that_do_not_fit_are_refused():
    p = two_videos()
    with pytest.raises(ValueError, match="valid: joint, modality, none"):
        apply_protocol(p.video, p.audio, p.visual, p.segments, "own")
    with pytest.raises(ValueError, match=r"audio: expected \[N,C\]"):
        apply_protocol(p.video, p.audio[:1], p.visual, p.segments, "joint")
    with pytest.raises(ValueError, match="segments: expected"):
        apply_protocol(p.video, p.audio, p.visual, p.segments[:, :, 0], "joint")
