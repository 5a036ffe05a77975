"""How long a message takes between two nodes.

- `data/links.csv` holds the latency and bandwidth of every pair of locations, as the authors' released code has them
- a `Network` puts nodes at locations. Messages do not share links, so that a message's time depends on its two nodes
  and its size alone

Serves: SkipPipe's network figure and all its instances; CheckFree's throughput figures; the latencies of SyncPCN's
payments over wide-area links; training processes over emulated links.
"""

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swarmbook.errors import ConfigError, DataError, unknown
from swarmbook.locations import data_folder

_TWELVE = (
    *("Australia", "Belgium", "Canada", "Germany", "Iowa", "Japan"),
    *("LA", "NL", "Oregon", "Singapore", "Taiwan", "London"),
)
PLACES = {
    # CheckFree's throughput experiment as released, and the list in its code that comes closest to the five places of
    # the paper's text, which the code does not use.
    "seven": ("google", ("Australia", "Belgium", "Canada", "Germany", "Iowa", "NL", "London")),
    "five clusters": ("google", ("LA", "NL", "Germany", "Singapore", "Oregon")),
    # SkipPipe's twelve places with and without the slip in one link, in the order of the schedule that comes with the
    # code, and the eleven of the code's first version.
    "twelve": ("google with slip", _TWELVE),
    "twelve repaired": ("google repaired", _TWELVE),
    "twelve, shipped schedule": ("google with slip", (*_TWELVE[1:], "Australia")),
    "eleven": (
        "aws",
        (
            *("Sofia", "Singapore", "Ireland", "Sydney", "Frankfurt", "Seoul"),
            *("Oregon", "Ohio", "Tokyo", "Amsterdam", "Virginia"),
        ),
    ),
}
# What SkipPipe's planner takes for a network, now and in its first version: `Network.over("twelve", 20, **SKIPPIPE)`.
SKIPPIPE = {"default_ms": 1.0, "default_gib_per_s": 2.0, "overhead": 0.35, "threshold": 0.0}
SKIPPIPE_FIRST = {"default_ms": 10.0, "default_gib_per_s": 0.8, "overhead": 0.35, "threshold": 0.0, "share": 0.5}
GIB = 2**30


@functools.cache
def links(table: str = "google") -> dict[frozenset[str], tuple[float, float]]:
    """Latency (ms) and bandwidth (GiB/s) of each pair of locations in one table of `data/links.csv`.

    Raises `ConfigError` for an unknown table, and `DataError` if the file is missing or damaged.
    """
    path = data_folder() / "links.csv"
    tables: dict[str, dict[frozenset[str], tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                link = float(row["latency_ms"]), float(row["bandwidth_gib_per_s"])
                tables.setdefault(row["table"], {})[frozenset((row["a"], row["b"]))] = link
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot read the link table {path}: {error!r}; restore it with git checkout") from error
    if table not in tables:
        raise ConfigError(unknown("link table", table, tables))
    return tables[table]


@dataclass(frozen=True)
class Network:
    """Nodes 0 to N - 1 at named locations.

    - `locations` [N] are those of the nodes; `table` is the table of `data/links.csv` that has their links.
    - `default_ms` and `default_gib_per_s` are the latency and bandwidth between two nodes in one place, and between
      two places that the table lacks.
    - `overhead` is seconds added to every message.
    - `threshold` is in seconds: a message that would take no longer than that takes no time.
    - `share` is the part of every bandwidth, of the default too, that a message gets.

    The defaults are those of CheckFree's released code, which subtracts 0.1 ms and does not wait for delays up to
    0.2 s. With `threshold=math.inf` the network costs nothing. SkipPipe's planner has the values of `SKIPPIPE`; its
    first version has those of `SKIPPIPE_FIRST`, with an emulation whose share is a quarter.

    Raises `ConfigError` for a location that is not in the table, or a value out of range.
    """

    locations: tuple[str, ...]
    table: str = "google"
    default_ms: float = 10.0
    default_gib_per_s: float = 0.5
    overhead: float = -0.0001
    threshold: float = 0.2
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.locations:
            raise ConfigError("a network needs at least one node: locations is empty")
        known = sorted(frozenset().union(*links(self.table)))
        for name in self.locations:
            if name not in known:
                raise ConfigError(unknown(f"location in link table {self.table!r}", name, known))
        if not self.default_gib_per_s > 0 or not self.default_ms >= 0 or not self.threshold >= 0:
            raise ConfigError(
                f"default_gib_per_s must be positive, default_ms and threshold not negative, not "
                f"{self.default_gib_per_s}, {self.default_ms} and {self.threshold}"
            )
        if not math.isfinite(self.overhead) or not math.isfinite(self.default_ms):
            raise ConfigError(f"overhead and default_ms must be finite, not {self.overhead} and {self.default_ms}")
        if not self.share > 0:
            raise ConfigError(f"share must be positive, not {self.share}")

    @classmethod
    def over(cls, places: str | Sequence[str], nodes: int, **values: float | str) -> "Network":
        """Deal `nodes` nodes over P places in turn: node i is at place i mod P (CheckFree's released code).

        places: a name in `PLACES`, or the locations themselves. values: the other fields of the network.
        """
        if isinstance(places, str):
            if places not in PLACES:
                raise ConfigError(unknown("list of places", places, PLACES))
            table, places = PLACES[places]
            values = {"table": table, **values}
        if nodes < 1 or not places:
            raise ConfigError(f"a network needs at least one node and one place, not {nodes} and {len(places)}")
        return cls(tuple(places[i % len(places)] for i in range(nodes)), **values)

    def __len__(self) -> int:
        return len(self.locations)

    @functools.cached_property
    def latency(self) -> np.ndarray:
        """Milliseconds [N, N], symmetric; 0 from a node to itself. Read-only."""
        return self._matrix(0, self.default_ms, 0.0)

    @functools.cached_property
    def bandwidth(self) -> np.ndarray:
        """GiB/s [N, N] that a message gets, symmetric; infinite from a node to itself. Read-only."""
        return self._matrix(1, self.default_gib_per_s, np.inf, self.share)

    def seconds(self, a: int | np.ndarray, b: int | np.ndarray, size: float | np.ndarray) -> float | np.ndarray:
        """Seconds of a message of `size` bytes from node a to node b: latency + overhead + size / bandwidth.

        Arrays are broadcast against each other. A message from a node to itself takes no time.
        """
        delay = self.latency[a, b] / 1000 + self.overhead + size / (self.bandwidth[a, b] * GIB)
        delay = np.where((np.asarray(a) == b) | (delay <= self.threshold), 0.0, delay)
        return delay if delay.ndim else float(delay)

    def matrix(self, size: float) -> np.ndarray:
        """Seconds [N, N] of a message of `size` bytes between all pairs."""
        nodes = np.arange(len(self))
        return self.seconds(nodes[:, None], nodes, size)

    def _matrix(self, column: int, default: float, itself: float, scale: float = 1.0) -> np.ndarray:
        table, places = links(self.table), list(dict.fromkeys(self.locations))
        pairs = [[table.get(frozenset((a, b)), ())[column:] for b in places] for a in places]
        at = np.array([places.index(name) for name in self.locations])
        values = scale * np.array([[pair[0] if pair else default for pair in row] for row in pairs])[np.ix_(at, at)]
        np.fill_diagonal(values, itself)
        values.flags.writeable = False
        return values
