"""How a figure leaves a notebook: at twice the density of the screen, with a description, and looked over.

- A picture has 256 colours. It is then smaller than one of half the density in full colour, and the eye sees no
  difference. SVG is as small and sharper, but its text changes with every release of matplotlib, and nbval compares it.
- The description is read aloud in place of the picture. It stands in the output's metadata under "alt", where the
  report finds it. A drawing says itself what it shows, by `figure.set_label`; any other figure is described by its
  axes and its series.
- What lies over something else stands there as well, under "overlaps". Tests demand that nothing does.
- The picture carries the numbers that it draws (`swarmbook.analysis.figure_data`) as a text of the PNG, from which the
  report makes a table. They add a few hundredths to its size.
- Where SWARMBOOK_FIGURES names a folder, the figure is written there as SVG as well, under the checksum of the picture.

Serves: the figures of all five notebooks, and their alternative texts in the report.
"""

import hashlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection, QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from swarmbook.analysis import figure_data

LONGEST = 1500  # characters of a description; who listens to it does not want more
NUMBERS = "numbers"  # the name of the text in a PNG that is its table
LARGEST = 1_000_000  # bytes of a table that a picture carries; readers of PNG refuse larger texts


def install() -> None:
    """Let the notebook in which this runs, if any, show figures as `picture` makes them."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        plt.switch_backend(plt.get_backend())  # which registers another way; to be done before, not at the first figure
        shell.display_formatter.formatters["image/png"].for_type(Figure, picture)


def picture(figure: Figure) -> tuple[bytes, dict[str, Any]] | None:
    """A figure as a PNG of twice its density, and the metadata of that: width and height in pixels of the page, "alt",
    and "overlaps" if anything lies over something else. None for a figure without axes."""
    from PIL import Image, PngImagePlugin

    if not figure.axes:
        return None
    density = figure.dpi
    figure.set_dpi(2 * density)
    try:
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        found = overlaps(figure)
    finally:
        figure.set_dpi(density)
    file, texts, numbers = io.BytesIO(), PngImagePlugin.PngInfo(), figure_data.table(figure)
    if len(numbers.encode()) <= LARGEST:
        texts.add_itxt(NUMBERS, numbers, zip=True)
    small = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(file, "PNG", pnginfo=texts)
    if folder := os.environ.get("SWARMBOOK_FIGURES"):
        with plt.rc_context({"svg.hashsalt": "swarmbook"}):
            figure.savefig(FilePath(folder, f"{name_of(file.getvalue())}.svg"), format="svg", metadata={"Date": None})
    size = {"width": image.width // 2, "height": image.height // 2}
    return file.getvalue(), {**size, "alt": described(figure)} | ({"overlaps": found} if found else {})


def name_of(picture: bytes) -> str:
    """The name under which the SVG of a picture is written."""
    return hashlib.sha256(picture).hexdigest()[:20]


def numbers_of(picture: bytes) -> str | None:
    """The table of numbers that a PNG carries, as CSV; None for one that carries none."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture))
    image.load()
    return image.text.get(NUMBERS)


def described(figure: Figure) -> str:
    """A figure in words: its label if it has one, otherwise each panel's title, axes and series."""
    if figure.get_label():
        return figure.get_label()
    text = ". ".join(filter(None, map(_panel, figure.axes)))
    return text if len(text) <= LONGEST else text[: LONGEST - 4].rsplit(" ", 1)[0] + " ..."


def _panel(ax: Axes) -> str:
    title, x, y = (" ".join(text.split()) for text in (ax.get_title("left"), ax.get_xlabel(), ax.get_ylabel()))
    axes = f"{y} against {x}" if x and y else x or y
    shown = [*zip(*ax.get_legend_handles_labels(), strict=True)]
    hidden = [(line, str(line.get_label())) for line in ax.lines]  # from legends: another panel has the same name
    shown += [(line, label[1:]) for line, label in hidden if label[:1] == "_" and label[:6] not in ("_child", "_noleg")]
    return ": ".join(filter(None, (title, axes, "; ".join(_series(ax, *series) for series in shown))))


def _series(ax: Axes, handle: Any, label: str) -> str:
    """A line's name with its first and last value, points with all of theirs, and of anything else the name."""
    label = " ".join(label.split())
    line = handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
    if not isinstance(line, Line2D) or not len(line.get_xdata()):
        return label
    x, y = (np.atleast_1d(np.asarray(values, dtype=float)) for values in line.get_data())
    for places, values, axis in ((y, x, ax.yaxis), (x, y, ax.xaxis)):
        if names := figure_data.named_places(axis):
            pairs = [(names.get(place), value) for place, value in zip(places.round(), values, strict=True)]
            return f"{label}: " + ", ".join(f"{name} {value:.3g}" for name, value in pairs if name and value == value)
    y = y[np.isfinite(y)]
    if len(y) < 2:
        return f"{label}: {y[0]:.3g}" if len(y) else label
    drawn = line.get_linestyle() not in figure_data.UNSEEN
    return f"{label}: from {y[0]:.3g} to {y[-1]:.3g}" if drawn else f"{label}: between {y.min():.3g} and {y.max():.3g}"


def overlaps(figure: Figure) -> list[str]:
    """What lies over something else in a figure that has been drawn: texts and legends over one another, over data, or
    beyond the edge.

    A text within a bar or a cell names it. So does one with a box of its own, which hides what is behind.
    """
    renderer = figure.canvas.get_renderer()
    found = list(_texts(figure))
    extent = {Legend: Legend.get_window_extent}  # that of an annotation would hold its arrow
    boxes = [
        (artist, extent.get(type(artist), Text.get_window_extent)(artist, renderer).padded(-1)) for artist in found
    ]
    boxes = [(artist, box) for artist, box in boxes if box.width > 0 and box.height > 0]
    faults = []
    corners = np.array([box.extents for _, box in boxes])
    for i, (artist, box) in enumerate(boxes):
        others = corners[i + 1 :]
        over = (others[:, 0] < box.x1) & (others[:, 2] > box.x0) & (others[:, 1] < box.y1) & (others[:, 3] > box.y0)
        faults += [f"{_named(artist)} lies over {_named(boxes[i + 1 + j][0])}" for j in np.flatnonzero(over)]
        if not (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
                and box.y1 <= figure.bbox.y1):  # fmt: skip
            faults.append(f"{_named(artist)} is cut off at the edge")
    loose = [i for i, (artist, _) in enumerate(boxes) if isinstance(artist, Legend) or not artist.get_bbox_patch()]
    for ax in figure.axes:
        for mark in (*ax.lines, *ax.collections, *ax.patches):
            if mark.get_visible() and not isinstance(mark, FancyArrowPatch) and mark.get_zorder() > 0:
                covered = _covered(corners[loose], mark, ax)
                faults += [
                    f"{_named(boxes[loose[i]][0])} lies over data of {_panel(ax).split(':')[0]!r}" for i in covered
                ]
    return sorted(set(faults))


def _texts(figure: Figure) -> Iterator[Artist]:
    """All legends, titles, labels, tick labels and other texts that a figure shows."""
    yield from figure.legends
    yield from (text for text in figure.texts if text.get_text())
    for ax in figure.axes:
        if ax.get_legend() is not None:
            yield ax.get_legend()
        inner: list[Text] = [*ax.texts]
        for side in ("left", "center", "right"):
            inner.append({"left": ax._left_title, "center": ax.title, "right": ax._right_title}[side])
        if ax.axison:
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                inner += [axis.label, axis.get_offset_text()]
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    if low <= tick.get_loc() <= high:
                        inner += [tick.label1, tick.label2]
        yield from (text for text in inner if text.get_visible() and text.get_text().strip())


def _covered(boxes: np.ndarray, mark: Artist, ax: Axes) -> list[int]:
    """Which boxes [number, (x0, y0, x1, y1)] lie over a mark, and not within one that they name."""
    if isinstance(mark, QuadMesh):
        return []  # the cells of a heat map bear their numbers
    paths, points = _drawn(mark)
    corners = np.concatenate([points, *(path.vertices for path in paths)])
    corners = corners[np.isfinite(corners).all(axis=1)]
    if not len(corners):
        return []
    (left, low), (right, high) = corners.min(axis=0), corners.max(axis=0)
    left, low, right, high = max(left, ax.bbox.x0), max(low, ax.bbox.y0), min(right, ax.bbox.x1), min(high, ax.bbox.y1)
    near = (boxes[:, 0] <= right) & (boxes[:, 2] >= left) & (boxes[:, 1] <= high) & (boxes[:, 3] >= low)
    covered = []
    for i in np.flatnonzero(near):
        box = Bbox.from_extents(*boxes[i])
        seen = Bbox.intersection(box, ax.bbox)  # the rest of a mark is not drawn
        if seen is None:
            continue
        filled = not isinstance(mark, Line2D)
        hit = any(seen.contains(x, y) for x, y in points)
        hit |= any(path.intersects_bbox(seen, filled=filled) for path in paths)
        named = isinstance(mark, Patch) and paths[0].contains_points(box.corners()).all()
        if hit and not named:
            covered.append(int(i))
    return covered


def _drawn(mark: Artist) -> tuple[list[Path], np.ndarray]:
    """The lines and areas of a mark, and the places of its points [number, 2], in pixels."""
    nothing = np.zeros((0, 2))
    if isinstance(mark, Line2D):
        points = mark.get_transform().transform(mark.get_xydata()) if len(mark.get_xdata()) else nothing
        points = points[np.isfinite(points).all(axis=1)]
        drawn = mark.get_linestyle() not in figure_data.UNSEEN and len(points) > 1
        return [Path(points)] if drawn else [], nothing if mark.get_marker() in figure_data.UNSEEN else points
    paths = mark.get_paths() if isinstance(mark, Collection) else [mark.get_path()]
    if isinstance(mark, PathCollection):  # its paths are markers
        return [], mark.get_offset_transform().transform(mark.get_offsets())
    return [mark.get_transform().transform_path(path) for path in paths if len(path.vertices)], nothing


def _named(artist: Artist) -> str:
    if isinstance(artist, Legend):
        return f"the legend of {artist.get_texts()[0].get_text()!r}" if artist.get_texts() else "a legend"
    return f"{' '.join(artist.get_text().split())!r}"
