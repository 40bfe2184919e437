"""Canvas: a figure of matplotlib in the project's style, which becomes SVG for light and dark pages, or PNG on white.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind people tell apart, darkened for white paper where they
would be faint; a darker page gets lighter ones. No picture says anything by colour alone: markers, line styles and filled or hollow shapes say it too.
"""

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from treespec.errors import TreeoptError
from treespec.printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2328", "#57606a", "#d5dbe1", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, BROWN = "#0072b2", "#d55e00", "#00805d", "#b0568c", "#8a6d00"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, BROWN, INK)
"""Colours of several series, in their order."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
"""Markers and line styles of the same series."""

DARK = {
    INK: "#e6e9ec",
    MUTED: "#a5afba",
    GRID: "#3a434d",
    PAPER: "#14181d",
    BLUE: "#56b4e9",
    ORANGE: "#f0904a",
    GREEN: "#35c99d",
    PURPLE: "#dc97bf",
    BROWN: "#e0c04f",
}
"""The colour that takes the place of each on a dark page."""

WIDTH = 4.8
"""Inches across a picture that is to be read on the screen of a phone too."""
LEGEND_LINE = 0.2
"""Inches of height that a line of a legend takes."""

Titles = Mapping[str, str]
"""The words that a reader sees who points at a part of a picture, by the part's id (`set_gid`)."""

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.edgecolor": GRID,
    "legend.facecolor": PAPER,
    "legend.framealpha": 1.0,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
_JOINS = "stroke-linejoin: round; stroke-linecap: butt"
_FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


class Canvas:
    """A figure of `width` by `height` inches that `draw` fills, with the titles that `draw` returns. It is drawn when it is asked for."""

    def __init__(self, width: float, height: float, draw: "Callable[[Figure], Titles | None]", alt: str) -> None:
        self._size, self._draw, self.alt = (width, height), draw, alt

    @property
    def width(self) -> float:
        """Return the inches across."""
        return self._size[0]

    def svg(self) -> bytes:
        """Return a file of SVG, which takes dark colours where its reader prefers them. Raises TreeoptError without matplotlib."""
        drawn = self.inline("picture")
        head = f"<style>{dark_style()}</style>"
        body = re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + head, drawn, count=1)
        return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'.encode()

    def inline(self, name: str) -> str:
        """Return an element of SVG for a page, on which `dark_style` stands once. Ids begin with the `name`, so that pictures do not meet."""
        with _style({"svg.hashsalt": name}):
            figure, titles = self._figure()
            out = io.StringIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = out.getvalue()
        text = text[text.index("<svg") :].strip()
        text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        for part, title in (titles or {}).items():
            text = text.replace(f'id="{part}">', f'id="{part}"><title>{escape(printable(title))}</title>', 1)
        text = re.sub(r'\bid="', f'id="{name}-', text)
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
        text = text.replace("'DejaVu Sans', sans-serif", _FONTS).replace("'DejaVu Sans'", _FONTS)
        text = re.sub(r'\s*<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)  # it would hold for the whole page
        width, height = (f"{72 * inches:g}" for inches in self._size)
        shape = f'viewBox="0 0 {width} {height}" width="{width}pt" height="{height}pt" role="img" aria-label="{escape(self.alt)}" style="{_JOINS}"'
        return re.sub(
            r"<svg\b[^>]*>", f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {shape}>', text, count=1
        )

    def png(self) -> bytes:
        """Return a file of PNG, on white paper, which any page shows. Raises TreeoptError without matplotlib."""
        with _style({}):
            figure, _ = self._figure()
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=160, metadata={"Software": None})
        return out.getvalue()

    def _figure(self) -> "tuple[Figure, Titles | None]":
        from matplotlib.figure import Figure

        figure = Figure(figsize=self._size, layout="constrained")
        return figure, self._draw(figure)


def legend(figure: "Figure") -> None:
    """Add a legend above the axes of a figure, a line for each of what they show: among the figures it would lie over some of them."""
    figure.legend(loc="outside upper left", frameon=False, borderaxespad=0.0, borderpad=0.0, labelspacing=0.25)


def dark_style() -> str:
    """Return the style sheet by which pictures take dark colours where a reader prefers them; other programs show the light ones."""
    rules = (f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}' for light, dark in DARK.items() for kind in ("fill", "stroke"))
    return f"@media (prefers-color-scheme: dark){{{''.join(rules)}}}"


def _style(more: dict[str, Any]) -> Any:
    """Return a block in which matplotlib draws in this style; behind it, matplotlib is as it was."""
    try:
        import matplotlib
    except ImportError as e:
        raise TreeoptError(f"pictures need matplotlib, which cannot be imported ({e}); install it with `pip install matplotlib`") from e
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}  # a backend would stay changed
    wanted: Any = {**plain, **_STYLE, **more}
    return matplotlib.rc_context(wanted)
