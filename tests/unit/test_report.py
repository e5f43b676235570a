"""Figures are checked by their pixels, tables by their text."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from avvp_dist.metrics.denoising import compare_labels
from avvp_dist.report import curves, denoising, tables, timeline
from avvp_dist.report.canvas import BLUE, DARK, GREEN, ORANGE, RED
from avvp_dist.report.runs import TaskInfo, reference_rows
from avvp_dist.report.text_table import TerminalTable, TextTable
from avvp_dist.tasks.base import describe
from avvp_dist.tasks.parsing import ParsingConfig

CLASSES = ("Speech", "Car", "Frying_(food)", "Telephone_bell_ringing")
TASK = describe(ParsingConfig(segment_threshold=0.5, video_threshold=0.25).build(CLASSES))
INFO = TaskInfo.of({"task": TASK})


def pixels(path, color):
    """Count the pixels of a PNG that have exactly this color."""
    image = imread(path)[..., :3]
    return int((np.abs(image - np.array(to_rgb(color))) < 1 / 255).all(axis=-1).sum())


def history(stages=(("estimate", 4), ("denoise", 6)), **extra):
    return [
        {"stage": stage, "epoch": epoch, "loss/total": 1.5 - 0.1 * epoch, "loss/audio": 0.5, "lr": 3e-4, **extra}
        for stage, epochs in stages
        for epoch in range(epochs)
    ]


def test_curves_show_the_scores_of_the_history(tmp_path):
    curves.loss_and_scores(history(), INFO, tmp_path / "losses.png", "losses", synthetic=False)
    scored = history(**{f"val/{level}.{name}": 50.0 for level in ("segment", "event") for name in ("audio", "audio_visual")})
    scored[2]["val/segment.audio"] = None
    curves.loss_and_scores(scored, INFO, tmp_path / "scores.png", "scores", synthetic=False)
    assert pixels(tmp_path / "losses.png", GREEN) == 0
    assert pixels(tmp_path / "scores.png", GREEN) > 100
    assert imread(tmp_path / "scores.png").shape[0] > 2 * imread(tmp_path / "losses.png").shape[0]
    assert imread(tmp_path / "scores.png").shape[1] == 1000


def test_curves_have_gaps_between_stages(tmp_path):
    one = [{"stage": "only", "epoch": epoch, "loss/total": 1.0} for epoch in range(2)]
    two = [{**row, "stage": f"stage {number}"} for number, row in enumerate(one)]
    curves.loss_and_scores(one, INFO, tmp_path / "one.png", "one", synthetic=False)
    curves.loss_and_scores(two, INFO, tmp_path / "two.png", "two", synthetic=False)
    assert pixels(tmp_path / "two.png", DARK) < pixels(tmp_path / "one.png", DARK) / 2


def test_curves_of_a_panel_differ_in_color_or_line_style():
    losses = ["loss/total", "loss/video", "loss/mixed", "loss/event"]
    few = curves.curve_styles(losses, {"loss/total": DARK, "loss/video": GREEN, "loss/audio": BLUE})
    assert few["loss/total"] == (DARK, "-")
    assert few["loss/video"] == (GREEN, "-")
    assert {style for _, style in few.values()} == {"-"}
    assert len({color for color, _ in few.values()} - {BLUE}) == 4
    many = curves.curve_styles([*losses, *(f"loss/{number}" for number in range(16))], {"loss/total": DARK})
    assert len(set(many.values())) == 20


def scores_of(value):
    return dict.fromkeys(INFO.class_metrics, value)


def test_class_bars_are_proportional_to_scores(tmp_path):
    areas = []
    for value in (40.0, 80.0):
        curves.class_bars(
            dict.fromkeys(CLASSES, scores_of(value)), INFO, tmp_path / "bars.png", "F per class", synthetic=False
        )
        areas.append(pixels(tmp_path / "bars.png", ORANGE))
    assert areas[1] / areas[0] == pytest.approx(2.0, abs=0.05)


def test_a_class_that_does_not_occur_has_no_bar(tmp_path):
    absent = {**dict.fromkeys(CLASSES, scores_of(50.0)), "Car": scores_of(None)}
    curves.class_bars(dict.fromkeys(CLASSES, scores_of(50.0)), INFO, tmp_path / "all.png", "F", synthetic=False)
    curves.class_bars(absent, INFO, tmp_path / "absent.png", "F", synthetic=False)
    assert pixels(tmp_path / "absent.png", ORANGE) / pixels(tmp_path / "all.png", ORANGE) == pytest.approx(0.75, abs=0.03)


def both(events):
    """The same events in both tracks."""
    return {"audio": events, "visual": events}


def parse(path, truth, prediction):
    videos = [timeline.TimelineVideo(f"video-{number}", CLASSES[:3]) for number in range(len(prediction))]
    known = None if truth is None else both(truth)
    timeline.events(videos, CLASSES, known, both(prediction), path, "events", synthetic=False)
    return path


def test_timeline_distinguishes_correct_and_wrong_seconds(tmp_path):
    truth = np.zeros((3, 10, len(CLASSES)), dtype=bool)
    truth[0, 2:8, 0] = truth[1, :, 1] = True  # nothing in the third video
    legend = pixels(parse(tmp_path / "none.png", truth, np.zeros_like(truth)), BLUE)
    right = parse(tmp_path / "right.png", truth, truth)
    wrong = parse(tmp_path / "wrong.png", truth, np.roll(truth, 1, axis=2))
    assert pixels(right, BLUE) > legend + 10_000
    assert pixels(wrong, BLUE) == legend
    assert pixels(wrong, RED) > 10 * pixels(right, RED)


def test_timeline_without_annotations_marks_nothing_as_wrong(tmp_path):
    prediction = np.zeros((2, 10, len(CLASSES)), dtype=bool)
    prediction[0, 3:5, 2] = True
    path = parse(tmp_path / "unknown.png", None, prediction)
    assert pixels(path, BLUE) > 1000
    assert pixels(path, RED) == 0


def test_the_timeline_states_that_background_is_not_drawn(tmp_path):
    prediction = {"event": np.ones((2, 10, len(CLASSES)), dtype=bool)}
    videos = [timeline.TimelineVideo(str(number), ()) for number in range(2)]
    dark = []
    for background in (False, True):
        path = tmp_path / f"{background}.png"
        timeline.events(videos, CLASSES, None, prediction, path, "events", synthetic=False, background=background)
        dark.append((imread(path)[-75:, :, :3] < 0.2).sum())  # the legend and the axis above it
    assert dark[1] > dark[0] + 100


def by_track(audio, visual):
    return {"audio": audio, "visual": visual}


def labels():
    """Weak labels, kept labels and ground truth of four videos: class 0 is never visual, class 1 always in both."""
    weak = np.zeros((4, len(CLASSES)), dtype=bool)
    weak[:, :2] = True
    true_audio, true_visual = np.repeat(weak[None, :, None], 2, axis=0).repeat(10, axis=2)
    true_visual[:, :, 0] = False
    audio, visual = weak.copy(), weak.copy()
    visual[:3, 0] = False  # three of the four, correctly
    visual[0, 1] = False  # incorrectly
    return weak, audio, visual, true_audio, true_visual


def test_removed_labels_are_correct_or_incorrect_only_with_ground_truth(tmp_path):
    weak, audio, visual, true_audio, true_visual = labels()
    known, unknown = tmp_path / "known.png", tmp_path / "unknown.png"
    denoising.removed_labels(
        CLASSES, compare_labels(weak, by_track(audio, visual), by_track(true_audio, true_visual)), known, True
    )
    denoising.removed_labels(CLASSES, compare_labels(weak, by_track(audio, visual), None), unknown, False)
    assert pixels(known, RED) > 500
    assert pixels(known, BLUE) > pixels(known, RED)
    assert pixels(unknown, RED) == 0
    assert pixels(unknown, BLUE) > 1000


def test_removed_labels_are_drawn_at_the_finest_level(tmp_path):
    weak, *_, true_audio, true_visual = labels()
    kept = np.repeat(weak[:, None], 10, axis=1)
    kept[:, :8] = False  # every label stays in two seconds: none is removed from a whole video
    for name, audio, windows in (("segments", kept, None), ("windows", kept[:, :2], ((0, 5), (5, 10)))):
        path = tmp_path / f"{name}.png"
        denoising.removed_labels(
            CLASSES, compare_labels(weak, by_track(audio, audio), by_track(true_audio, true_visual), windows), path, True
        )
        assert pixels(path, RED) > 500
        assert pixels(path, BLUE) > 500


def test_every_figure_states_that_data_are_synthetic(tmp_path):
    weak, audio, visual, *_ = labels()
    dense = np.repeat(weak[:, None], 10, axis=1)
    video = [timeline.TimelineVideo(str(number), ()) for number in range(4)]
    for synthetic in (False, True):
        folder = tmp_path / str(synthetic)
        curves.loss_and_scores(history(), INFO, folder / "a.png", "a", synthetic)
        curves.class_bars(dict.fromkeys(CLASSES, scores_of(50.0)), INFO, folder / "b.png", "F", synthetic)
        timeline.events(video, CLASSES, both(dense), both(dense), folder / "c.png", "c", synthetic)
        denoising.removed_labels(CLASSES, compare_labels(weak, by_track(audio, visual), None), folder / "d.png", synthetic)
    for name in "abcd":
        title = [
            (imread(tmp_path / str(synthetic) / f"{name}.png")[25:48, 300:700, :3] < 0.2).sum()
            for synthetic in (False, True)
        ]
        assert title[1] > title[0], f"{name}.png: no second title line"


def result(base, synthetic=True, dataset="llp"):
    def scored(value):
        offsets = {"audio": 0, "visual": 1, "audio_visual": 2, "type": 3, "event": None}
        figures = {
            f"{level}.{name}": None if offset is None else value + down + offset
            for level, down in (("segment", 0), ("event", -5))
            for name, offset in offsets.items()
        }
        return {"settings": {"segment_threshold": 0.5, "video_threshold": 0.25}, "metrics": figures, "per_class": {}}

    views = {"modality": base + 10, "joint": base}
    subsets = {f"{view}/without_speech": value + 0.5 for view, value in views.items()}
    return {
        "recipe": "jomold", "method": "jomold", "seed": 1, "task": TASK,
        "data": {"url": "shards", "fingerprint": "0123456789abcdef", "dataset": dataset, "synthetic": synthetic},
        "scores": {"test": {view: scored(value) for view, value in (views | subsets).items()}},
    }  # fmt: skip


def rendered(table, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_table_has_one_row_per_run_and_view_with_and_without_speech():
    text = rendered(tables.scores({"han": result(50.0), "jomold": result(60.0)}))
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("han", "jomold"))]
    assert [row[:2] for row in rows] == [[run, view] for run in ("han", "jomold") for view in ("joint", "modality")] * 2
    assert rows[0][2:] == ["50.0", "51.0", "52.0", "53.0", "-", "45.0", "46.0", "47.0", "48.0", "-"]
    assert rows[4][2:4] == ["50.5", "51.5"]
    words = " ".join(text.split())
    assert "llp (SYNTHETIC DATA), fingerprint 0123456789ab" in words
    assert "joint (segment threshold 0.5, video threshold 0.25)" in words


def test_table_of_one_view_mentions_no_other():
    text = rendered(tables.scores({"han": result(50.0)}, view="modality"))
    assert "60.0" in text
    assert "joint" not in text


def test_table_shows_all_scores_on_a_narrow_terminal():
    text = rendered(tables.scores({"a-very-long-name-of-a-run-" * 3: result(50.0)}), width=80)
    assert all(number in text for number in ("50.0", "51.0", "52.0", "53.0", "45.0", "46.0", "47.0", "48.0"))


def test_synthetic_runs_are_marked_among_real_ones():
    text = rendered(tables.scores({"fake": result(50.0), "real": result(50.0, synthetic=False)}), width=120)
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("fake", "real"))]
    assert rows[0][:4] == ["fake", "(synthetic)", "joint", "50.0"]
    assert rows[2][:3] == ["real", "joint", "50.0"]


def test_table_states_that_a_split_has_no_scores():
    assert "no scores of this split" in " ".join(rendered(tables.scores({"han": result(50.0)}, split="val")).split())


def test_naive_predictors_have_one_row_unless_their_scores_differ():
    first, second = ({"repeat": {"accuracy": value}, "majority": {"accuracy": 20.0}} for value in (50.0, 60.0))
    assert reference_rows({"han": first, "jomold": second}) == [
        ("repeat, han", {"accuracy": 50.0}),
        ("repeat, jomold", {"accuracy": 60.0}),
        ("majority", {"accuracy": 20.0}),
    ]
    assert reference_rows({"han": first, "of an earlier version": {}}) == list(first.items())
    assert reference_rows({}) == []


def test_columns_that_do_not_fit_continue_in_a_block_below_with_the_names_of_rows():
    table = TextTable("scores", ["setting", *(f"M{number}" for number in range(8))], [["a setting", *["50.0 ± 1.0"] * 8]])
    wide, narrow = rendered(TerminalTable(table), 120), rendered(TerminalTable(table), 70)
    assert wide.count("a setting") == 1
    assert narrow.count("a setting") == 2
    assert "scores (continued)" in narrow
    assert narrow.count("50.0 ± 1.0") == 8
    assert all(len(line.rstrip()) <= 70 for line in narrow.splitlines())
