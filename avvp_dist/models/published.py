"""Loads the checkpoints that the authors of HAN, MA, JoMoLD, AVE and PSP publish, under their parameter names."""

from __future__ import annotations

import io
import logging
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from avvp_dist import storage
from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.models.ave import AveConfig
from avvp_dist.models.han import HanConfig
from avvp_dist.models.network import NetworkSection
from avvp_dist.models.psp import PspConfig
from avvp_dist.text.plural import plural
from avvp_dist.types import Batch

LOGGER = logging.getLogger(__name__)

# module of this package -> published module; several published modules are stacked into one here
_HAN_MODULES: dict[str, str | tuple[str, ...]] = {
    "audio": "fc_a",
    "visual": "fc_v",
    "motion": "fc_st",
    "fusion": "fc_fusion",
    "layer.self_attention": "hat_encoder.layers.0.self_attn",
    "layer.self_attention.out_proj": "hat_encoder.layers.0.self_attn.out_proj",
    "layer.cross_attention": "hat_encoder.layers.0.cm_attn",
    "layer.cross_attention.out_proj": "hat_encoder.layers.0.cm_attn.out_proj",
    "layer.linear1": "hat_encoder.layers.0.linear1",
    "layer.linear2": "hat_encoder.layers.0.linear2",
    "layer.norm1": "hat_encoder.layers.0.norm1",
    "layer.norm2": "hat_encoder.layers.0.norm2",
    "pooling.heads": ("fc_prob", "fc_frame_att", "fc_av_att"),
}
_AVE_MODULES: dict[str, str | tuple[str, ...]] = {
    "attention.audio": "affine_audio",
    "attention.visual": "affine_video",
    "attention.audio_to_regions": "affine_g",
    "attention.visual_to_regions": "affine_v",
    "attention.score": "affine_h",
    "audio_lstm.lstm": "lstm_audio",
    "visual_lstm.lstm": "lstm_video",
    "hidden": "L1",
    "scores": "L2",
}
_PSP_MODULES: dict[str, str | tuple[str, ...]] = {
    "attention.audio": "attention.affine_audio",
    "attention.visual": "attention.affine_video",
    "attention.audio_to_regions": "attention.affine_g",
    "attention.visual_to_regions": "attention.affine_v",
    "attention.score": "attention.affine_h",
    "visual": "linear_v",
    "audio_lstm.lstm": "lstm_a_v.lstm_audio",
    "visual_lstm.lstm": "lstm_a_v.lstm_video",
    "propagation.visual1": "psp.v_L1",
    "propagation.visual2": "psp.v_L2",
    "propagation.audio1": "psp.a_L1",
    "propagation.audio2": "psp.a_L2",
    "propagation.norm": "psp.layer_norm",
    "hidden": "L1",
    "scores": "L2",
    "segment_weight": "W3",
}


@dataclass(frozen=True)
class _Published:
    """A published network: its config here, what it was trained on, and its modules."""

    config: NetworkSection
    shapes: Mapping[str, tuple[int, ...]]
    classes: int
    modules: Mapping[str, str | tuple[str, ...]]


_LLP_SHAPES = {stream.name: stream.shape for stream in LLP.streams}
_AVE_SHAPES = {"audio": (128,), "visual": (7, 7, 512)}
_NETWORKS = {
    "han": _Published(HanConfig(), _LLP_SHAPES, len(LLP.classes), _HAN_MODULES),
    "ma": _Published(HanConfig(), _LLP_SHAPES, len(LLP.classes), _HAN_MODULES),
    "jomold": _Published(HanConfig(visual_dropout=0.5), _LLP_SHAPES, len(LLP.classes), _HAN_MODULES),
    "ave": _Published(AveConfig(), _AVE_SHAPES, 28, _AVE_MODULES),
    "psp": _Published(PspConfig(), _AVE_SHAPES, 28, _PSP_MODULES),
}


class EventScores(NamedTuple):
    """What a published network of event localization finds; the last of the K = C + 1 classes is the background.

    Attributes:
        video: probabilities, [B,K].
        segments: scores before the softmax, [B,T,K]; the largest is the class of the segment.
    """

    video: Tensor
    segments: Tensor


class LocalizationNetwork(nn.Module):
    """A published network of event localization, called with features.

    Attributes:
        network: the same network as methods use it, called with a `types.Batch`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Tensor, visual: Tensor) -> EventScores:
        """Score videos by their features, float32: audio [B,T,128], and of the regions of an image [B,T,7,7,512]."""
        videos = len(audio)
        labels, index = audio.new_zeros(videos, 0), torch.arange(videos, device=audio.device)
        outputs = self.network(Batch({"audio": audio, "visual": visual}, labels, index, videos))
        return EventScores(outputs.video, outputs.segments.squeeze(2))


_WRAPPERS = ("model", "state_dict")  # keys under which a training checkpoint stores the parameters

# JoMoLD's checkpoints contain NumPy's generator state, a uint32 array, which torch does not unpickle by default; those of
# Python and CUDA are tuples and tensors. NumPy 2 moved the array's functions, and existing files have the old names.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_GENERATOR_STATES: list[Any] = [
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    # scores of the best epoch are often NumPy scalars
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]


def load(name: str, checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> nn.Module:
    """Load a published checkpoint into a network of this package, in eval mode.

    Args:
        name: ``han``, ``ma``, ``jomold``, or the weakly supervised networks ``ave`` and ``psp``.
        checkpoint: path or URL of the authors' file, or its content: parameters by name, or a dict with the parameters as
            ``model`` or ``state_dict``. Names can start with ``module.``, as written by DataParallel. Parameters that the
            forward pass never uses are ignored and listed in the log. No code in the file is executed.

    Returns:
        ``han``, ``ma``, ``jomold``: a network that is called with a `types.Batch` of features [B,T,...] by stream, float32,
        and returns `types.Outputs`. ``ave``, ``psp``: a `LocalizationNetwork`, called with audio [B,10,128] and visual
        [B,10,7,7,512], which returns ``video`` [B,29] and ``segments`` [B,10,29].

    Raises:
        ConfigError: unknown ``name``.
        DataError: the file is missing, unreadable, or contains anything except parameters, optimizer and generator states;
            or parameters are missing, have another shape or values that are not finite (lists all of them).
    """
    if name not in _NETWORKS:
        raise ConfigError(f"unknown published network {name!r}. Valid names: {', '.join(_NETWORKS)}")
    source, content = "", checkpoint
    if not isinstance(checkpoint, Mapping):
        source = f"{os.fspath(checkpoint)}: "
        content = _read(os.fspath(checkpoint))
    title = f"{source}not a published {name} checkpoint"
    given = _parameters(content, title)
    published = _NETWORKS[name]
    model = published.config.build(published.shapes, published.classes)
    expected = model.state_dict()
    converted, used, problems = _convert(given, list(expected), published.modules)
    problems += [
        f"{key}: shape {tuple(converted[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in converted and converted[key].shape != expected[key].shape
    ]
    if problems:
        raise DataError(problems, title)
    ignored = sorted(set(given) - used)
    if ignored:
        LOGGER.info("%s: %d unused parameters of the checkpoint ignored: %s", name, len(ignored), ", ".join(ignored))
    model.load_state_dict(converted)
    return (LocalizationNetwork(model) if published.config.background else model).eval()


def _read(url: str) -> Any:
    """Read a checkpoint file in torch's current or old format; only types allowed by torch or above are unpickled."""
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise DataError(f"{url}: no such file") from None
    _check_archive(url, content)
    try:
        with torch.serialization.safe_globals(_GENERATOR_STATES):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any exception
        forbidden = re.search(r"GLOBAL (\S+)|(?:function|but got) (<[^>]+>)", str(error))
        if forbidden:
            raise DataError(
                f"{url}: refused: it contains {forbidden[1] or forbidden[2]}, which is not part of the parameters, "
                "optimizer and generator states of a checkpoint and could execute code. If you trust the file, load it with "
                "torch and save its state_dict()"
            ) from None
        text = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split("Check the documentation")[0].split())
        raise DataError(f"{url}: not a checkpoint that torch can read ({text[:160] or type(error).__name__})") from None


def _check_archive(url: str, content: bytes) -> None:
    """Refuse a zip archive with a wrong checksum, which torch does not check; its old format has no checksum."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            wrong = archive.testzip()
    except Exception as error:
        wrong = str(error)
    if wrong:
        raise DataError(f"{url}: damaged: checksum error in {wrong}; download it again")


def _parameters(content: Any, title: str) -> dict[str, Tensor]:
    """Return the parameters by their published names, from any supported container."""
    for _ in range(len(_WRAPPERS)):  # one can contain the other
        inner = [content[key] for key in _WRAPPERS if key in content] if isinstance(content, Mapping) else []
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise DataError(f"contains a {kind}, expected parameters by name; save the network's state_dict()", title)
    given = {}
    for key, value in content.items():
        while isinstance(key, str) and key.startswith("module."):
            key = key.removeprefix("module.")
        given[str(key)] = value
    not_tensors = [
        f"{key}: {type(value).__name__}, not a tensor" for key, value in given.items() if not isinstance(value, Tensor)
    ]
    if not_tensors and len(not_tensors) == len(given):
        raise DataError(f"contains no parameters; its keys are {', '.join(list(given)[:10]) or 'none'}", title)
    if not_tensors:
        raise DataError(not_tensors, title)
    return given


def _convert(
    given: Mapping[str, Tensor], parameters: Sequence[str], modules: Mapping[str, str | tuple[str, ...]]
) -> tuple[dict[str, Tensor], set[str], list[str]]:
    """Convert published parameters.

    Args:
        given: tensors by published name.
        parameters: names of all parameters of the network here.
        modules: published modules by their names here.

    Returns:
        the converted parameters, the published names that were used, and a message for each unusable parameter.
    """
    sources = {name: _published_names(name, modules) for name in parameters}
    wanted = {published for parts in sources.values() for published in parts}
    missing = sorted(wanted - set(given))
    if missing:
        return {}, set(), [f"{key}: missing" for key in missing]
    problems = [f"{key}: {problem}" for key in sorted(wanted) if (problem := _unusable(given[key]))]
    for parts in sources.values():
        shapes = {tuple(given[part].shape) for part in parts}
        if len(shapes) > 1:
            problems.append(f"{', '.join(parts)}: shapes {sorted(shapes)}, expected the same for all three")
    if problems:
        return {}, set(), problems
    return {name: torch.cat([given[part] for part in parts]) for name, parts in sources.items()}, wanted, []


def _published_names(parameter: str, modules: Mapping[str, str | tuple[str, ...]]) -> tuple[str, ...]:
    """Return the published parameters that make up one of this package, in the order in which they are stacked."""
    module, _, leaf = parameter.rpartition(".")
    published = modules[module]
    return tuple(f"{part}.{leaf}" for part in ((published,) if isinstance(published, str) else published))


def _unusable(value: Tensor) -> str:
    """Return why a tensor cannot be a parameter; empty if it can."""
    if value.layout != torch.strided or value.is_quantized or not value.dtype.is_floating_point or value.is_meta:
        return f"a {value.dtype} tensor, expected dense floating-point numbers"
    bad = int((~torch.isfinite(value)).sum())
    return f"{bad} of {value.numel()} values {plural(bad, 'is', 'are')} not finite" if bad else ""
