"""Settings side by side: which scores are shown, which setting val chooses, how sure the differences are.

Val chooses, test reports. Whoever picks the best of many settings by their test scores reports the luckiest of them, so a
comparison that chooses (``select``) reads the test scores of the chosen setting only.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from avvp_dist.errors import DataError
from avvp_dist.metrics.names import DEFAULT_SCORE
from avvp_dist.metrics.significance import Difference, compare, holm
from avvp_dist.report.runs import Setting

_NAMED = 4  # settings that a note names one by one


@dataclass(frozen=True)
class View:
    """What of all the scores is shown.

    Attributes:
        splits: ``val`` and ``test``, or one of them.
        protocols: evaluation protocols; settings are chosen under the first.
        levels: ``segment`` and ``event``, or one of them.
        score: level and metric by which settings are chosen, tested and drawn, such as ``segment.type``.
        without_speech: whether the scores without Speech are shown too.
        per_class: whether the scores of each class are shown too.
    """

    splits: tuple[str, ...]
    protocols: tuple[str, ...]
    levels: tuple[str, ...]
    score: str = DEFAULT_SCORE
    without_speech: bool = False
    per_class: bool = False

    @property
    def level(self) -> str:
        """Level of ``score``."""
        return self.score.partition(".")[0]

    @property
    def metric(self) -> str:
        """Metric of ``score``."""
        return self.score.partition(".")[2]


@dataclass(frozen=True)
class Pair:
    """A setting against the baseline on one split, under one protocol.

    Attributes:
        videos: how many the split has.
        difference: see `metrics.significance.Difference`, in points of F.
        videos_p, seeds_p: its p-values after Holm's correction for all pairs of the same split, protocol and classes.
    """

    setting: Setting
    split: str
    protocol: str
    without_speech: bool
    videos: int
    difference: Difference
    videos_p: float
    seeds_p: float | None

    @property
    def verdict(self) -> str:
        """Whether the two differ at the 5 % level: the settings, only these networks, or it is not shown."""
        if self.videos_p >= 0.05:
            return "not shown"
        if self.seeds_p is None:
            return "these networks (one seed)"
        return "yes" if self.seeds_p < 0.05 else "these networks"


@dataclass(frozen=True)
class Comparison:
    """Settings side by side.

    Attributes:
        settings: in the order to show them; best on val first where one was chosen.
        baseline: the setting that others are tested against.
        chosen: the best on val, where the comparison was to choose; then the only one whose test scores are shown.
        pairs: tests against the baseline.
        notes: what a reader has to know, a line each.
    """

    settings: tuple[Setting, ...]
    baseline: Setting
    view: View
    chosen: Setting | None
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    @property
    def synthetic(self) -> bool:
        """Whether any setting was scored on made-up data."""
        return any(setting.synthetic for setting in self.settings)

    def shown(self, split: str) -> tuple[Setting, ...]:
        """Settings whose scores of a split may be shown."""
        return self.settings if self.chosen is None or split == "val" else (self.chosen,)


def side_by_side(
    settings: Sequence[Setting],
    view: View,
    *,
    baseline: Setting | None = None,
    select: bool = False,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares settings.

    Args:
        settings: in the order to show them.
        view: what to show.
        baseline: what to test the others against; None takes the first, or the chosen one where one is chosen.
        select: whether to choose the best on val and leave the test scores of all others unread.
        notes: what else a reader has to know.

    Raises:
        DataError: settings of different data cannot be ranked, nor settings without scores on val.
    """
    chosen = None
    if select:
        settings = _ranked(settings, view)
        chosen = settings[0]
    first = replace(view, splits=tuple(split for split in view.splits if split != "test")) if select else view
    found = Comparison(tuple(settings), baseline or settings[0], view, chosen, (), ())
    pairs, untested = _pairs(replace(found, view=first))
    return replace(found, pairs=tuple(pairs), notes=(*_notes(found), *untested, *notes))


def _ranked(settings: Sequence[Setting], view: View) -> list[Setting]:
    """Settings by their mean score on val, best first; the earlier of equally good ones first."""
    if len({setting.fingerprint for setting in settings}) > 1:
        raise DataError(
            [f"{setting.label}: fingerprint {setting.fingerprint[:12]}" for setting in settings],
            "settings of different data cannot be ranked; compare those of one data set at a time",
        )
    means = [setting.values("val", view.protocols[0], view.level, view.metric) for setting in settings]
    missing = [setting.label for setting, values in zip(settings, means, strict=True) if not values]
    if missing:
        raise DataError([f"{label}: no scores on val under protocol {view.protocols[0]}" for label in missing])
    order = sorted(range(len(settings)), key=lambda number: -statistics.fmean(means[number]))
    return [settings[number] for number in order]


def _pairs(comparison: Comparison) -> tuple[list[Pair], list[str]]:
    """Every shown setting against the baseline, and why some cannot be tested."""
    view, baseline = comparison.view, comparison.baseline
    pairs: list[Pair] = []
    untested: dict[str, None] = {}
    for split in view.splits:
        rivals = [setting for setting in comparison.shown(split) if setting is not baseline]
        for protocol in view.protocols if rivals else ():
            for without_speech in (False, True) if view.without_speech else (False,):
                found = _family(baseline, rivals, split, protocol, view, without_speech, untested)
                pairs += found
    return pairs, list(untested)


def _family(
    baseline: Setting,
    rivals: Sequence[Setting],
    split: str,
    protocol: str,
    view: View,
    without_speech: bool,
    untested: dict[str, None],
) -> list[Pair]:
    """All pairs of one split, protocol and choice of classes, corrected for their number."""
    able = []
    for setting in (baseline, *rivals):
        reason = _unpaired(baseline, setting, split)
        if reason is None:
            able.append(setting)
        else:
            untested[f"not tested: {setting.label}: {reason}"] = None
    of_videos = [setting.of_videos(split, protocol, view.level, view.metric, without_speech) for setting in able]
    found = [(setting, scores) for setting, scores in zip(able, of_videos, strict=True) if scores is not None]
    if not found or found[0][0] is not baseline:
        return []
    differences = compare(found[0][1], [scores for _, scores in found[1:]])
    corrected = holm([difference.videos_p for difference in differences])
    told = [difference.seeds_p for difference in differences if difference.seeds_p is not None]
    corrected_seeds = iter(holm(told))
    return [
        Pair(
            setting,
            split,
            protocol,
            without_speech,
            scores.shape[1],
            difference,
            videos_p,
            None if difference.seeds_p is None else next(corrected_seeds),
        )
        for (setting, scores), difference, videos_p in zip(found[1:], differences, corrected, strict=True)
    ]


def _unpaired(baseline: Setting, setting: Setting, split: str) -> str | None:
    """Why a setting's videos cannot be paired with the baseline's, or None."""
    if setting.fingerprint != baseline.fingerprint:
        return f"other data than {baseline.label}, so other videos; train both on the same data"
    without = [run.without for run in setting.runs if run.without]
    if without:
        return "; ".join(without)
    ids = {run.per_video.ids.get(split) for each in (baseline, setting) for run in each.runs if run.per_video}
    return None if len(ids) == 1 else f"its runs' {split} videos are not those of {baseline.label}"


def _notes(comparison: Comparison) -> Iterator[str]:
    """What a reader of the figures has to know."""
    settings, view = comparison.settings, comparison.view
    yield f"data: {'; '.join(_data(settings))}"
    if comparison.synthetic:
        yield "SYNTHETIC DATA: made-up features; the figures say nothing about LLP"
    if len({setting.fingerprint for setting in settings}) > 1:
        yield "DATA DIFFER between settings: their figures are no comparison"
    yield f"protocol: {'; '.join(_rules(settings, view))}"
    protocols = dict.fromkeys(setting.protocol for setting in settings)
    if len(protocols) > 1:
        own = "; ".join(f"{name}: {', '.join(s.label for s in settings if s.protocol == name)}" for name in protocols)
        yield f"PROTOCOLS DIFFER: settings were trained for different ones ({own}); all are scored here under the same"
    if any(len(setting.runs) > 1 for setting in settings):
        yield "mean ± sample standard deviation over seeds, [95 % t-interval of the mean] on these videos"
    alone = [setting.label for setting in settings if len(setting.runs) == 1]
    if alone:
        whose = f"{len(alone)} of {len(settings)} settings" if len(alone) > _NAMED else ", ".join(alone)
        yield f"one seed, so no spread and no interval: {whose}"
    if comparison.chosen:
        yield (
            f"chosen on val by {view.score} ({view.protocols[0]} protocol): {comparison.chosen.label}, the best of "
            f"{len(settings)}, so its val score and its lead on val are flattering; test scores of others were left unread"
        )
    elif "test" in view.splits and len(settings) > 1:
        yield "choose by val, report test once: --select shows the test score of the setting that val chooses, and no other"


def _data(settings: Sequence[Setting]) -> list[str]:
    of_data: dict[str, list[str]] = {}
    for setting in settings:
        about = setting.runs[0].result["data"]
        made_up = " (SYNTHETIC DATA)" if about["synthetic"] else ""
        of_data.setdefault(f"{about['dataset']}{made_up}, fingerprint {setting.fingerprint[:12]}", []).append(setting.label)
    if len(of_data) == 1:
        return list(of_data)
    return [f"{data}: {', '.join(labels)}" for data, labels in of_data.items()]


def _rules(settings: Sequence[Setting], view: View) -> list[str]:
    return list(
        dict.fromkeys(
            f"{protocol} (segment threshold {scored['segment_threshold']:g}, video threshold {scored['video_threshold']:g})"
            for protocol in view.protocols
            for setting in settings
            for split in view.splits
            for scored in setting.scored(split, protocol)[:1]
        )
    )
