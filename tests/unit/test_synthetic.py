"""The synthetic LLP: its events follow the published statistics, its features follow its events."""

import json
import shlex
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from avvp_dist.datasets import llp, synthetic
from avvp_dist.datasets.catalog import LLP
from avvp_dist.datasets.synthetic_labels import pattern_of, split_counts
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.shards import pack as packing
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.types import Event, VideoRecord

SPEECH, DOG, CAT = (LLP.classes.index(name) for name in ("Speech", "Dog", "Cat"))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def drawn():
    return synthetic.records(None, (3000, 400, 800), seed=3)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A small data set in the official layout: its folder and the summary of `write`."""
    folder = tmp_path_factory.mktemp("official")
    return folder, synthetic.write(str(folder), videos=None, splits=(5, 3, 2), seed=7, workers=1)


# ---- labels


def test_drawn_videos_follow_the_published_statistics(drawn):
    train = [record for record in drawn if record.split == "train"]
    patterns = [(label, pattern_of(record, label)) for record in train for label in record.weak]
    presence = Counter((audio > 0, visual > 0) for _, (audio, visual) in patterns)
    speech = Counter((audio > 0, visual > 0) for label, (audio, visual) in patterns if label == SPEECH)
    both = [(audio, visual) for _, (audio, visual) in patterns if audio and visual]
    total = len(patterns)

    assert total / len(train) == pytest.approx(1.606, abs=0.03)
    assert presence[True, False] / total == pytest.approx(0.344, abs=0.025)
    assert presence[False, True] / total == pytest.approx(0.042, abs=0.012)
    assert presence[True, True] / total == pytest.approx(0.603, abs=0.025)
    assert presence[False, False] / total == pytest.approx(0.0115, abs=0.006)
    assert speech[True, False] / speech.total() == pytest.approx(0.759, abs=0.03)
    assert np.mean([(a & v).bit_count() / (a | v).bit_count() for a, v in both]) == pytest.approx(0.83, abs=0.02)
    assert np.mean([a == v for a, v in both]) == pytest.approx(0.60, abs=0.03)


def test_drawn_events_have_the_published_lengths_and_onsets(drawn):
    for modality, full, from_start in (("audio", 0.32, 0.53), ("visual", 0.55, 0.72)):
        events = [event for record in drawn for event in record.events[modality]]
        assert np.mean([event.offset - event.onset == 10 for event in events]) == pytest.approx(full, abs=0.025)
        assert np.mean([event.onset == 0 for event in events]) == pytest.approx(from_start, abs=0.025)


@pytest.mark.parametrize(
    ("name", "audible", "visible"),
    [("Speech", 0.53, 0.48), ("Dog", 0.61, 0.95), ("Basketball_bounce", 0.43, 0.42), ("Violin_fiddle", 0.88, 0.91)],
)
def test_each_class_has_the_published_length(drawn, name, audible, visible):
    label = LLP.classes.index(name)
    patterns = [pattern_of(record, label) for record in drawn if label in record.weak]
    audio = [audio.bit_count() / 10 for audio, _ in patterns if audio]
    visual = [visual.bit_count() / 10 for _, visual in patterns if visual]
    assert np.mean(audio) == pytest.approx(audible, abs=0.06)
    assert np.mean(visual) == pytest.approx(visible, abs=0.06)


def test_annotated_splits_have_more_labels_than_train(drawn):
    test = [record for record in drawn if record.split != "train"]
    assert np.mean([len(record.weak) for record in test]) == pytest.approx(1.81, abs=0.08)


def test_drawn_videos_have_valid_unique_names(drawn):
    assert len({record.id for record in drawn}) == 4200
    for record in drawn:
        assert len(record.id) == 11
        start, end = map(int, record.name[12:].split("_"))
        assert record.name == f"{record.id}_{start}_{end}"
        assert end == start + 10
        assert {event.label for event in record.events["audio"] + record.events["visual"]} <= set(record.weak)


def test_a_drawn_video_depends_only_on_seed_split_and_number(drawn):
    few = synthetic.records(None, (7, 5, 3), seed=3)
    assert few == (*drawn[:7], *drawn[3000:3005], *drawn[3400:3403])
    other = synthetic.records(None, (7, 5, 3), seed=4)
    assert not {record.id for record in few} & {record.id for record in other}


@pytest.mark.parametrize(
    ("videos", "expected"), [(11_849, (10_000, 649, 1_200)), (3, (1, 1, 1)), (400, (337, 22, 41)), (5, (3, 1, 1))]
)
def test_videos_are_divided_as_in_llp(videos, expected):
    assert split_counts(videos, None) == expected


# ---- labels from annotation files


@pytest.fixture
def annotations(official, tmp_path):
    """Annotation files like those of LLP, without events of training videos."""
    folder = tmp_path / "annotations"
    shutil.copytree(official[0], folder, ignore=shutil.ignore_patterns("feats"))
    for file in llp.TRAIN_EVENT_FILES.values():
        (folder / file).unlink()
    return folder


def test_training_videos_copy_the_seconds_of_annotated_ones(tmp_path):
    """Cat is audible at 2 and visible at 5-7 in one video, and has no events in another: train has exactly these pairs."""
    training = "".join(f"newtrain_{n:02d}_0_10\tCat,Dog\n" for n in range(12))
    files = {
        "AVVP_train.csv": f"filename\tevent_labels\n{training}",
        "AVVP_val_pd.csv": "filename\tevent_labels\nannotated_1_0_10\tCat,Dog\n",
        "AVVP_test_pd.csv": "filename\tevent_labels\nannotated_2_0_10\tCat\nannotated_3_0_10\tCar\n",
        "AVVP_eval_audio.csv": "filename\tonset\toffset\tevent_labels\nannotated_1_0_10\t2\t3\tCat\n"
        "annotated_1_0_10\t0\t4\tDog\nannotated_3_0_10\t0\t9\tCat\n",
        "AVVP_eval_visual.csv": "filename\tonset\toffset\tevent_labels\nannotated_1_0_10\t5\t8\tCat\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    created = [record for record in synthetic.records(str(tmp_path), None, seed=0) if record.split == "train"]

    assert len(created) == 12
    assert {record.weak for record in created} == {(DOG, CAT)}
    assert {pattern_of(record, CAT) for record in created} == {(1 << 2, 0b11100000), (0, 0)}
    assert {pattern_of(record, DOG) for record in created} == {(0b1111, 0)}
    assert {event.label for record in created for event in record.events["audio"] + record.events["visual"]} == {DOG, CAT}


def test_annotated_subsets_are_random_and_in_order(annotations):
    everything = llp.read_annotations(annotations).records
    subsets = set()
    for seed in range(8):
        created = synthetic.records(str(annotations), (2, 3, 1), seed=seed)
        places = [[record.id for record in everything].index(record.id) for record in created]
        assert Counter(record.split for record in created) == {"train": 2, "val": 3, "test": 1}
        assert places == sorted(places)
        truth = {record.id: record for record in everything if record.split != "train"}
        assert all(record == truth[record.id] for record in created if record.split != "train")
        subsets.add(tuple(places))
    assert len(subsets) > 1


def test_requesting_more_videos_than_annotated_is_reported(annotations, tmp_path):
    summary = synthetic.write(
        str(tmp_path / "out"), videos=None, splits=(4, 50, 2), seed=0, annotations=str(annotations), workers=1
    )
    assert summary["videos"] == {"train": 4, "val": 3, "test": 2}
    assert summary["notes"] == ["val: all 3 videos of the annotations (50 were requested)"]


def test_real_annotations_are_kept_and_train_follows_them(llp_annotations):
    real = llp.read_annotations(llp_annotations).records
    created = synthetic.records(str(llp_annotations), None, seed=0)
    assert [record.name for record in created] == [record.name for record in real]
    assert [record.weak for record in created] == [record.weak for record in real]
    assert [record for record in created if record.split != "train"] == [
        record for record in real if record.split != "train"
    ]
    speech = [pattern_of(record, SPEECH) for record in created if record.split == "train" and SPEECH in record.weak]
    assert np.mean([audio > 0 and not visual for audio, visual in speech]) == pytest.approx(0.759, abs=0.02)


# ---- writing


def test_official_layout_is_read_back_unchanged(official):
    folder, summary = official
    read = llp.read_annotations(folder)
    assert read.records == synthetic.records(None, (5, 3, 2), seed=7)
    assert {flaw.kind for flaw in read.flaws} <= {"unannotated"}
    source = llp.OfficialFeatures(folder)
    assert all(source.check(record) == [] for record in read.records)
    assert summary["videos"] == {"train": 5, "val": 3, "test": 2}
    assert shlex.split(summary["next"])[:3] == ["avvp", "data", "pack"]


def test_official_layout_is_marked_as_synthetic(official):
    marker = json.loads((official[0] / synthetic.MARKER).read_text())
    assert marker["synthetic"] is True
    assert marker["seed"] == 7
    assert "SYNTHETIC" in marker["about"]


def test_both_layouts_contain_the_same_data(official, tmp_path):
    folder, _ = official
    straight = str(tmp_path / "straight")
    synthetic.write(straight, videos=None, splits=(5, 3, 2), seed=7, layout="shards", workers=1, shard_videos=4)
    imported = str(tmp_path / "imported")
    records = llp.read_annotations(folder).records
    packing.pack(LLP, records, llp.OfficialFeatures(folder), imported, provenance={}, workers=1, shard_videos=4)

    one, other = Index.load(straight), Index.load(imported)
    assert one.fingerprint == other.fingerprint  # covers every byte of the tars: features, labels, events
    assert one.synthetic
    assert one.provenance["seed"] == 7
    train = read_labels(straight, one)["train"]
    assert train.truth["audio"].shape == (5, 10, 25)
    assert np.array_equal(train.truth["audio"].any(axis=1) | train.truth["visual"].any(axis=1) | train.weak, train.weak)


def test_writing_again_with_more_processes_yields_the_same_bytes(official, tmp_path):
    folder, _ = official
    first = contents(folder)
    synthetic.write(str(folder), videos=None, splits=(5, 3, 2), seed=7, workers=1)
    assert contents(folder) == first
    synthetic.write(str(tmp_path / "two"), videos=None, splits=(5, 3, 2), seed=7, workers=2)
    assert contents(tmp_path / "two") == first


def test_shards_depend_on_the_seed(tmp_path):
    prints = set()
    for seed in (0, 1):
        out = str(tmp_path / str(seed))
        synthetic.write(out, videos=3, seed=seed, layout="shards", workers=1)
        prints.add(Index.load(out).fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize("name", ["AVVP_train.csv", "feats/vggish/abc.npy"])
def test_files_that_may_be_real_are_never_changed(tmp_path, name):
    real = tmp_path / name
    real.parent.mkdir(parents=True, exist_ok=True)
    real.write_text("precious")
    with pytest.raises(ConfigError, match="may be real"):
        synthetic.write(str(tmp_path), videos=3, seed=0, workers=1)
    assert contents(tmp_path) == {real.relative_to(tmp_path): b"precious"}


def test_stale_features_of_a_replaced_data_set_are_removed(tmp_path):
    for streams, seed in (("vggish-resnet", 0), ("clip-clap", 1)):
        synthetic.write(str(tmp_path), videos=3, seed=seed, workers=1, streams=streams)
    folders = {str(path.parent) for path in contents(tmp_path) if path.suffix == ".npy"}
    assert folders == {"CLAP/features", "CLIP/features", "feats/r2plus1d_18"}


def test_other_shards_are_never_changed(tmp_path):
    synthetic.write(str(tmp_path), videos=3, seed=0, layout="shards", workers=1)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="other inputs"):
        synthetic.write(str(tmp_path), videos=3, seed=1, layout="shards", workers=1)
    assert contents(tmp_path) == before


def test_all_invalid_arguments_are_reported_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        synthetic.write(
            str(tmp_path), videos=2, splits=(0, 5, -1), seed=-1, layout="tar", workers=0, shard_videos=0, streams="clip"
        )
    named = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(named) == [
        "layout", "seed", "shard_videos", "splits", "splits", "streams", "videos", "videos and splits", "workers"
    ]  # fmt: skip
    assert contents(tmp_path) == {}


def test_fingerprint_differs_between_features():
    record = VideoRecord("one", "one_0_10", "test", (), {"audio": (Event(SPEECH, 0, 4),), "visual": ()})
    prints = {
        synthetic.SyntheticFeatures(seed).fingerprint([created])
        for seed in (0, 1)
        for created in (
            record,
            replace(record, events={**record.events, "audio": (Event(SPEECH, 0, 5),)}),
            replace(record, id="made-up0002"),
        )
    }
    assert len(prints) == 6
