"""Whether a trained network matches audio and visual segments of the same second by content, or by position.

    python -m benchmarks.counted_seconds RUN [RUN ...] [--data URL] [--videos 256] [--json FILE]

For every audio segment of val videos, finds the most similar of ten visual segments by the features after aggregation, in
the same video and in another one. By chance, 10 % are the same second. A network that finds the same second in another video
uses the position. JoMoLD's contrastive loss rewards both equally.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from avvp_dist.experiments.recipe import load
from avvp_dist.loading.split import open_split
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.types import Batch


def same_second(audio: Tensor, visual: Tensor) -> float:
    """Return the share in % of audio segments whose nearest visual segment is the same second; both [B,T,D]."""
    nearest = (F.normalize(audio, dim=-1) @ F.normalize(visual, dim=-1).transpose(1, 2)).argmax(dim=-1)  # [B,T]
    return 100 * float((nearest == torch.arange(audio.shape[1])).float().mean())


def batch_of(data: str, videos: int) -> tuple[Batch, Index]:
    """Return a batch of val videos, and the index."""
    config = load("han", [f"data={data}"]).data
    index = Index.load(data)
    split = open_split(config, index, read_labels(data, index)["val"], torch.device("cpu"), torch.float32)
    with closing(split.epoch(split.plan(videos, 0, 0), 0, 0, 1)) as batches:
        return next(batches), index


@torch.no_grad()
def measure(run: Path, data: str | None, videos: int) -> dict[str, float]:
    """Return the shares of a finished run's network, in the same video and in another one."""
    config = load(str(run / "config.yaml"))
    batch, index = batch_of(data or config.data.url, videos)
    network = config.model.build(index.shapes, len(index.classes))
    network.load_state_dict(load_file(run / "model.safetensors"))
    outputs = network.eval()(batch)
    audio, visual = outputs.audio_features.float(), outputs.visual_features.float()
    return {"own": same_second(audio, visual), "another": same_second(audio, visual.roll(1, dims=0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--data", help="packed data set; default: that of each run")
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {run.name: measure(run, arguments.data, arguments.videos) for run in arguments.runs}
    print(f"{'same second found, %':<28}{'own video':>12}{'another':>10}")
    for name, shares in found.items():
        print(f"{name:<28}{shares['own']:>12.0f}{shares['another']:>10.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
