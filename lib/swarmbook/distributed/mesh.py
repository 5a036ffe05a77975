"""Which process holds which cells (replica, stage) of a run: a mesh of ranks, each with a rectangle of equal size.

- rows are the data-parallel axis (dp): a row of ranks holds one or more whole replicas. Columns are the
  pipeline-parallel axis (pp): a column of ranks holds the same stages of all replicas. "2x3" is 2 rows and 3 columns
- ranks count along the rows: rank = row * columns + column
- a rank has weights, gradients and Adam moments of its cells alone. The embedding of a replica lies with its first
  stage, its last norm and head with its last stage

Serves: `python -m swarmbook.distributed`, option `--mesh`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from swarmbook.config import RunConfig
from swarmbook.errors import ConfigError


@dataclass(frozen=True)
class Mesh:
    """R x S cells on rows x columns ranks (dp x pp): each rank holds S / columns stages of R / rows replicas."""

    replicas: int
    stages: int
    rows: int
    columns: int

    @property
    def ranks(self) -> int:
        return self.rows * self.columns

    @property
    def shape(self) -> str:
        """Rows and columns, as `--mesh` takes them."""
        return f"{self.rows}x{self.columns}"

    def rank(self, replica: int, stage: int) -> int:
        """The rank that holds a cell; stage < S."""
        return replica * self.rows // self.replicas * self.columns + stage * self.columns // self.stages

    def cells(self, rank: int) -> tuple[range, range]:
        """The replicas and the stages that a rank holds."""
        row, column = divmod(rank, self.columns)
        height, width = self.replicas // self.rows, self.stages // self.columns
        return range(row * height, (row + 1) * height), range(column * width, (column + 1) * width)

    def ends(self, rank: int) -> list[str]:
        """The parameters that a rank holds of the ends: of the embedding, last norm and head of its replicas."""
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
        """The rank that holds a cell. The ends (stage S) have two holders, or one where it has first and last stage."""
        ends = self.rank(replica, 0), self.rank(replica, self.stages - 1)
        return sorted(set(ends)) if stage == self.stages else [self.rank(replica, stage)]

    def holders_among(self, replica: int, stage: int, ranks: Sequence[int]) -> bool:
        """Whether one of these ranks holds the cell, or a part of it."""
        return not set(self.holders(replica, stage)).isdisjoint(ranks)

    def keeper(self, rank: int) -> int | None:
        """The rank that keeps a copy of what another rank holds of the ends: the one beside it in its row.

        None for a rank that holds nothing of the ends, or is alone in its row.
        """
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
    """All meshes for R x S cells, by the number of ranks; of as many ranks, those with most rows first."""
    found = [
        Mesh(replicas, stages, rows, columns)
        for rows in range(1, replicas + 1)
        for columns in range(1, stages + 1)
        if replicas % rows == 0 and stages % columns == 0
    ]
    return sorted(found, key=lambda mesh: (mesh.ranks, -mesh.rows))


def mesh_of(run: RunConfig, ranks: int, wanted: tuple[int, int] | None = None) -> Mesh:
    """The mesh of a run on so many ranks: `wanted` (rows, columns), else the one with most rows, which sends the least.

    ConfigError, with the meshes that are possible, if there is none.
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
    """Replicas or stages in words, counted from 1."""
    return str(cells.start + 1) if len(cells) == 1 else f"{cells.start + 1} to {cells.stop}"
