"""Figures in the colours of the page, each as the bytes of an SVG or PNG image.

Only matplotlib's object interface is used: no figure registry, no window, and no setting stays changed. An SVG file has
no background and keeps its text as text: a page gives both its own colours and fonts.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal, cast

from qubo_compress._internal.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, SOFT, FAINT, RULE, PAPER = "#1f2933", "#64707d", "#e4e7eb", "#cbd2d9", "#ffffff"
BLUE, PALE_BLUE, TEAL, AMBER, RED = "#2456c7", "#b9cdf5", "#0f8a7e", "#c77700", "#c62f3b"

ImageFormat = Literal["svg", "png"]


WIDTH = 10.4
"""In inches; the page shows figures at this size, so fonts keep their point size."""


def plain_axes(axes: Axes) -> None:
    """Axes without a frame, in the page's colours."""
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)


def to_bytes(figure: Figure, image_format: ImageFormat, tight: bool = False) -> bytes:
    """The figure, drawn, as the bytes of an SVG or PNG file."""
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    stream = io.BytesIO()
    # No date and no program name in the file, so that equal results give equal pictures.
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if image_format == "svg" else {"Software": None}
    box, ground = "tight" if tight else None, "none" if image_format == "svg" else PAPER
    with require("matplotlib").rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format=image_format, dpi=110, facecolor=ground, metadata=metadata, bbox_inches=box)
    return stream.getvalue()


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        MissingDependency: when matplotlib is not installed.
    """
    return cast("Figure", require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained"))


def diverging() -> Colormap:
    """A colour map from blue to red for signed values: zero is transparent, on light ground and on dark.

    It has few colours, so that images are small files.
    """
    colours = ["#2362d8ff", "#4f86eea8", "#8a94a010", "#e8605aa8", "#cc2630ff"]
    found = require("matplotlib.colors").LinearSegmentedColormap.from_list("interaction", colours, N=33)
    return cast("Colormap", found.with_extremes(bad="#7f8a9650"))
