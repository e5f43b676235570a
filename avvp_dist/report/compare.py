"""Compares settings: which scores are shown, which setting val selects, and how certain the differences are.

Select on val, report on test. Selecting the best of many settings by their test scores reports the luckiest one, so that a
comparison that selects (``select``) reads the test scores of the selected setting only.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from avvp_dist.errors import DataError
from avvp_dist.metrics.significance import Difference, compare, holm
from avvp_dist.report.runs import RunGroup, TaskInfo, describe_view
from avvp_dist.tasks import TASKS
from avvp_dist.tasks.base import Metric

_MAX_LABELS = 4  # settings that a note lists by label


@dataclass(frozen=True)
class ComparisonOptions:
    """Which scores a comparison shows.

    Attributes:
        splits: ``val`` and ``test``, or one of them.
        views: views to show; settings are selected under the first.
        groups: groups of metrics to show.
        metric: name of the metric by which settings are selected, tested and plotted.
        per_class: whether to show the scores of each class as well.
    """

    splits: tuple[str, ...]
    views: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    per_class: bool = False


@dataclass(frozen=True)
class PairedTest:
    """A setting tested against the baseline on one split, under one view.

    Attributes:
        videos: number of videos of the split.
        difference: see `metrics.significance.Difference`, in the unit of the metric.
        videos_p, seeds_p: its p-values after Holm's correction over all tests of the same split and view.
    """

    group: RunGroup
    split: str
    view: str
    videos: int
    difference: Difference
    videos_p: float
    seeds_p: float | None

    @property
    def verdict(self) -> str:
        """Whether, at the 5 % level, the settings differ, only these networks differ, or no difference is shown."""
        if self.videos_p >= 0.05:
            return "not shown"
        if self.seeds_p is None:
            return "these networks (one seed)"
        return "yes" if self.seeds_p < 0.05 else "these networks"


@dataclass(frozen=True)
class Comparison:
    """A comparison of settings.

    Attributes:
        groups: the runs of each setting, in the order in which they are shown; best on val first if one was selected.
        baseline: the setting against which others are tested.
        options: what to show.
        chosen: the setting selected on val, whose test scores are the only ones shown; None without selection.
        tests: tests against the baseline.
        notes: what a reader must know, one line each.
    """

    groups: tuple[RunGroup, ...]
    baseline: RunGroup
    options: ComparisonOptions
    chosen: RunGroup | None
    tests: tuple[PairedTest, ...]
    notes: tuple[str, ...]

    @property
    def task(self) -> TaskInfo:
        """Task of the settings."""
        return self.baseline.task

    @property
    def metric(self) -> Metric:
        """Metric by which settings are selected, tested and plotted."""
        return self.task.metrics[self.options.metric]

    @property
    def synthetic(self) -> bool:
        """Whether any setting was scored on synthetic data."""
        return any(group.synthetic for group in self.groups)

    def shown(self, split: str) -> tuple[RunGroup, ...]:
        """Return the settings whose scores of a split can be shown."""
        return self.groups if self.chosen is None or split == "val" else (self.chosen,)


def compare_groups(
    groups: Sequence[RunGroup],
    options: ComparisonOptions,
    *,
    baseline: RunGroup | None = None,
    select: bool = False,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare settings.

    Args:
        groups: the runs of each setting, in the order in which they are shown.
        options: what to show.
        baseline: setting against which the others are tested; None for the first, or for the selected one.
        select: whether to select the best on val and leave the test scores of all others unread.
        notes: further notes for the reader.

    Raises:
        DataError: the settings are of several tasks, or cannot be ranked, because their data differ or they have no scores
            on val.
    """
    tasks = dict.fromkeys(group.task.name for group in groups)
    if len(tasks) > 1:
        names = [f"{name}: {', '.join(group.label for group in groups if group.task.name == name)}" for name in tasks]
        raise DataError(names, "settings of several tasks cannot be compared; compare those of one task at a time")
    chosen = None
    if select:
        groups = _rank_on_val(groups, options)
        chosen = groups[0]
    # of the selected setting, test scores are reported but not tested
    tested = replace(options, splits=tuple(split for split in options.splits if split != "test")) if select else options
    comparison = Comparison(tuple(groups), baseline or groups[0], options, chosen, (), ())
    tests, untested = _run_tests(replace(comparison, options=tested))
    return replace(comparison, tests=tuple(tests), notes=(*_notes(comparison), *untested, *notes))


def _rank_on_val(groups: Sequence[RunGroup], options: ComparisonOptions) -> list[RunGroup]:
    """Sort settings by their mean score on val, best first; ties keep their order."""
    if len({group.fingerprint for group in groups}) > 1:
        raise DataError(
            [f"{group.label}: fingerprint {group.fingerprint[:12]}" for group in groups],
            "settings on different data cannot be ranked; compare the settings of one data set at a time",
        )
    means = [group.values("val", options.views[0], options.metric) for group in groups]
    missing = [group.label for group, values in zip(groups, means, strict=True) if not values]
    if missing:
        raise DataError([f"{label}: no scores on val under view {options.views[0]}" for label in missing])
    sign = -1 if groups[0].task.metrics[options.metric].higher_is_better else 1
    order = sorted(range(len(groups)), key=lambda number: sign * statistics.fmean(means[number]))
    return [groups[number] for number in order]


def _run_tests(comparison: Comparison) -> tuple[list[PairedTest], list[str]]:
    """Test every shown setting against the baseline; the second item lists why some cannot be tested."""
    options, baseline = comparison.options, comparison.baseline
    tests: list[PairedTest] = []
    untested: dict[str, None] = {}
    for split in options.splits:
        candidates = [group for group in comparison.shown(split) if group is not baseline]
        for view in options.views if candidates else ():
            tests += _corrected_tests(baseline, candidates, split, view, options.metric, untested)
    return tests, list(untested)


def _corrected_tests(
    baseline: RunGroup,
    candidates: Sequence[RunGroup],
    split: str,
    view: str,
    metric: str,
    untested: dict[str, None],
) -> list[PairedTest]:
    """All tests of one split and view, corrected for their number."""
    testable = []
    for group in (baseline, *candidates):
        reason = _why_untestable(baseline, group, split)
        if reason is None:
            testable.append(group)
        else:
            untested[f"not tested: {group.label}: {reason}"] = None
    rows = [group.statistics(split, view) for group in testable]
    found = [(group, statistics) for group, statistics in zip(testable, rows, strict=True) if statistics is not None]
    if not found or found[0][0] is not baseline:
        return []
    recompute = partial(TASKS[baseline.task.name].recompute, metric=metric)
    differences = compare(found[0][1], [statistics for _, statistics in found[1:]], recompute)
    corrected = holm([difference.videos_p for difference in differences])
    corrected_seeds = iter(holm([difference.seeds_p for difference in differences if difference.seeds_p is not None]))
    return [
        PairedTest(
            group,
            split,
            view,
            statistics.shape[1],
            difference,
            videos_p,
            None if difference.seeds_p is None else next(corrected_seeds),
        )
        for (group, statistics), difference, videos_p in zip(found[1:], differences, corrected, strict=True)
    ]


def _why_untestable(baseline: RunGroup, group: RunGroup, split: str) -> str | None:
    """Return why a setting's videos cannot be paired with the baseline's, or None."""
    if group.fingerprint != baseline.fingerprint:
        return f"other data than {baseline.label} and therefore other videos; train both on the same data"
    problems = [run.per_video_problem for run in group.runs if run.per_video_problem]
    if problems:
        return "; ".join(problems)
    ids = {run.per_video.ids.get(split) for member in (baseline, group) for run in member.runs if run.per_video}
    return None if len(ids) == 1 else f"the {split} videos of its runs are not those of {baseline.label}"


def _notes(comparison: Comparison) -> Iterator[str]:
    """Yield what a reader of the scores must know."""
    groups, options = comparison.groups, comparison.options
    yield f"data: {'; '.join(_describe_data(groups))}"
    if comparison.synthetic:
        yield "SYNTHETIC DATA: synthetic features; the scores say nothing about real videos"
    if len({group.fingerprint for group in groups}) > 1:
        yield "DATA DIFFER between settings: their scores cannot be compared"
    yield f"view: {'; '.join(_describe_views(groups, options))}"
    views = dict.fromkeys(group.task.view for group in groups)
    if len(views) > 1:
        own = "; ".join(f"{name}: {', '.join(g.label for g in groups if g.task.view == name)}" for name in views)
        yield f"VIEWS DIFFER: settings were trained for different views ({own}); all are scored under the same one"
    if any(len(group.runs) > 1 for group in groups):
        yield "mean ± sample standard deviation over seeds, [95 % t-interval of the mean] on these videos"
    single = [group.label for group in groups if len(group.runs) == 1]
    if single:
        listed = f"{len(single)} of {len(groups)} settings" if len(single) > _MAX_LABELS else ", ".join(single)
        yield f"one seed, therefore no spread and no interval: {listed}"
    if comparison.chosen:
        yield (
            f"selected on val by {options.metric} ({options.views[0]}): {comparison.chosen.label}, the best of "
            f"{len(groups)}; its val score and its lead on val are therefore biased upwards; test scores of the others were "
            "not read"
        )
    elif "test" in options.splits and len(groups) > 1:
        yield "select on val, report test once: --select shows the test score of the setting that val selects, and no other"


def _describe_data(groups: Sequence[RunGroup]) -> list[str]:
    labels: dict[str, list[str]] = {}
    for group in groups:
        data = group.runs[0].result["data"]
        flag = " (SYNTHETIC DATA)" if data["synthetic"] else ""
        labels.setdefault(f"{data['dataset']}{flag}, fingerprint {group.fingerprint[:12]}", []).append(group.label)
    if len(labels) == 1:
        return list(labels)
    return [f"{description}: {', '.join(members)}" for description, members in labels.items()]


def _describe_views(groups: Sequence[RunGroup], options: ComparisonOptions) -> list[str]:
    return list(
        dict.fromkeys(
            describe_view(view, scored)
            for view in options.views
            for group in groups
            for split in options.splits
            for scored in group.scored(split, view)[:1]
        )
    )
