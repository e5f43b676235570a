"""The command group ``avvp data``: assembles its commands, one module each."""

from __future__ import annotations

import typer

from avvp_dist.cli.data_check import check
from avvp_dist.cli.data_inspect import inspect
from avvp_dist.cli.data_pack import pack
from avvp_dist.cli.data_synth import synth
from avvp_dist.cli.data_verify import verify
from avvp_dist.cli.errors import Commands
from avvp_dist.cli.labels import labels, noisy_labels
from avvp_dist.cli.ratios import ratios

data = typer.Typer(
    cls=Commands,
    name="data",
    help="Check, pack, inspect and generate data sets, and import labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in (pack, check, inspect, verify, synth, labels, noisy_labels, ratios):
    data.command()(_command)
