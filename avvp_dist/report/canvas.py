"""What all pictures share: size, colours, the mark of synthetic data. No pyplot: it keeps every figure it ever made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from avvp_dist.text.escape import drawn

# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, DARK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#333333"
COLOURS = {"audio": BLUE, "visual": ORANGE, "audio_visual": GREEN, "type": PURPLE, "event": DARK}

DPI = 100
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
}


@contextmanager
def picture(path: Path, width: float, height: float, title: str, synthetic: bool) -> Iterator[Figure]:
    """A figure to draw on, written to ``path`` as PNG when the block ends.

    ``width`` x ``height`` are inches of 100 pixels; ``synthetic`` puts the words "synthetic data" under the title.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        figure.suptitle(drawn(f"{title}\nsynthetic data" if synthetic else title))
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(path)
