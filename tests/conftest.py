"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)  # the tests' networks are small: more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Shards that tests fetch do not go into the user's cache."""
    os.environ["AVVP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["AVVP_CACHE"]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden files (outputs of the authors' published code)."""
    return GOLDEN


@pytest.fixture(scope="session")
def llp_annotations() -> Path:
    """Folder of the official LLP annotation files; skips where they are not at hand."""
    folder = Path(os.environ.get("AVVP_LLP_ANNOTATIONS", Path(__file__).parents[2] / "shared" / "llp"))
    if not (folder / "AVVP_train.csv").is_file():
        pytest.skip(f"LLP annotation files not found in {folder}; set AVVP_LLP_ANNOTATIONS to their folder")
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> str:
    """A small synthetic data set in shards; 62 training videos divide by no world size the tests use."""
    from avvp_dist.data import synthetic

    out = str(tmp_path_factory.mktemp("data") / "packed")
    synthetic.write(out, videos=None, seed=0, layout="shards", splits=(62, 14, 14), workers=1, shard_videos=16)
    return out
