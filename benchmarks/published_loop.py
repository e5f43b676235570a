"""JoMoLD's denoising stage, trained as in its authors' code: the baseline of the training benchmarks.

A transcription of that code, deliberately without the optimizations of this package: DataLoader workers read three files
per video in every epoch, all 80 frames are projected before averaging, a step has two complete forward passes, and the
ranking is a Python loop over the classes. Its selection and its network are tested against outputs of the published code.

Omitted, in favor of the baseline: printing, TensorBoard and the warm-up of the ratios (they have their final values, as
from the second epoch on). The published loader has 5 workers and pins memory; here both are arguments.

Shapes: B videos, T = 10 seconds, C = 25 classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from avvp_dist.datasets.catalog import LLP

SECONDS, FRAMES, CLASSES, WIDTH = 10, 8, 25, 512
LEARNING_RATE = 5e-4
VISUAL_POSITIVE, VISUAL_NEGATIVE = 0.95, 0.05
TEMPERATURE, NCE_OWN, CLAMP = 0.2, 0.9, 1e-7


class Videos(Dataset):
    """Videos with their three feature files and label, read from disk at each access.

    Args:
        features_dir: contains ``vggish``, ``res152`` and ``r2plus1d_18`` with ``<id>.npy`` each.
        rows: (filename, event_labels) as in ``AVVP_train.csv``; the id is the filename's first 11 characters.
    """

    def __init__(self, features_dir: str | Path, rows: Sequence[tuple[str, str]]) -> None:
        self.folder = Path(features_dir)
        self.rows = rows
        self.number = {name: number for number, name in enumerate(LLP.classes)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return features [10,128], [80,2048], [10,512], the label [25] and the smoothed targets of both modalities."""
        filename, events = self.rows[index]
        sample = {
            stream.name: torch.from_numpy(np.load(self.folder / stream.folder / f"{filename[:11]}.npy", allow_pickle=False))
            for stream in LLP.streams
        }
        label = np.zeros(CLASSES)
        label[[self.number[name] for name in events.split(",")]] = 1
        sample["label"] = torch.from_numpy(label)
        sample["target_audio"] = torch.from_numpy(label.copy())
        sample["target_visual"] = torch.from_numpy(np.where(label > 0, VISUAL_POSITIVE, VISUAL_NEGATIVE))
        return sample


def build(
    features_dir: str | Path,
    rows: Sequence[tuple[str, str]],
    batch_size: int = 128,
    num_workers: int = 2,
    pin_memory: bool = False,
) -> DataLoader:
    """Build the training loader; by default with 2 workers, where the published code has 5."""
    videos = Videos(features_dir, rows)
    return DataLoader(videos, batch_size, shuffle=True, num_workers=num_workers, pin_memory=pin_memory)


class HybridLayer(nn.Module):
    """Self-attention and cross-modal attention over the seconds, then a feed-forward block."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, 1, dropout=dropout)
        self.cm_attn = nn.MultiheadAttention(WIDTH, 1, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, own: Tensor, other: Tensor, with_ca: bool) -> Tensor:
        """Encode one modality [B,T,512], attending to the other unless ``with_ca`` is False."""
        own, other = own.transpose(0, 1), other.transpose(0, 1)
        mixed = own + self.dropout(self.self_attn(own, own, own)[0])
        if with_ca:
            mixed = mixed + self.dropout(self.cm_attn(own, other, other)[0])
        mixed = self.norm1(mixed)
        hidden = self.dropout(F.relu(self.linear1(mixed)))
        return self.norm2(mixed + self.dropout(self.linear2(hidden))).transpose(0, 1)


class Encoder(nn.Module):
    """One hybrid layer for both modalities, and two unused norms that the published checkpoints contain."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([HybridLayer(dropout)])
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, audio: Tensor, visual: Tensor, with_ca: bool) -> tuple[Tensor, Tensor]:
        """Encode both modalities [B,T,512]; each attends to the input of the other."""
        layer = self.layers[0]
        return layer(audio, visual, with_ca), layer(visual, audio, with_ca)


class Network(nn.Module):
    """JoMoLD's network under the published parameter names."""

    def __init__(self, attention_dropout: float = 0.1, visual_dropout: float = 0.5) -> None:
        super().__init__()
        self.fc_prob, self.fc_frame_att, self.fc_av_att = (nn.Linear(WIDTH, CLASSES) for _ in range(3))
        self.fc_a, self.fc_v, self.fc_st = nn.Linear(128, WIDTH), nn.Linear(2048, WIDTH), nn.Linear(512, WIDTH)
        self.fc_fusion = nn.Linear(2 * WIDTH, WIDTH)
        self.hat_encoder = Encoder(attention_dropout)
        self.dropout = nn.Dropout(visual_dropout)

    def forward(
        self, audio: Tensor, visual: Tensor, motion: Tensor, with_ca: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return video, audio and visual probabilities [B,25], segment probabilities [B,10,2,25], similarities [B*10,10]."""
        frames = self.fc_v(visual)  # [B,80,512]: projected before averaging the frames of a second
        seconds = frames.unflatten(1, (SECONDS, FRAMES)).mean(dim=2)
        fused = self.fc_fusion(torch.cat([seconds, self.fc_st(motion)], dim=-1))
        audio, visual = self.hat_encoder(self.fc_a(audio), fused, with_ca)
        similarity = F.normalize(audio, dim=-1) @ F.normalize(visual, dim=-1).transpose(1, 2) / TEMPERATURE
        both = torch.stack([audio, self.dropout(visual)], dim=2)  # [B,T,2,512]
        segments = torch.sigmoid(self.fc_prob(both))
        over_time = torch.softmax(self.fc_frame_att(both), dim=1) * segments
        over_both = torch.softmax(self.fc_av_att(both), dim=2) * over_time
        audio_prob, visual_prob = over_time[:, :, 0].sum(dim=1), over_time[:, :, 1].sum(dim=1)
        return over_both.sum(dim=2).sum(dim=1), audio_prob, visual_prob, segments, similarity.reshape(-1, SECONDS)


def contrastive(similarity: Tensor) -> Tensor:
    """Label-smoothed contrastive loss of each audio segment against the visual segments of its video [B*10,10]."""
    own = torch.arange(SECONDS, device=similarity.device).repeat(len(similarity) // SECONDS)
    target = torch.full_like(similarity, (1 - NCE_OWN) / (SECONDS - 1))
    target.scatter_(1, own[:, None], NCE_OWN)
    return -torch.log((target * similarity.softmax(dim=-1)).sum(dim=-1)).mean()


def clear_noisy(
    loss_audio: Tensor,
    loss_visual: Tensor,
    target_audio: Tensor,
    target_visual: Tensor,
    ratio_audio: Tensor,
    ratio_visual: Tensor,
) -> None:
    """Set targets that the losses of the batch identify as noise to 0, in place, class by class.

    Losses and targets [B,25], ratios [25]. As published, every class requires several device synchronizations, and its
    positives are counted by Python's ``sum`` over the elements of a tensor.
    """
    order_audio, order_visual = loss_audio.argsort(dim=0), loss_visual.argsort(dim=0)
    positive_audio, positive_visual = target_audio > 0.5, target_visual > 0.5
    for c in range(CLASSES):
        count_audio = int(ratio_audio[c] * sum(positive_audio[:, c].int().cpu()))
        count_visual = int(ratio_visual[c] * sum(positive_visual[:, c].int().cpu()))
        by_audio = order_audio[positive_audio[order_audio[:, c], c], c]  # the class's positives, smallest audio loss first
        by_visual = order_visual[positive_visual[order_visual[:, c], c], c]
        if count_visual > 0:
            target_visual[_in_both(by_audio[:count_visual], by_visual[-count_visual:], len(loss_audio)), c] = 0
        if count_audio > 0:
            target_audio[_in_both(by_audio[-count_audio:], by_visual[:count_audio], len(loss_audio)), c] = 0


def _in_both(first: Tensor, second: Tensor, rows: int) -> Tensor:
    chosen_first, chosen_second = torch.zeros(2, rows, device=first.device)
    chosen_first[first] = 1
    chosen_second[second] = 1
    return torch.nonzero(chosen_first * chosen_second).squeeze(-1).cpu()


def train_step(
    model: Network,
    sample: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    ratio_audio: Tensor,
    ratio_visual: Tensor,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Run one step: rank without gradient, clear, train. Return the loss before the step, detached."""
    features = [sample[stream.name].to(device) for stream in LLP.streams]
    label, target_audio, target_visual = (
        sample[name].float().to(device) for name in ("label", "target_audio", "target_visual")
    )
    with torch.no_grad():
        _, audio, visual, _, _ = model(*features, with_ca=False)
        loss_audio = F.binary_cross_entropy(_clamped(audio), target_audio, reduction="none")
        loss_visual = F.binary_cross_entropy(_clamped(visual), target_visual, reduction="none")
        clear_noisy(loss_audio, loss_visual, target_audio, target_visual, ratio_audio, ratio_visual)
    optimizer.zero_grad()
    video, audio, visual, _, similarity = model(*features, with_ca=True)
    loss = (
        2 * F.binary_cross_entropy(_clamped(audio), target_audio)
        + F.binary_cross_entropy(_clamped(visual), target_visual)
        + F.binary_cross_entropy(_clamped(video), label)
        + contrastive(similarity)
    )
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_epoch(
    model: Network,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    ratio_audio: Tensor,
    ratio_visual: Tensor,
    device: torch.device | str = "cpu",
) -> tuple[int, float]:
    """Train one epoch. Return the number of videos, and the seconds including reading and the start of workers."""
    model.train()
    samples, started = 0, time.perf_counter()
    for sample in loader:
        train_step(model, sample, optimizer, ratio_audio, ratio_visual, device)
        samples += len(sample["label"])
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return samples, time.perf_counter() - started


def make_optimizer(model: Network) -> torch.optim.Adam:
    """Return Adam with the published learning rate."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)


def _clamped(probability: Tensor) -> Tensor:
    return probability.clamp(CLAMP, 1 - CLAMP)
