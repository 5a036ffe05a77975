"""One run on many processes: `torchrun --nproc-per-node=N -m swarmbook.distributed RUN.json`.

- a `Mesh` shares out the cells (replica, stage) of a run over ranks in equal rectangles. Its rows are the data-parallel
  axis (dp), along which replicas lie; its columns are the pipeline-parallel axis (pp), along which stages lie
- a `StageShard` has the weights of one rank's cells. A `PipelineExecutor` takes microbatches through them, a
  `RankTrainer` trains them, and a `RankExchange` is what replicas on several ranks exchange
- everything that is drawn (weights, batches, routes, matchings) follows from the run's seed, so that all ranks draw the
  same without a message. Losses are those of the stacked Fleet to rounding
- rank 0 has the store. It puts the finished run there, and from the checkpoints that it keeps of an unfinished one any
  number of processes goes on

Serves: the command `python -m swarmbook.distributed`; no figure depends on it.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import swarmbook
from swarmbook.config import NUMERICS, RunConfig
from swarmbook.distributed import resharding
from swarmbook.distributed.communicator import Communicator, Finished, world
from swarmbook.distributed.emulated_links import EmulatedLinks
from swarmbook.distributed.mesh import Mesh, mesh_of
from swarmbook.distributed.rank_trainer import RankTrainer
from swarmbook.distributed.supervisor import supervise
from swarmbook.endings import told
from swarmbook.errors import ConfigError, DataError, StoreError, TrainingError
from swarmbook.methods.recovery import RULES
from swarmbook.methods.sync import SYNCS
from swarmbook.records import locks
from swarmbook.records.store import Store, open_store
from swarmbook.runs import config_of
from swarmbook.simulation.network import PLACES, Network
from swarmbook.training import logging_plan
from swarmbook.training.device import device_of

LEAST = 2.0  # seconds: two signs of life
ALIKE = ("keep", "replace", "places", "pace", "weight", "timeout")  # options that all ranks must have alike


def train(run: RunConfig, mesh: Mesh, comm: Communicator, keep: bool = False) -> None:
    """Train a run across all processes, unless it is in the store; rank 0 puts it there.

    keep: put the state there, too, in which the run ends. A run that this one begins with is trained first, if its
    final state is not in the store. TrainingError if another process is training the run.
    """
    store = open_store() if comm.rank == 0 else None
    store = store.keeping() if store and keep else store
    begun = any(place is not None for place in comm.places)  # by the others; this process is new
    TRAIN, FINISHED, HELD = range(3)
    with store.claim([run.key]) if store else nullcontext([]) as mine:
        state = TRAIN if mine or not store else FINISHED if store.get(run.key) else HELD
        state = state if begun else int(comm.all_reduce(torch.tensor([state], device=comm.device)))
        if state == HELD:
            who = locks.holder(store.root / "locks" / f"{run.key}.run") if store else "another process"
            raise TrainingError(f"run {run.key} is being trained by {who}: wait until it has finished")
        if state == FINISHED:
            if comm.replaceable:
                comm.conclude()
            comm.print_once(f"run {run.key} is finished already; SWARMBOOK_FRESH=1 trains it anew")
            return
        if not begun:
            comm.print_once(f"run {run.key} over {comm.backend}: {mesh}")
        parent = None if begun else _final_state(run, store, comm)
        progress = store.progress([run.key]) if store else None
        trainer = RankTrainer(run, mesh, comm, progress)
        trainer.resume(parent, joins=begun)
        trainer.train(partial(_conclude, trainer, store, keep))
        if progress and not trainer.events:
            progress.discard()


def _conclude(trainer: RankTrainer, store: Store | None, keep: bool) -> None:
    """Put the result into the store, which rank 0 has."""
    final = resharding.gather(trainer.state(0), trainer.mesh, trainer.comm) if keep else None
    if store:
        logging_plan.check(trainer.run, trainer.table(), undisturbed=not trainer.events)
        if final:
            store.put_state(trainer.key, final)
        record = store.put(trainer.key, trainer.config(), trainer.table(), trainer.provenance())
        print(f"written to {record.path}", flush=True)
        if trainer.events:
            print(f"processes were lost on the way: this is not the result of run {trainer.run.key}", flush=True)
    if trainer.comm.replaceable:
        trainer.comm.conclude()


def _final_state(run: RunConfig, store: Store | None, comm: Communicator) -> resharding.State | None:
    """The state that a run begins with, on rank 0 alone; None if it begins with none.

    The run that ends in it is trained first, if that state is not in the store.
    """
    if not run.parents:
        return None
    (parent,) = run.parents
    keeping = store and store.keeping()
    if not comm.broadcast(keeping and keeping.get(parent.key) is not None, 0):
        begins = f"run {run.key} begins with the final state of run {parent.key}, which is not in the store"
        if comm.replaceable:
            raise ConfigError(f"{begins}: train that with --keep first, without --replace")
        try:
            mesh = mesh_of(parent, comm.size)
        except ConfigError as error:
            raise ConfigError(f"{begins}, and {error}, with --keep") from error
        train(parent, mesh, comm, keep=True)
    return keeping and keeping.state(parent.key)


def check_replaceable(runs: Sequence[RunConfig]) -> None:
    """ConfigError unless a lost process can be replaced: the run must not need anything that only this process had."""
    if len(runs) != 1:
        raise ConfigError(f"--replace with {len(runs)} runs: give one, as a new process could not tell which it joins")
    (run,) = runs
    sync = SYNCS[run.sync]
    strategy = RULES[run.recovery]
    if strategy is None or strategy.keeps not in (None, "ends"):
        fine = [name for name, rule in RULES.items() if rule and rule.keeps in (None, "ends")]
        raise ConfigError(
            f"--replace with recovery={run.recovery!r}: it needs one that takes nothing from the lost process; take "
            f"one of {', '.join(fine)}"
        )
    if sync and (sync.buffers or sync.keeps) and run.slow_weights == "keep":
        raise ConfigError(
            f"--replace with sync={run.sync!r} and slow_weights='keep': they are lost with a process; take 'peer', "
            "or 'reset' or 'likewise' where nothing has to be alike"
        )
    if run.delay:
        raise ConfigError(f"--replace with delay={run.delay}: what is on its way is lost with a process; take 0")
    if run.moments == "keep":
        raise ConfigError("--replace with moments='keep': they are lost with a process; take 'reset' or 'average'")


def stated(
    runs: Sequence[RunConfig], meshes: Sequence[Mesh], options: argparse.Namespace, ranks: int
) -> dict[str, str]:
    """What a rank was started with, by name: versions, options, and of each run its key, mesh and fields."""
    said: dict[str, Any] = {"swarmbook": swarmbook.__version__, "torch": torch.__version__, "numerics": NUMERICS}
    said |= {"processes": ranks, "GPUs used": torch.cuda.is_available(), "number of runs": len(runs)}
    said |= {f"--{name}": getattr(options, name) for name in ALIKE}
    for i, (run, mesh) in enumerate(zip(runs, meshes, strict=True), 1):
        said[f"--mesh of run {i}"] = mesh.shape
        said |= {f"{name} of run {i}": value for name, value in run.model_dump(mode="json").items()}
        said[f"text or own code of run {i}, by its key"] = run.key
    return {name: json.dumps(value) for name, value in said.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Train the runs named on the command line, one after another; the exit status.

    0: all are in the store. 1: a rank was lost, or training cannot go on. 2: wrong usage, found before anything starts.
    The command also ends with 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    options = _parser().parse_args(argv)
    _, ranks = world()
    try:
        runs = [config_of(name) for name in options.runs]
        plans = [mesh_of(run, ranks, options.mesh) for run in runs]
        if options.replace:
            check_replaceable(runs)
        links = (
            EmulatedLinks(Network.over(options.places, ranks), options.pace, options.weight) if options.places else None
        )
    except (ConfigError, StoreError) as error:
        print(f"swarmbook.distributed: {error}", file=sys.stderr, flush=True)
        return 2
    said = stated(runs, plans, options, ranks)
    work = partial(_work, runs, plans, options.timeout, options.replace > 0, links, options.keep, said)
    return supervise(work, options.replace, options.timeout) if options.replace else work()


def _work(
    runs: Sequence[RunConfig],
    plans: Sequence[Mesh],
    timeout: float,
    replaceable: bool,
    links: EmulatedLinks | None,
    keep: bool,
    said: Mapping[str, str],
) -> int:
    """Train all runs in this process and its comm; the exit status. said: what `stated` gave."""
    device, (rank, _) = device_of("auto"), world()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        if replaceable:  # by default NCCL ends the survivors of a lost rank too
            print(
                "swarmbook.distributed: --replace works over gloo only: hide all GPUs",
                file=sys.stderr,
                flush=True,
            )
            return 2
    refused = 2  # before anything starts
    try:
        comm = Communicator(device, timeout, replaceable, links, said)
        refused = 1
        with comm:
            for run, mesh in zip(runs, plans, strict=True):
                train(run, mesh, comm, keep)
    except Finished:
        print(f"rank {rank}: the other ranks have finished the run", flush=True)
    except (ConfigError, TrainingError, DataError, StoreError) as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        return refused if isinstance(error, ConfigError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node=N -m swarmbook.distributed",
        description="Train runs on N processes: cells (replica, stage) are shared out in equal rectangles.",
        epilog="Exit status: 0 all runs are in the store, 1 training could not go on, 2 wrong usage.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a RunConfig as JSON file, or the key of a run")
    parser.add_argument(
        "--mesh",
        "--grid",  # its older name
        type=_mesh,
        dest="mesh",
        metavar="2x2",
        help="ranks along the replicas (dp) and along the stages (pp); default: as many as fit along the replicas",
    )
    parser.add_argument(
        "--replace",
        type=_times,
        default=0,
        metavar="N",
        help="times that each rank may lose its process and get a new one with rebuilt stages; default: %(default)s",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep final weights and moments, for runs that begin with them and for export",
    )
    parser.add_argument(
        "--places",
        metavar="LIST",
        help=f"messages are as slow as between the places of a list, dealt to ranks in turn: {', '.join(PLACES)}",
    )
    parser.add_argument(
        "--pace", type=float, default=1.0, metavar="S", help="real seconds for a second between places; default: 1"
    )
    parser.add_argument(
        "--weight", type=float, default=1.0, metavar="B", help="bytes between places for a byte sent; default: 1"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="seconds without a sign of life after which a rank counts as lost; default: %(default)g",
    )
    return parser


def _times(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of times such as 0 or 2")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not LEAST <= seconds < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds from {LEAST:g} on: ranks show life each second"
        )
    return seconds


def _mesh(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no mesh such as 2x2")
    return int(rows), int(columns)


if __name__ == "__main__":
    status = told(main, "; training goes on from its last checkpoint when the same is started again")
    sys.stdout.flush()
    if status in (1, 129, 130, 143):
        os._exit(status)  # a backend that still waits for a lost rank must not hold up the exit
    sys.exit(status)
