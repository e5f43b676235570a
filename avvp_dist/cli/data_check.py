"""The command ``avvp data check``: lists flaws of annotations and bad feature files."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from avvp_dist import storage
from avvp_dist.cli.data_findings import print_edition, print_odd_files
from avvp_dist.cli.data_options import ANNOTATIONS, DATASET, DEFAULT_STREAMS, MEND, STREAMS, WIDTH, WORKERS, find_importer
from avvp_dist.cli.data_view import flaw_counts, print_flaws, print_left_out
from avvp_dist.cli.output import console, valid_url
from avvp_dist.cli.storage_options import STORAGE
from avvp_dist.errors import DataError
from avvp_dist.storage.probe import refuse_unwritable
from avvp_dist.text.plural import plural

if TYPE_CHECKING:  # importing pyarrow and torch takes seconds
    from avvp_dist.shards.feature_source import OddFile
    from avvp_dist.shards.index import LeftOut

_FEATURES = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Also check all feature files in this folder.", callback=valid_url)
]
_JSON = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write all findings to this file.", callback=valid_url)
]
_LIMIT = Annotated[
    int | None,
    typer.Option(
        min=0, help="Maximum number of flaws, bad features and other problems to show; the JSON file holds all of them."
    ),
]


def check(
    dataset: DATASET,
    annotations: ANNOTATIONS,
    features: _FEATURES = None,
    mend: MEND = False,
    streams: STREAMS = DEFAULT_STREAMS,
    json_file: _JSON = None,
    limit: _LIMIT = None,
    workers: WORKERS = None,
    storage_settings: STORAGE = None,
) -> None:
    """List the known flaws of annotations, and bad or unusual feature files. Exit code 2: a feature file is bad."""
    from avvp_dist.shards import pack as packing

    importer = find_importer(dataset, streams, mend)
    refuse_unwritable(files={"--json": json_file})
    try:
        annotated = importer.annotations(annotations, features)
    except DataError as error:
        error.limit = limit
        raise
    bad: tuple[LeftOut, ...] = ()
    odd: tuple[OddFile, ...] = ()
    if features is not None:
        bad, odd = packing.check_features(annotated.records, importer.features(features, annotated), workers)
    if json_file is not None:
        report = {
            "dataset": importer.dataset.name,
            "annotations": annotations,
            "features": features,
            "counts": flaw_counts(annotated),
            "flaws": [asdict(flaw) for flaw in annotated.flaws],
            "bad_features": [asdict(video) for video in bad],
            "odd_features": [asdict(file) for file in odd],
        }
        storage.write_text(json_file, json.dumps(report, indent=1) + "\n")
    stdout = console(WIDTH)
    print_flaws(stdout, annotated, limit)
    print_edition(annotated.flaws)
    print_odd_files(stdout, odd)
    if bad:
        print_left_out(stdout, bad, "bad features", limit)
        raise typer.Exit(2)
    if features is not None:
        videos = len(annotated.records)
        stdout.print(f"features of {videos} {plural(videos, 'video')}: {'none bad' if odd else 'all good'}")
