"""Loads the checkpoints that the authors of HAN, MA and JoMoLD publish, under their parameter names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avvp_dist.data.catalog import LLP
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.models.han import HanConfig

_log = logging.getLogger(__name__)

# published name -> our name; the pooling heads are three layers there and one here
_HAN_NAMES = {
    "fc_a": "audio",
    "fc_v": "visual",
    "fc_st": "motion",
    "fc_fusion": "fusion",
    "hat_encoder.layers.0.self_attn.out_proj": "layer.self_attention.out_proj",
    "hat_encoder.layers.0.cm_attn.out_proj": "layer.cross_attention.out_proj",
    "hat_encoder.layers.0.linear1": "layer.linear1",
    "hat_encoder.layers.0.linear2": "layer.linear2",
    "hat_encoder.layers.0.norm1": "layer.norm1",
    "hat_encoder.layers.0.norm2": "layer.norm2",
}
_ATTENTION_NAMES = {
    "hat_encoder.layers.0.self_attn.in_proj_": "layer.self_attention.in_proj_",
    "hat_encoder.layers.0.cm_attn.in_proj_": "layer.cross_attention.in_proj_",
}
_HEADS = ("fc_prob", "fc_frame_att", "fc_av_att")  # in the order AttentiveMMIL reads them

_CONFIGS = {"han": HanConfig(), "ma": HanConfig(), "jomold": HanConfig(visual_dropout=0.5)}


def load(name: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A published checkpoint as one of our networks, in eval mode.

    Args:
        name: ``han``, ``ma`` or ``jomold``.
        state_dict: the authors' parameters by name; those that their forward pass never uses are ignored and listed in the
            log. Read the file with ``torch.load(path, weights_only=True)``.

    Raises:
        ConfigError: unknown ``name``.
        DataError: parameters missing or of another shape, all of them.
    """
    if name not in _CONFIGS:
        raise ConfigError(f"unknown published network {name!r}. Valid names: {', '.join(_CONFIGS)}")
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    converted, used, problems = _convert(given)
    model = _CONFIGS[name].build({stream.name: stream.dim for stream in LLP.streams}, len(LLP.classes))
    expected = model.state_dict()
    problems += [
        f"{key}: shape {tuple(converted[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in converted and converted[key].shape != expected[key].shape
    ]
    if problems:
        raise DataError(problems, f"not a published {name} checkpoint")
    ignored = sorted(set(given) - used)
    if ignored:
        _log.info("%s: %d unused parameters of the checkpoint ignored: %s", name, len(ignored), ", ".join(ignored))
    model.load_state_dict(converted)
    return model.eval()


def _convert(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str], list[str]]:
    """Our parameters, the published names they came from, and a line for each missing one."""
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _HAN_NAMES.items() for kind in ("weight", "bias")}
    names |= {f"{theirs}{kind}": f"{ours}{kind}" for theirs, ours in _ATTENTION_NAMES.items() for kind in ("weight", "bias")}
    heads = {kind: [f"{head}.{kind}" for head in _HEADS] for kind in ("weight", "bias")}
    wanted = {*names, *heads["weight"], *heads["bias"]}
    missing = sorted(wanted - set(given))
    if missing:
        return {}, set(), [f"{key}: missing" for key in missing]
    converted = {ours: given[theirs] for theirs, ours in names.items()}
    for kind, parts in heads.items():
        converted[f"pooling.heads.{kind}"] = torch.cat([given[part] for part in parts])
    return converted, wanted, []
