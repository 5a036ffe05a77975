"""What a run in training consists of, in one piece or in a part for each rank.

- one piece is what `swarmbook.training.trainer.Pack.state` gives. Checkpoints and final states are kept so, whoever trained: any
  number of processes goes on from what any other number has left
- rank 0 reads and writes them, and has one in its memory meanwhile; parts go from rank to rank
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swarmbook.distributed.communicator import Peers
from swarmbook.distributed.mesh import Grid

State = dict[str, Any]
PIECE = 1 << 28  # bytes of a message


class Axes(NamedTuple):
    """Where tensors have their replicas and stages, and those of the ends, which have no stages, their replicas."""

    replicas: int
    stages: int
    ends: int


FLEET, ADAM, OUTER = Axes(2, 1, 0), Axes(3, 2, 1), Axes(0, 2, 0)


def cut(state: State, grid: Grid, rank: int) -> State:
    """A rank's part of a run's state, or of its "fleet" alone. Norms it has of all cells.

    Weights of one replica are those of every replica.
    """
    part = {**state, "fleet": _cut(state["fleet"], FLEET, grid, rank)}
    if "adam" in state:
        part["adam"] = _cut(state["adam"], ADAM, grid, rank)
        part["rebuilt"] = table(state["rebuilt"], grid, rank)
    if outer := state.get("outer"):
        slow = {name: _cut(outer[name], OUTER, grid, rank) for name in ("phi", "delta")}
        arriving = {}
        for f, message in outer["arriving"].items():
            stages = range(f, grid.stages, outer["fragments"])
            arriving[f] = {**message, "theta": _cut(message["theta"], OUTER, grid, rank, stages)}
        part["outer"] = {**outer, **slow, "arriving": arriving}
    return part


def table(values: Tensor, grid: Grid, rank: int) -> Tensor:
    """A rank's part of a table of cells [R, S + 1], the last column the ends."""
    rows, columns = (slice(cells.start, cells.stop) for cells in grid.cells(rank))
    return torch.cat([values[rows, columns], values[rows, -1:]], 1)


def joined(parts: Sequence[State], grid: Grid) -> State:
    """The state of a run from the parts of all ranks; of norms each has its own part or all of them."""
    first = parts[0]
    state = {**first, "fleet": _joined([part["fleet"] for part in parts], FLEET, grid)}
    if "adam" in first:
        state["adam"] = _joined([part["adam"] for part in parts], ADAM, grid)
        state["rebuilt"] = _tables([part["rebuilt"] for part in parts], grid)
        if first["norms"].shape != (grid.replicas, grid.stages + 1):
            state["norms"] = _tables([part["norms"] for part in parts], grid)
    if outer := first.get("outer"):
        outers = [part["outer"] for part in parts]
        slow = {name: _joined([each[name] for each in outers], OUTER, grid) for name in ("phi", "delta")}
        arriving = {
            f: {**message, "theta": _joined([each["arriving"][f]["theta"] for each in outers], OUTER, grid)}
            for f, message in outer["arriving"].items()
        }
        state["outer"] = {**outer, **slow, "arriving": arriving}
    return state


def gather(part: State, grid: Grid, peers: Peers) -> State | None:
    """The whole state, on rank 0, of what all ranks give."""
    if peers.rank:
        _post(part, 0, peers)
        return None
    own = _unpacked(_packed(part))  # on the CPU, as the others are
    return joined([own, *(_fetch(rank, peers) for rank in range(1, grid.ranks))], grid)


def scatter(state: State | None, grid: Grid, peers: Peers) -> State:
    """This rank's part of what rank 0 gives."""
    if peers.rank:
        return _fetch(0, peers)
    for rank in range(1, grid.ranks):
        _post(cut(state, grid, rank), rank, peers)
    return cut(state, grid, 0)


def _cut(
    tensors: Mapping[str, Tensor], axes: Axes, grid: Grid, rank: int, stages: Iterable[int] | None = None
) -> dict[str, Tensor]:
    """stages: those that the tensors have, in this order; None: all."""
    rows, columns = grid.cells(rank)
    held = [i for i, stage in enumerate(stages or range(grid.stages)) if stage in columns]
    part = {}
    for name, tensor in tensors.items():
        kind, _, parameter = name.rpartition(".")
        if kind == "layers":
            tensor = _narrowed(tensor, axes.replicas, rows).narrow(axes.stages, held[0] if held else 0, len(held))
        elif kind == "ends" and parameter in grid.ends(rank):
            tensor = _narrowed(tensor, axes.ends, rows)
        elif kind == "ends":
            continue
        else:
            tensor = table(tensor, grid, rank)
        part[name] = tensor.clone()  # torch writes the whole tensor that a view looks into
    return part


def _narrowed(tensor: Tensor, axis: int, rows: range) -> Tensor:
    one = tensor.shape[axis] == 1
    return tensor.repeat_interleave(len(rows), axis) if one else tensor.narrow(axis, rows.start, len(rows))


def _joined(parts: Sequence[Mapping[str, Tensor]], axes: Axes, grid: Grid) -> dict[str, Tensor]:
    whole = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        kind = name.rpartition(".")[0]
        if kind == "layers":
            rows = [torch.cat([part[name] for part in row], axes.stages) for row in _rows(parts, grid)]
            whole[name] = torch.cat(rows, axes.replicas)
        elif kind == "ends":
            whole[name] = torch.cat([part[name] for part in parts if name in part], axes.ends)
        else:
            whole[name] = _tables([part[name] for part in parts], grid)
    return whole


def _tables(parts: Sequence[Tensor], grid: Grid) -> Tensor:
    rows = _rows(parts, grid)
    return torch.cat([torch.cat([*(part[:, :-1] for part in row), row[0][:, -1:]], 1) for row in rows])


def _rows(parts: Sequence, grid: Grid) -> list[Sequence]:
    return [parts[first : first + grid.columns] for first in range(0, grid.ranks, grid.columns)]


def _packed(part: State) -> Tensor:
    content = io.BytesIO()
    torch.save(part, content)
    return torch.frombuffer(content.getbuffer(), dtype=torch.uint8)


def _unpacked(content: Tensor) -> State:
    return torch.load(io.BytesIO(content.numpy()), map_location="cpu", weights_only=True)


def _post(part: State, to: int, peers: Peers) -> None:
    content = _packed(part).to(peers.device)
    peers.send(torch.tensor([len(content)], device=peers.device), to)
    for piece in content.split(PIECE):
        peers.send(piece, to)
    peers.flush()


def _fetch(source: int, peers: Peers) -> State:
    (size,) = peers.receive(torch.zeros(1, dtype=torch.int64, device=peers.device), source).read().tolist()
    pieces = torch.empty(size, dtype=torch.uint8, device=peers.device).split(PIECE)
    return _unpacked(torch.cat([peers.receive(piece, source).read() for piece in pieces]).cpu())
