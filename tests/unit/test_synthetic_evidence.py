"""The features of the synthetic LLP follow its events, in every version."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from avvp_dist.datasets import synthetic
from avvp_dist.datasets.catalog import LLP, LLP_CLIP_CLAP
from avvp_dist.datasets.synthetic_evidence import DEFAULT_VERSION, VERSIONS, Evidence, of_version
from avvp_dist.errors import ConfigError
from avvp_dist.types import Event, VideoRecord

SPEECH, CAR, DOG, SINGING = (LLP.classes.index(name) for name in ("Speech", "Car", "Dog", "Singing"))
AUDIO, VISUAL, MOTION = slice(0, 128), slice(128, 2176), slice(2176, 2688)


def video(number=0, audio=(), visual=()):
    return VideoRecord(
        f"made-up{number:04d}", f"made-up{number:04d}_0_10", "test", (), {"audio": tuple(audio), "visual": tuple(visual)}
    )


def features(seed, record, dataset=LLP, evidence=VERSIONS[1]):
    return synthetic.features(seed, record, dataset, evidence)


def test_evidence_is_only_where_the_event_is():
    silent = features(1, video()).astype(np.float32)
    audio = features(1, video(audio=[Event(CAR, 2, 5), Event(CAR, 8, 9)])).astype(np.float32)
    visual = features(1, video(visual=[Event(CAR, 4, 10)])).astype(np.float32)

    assert silent.shape == (10, LLP.width)
    changed = np.abs(audio - silent)
    assert [t for t in range(10) if changed[t, AUDIO].max() > 0] == [2, 3, 4, 8]
    assert changed[:, 128:].max() == 0
    changed = np.abs(visual - silent)
    assert changed[:, AUDIO].max() == 0
    for stream in (VISUAL, MOTION):
        assert [t for t in range(10) if changed[t, stream].max() > 0] == [4, 5, 6, 7, 8, 9]


def mean_evidence(label, stream, videos=40):
    """Mean contribution of a class over videos."""
    added = [
        features(1, video(n, visual=[Event(label, 0, 10)])).astype(np.float32) - features(1, video(n)).astype(np.float32)
        for n in range(videos)
    ]
    return np.mean(added, axis=(0, 1))[stream]


def test_only_confusable_classes_are_similar():
    speech, singing, car = (mean_evidence(label, VISUAL) for label in (SPEECH, SINGING, CAR))

    def similarity(one, other):
        return np.corrcoef(one, other)[0, 1]

    assert 0.3 < similarity(speech, singing) < 0.6
    assert abs(similarity(speech, car)) < 0.15


def test_strength_varies_between_videos_and_seconds():
    direction = mean_evidence(CAR, VISUAL)
    direction -= direction.mean()
    strength = np.array(
        [
            (
                features(1, video(n, visual=[Event(CAR, 0, 10)])).astype(np.float32)
                - features(1, video(n)).astype(np.float32)
            )[:, VISUAL]
            @ direction
            for n in range(40)
        ]
    )
    assert 0.2 < np.log(strength.mean(axis=1)).std() < 0.6
    assert 0.15 < np.log(strength).std(axis=1).mean() < 0.5


@pytest.mark.parametrize(("stream", "strength"), [(AUDIO, 0.6), (VISUAL, 0.25), (MOTION, 0.38)])
def test_energy_equals_the_formula(stream, strength):
    """relu keeps half of the variance: 1.2^2 + 1 of the noise, and s^2 * E[g^2] * (1 + .5^2) of an event."""
    silent, active = [], []
    for n in range(200):
        everywhere = [Event(n % 25, 0, 10)]
        silent.append(np.square(features(1, video(n)).astype(np.float32)[:, stream]).mean())
        both = features(1, video(n, audio=everywhere, visual=everywhere)).astype(np.float32)
        active.append(np.square(both[:, stream]).mean())
    gain = np.exp(2 * (0.35**2 + 0.3**2))
    assert np.mean(silent) == pytest.approx(2.44 / 2, rel=0.05)
    assert np.mean(active) - np.mean(silent) == pytest.approx(strength**2 * gain * 1.25 / 2, rel=0.2)


def test_each_video_has_its_own_clutter():
    one, other = (features(1, video(n)).astype(np.float32) for n in (0, 1))
    assert np.corrcoef(one[0, VISUAL], one[9, VISUAL])[0, 1] > 0.4
    assert abs(np.corrcoef(one[0, VISUAL], other[0, VISUAL])[0, 1]) < 0.1


def test_features_depend_only_on_seed_and_video():
    records = [video(n, audio=[Event(n, 0, 3)], visual=[Event(n, 1, 9)]) for n in range(4)]
    forward = [features(5, record) for record in records]
    backward = [features(5, record) for record in reversed(records)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not np.array_equal(forward[0], features(6, records[0]))


def test_frames_of_a_second_differ_and_average_to_its_features():
    record = video(3, visual=[Event(CAR, 0, 6)])
    files = synthetic.frames(2, record, evidence=VERSIONS[1])
    packed = features(2, record)
    assert {name: (file.shape, file.dtype) for name, file in files.items()} == {
        "audio": ((10, 128), np.float32),
        "visual": ((80, 2048), np.float32),
        "motion": ((10, 512), np.float32),
    }
    frames = files["visual"].reshape(10, 8, 2048)
    relative = frames.std(axis=1) / np.maximum(frames.mean(axis=1), 1e-9)
    assert 0.05 < relative[packed[:, VISUAL] > 0].mean() < 0.15
    assert files["visual"].min() >= 0
    assert np.array_equal(frames.mean(axis=1).astype(np.float16), packed[:, VISUAL])


def test_clap_and_clip_streams_are_of_the_same_videos():
    record = video(3, audio=[Event(CAR, 2, 6)], visual=[Event(DOG, 0, 5)])
    silent = replace(record, events={"audio": (), "visual": ()})
    values, without = (features(2, each, LLP_CLIP_CLAP).astype(np.float32) for each in (record, silent))
    assert values.shape == (10, 2048)
    np.testing.assert_array_equal(values[:, 1536:], features(2, record)[:, MOTION])
    changed = np.abs(values - without)
    audio, visual = changed[:, :768].mean(axis=1), changed[:, 768:1536].mean(axis=1)
    assert [t for t in range(10) if visual[t] > 0] == list(range(5))
    assert audio[2:6].min() > 3 * max(audio[1], audio[6]) > 0  # a feature map blurs the ends
    np.testing.assert_allclose(np.linalg.norm(values[:, 768:1536], axis=1), 1, atol=1e-3)
    files = synthetic.frames(2, record, LLP_CLIP_CLAP, VERSIONS[1])
    assert {name: (file.shape, file.dtype) for name, file in files.items()} == {
        "audio": ((64, 768), np.float32),
        "visual": ((10, 768), np.float32),
        "motion": ((10, 512), np.float32),
    }


def added(record, evidence):
    """Absolute change of the features by the events of a video."""
    silent = replace(record, events={"audio": (), "visual": ()})
    found, without = (features(1, each, evidence=evidence).astype(np.float32) for each in (record, silent))
    return np.abs(found - without)


def test_context_is_weaker_evidence_in_the_other_seconds():
    record = video(visual=[Event(CAR, 2, 5)])
    changed = added(record, Evidence(context=0.3))
    assert changed[:, AUDIO].max() == 0
    strength = changed[:, VISUAL].mean(axis=1)
    assert strength.min() > 0
    assert strength[[0, 1, 5, 6, 7, 8, 9]].max() < strength[2:5].min()
    assert added(record, Evidence())[:2].max() == 0


def test_a_leak_is_weaker_evidence_in_the_other_modality():
    changed = added(video(audio=[Event(CAR, 2, 5)]), Evidence(leak=0.3))
    for stream in (AUDIO, VISUAL, MOTION):
        assert [t for t in range(10) if changed[t, stream].max() > 0] == [2, 3, 4]
    whole = added(video(visual=[Event(CAR, 2, 5)]), Evidence(leak=0.3))
    assert changed[2:5, VISUAL].mean() < 0.5 * whole[2:5, VISUAL].mean()


def test_scenes_are_shared_directions():
    silent = np.stack([features(1, video(n), evidence=Evidence(scenes=4))[:, VISUAL].mean(axis=0) for n in range(40)])
    own = np.stack([features(1, video(n))[:, VISUAL].mean(axis=0) for n in range(40)])
    largest = [
        np.linalg.svd(each - each.mean(axis=0), compute_uv=False) for each in (silent.astype(float), own.astype(float))
    ]
    shares = [np.square(values[:8]).sum() / np.square(values).sum() for values in largest]
    assert shares[0] > 0.6 > 0.4 > shares[1]


def test_speech_can_be_more_audible():
    speech, car = (video(audio=[Event(label, 0, 10)]) for label in (SPEECH, CAR))
    assert added(speech, Evidence(speech=2.0)).mean() > 1.5 * added(speech, Evidence()).mean()
    np.testing.assert_array_equal(added(car, Evidence(speech=2.0)), added(car, Evidence()))


@pytest.mark.parametrize(("version", "digest"), [(1, "2b36dc41bd92c39f"), (2, "2dab109e842b685d")])
def test_a_version_never_changes(version, digest):
    record = video(audio=[Event(SPEECH, 0, 4), Event(DOG, 3, 9)], visual=[Event(DOG, 2, 10)])
    content = b"".join(features(0, record, data, VERSIONS[version]).tobytes() for data in (LLP, LLP_CLIP_CLAP))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_an_unknown_version_is_refused():
    assert of_version(None) is VERSIONS[DEFAULT_VERSION]
    with pytest.raises(ConfigError, match="version: 3 is not one of 1, 2"):
        of_version(3)
