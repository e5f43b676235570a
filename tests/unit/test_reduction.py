"""Reduction of file rows to segments, equal to that of the published networks after their first linear layer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llp_files import video_id

from avvp_dist.datasets.catalog import LLP, LLP_CLIP_CLAP
from avvp_dist.datasets.llp import OfficialFeatures
from avvp_dist.datasets.reduction import clap_weights, to_segments
from avvp_dist.errors import DataError
from avvp_dist.types import VideoRecord

CLAP, CLIP, MOTION = LLP_CLIP_CLAP.streams
RECORD = VideoRecord(video_id(0), video_id(0), "train", (0,))


def published(maps, linear):
    """VALOR's reduction of CLAP feature maps [B,64,768] before its encoder, [B,10,D]."""
    image = maps.transpose(1, 2).reshape(-1, maps.shape[2], 2, 32)
    stretched = F.interpolate(image, size=(2, 1024), mode="bicubic", align_corners=False)
    mapped = linear(stretched.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean(dim=2)
    return F.adaptive_avg_pool1d(mapped, 10).transpose(1, 2)


def test_reducing_a_clap_map_first_equals_the_published_network():
    torch.manual_seed(0)
    linear = torch.nn.Linear(CLAP.dim, 24).double()
    maps = torch.randn(5, CLAP.rows, CLAP.dim, dtype=torch.float64)
    reduced = torch.from_numpy(np.stack([to_segments(each, CLAP, LLP.segments) for each in maps.numpy()]))
    assert reduced.shape == (5, 10, 768)
    torch.testing.assert_close(linear(reduced), published(maps, linear), rtol=0, atol=1e-13)


def test_clap_weights_sum_to_one_and_are_symmetric():
    weights = clap_weights(10, 64)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_array_equal(weights[:, :32], weights[:, 32:])  # both bands have the same weight
    np.testing.assert_allclose(weights[::-1, 31::-1], weights[:, :32], atol=1e-14)  # time has no direction
    assert weights.min() < 0  # bicubic, not a plain mean


def test_blocks_are_averaged():
    rows = np.arange(80, dtype=np.float32)[:, None] * np.ones((1, 2048), np.float32)
    np.testing.assert_array_equal(to_segments(rows, LLP.streams[1], 10)[:, 0], np.arange(10) * 8 + 3.5)


def write_files(place, beside):
    """Write files in the layout of VALOR's authors, which is also found if ``feats`` itself is given."""
    rng = np.random.default_rng(0)
    files = {}
    for stream, folder in ((CLAP, beside), (CLIP, beside), (MOTION, place / "feats")):
        files[stream.name] = rng.standard_normal((stream.rows, stream.dim)).astype(np.float32)
        (folder / stream.folder).mkdir(parents=True)
        np.save(folder / stream.folder / f"{video_id(0)}.npy", files[stream.name])
    return files


@pytest.mark.parametrize(("beside", "given"), [("", ""), ("", "feats"), ("feats", ""), ("feats", "feats")])
def test_clap_and_clip_files_are_found_and_packed_together(tmp_path, beside, given):
    files = write_files(tmp_path, tmp_path / beside)
    source = OfficialFeatures(tmp_path / given, LLP_CLIP_CLAP)
    assert source.check(RECORD) == []
    values = source.read(RECORD)
    assert (values.shape, values.dtype) == ((10, 2048), np.float16)
    np.testing.assert_array_equal(values[:, :768], to_segments(files["audio"], CLAP, 10).astype(np.float16))
    np.testing.assert_array_equal(values[:, 768:1536], files["visual"].astype(np.float16))
    np.testing.assert_array_equal(values[:, 1536:], files["motion"].astype(np.float16))


def test_problems_of_clap_and_clip_files_are_reported(tmp_path):
    write_files(tmp_path, tmp_path)
    clap, clip = (tmp_path / stream.folder / f"{video_id(0)}.npy" for stream in (CLAP, CLIP))
    np.save(clap, np.zeros((10, 768), np.float32))  # segments as in CLIP files, not a feature map
    clip.unlink()
    assert OfficialFeatures(tmp_path, LLP_CLIP_CLAP).check(RECORD) == [
        f"CLAP/features/{video_id(0)}.npy: shape [10, 768], expected [64, 768]",
        f"CLIP/features/{video_id(0)}.npy: missing",
    ]
    clip.parent.rmdir()
    with pytest.raises(DataError, match=r"(?s)--streams selects them.*CLIP/features/: no such folder"):
        OfficialFeatures(tmp_path, LLP_CLIP_CLAP)
