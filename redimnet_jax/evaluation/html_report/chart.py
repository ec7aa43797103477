"""Charts in pixels of a fixed view box: axes, lines, bands and points, which the template draws as SVG."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from redimnet_jax.evaluation import report

# At this width the text of a chart has its natural size on a phone.
WIDTH = 360
HEIGHT = 300
MAX_STOPS = 40  # of the tab key
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 10, 256


@dataclasses.dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, drawn from pixel `start` to pixel `stop`; `ticks` are (value, text)."""

    label: str
    low: float
    high: float
    start: float
    stop: float
    ticks: Sequence[tuple[float, str]]

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Return the pixels of `values`, those outside of the scale at its ends."""
        share = (np.asarray(values, np.float64) - self.low) / (self.high - self.low)
        return self.start + np.clip(share, 0, 1) * (self.stop - self.start)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """The (pixel, text) of the ticks."""
        return [(round(float(self(value)), 1), text) for value, text in self.ticks]


def horizontal(label: str, low: float, high: float, ticks: Sequence[tuple[float, str]] | None = None) -> Axis:
    """Return an x axis; without `ticks` it gets round ones."""
    return Axis(label, low, high, LEFT, RIGHT, _round_ticks(low, high) if ticks is None else ticks)


def vertical(label: str, low: float, high: float, ticks: Sequence[tuple[float, str]] | None = None) -> Axis:
    """Return a y axis; without `ticks` it gets round ones."""
    return Axis(label, low, high, BOTTOM, TOP, _round_ticks(low, high) if ticks is None else ticks)


class Point(NamedTuple):
    """A marker with what it stands for; `low` and `high` are the pixels of an interval's ends."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Series:
    """A line, an area and markers, drawn in the style number `style`; `path` and `area` are SVG's path data."""

    name: str
    style: int
    path: str = ""
    area: str = ""
    points: Sequence[Point] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure: `title` is its caption, `summary` says in words what it shows, `table` has its numbers.

    `key` is its id in the page, `rule` the (x1, y1, x2, y2) of a line for reference, `across` whether intervals are
    horizontal, and `dim` the dimension whose operating point it follows. `height` is that of the view box.
    """

    key: str
    title: str
    summary: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    table: report.Table | None = None
    rule: tuple[float, float, float, float] | None = None
    across: bool = False
    dim: int | None = None
    height: int = HEIGHT

    @property
    def focusable(self) -> bool:
        """Whether its markers can be stepped through with the keyboard; of many, the table is the better form."""
        return self.key != "det" and 0 < sum(len(each.points) for each in self.series) <= MAX_STOPS


def path(x: np.ndarray, y: np.ndarray) -> str:
    """Return the path data of a line through the pixels `x`, `y` (points,), without points that repeat."""
    points = np.round(np.stack([x, y], axis=1), 1)
    kept = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1)) if len(points) else []
    return "".join(f"{'L' if i else 'M'}{px:g} {py:g}" for i, (px, py) in enumerate(points[kept].tolist()))


def closed(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Return the path data of the area between the pixels `low` and `high`, (points,) each, over `x`."""
    line = path(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))
    return f"{line}Z" if line else ""


def _round_ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    size = (high - low) / most
    step = 10.0 ** np.ceil(np.log10(size))
    step = next((step * share for share in (0.1, 0.2, 0.5) if step * share >= size), step)
    first = np.ceil(low / step - 1e-9)
    values = np.arange(first, np.floor(high / step + 1e-9) + 1) * step
    return [(float(value), f"{value + 0.0:.6g}") for value in values]
