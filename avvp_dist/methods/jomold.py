"""JoMoLD (ECCV 2022): joint-modal label denoising.

Three stages: training of a noise estimator without cross-modal exchange; estimation of the noise ratio of every class and
modality from its probabilities; denoising training, which removes the labels of each global batch whose losses indicate
noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from avvp_dist import storage
from avvp_dist.config import Url
from avvp_dist.dist.collective import Collective
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.methods import ratio_files
from avvp_dist.methods.base import CollectStage, Method, MethodSection, SplitTable, TrainStage, local_rows
from avvp_dist.methods.heads import han_targets, heads_loss
from avvp_dist.methods.losses import contrastive, elementwise_bce
from avvp_dist.methods.ranking import budgets, noisy_masks, resolve_overlap
from avvp_dist.storage import integrity
from avvp_dist.types import MODALITIES, Batch, ForwardOptions, Outputs, Targets, TrainPosition

# keys of the config that the earlier stages do not use
_OF_RATIOS = frozenset({"audio_threshold", "visual_threshold", "visual_target"})
_OF_DENOISING = frozenset({"ratios", "warmup", "warmup_epochs", "rounding", "ranking_dropout", "overlap", "audio_weight"})


class JomoldConfig(MethodSection):
    """JoMoLD's training; defaults are the published code's."""

    name: Literal["jomold"] = "jomold"
    audio_threshold: float = Field(0.6, gt=0)
    """A positive audio label counts as noise when its probability is below this many times the class's mean."""
    visual_threshold: float = Field(1.8, gt=0)
    """The same for visual labels."""
    visual_target: float = Field(0.95, gt=0, le=1)
    """The estimate multiplies visual probabilities by this, the smoothed target of a positive label."""
    ratios: Url | None = None
    """Path or URL of a noise-ratio file; if set, the first two stages are skipped."""
    skip_exchange: bool = True
    """Whether the noise estimator and the scoring pass that ranks labels run without exchange between modalities
    (published). False runs both with exchange, as in the paper's ablation; where exactly it does so is not published."""
    warmup: Literal["published", "linear"] = "published"
    """published: no denoising in the first epoch, then the full ratio (as the authors' code does); linear: a true ramp."""
    warmup_epochs: float = Field(0.9, ge=0)
    """Epochs until the full noise ratio is applied."""
    rounding: Literal["floor", "carry"] = "floor"
    """floor: a batch's budget is rounded down (published); carry: its fraction is added to the next batch, per class."""
    ranking_dropout: bool = True
    """Whether dropout is active in the scoring pass that ranks labels (published: yes, the ranking is stochastic)."""
    overlap: Literal["published", "keep_one"] = "published"
    """published: a label can be removed from both modalities; keep_one: the modality with the smaller loss keeps it."""
    visual_smoothing: float = Field(0.1, ge=0, le=1)
    """Smoothing of the visual target; the target of a removed label is exactly 0."""
    audio_weight: float = Field(2.0, ge=0)
    """Weight of the audio loss in the denoising stage (published: 2; the estimator uses 1)."""
    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the noise-contrastive loss."""
    temperature: float = Field(0.2, gt=0)
    """Temperature tau of the noise-contrastive loss."""

    def build(self, classes: Sequence[str], segments: int, tracks: Sequence[str] = MODALITIES) -> Method:
        """Noise estimator, noise ratios, denoising; denoising only if a ratio file is given.

        Raises:
            ConfigError: the ratio file cannot be used.
        """
        if self.ratios:
            return Method((_Denoise(self, read_ratios(self.ratios, classes)),))
        return Method((_Estimate(self), _Ratios(self, classes), _Denoise(self, None)))


def noise_ratios(
    prob_audio: Tensor,
    prob_visual: Tensor,
    weak: Tensor,
    audio_threshold: float = 0.6,
    visual_threshold: float = 1.8,
    visual_target: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Return the share of each class's weak labels that is noise in each modality (published code).

    A positive counts as noise if its probability is small compared with the class's mean over all videos: below
    ``audio_threshold`` times the mean for audio, ``visual_target * p < visual_threshold * mean`` for visual.

    Args:
        prob_audio, prob_visual: [N,C] pooled probabilities of the noise estimator over the training split.
        weak: [N,C] weak labels.
        audio_threshold, visual_threshold, visual_target: constants of the rule.

    Returns:
        ratio_audio, ratio_visual: float64 [C]; 0 for a class without positives.
    """
    audio, visual = torch.as_tensor(prob_audio).double(), torch.as_tensor(prob_visual).double()
    positives = torch.as_tensor(weak).bool()
    noisy_audio = (audio / audio.mean(dim=0) < audio_threshold) & positives
    noisy_visual = (visual_target * visual / visual.mean(dim=0) < visual_threshold) & positives
    count = positives.sum(dim=0).clamp(min=1)
    return noisy_audio.sum(dim=0) / count.double(), noisy_visual.sum(dim=0) / count.double()


def warmup_factor(kind: str, warmup_epochs: float, position: TrainPosition) -> float:
    """Return the share of the noise ratio that is applied at a step.

    ``linear`` ramps up over ``warmup_epochs``. ``published`` resets the ratio at the start of each epoch and multiplies it
    by ``min(1, steps so far / warm-up steps)`` at every step: the product is 0 throughout the first epoch.
    """
    steps = warmup_epochs * position.steps_per_epoch
    if steps <= 0:
        return 1.0
    if kind == "linear":
        return min(1.0, position.global_step / steps)
    so_far = np.arange(position.epoch * position.steps_per_epoch, position.global_step + 1)
    return float(np.minimum(1.0, so_far / steps).prod())


def read_ratios(url: str, classes: Sequence[str]) -> dict[str, Any]:
    """Read a noise-ratio file: ``{"audio": {class: ratio}, "visual": {class: ratio}}``, or the authors' .npz.

    The .npz holds arrays ``audio`` and ``visual`` with one ratio per class in LLP's official order (`ratio_files`). The
    format is detected from the content, not from the file name.

    Raises:
        ConfigError: the file is missing, has another format, lacks classes or holds ratios outside [0, 1]; lists every
            problem.
    """
    title = f"method.ratios: cannot use {url}"
    try:
        data = storage.read_bytes(url)
        if ratio_files.is_npz(data):
            return ratio_files.from_npz(data, classes, title)
        content = json.loads(data.decode("utf-8"))
        if isinstance(content, dict) and integrity.is_sealed(content):  # files from other tools have no checksum
            integrity.check_seal(content, "the file")
    except FileNotFoundError:
        raise ConfigError("no such file", title) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"not JSON: {error}", title) from None
    except DataError as error:
        raise ConfigError(error.problems, title) from None
    problems = []
    for modality in MODALITIES:
        table = content.get(modality) if isinstance(content, dict) else None
        if not isinstance(table, dict):
            problems.append(f"{modality}: missing; expected class names with ratios")
            continue
        problems += [f"{modality}: no ratio for class {name!r}" for name in classes if name not in table]
        problems += [f"{modality}: unknown class {name!r}" for name in table if name not in classes]
        problems += [
            f"{modality}.{name}: {value!r} is not a ratio between 0 and 1"
            for name, value in table.items()
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1
        ]
    if problems:
        raise ConfigError(problems, title)
    return {modality: {name: float(content[modality][name]) for name in classes} for modality in MODALITIES}


class _Estimate(TrainStage):
    """Stage A: plain training, by default without exchange, so that each modality relies on its own evidence."""

    name = "estimate"
    irrelevant = _OF_RATIOS | _OF_DENOISING

    def __init__(self, config: JomoldConfig) -> None:
        self.config = config
        self.cross_modal = not config.skip_exchange

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        return han_targets(batch, visual_smoothing=self.config.visual_smoothing)

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        return _losses(outputs, targets, self.config, audio_weight=1.0)


class _Ratios(CollectStage):
    """Stage B: noise ratios from the estimator's probabilities over the training split."""

    name = "ratios"
    source = "estimate"
    irrelevant = _OF_DENOISING

    def __init__(self, config: JomoldConfig, classes: Sequence[str]) -> None:
        self.config = config
        self.classes = tuple(classes)
        self.cross_modal = not config.skip_exchange
        self._table = SplitTable()

    def collect(self, outputs: Sequence[Outputs], batch: Batch) -> None:
        (output,) = outputs
        self._table.add(batch, output.audio, output.visual, batch.weak)

    def finish(self, collective: Collective, ids: Sequence[str]) -> dict[str, Any]:
        audio, visual, weak = self._table.gather(collective)
        ratio_audio, ratio_visual = noise_ratios(audio, visual, weak, **self.config.model_dump(include=set(_OF_RATIOS)))
        return {
            "audio": dict(zip(self.classes, ratio_audio.tolist(), strict=True)),
            "visual": dict(zip(self.classes, ratio_visual.tolist(), strict=True)),
        }


class _Denoise(TrainStage):
    """Stage C: rank the global batch by the losses of the scoring pass, remove the labels that appear to be noise, train.

    Args:
        config: of the method.
        ratios: noise ratios read from a file; None to start from those of the stage ``ratios``.
    """

    name = "denoise"

    def __init__(self, config: JomoldConfig, ratios: Mapping[str, Mapping[str, float]] | None) -> None:
        self.config = config
        self.starts_from = () if ratios else ("ratios",)
        self.scoring_pass = ForwardOptions(cross_modal=not config.skip_exchange, dropout=config.ranking_dropout)
        # a ratio file counts by its content, not by its name
        self.irrelevant = frozenset({"ratios"}) | (_OF_RATIOS if ratios else frozenset())
        self.external_inputs = {"ratios": ratios}

    def start(self, artifacts: Mapping[str, Any], device: torch.device) -> None:
        ratios = self.external_inputs["ratios"] or artifacts["ratios"]
        self.ratio_audio = torch.tensor(list(ratios["audio"].values()), dtype=torch.float64, device=device)  # [C]
        self.ratio_visual = torch.tensor(list(ratios["visual"].values()), dtype=torch.float64, device=device)
        self.carry_audio = torch.zeros_like(self.ratio_audio)
        self.carry_visual = torch.zeros_like(self.ratio_visual)

    def targets(self, outputs: Outputs, batch: Batch, position: TrainPosition, collective: Collective) -> Targets:
        targets = han_targets(batch, visual_smoothing=self.config.visual_smoothing)
        assert outputs.scoring is not None
        loss_audio = elementwise_bce(outputs.scoring.audio, targets.audio)
        loss_visual = elementwise_bce(outputs.scoring.visual, targets.visual)
        gathered = collective.all_gather(torch.stack([loss_audio, loss_visual, batch.weak], dim=1), batch.total)
        noisy_audio, noisy_visual = (local_rows(noisy, collective) for noisy in self._rank(gathered, position))
        return replace(
            targets,
            audio=targets.audio.masked_fill(noisy_audio, 0.0),
            visual=targets.visual.masked_fill(noisy_visual, 0.0),
            removed_audio=noisy_audio,
            removed_visual=noisy_visual,
        )

    def losses(self, outputs: Outputs, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        return _losses(outputs, targets, self.config, audio_weight=self.config.audio_weight)

    def state_dict(self) -> dict[str, Tensor]:
        return {"carry_audio": self.carry_audio, "carry_visual": self.carry_visual}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.carry_audio.copy_(state["carry_audio"])
        self.carry_visual.copy_(state["carry_visual"])

    def _rank(self, gathered: Tensor, position: TrainPosition) -> tuple[Tensor, Tensor]:
        """Return noise masks [B,C] of the global batch, given its audio losses, visual losses and weak labels [B,3,C]."""
        loss_audio, loss_visual, weak = gathered.unbind(dim=1)
        positives = weak > 0
        factor = warmup_factor(self.config.warmup, self.config.warmup_epochs, position)
        carry = self.config.rounding == "carry"
        budget_audio, self.carry_audio = budgets(positives, factor * self.ratio_audio, self.carry_audio if carry else None)
        budget_visual, self.carry_visual = budgets(
            positives, factor * self.ratio_visual, self.carry_visual if carry else None
        )
        noisy_audio, noisy_visual = noisy_masks(loss_audio, loss_visual, positives, budget_audio, budget_visual)
        if self.config.overlap == "keep_one":
            return resolve_overlap(noisy_audio, noisy_visual, loss_audio, loss_visual)
        return noisy_audio, noisy_visual


def _losses(outputs: Outputs, targets: Targets, config: JomoldConfig, audio_weight: float) -> dict[str, Tensor]:
    losses = heads_loss(outputs, targets)
    nce = contrastive(outputs.audio_features, outputs.visual_features, config.temperature)
    total = audio_weight * losses["audio"] + losses["visual"] + losses["video"] + config.contrastive_weight * nce
    return {**losses, "total": total, "contrastive": nce}
