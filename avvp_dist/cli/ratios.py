"""The command ``avvp data ratios``: exports noise ratios."""

from __future__ import annotations

from typing import Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli.output import echo, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.storage.probe import refuse_unwritable

_SOURCE = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FILE",
        help="Folder or URL of a JoMoLD run, or the ratios.json of one of its stages.",
        callback=valid_url,
    ),
]
_OUT = Annotated[str, typer.Option(metavar="FILE", help=".npz file to write.", callback=valid_url)]


def ratios(source: _SOURCE, out: _OUT, storage_settings: STORAGE = None) -> None:
    """Export noise ratios as the .npz file that JoMoLD's published code writes and later methods read.

    It holds the arrays audio and visual, one ratio per class in LLP's official order; method.ratios also reads it.
    """
    from avvp_dist.methods import ratio_files
    from avvp_dist.methods.jomold import read_ratios

    refuse_unwritable(files={"--out": out})
    url = ratio_files.find(source)
    noise_ratios = read_ratios(url, ratio_files.class_names(url))
    storage.write_bytes(out, ratio_files.to_npz(noise_ratios))
    echo(f"{out}: noise ratios of {len(noise_ratios['audio'])} classes, from {url}")
