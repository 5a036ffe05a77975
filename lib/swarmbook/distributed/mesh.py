"""Which process holds which cells (replica, stage) of a run: equal rectangles.

- a rank has weights, gradients and Adam moments of its cells alone; a replica's embedding lives with its first stage,
  norm and head with its last
- a `row` of ranks holds one or more replicas, a `column` the same stages of all replicas
"""

from dataclasses import dataclass

from swarmbook.config import RunConfig
from swarmbook.errors import ConfigError


@dataclass(frozen=True)
class Mesh:
    """R x S cells on rows x columns ranks: each rank holds R / rows replicas of S / columns stages."""

    replicas: int
    stages: int
    rows: int
    columns: int

    @property
    def ranks(self) -> int:
        return self.rows * self.columns

    def rank(self, replica: int, stage: int) -> int:
        """Who holds a cell."""
        return replica * self.rows // self.replicas * self.columns + stage * self.columns // self.stages

    def cells(self, rank: int) -> tuple[range, range]:
        """The replicas and stages of a rank."""
        row, column = divmod(rank, self.columns)
        height, width = self.replicas // self.rows, self.stages // self.columns
        return range(row * height, (row + 1) * height), range(column * width, (column + 1) * width)

    def ends(self, rank: int) -> list[str]:
        """The parameters of the ends that a rank has."""
        column = rank % self.columns
        return ["embedding"] * (column == 0) + ["norm", "head"] * (column == self.columns - 1)

    def column(self, rank: int) -> list[int]:
        """The ranks that hold the same stages as this one, itself among them, in the order of their replicas."""
        return list(range(rank % self.columns, self.ranks, self.columns))

    def row(self, replica: int) -> list[int]:
        """The ranks that hold stages of a replica, in their order."""
        first = self.rank(replica, 0)
        return list(range(first, first + self.columns))

    def holders(self, replica: int, stage: int) -> list[int]:
        """The rank that holds a cell; of the ends, stage S, the two that hold a part of them, or one that has both."""
        ends = self.rank(replica, 0), self.rank(replica, self.stages - 1)
        return sorted(set(ends)) if stage == self.stages else [self.rank(replica, stage)]

    def keeper(self, rank: int) -> int | None:
        """Who keeps a copy of what a rank has of the ends: the rank beside it in the row; None if it is alone."""
        column = rank % self.columns
        if self.columns == 1 or 0 < column < self.columns - 1:
            return None
        return rank + 1 if column == 0 else rank - 1

    def __str__(self) -> str:
        lines = [f"{self.replicas} x {self.stages} cells (replica, stage) on {self.rows} x {self.columns} ranks"]
        for rank in range(self.ranks):
            replicas, stages = (_span(cells) for cells in self.cells(rank))
            held = self.ends(rank)
            ends = ", embedding" * ("embedding" in held) + ", norm and head" * ("head" in held)
            lines.append(f"rank {rank}: replica {replicas}, stage {stages}{ends}")
        return "\n".join(lines)


def meshes(replicas: int, stages: int) -> list[Mesh]:
    """All ways to share out R x S cells, by the number of ranks, those with most rows first."""
    found = [
        Mesh(replicas, stages, rows, columns)
        for rows in range(1, replicas + 1)
        for columns in range(1, stages + 1)
        if replicas % rows == 0 and stages % columns == 0
    ]
    return sorted(found, key=lambda mesh: (mesh.ranks, -mesh.rows))


def mesh_of(run: RunConfig, ranks: int, wanted: tuple[int, int] | None = None) -> Mesh:
    """How a run is shared out: `wanted` (rows, columns), or as few stages apart as may be, which sends the least.

    ConfigError that names what is possible if it cannot be.
    """
    known = meshes(run.replicas, run.stages)
    fitting = [mesh for mesh in known if mesh.ranks == ranks and wanted in (None, (mesh.rows, mesh.columns))]
    if not fitting:
        asked = f" as {wanted[0]}x{wanted[1]}" if wanted else ""
        valid = ", ".join(f"{mesh.ranks} ({mesh.rows}x{mesh.columns})" for mesh in known)
        raise ConfigError(
            f"{ranks} processes{asked} cannot hold replicas={run.replicas} x stages={run.stages} in equal rectangles: "
            f"start one of {valid} (replicas x stages)"
        )
    return fitting[0]


def _span(cells: range) -> str:
    """Counted from 1, as people do."""
    return str(cells.start + 1) if len(cells) == 1 else f"{cells.start + 1} to {cells.stop}"
