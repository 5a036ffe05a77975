"""Training: one pack of runs in one Fleet, step by step, from nothing or from where it was killed.

Runs that differ only in seed, route, recovery, failure rate or probes share a Fleet: each keeps its own weights,
batches, failures and learning rates, and its numbers are those it would have alone, to rounding. Within a step, in
the order of CheckFree Algorithm 1: lost stages are rebuilt, then forward and backward over all microbatches, one
clip per (replica, stage), one Adam step.
"""

import os
import platform
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

import swarmbook
from swarmbook import data
from swarmbook.churn import failures
from swarmbook.config import NUMERICS, RunConfig
from swarmbook.device import device_of
from swarmbook.fleet import Fleet
from swarmbook.model import Shape
from swarmbook.optim import Adam, schedule
from swarmbook.recovery import RULES, Lost
from swarmbook.route import ROUTES
from swarmbook.store import Progress

PACKED = {"seed", "route", "recovery", "failure_rate", "lr_boost", "probes"}  # may differ within a pack
CHECKPOINT_SECONDS = 60.0
COMPILE_FLOPS = {"cpu": 1e13, "cuda": 1e16}  # about two minutes of eager training, which a compilation repays
JUMP_RULES = ("random", "copy previous", "uniform average", "CheckFree")


def packs(configs: Sequence[RunConfig], device: str = "auto") -> Iterator[list[RunConfig]]:
    """Split runs into groups that can share a Fleet and fit into the device's memory together."""
    alike: dict[str, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(config.model_dump_json(exclude=PACKED), []).append(config)
    for group in alike.values():
        size = max(1, int(_memory(device) // sum(_bytes(group[0]))))
        parts = -(-len(group) // size)
        yield from (group[i::parts] for i in range(parts))


def train(pack: Sequence[RunConfig], progress: Progress, device: str = "auto", show: bool = True) -> "Pack":
    """Train a pack to its end, streaming metrics and checkpoints to `progress`.

    Runs that diverge are listed in the result's `diverged` (run index -> step and likely cause); training stops
    early when none is left.
    """
    state = Pack(pack, progress, device)
    config = pack[0]
    bar = tqdm(
        total=config.steps * state.tokens_per_step,
        initial=state.step * state.tokens_per_step,
        desc=f"{len(pack)} run{'s' * (len(pack) > 1)} on {state.fleet.device}",
        unit="tok",
        unit_scale=True,
        mininterval=1.0,
        disable=not show,
    )
    saved = time.monotonic()
    with bar:
        if state.step == 0:
            state.evaluate()
        while state.step < config.steps and state.healthy:
            state.advance()
            bar.update(state.tokens_per_step)
            if state.step % config.log_every == 0:
                state.log()
                bar.set_postfix_str(f"loss {state.last_loss:.3f}", refresh=False)
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                state.evaluate()
            if not state.losses and time.monotonic() - saved > CHECKPOINT_SECONDS:
                state.save()
                saved = time.monotonic()
        state.log()
        state.probe()
    return state


class Pack:
    """A pack in training: its Fleet, optimizer, data and position."""

    def __init__(self, pack: Sequence[RunConfig], progress: Progress, device: str):
        first = pack[0]
        self.runs, self.progress, self.step = list(pack), progress, 0
        self.started, self.seconds, self.trained = time.monotonic(), 0.0, 0
        tokens = data.tokens(first.data, "train", first.tokenizer, first.data_limit)
        limit = first.data_limit and first.held_out * first.sequence + 1  # an endless source: no more than needed
        held_out = data.tokens(first.data, "validation", first.tokenizer, limit)
        self.held_out = data.held_out(held_out, first.sequence, first.held_out)[None]  # [1, N, T+1]
        per_step = (first.replicas, first.microbatches, first.batch)
        self.batches = [data.Batches(tokens, first.sequence, per_step, run.seeds("batches")) for run in pack]
        self.traces = [
            failures(run.rng("failures"), run.steps, run.replicas, run.stages, run.failure_rate) for run in pack
        ]
        seeds = [int(run.seeds("weights", r).generate_state(1)[0]) for run in pack for r in range(run.replicas)]
        shape = shape_of(first, tokens.vocabulary)
        self.at_once, checkpointing = _fitting(pack, device)  # asked before the weights take their memory
        compile = "auto" if _flops(pack, shape) > COMPILE_FLOPS[device_of(device).type] else False
        self.fleet = Fleet(shape, seeds, device, first.precision, compile, checkpointing)
        self.adam = Adam(self.fleet, first.lr)
        self.rate = schedule(first.schedule, first.lr, first.warmup, first.steps)
        self.norms = torch.ones(len(seeds), first.stages + 1)
        self.losses: list[torch.Tensor] = []
        self.diverged: dict[int, str] = {}
        self.last_loss = float("nan")
        self.tokens_per_step = len(pack) * first.tokens_per_step
        restored = progress.load()
        if restored is not None:
            self._restore(*restored)

    @property
    def healthy(self) -> list[int]:
        return [i for i in range(len(self.runs)) if i not in self.diverged]

    def advance(self) -> None:
        """One training step of every run."""
        for i, run in enumerate(self.runs):
            if self.traces[i][self.step].any():
                self._rebuild(i, run)
        tokens = np.concatenate([batches[self.step] for batches in self.batches])  # [R, M, B, T+1]
        self.losses.append(self.fleet.gradients(tokens, self._cells(), self.at_once))
        self.norms = self.fleet.clip(self.runs[0].clip)
        self.adam.step(self.rate(self.step))
        self.step += 1
        self.trained += self.tokens_per_step

    def log(self) -> None:
        """Stream the training losses since the last call, and take note of runs that have diverged."""
        if not self.losses:
            return
        losses = torch.stack(self.losses).float().cpu()  # [steps, R]
        losses = losses.unflatten(1, (len(self.runs), -1)).mean(2)  # [steps, runs]
        for i in self.healthy:
            bad = (~torch.isfinite(losses[:, i])).nonzero()
            if len(bad):
                self._diverge(i, self.step - len(losses) + int(bad[0]))
        self._record("training loss", losses.mean(0).tolist())
        self.losses = []
        self.last_loss = float(losses.mean(0)[self.healthy].mean())  # nan when none is healthy

    def evaluate(self) -> None:
        """Validation loss of every run on the same held-out sequences, in order whatever the run's route."""
        self._record("validation loss", self._validation_loss())
        if self.step == 0:
            return
        for s in range(self.runs[0].stages):
            norms = self.norms[:, s].unflatten(0, (len(self.runs), -1)).mean(1)
            self._record("gradient norm", norms.tolist(), stage=s + 1)

    def probe(self) -> None:
        """Rise of the validation loss when one stage is lost and rebuilt, for every stage and rule.

        Measured on the finished run, which is put back as it was after each rebuild.
        """
        asking = [i for i in self.healthy if "loss jump" in self.runs[i].probes]
        if not asking:
            return
        before = self._validation_loss()
        for s in range(self.runs[0].stages):
            cells = [(i, r) for i in asking for r in self._replicas(i)]
            kept = [{name: weight.clone() for name, weight in self.fleet.stage(r, s).items()} for _, r in cells]
            for rule in JUMP_RULES:
                for i, r in cells:
                    rng = self.runs[i].rng("recovery", self.step, r - self._replicas(i)[0], s)
                    lost = Lost(r, s, frozenset({s}), self.runs[i].stages, rng)
                    RULES[rule](self.fleet, lost, self.norms)
                after = self._validation_loss()
                rises = [after[i] - before[i] if i in asking else None for i in range(len(self.runs))]
                self._record("loss jump", rises, stage=s + 1, label=rule)
                for (_, r), weights in zip(cells, kept, strict=True):
                    for name, weight in self.fleet.stage(r, s).items():
                        weight.copy_(weights[name])

    def save(self) -> None:
        state = {
            "fleet": self.fleet.state_dict(),
            "adam": self.adam.state_dict(),
            "norms": self.norms,
            "diverged": self.diverged,
            "seconds": self.seconds + time.monotonic() - self.started,
        }
        self.progress.save(state, self.step)

    def provenance(self) -> dict:
        """How the numbers came about; everything here may differ between two runs of one key."""
        seconds = time.monotonic() - self.started
        return {
            "swarmbook": swarmbook.__version__,
            "numerics": NUMERICS,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "device": _device_name(self.fleet.device),
            "threads": torch.get_num_threads(),
            "compiled": bool(self.fleet.compiled),
            "packed": len(self.runs),
            "seconds": round(self.seconds + seconds, 1),
            "tokens_per_second": round(self.trained / seconds),
        }

    def _rebuild(self, i: int, run: RunConfig) -> None:
        first = self._replicas(i)[0]
        for replica, stages in enumerate(self.traces[i][self.step]):
            dead = frozenset(np.flatnonzero(stages).tolist())
            for stage in sorted(dead):
                rng = run.rng("recovery", self.step, replica, stage)
                # All of `dead` stay dead for the rule: a stage rebuilt a moment ago holds nothing of its own.
                lost = Lost(first + replica, stage, dead, run.stages, rng)
                RULES[run.recovery](self.fleet, lost, self.norms)
                self.adam.reset(first + replica, stage)
                self.adam.lr_scale[first + replica, stage] = run.lr_boost
                self._row(i, "failure", 1.0, stage=stage + 1)

    def _cells(self) -> np.ndarray | None:
        """The pack's routes in one array [P, R, M, 2]; None when all are in order."""
        if all(run.route == "in order" for run in self.runs):
            return None
        cells = []
        for i, run in enumerate(self.runs):
            own = ROUTES[run.route](run.replicas, run.stages, run.microbatches, run.rng("route", self.step))
            own[..., 0] += self._replicas(i)[0]
            cells.append(own)
        return np.concatenate(cells, axis=1)

    def _replicas(self, i: int) -> range:
        """Rows of run i in the Fleet."""
        each = self.runs[0].replicas
        return range(i * each, (i + 1) * each)

    def _validation_loss(self) -> list[float]:
        losses = self.fleet.loss(self.held_out)  # [R]
        return losses.unflatten(0, (len(self.runs), -1)).mean(1).tolist()

    def _record(self, metric: str, values: Sequence[float | None], stage: int = 0, label: str = "") -> None:
        for i in self.healthy:
            if values[i] is not None:
                self._row(i, metric, values[i], stage, label)

    def _row(self, i: int, metric: str, value: float, stage: int = 0, label: str = "") -> None:
        row = {"run": i, "step": self.step, "metric": metric, "stage": stage, "label": label, "value": value}
        self.progress.append([row])

    def _diverge(self, i: int, step: int) -> None:
        run = self.runs[i]
        losses = np.flatnonzero(self.traces[i][: step + 1].any(axis=(1, 2)))
        recent = len(losses) and step - losses[-1] <= 20
        cause = (
            f"a stage was rebuilt by {run.recovery!r} at step {losses[-1]}"
            if recent
            else f"the learning rate {run.lr} is probably too high; try {run.lr / 3:.1g}, or a warm-up"
        )
        self.diverged[i] = f"run {run.key}: the loss is not finite from step {step} on; {cause}"

    def _restore(self, state: dict, step: int) -> None:
        self.fleet.load_state_dict(state["fleet"])
        self.adam.load_state_dict(state["adam"])
        self.norms, self.diverged = state["norms"], state["diverged"]
        self.seconds, self.step = state["seconds"], step


def shape_of(config: RunConfig, vocabulary: int) -> Shape:
    return Shape(
        stages=config.stages,
        layers_per_stage=config.layers_per_stage,
        width=config.width,
        heads=config.heads,
        hidden=config.hidden,
        vocabulary=vocabulary,
    )


def _flops(pack: Sequence[RunConfig], shape: Shape) -> float:
    """Rule of thumb: 6 per parameter and token."""
    return 6.0 * shape.parameters * pack[0].tokens_per_step * pack[0].steps * len(pack)


def _bytes(config: RunConfig) -> tuple[float, float]:
    """Memory one run takes: weights, gradients and moments; and what the forward pass keeps of all microbatches."""
    vocabulary = data.tokenizer(config.tokenizer).get_vocab_size()
    shape = shape_of(config, vocabulary)
    per_token = shape.layers * (7 * config.width + 2 * config.hidden) + 4 * config.width
    return 24.0 * config.replicas * shape.parameters, 4.0 * config.tokens_per_step * per_token


def _fitting(pack: Sequence[RunConfig], device: str) -> tuple[int, bool]:
    """Microbatches whose activations fit beside the pack's weights, and whether even one needs checkpointing."""
    weights, activations = (len(pack) * size for size in _bytes(pack[0]))
    fitting = int((_memory(device) - weights) / activations * pack[0].microbatches)
    return min(max(fitting, 1), pack[0].microbatches), fitting < 1


def _memory(device: str) -> float:
    """Bytes a pack may use."""
    if device_of(device).type == "cuda":
        return 0.8 * torch.cuda.mem_get_info(device_of(device))[0]
    return 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
