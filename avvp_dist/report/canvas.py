"""Size, colors and style of all figures, and the label of synthetic data. No pyplot, which keeps every figure in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from avvp_dist.text.escape import mathtext

# The colors of Okabe and Ito, which color-blind readers can distinguish.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, DARK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#333333"

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
def new_figure(path: Path, width: float, height: float, title: str, synthetic: bool) -> Iterator[Figure]:
    """Yield a figure to draw on, and write it to ``path`` as PNG when the block ends.

    Args:
        path: the PNG; its folder is created if necessary.
        width: in inches of 100 pixels.
        height: in inches of 100 pixels.
        title: title of the figure.
        synthetic: whether to add "synthetic data" below the title.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        figure.suptitle(mathtext(f"{title}\nsynthetic data" if synthetic else title))
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(path)
