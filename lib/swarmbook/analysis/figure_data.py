"""The numbers that a figure draws, as a table: whoever wants to draw them otherwise need not read them off a picture.

One row is a point of a line, a marker, an interval, a place of a band, a bar, or a cell of a heat map.

- panel: the panel's title, or its number. kind: what is drawn. series: the name in the legend, where there is one.
- x, y: where it is, in the units of the axes; the name of the place where an axis has names.
- x_to, y_to: the other end of an interval, the upper edge of a band, or the opposite corner of a bar. value: of a cell
  of a heat map.

Texts and arrows are not data, and neither are drawings of shapes other than bars.

Serves: the pictures of all figures (`swarmbook.analysis.pictures`), and the tables beside them in the report.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

COLUMNS = ("panel", "kind", "series", "x", "y", "x_to", "y_to", "value")
UNSEEN = ("None", "none", "", " ")  # matplotlib's names of no line and no marker


def table(figure: Figure) -> str:
    """What a figure draws as CSV, with the columns `COLUMNS`; numbers to six digits."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    for number, ax in enumerate((ax for ax in figure.axes if ax.get_label() != "<colorbar>"), 1):
        panel = " ".join((ax.get_title("left") or ax.get_title()).split()) or f"panel {number}"
        names = named_places(ax.xaxis), named_places(ax.yaxis)
        for kind, series, places, value in _drawn(ax):
            cells = [_told(place, names[i % 2]) for i, place in enumerate(places)]
            rows.writerow([panel, kind, series, *cells, *[""] * (4 - len(cells)), _told(value, {})])
    return file.getvalue()


def named_places(axis: Axis) -> dict[float, str]:
    """The names at the whole numbers of an axis; none if it is an axis of numbers."""
    ticks = axis.get_majorticklocs()
    labels = zip(ticks, axis.get_majorticklabels(), strict=False)
    names = {tick: " ".join(label.get_text().split()) for tick, label in labels}
    whole = isinstance(axis.get_major_locator(), FixedLocator) and (ticks == ticks.round()).all()
    return names if whole and any(name != f"{tick:g}" for tick, name in names.items()) else {}


def _told(number: float | None, names: dict[float, str]) -> str:
    if number is None or number != number:
        return ""
    return names.get(round(float(number))) or f"{float(number):.6g}"


def _drawn(ax: Axes) -> Iterator[tuple[str, str, tuple, float | None]]:
    """The kind, series, places and value of each thing that a panel draws."""
    of_container = {id(part): box.get_label() for box in ax.containers for part in _parts(box)}
    caps = {id(cap) for box in ax.containers if isinstance(box, ErrorbarContainer) for cap in box[1]}
    for artist in (*ax.lines, *ax.collections, *ax.patches, *ax.images):
        if not artist.get_visible() or id(artist) in caps:  # an interval has its ends
            continue
        series = str(of_container.get(id(artist)) or artist.get_label())
        series = "" if series.startswith(("_child", "_noleg")) else " ".join(series.lstrip("_").split())
        yield from ((kind, series, places, value) for kind, places, value in _marks(artist, ax))


def _parts(container: Any) -> Iterator[Artist]:
    for part in container:
        if isinstance(part, Artist):
            yield part
        elif part is not None:
            yield from _parts(part)


def _marks(artist: Artist, ax: Axes) -> Iterator[tuple[str, tuple, float | None]]:
    if isinstance(artist, Line2D):
        in_data = artist.get_transform().contains_branch_seperately(ax.transData)
        drawn = artist.get_linestyle() not in UNSEEN
        kind = ("line" if drawn else "point") if all(in_data) else "reference line"
        points = np.asarray(artist.get_xydata(), dtype=float)
        for point in points if all(in_data) else points[:1] if any(in_data) else ():
            yield kind, tuple(place if there else None for place, there in zip(point, in_data, strict=True)), None
    elif isinstance(artist, PathCollection):
        yield from (("point", tuple(place), None) for place in np.ma.filled(artist.get_offsets(), np.nan))
    elif isinstance(artist, LineCollection):
        for segment in artist.get_segments():
            if len(segment):
                yield "interval", (*segment[0], *segment[-1]), None
    elif isinstance(artist, QuadMesh):
        values, corners = np.ma.filled(artist.get_array(), np.nan), artist.get_coordinates()
        for (row, column), value in np.ndenumerate(values.reshape(corners.shape[0] - 1, -1)):
            middle = (corners[row, column] + corners[row + 1, column + 1]) / 2
            yield "cell", tuple(middle), value
    elif isinstance(artist, PolyCollection):
        for path in artist.get_paths():  # of fill_between: along one edge, and back along the other
            count = (len(path.vertices) - 3) // 2
            edges = path.vertices[1 : count + 1], path.vertices[count + 2 : -1][::-1]
            if len(edges[0]) == len(edges[1]) and (edges[0][:, 0] == edges[1][:, 0]).all():
                yield from (("band", (*low, *high), None) for low, high in zip(*edges, strict=True))
    elif isinstance(artist, Rectangle):
        yield "bar", (*artist.get_xy(), artist.get_x() + artist.get_width(), artist.get_y() + artist.get_height()), None
    elif isinstance(artist, AxesImage) and np.ndim(artist.get_array()) == 2:
        for (row, column), value in np.ndenumerate(np.ma.filled(artist.get_array().astype(float), np.nan)):
            yield "cell", (column, row), value
