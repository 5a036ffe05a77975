"""What a run is: a frozen, validated configuration whose hash names its result.

- `RunConfig` holds everything that changes the numbers of a run, and nothing else; where and how fast it runs
  is decided elsewhere
- `grid` spells an experiment as a readable product; all its runs with one seed see the same weights, batches
  and failures
- `NUMERICS` is raised by hand when training numbers change on purpose; a golden run in the tests guards it
"""

import itertools
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from swarmbook.data import tokenization
from swarmbook.errors import ConfigError, unknown
from swarmbook.methods import recovery, sync
from swarmbook.methods.failures import trace
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.model_size import Shape
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import ROUTES, fields_of
from swarmbook.methods.sync import SYNCS
from swarmbook.records.keys import code_of, key_of

NUMERICS = 1

Count = Annotated[int, Field(ge=1)]
Count0 = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


ARCHITECTURE = {"tokenizer", "stages", "layers_per_stage", "width", "heads", "hidden", "replicas"}


class RunConfig(BaseModel):
    """One training run.

    Sizes: `stages` x `layers_per_stage` LLaMA layers of `width`, `heads` and SwiGLU width `hidden`; a step
    trains `replicas` x `microbatches` x `batch` sequences of `sequence` tokens. `failure_rate` is the
    probability that a stage fails, per stage and step (CheckFree section 5; not the hourly rate). An evaluation that
    coincides with an exchange sees the weights after it (NoLoCo's are all such: `evaluate_every` there is a multiple of
    `sync_every`), any other the fast weights in between. A default never changes without `NUMERICS`, and a new field's
    default changes no number: keys hold only what differs from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    tokenizer: str = "swarmbook"
    data_limit: Count | None = None  # tokens read from an endless source
    shards: Literal["mixed", "domains"] = "mixed"  # what replica r reads: all, or the r-th of the domains in turn
    stages: Count = 6
    layers_per_stage: Count = 1
    width: Count = 64
    heads: Count = 4
    hidden: Count = 256
    sequence: Annotated[int, Field(ge=2)] = 128
    replicas: Count = 1
    microbatches: Count = 4
    batch: Count = 2
    steps: Count
    lr: Positive = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Count0 = 0
    schedule_steps: Count | None = None  # over which the cosine falls; None: all
    lr_floor: Share = 0.1  # what it falls to, in multiples of lr
    clip: Positive = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    storage: Literal["fp32", "bf16"] = "fp32"  # bf16: weights, moments, slow weights and buffers rounded at every step
    route: str = "in order"
    paths: tuple[tuple[int, ...], ...] = ()  # stages from 0 that microbatches visit in turn, of route "planned"
    visits: Annotated[float, Field(ge=1)] | None = None  # stages of a random path (a mean, if fractional); None: all
    swaps: Count0 = 0  # of stages in a random path, at most
    swap_lag: Count = 1  # how far below the highest stage so far a swapped one is
    reach: Count | None = None  # how far above it the next one may be; None: anywhere
    keep_first: bool = True  # random paths begin with stage 0
    common_start: bool = False  # all replicas start with the weights of the first
    sync: str = "none"
    sync_every: Count = 50  # steps of progress between two exchanges
    outer_lr: Positive = 0.7  # NoLoCo's beta
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5  # its alpha; of SparseLoCo, the decay of what is unsent
    consensus: Annotated[float, Field(ge=0)] | None = None  # its gamma; None: outer_lr, as in the released code
    group: Count = 2  # replicas that meet
    matching: str = "random"
    absent: Share = 0.0  # probability that a replica misses an exchange, and loses its steps since the last
    density: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of a matrix's entries that SparseLoCo sends
    fragments: Count = 1  # of the stages, which exchange one after another (Streaming DiLoCo)
    delay: Count0 = 0  # steps from an exchange to the arrival of what comes of it
    mixing: Share = 0.0  # what is left of the fast weights then
    recovery: str = "none"
    failure_rate: Share = 0.0
    failing: Literal["interior", "stages", "all"] = "stages"  # but the first and last; all; embedding and head too
    losses: tuple[tuple[Count0, Count0], ...] = ()  # further failures: (step, stage from 1; 0 is embedding and head)
    moments: Literal["reset", "keep", "average"] = "reset"  # Adam's, of a rebuilt stage; average: of its neighbours
    lr_boost: Positive = 1.1  # learning rate of a rebuilt stage, in multiples of lr
    boost_half_life: Positive | None = None  # steps in which half of the boost is gone; None: it stays
    keep_every: Count = 100  # steps of progress between the copies that the recovery keeps
    log_every: Count = 10
    evaluate_every: Count = 100
    held_out: Count = 64  # sequences of the validation split
    evaluate_on: tuple[str, ...] = ()  # further domains, at the end
    probes: tuple[str, ...] = ()
    start: "RunConfig | None" = None  # whose training this run goes on with; its steps count as the first of ours
    branch: "RunConfig | None" = None  # whose final weights this run begins with; all else begins anew
    seed: Count0 = 0

    @model_validator(mode="after")
    def _consistent(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width={self.width} must be an even multiple of heads={self.heads}")
        if self.route not in ROUTES:
            raise ValueError(unknown("route", self.route, ROUTES))
        if self.recovery not in RULES:
            raise ValueError(unknown("recovery", self.recovery, RULES))
        if self.sync not in SYNCS:
            raise ValueError(unknown("sync", self.sync, SYNCS))
        if self.matching not in MATCHINGS:
            raise ValueError(unknown("matching", self.matching, MATCHINGS))
        for name in self.probes:
            if name not in MEASUREMENTS:
                raise ValueError(unknown("probe", name, MEASUREMENTS))
        if self.recovery == "none" and (self.failure_rate or self.losses):
            named = f"failure_rate={self.failure_rate}" if self.failure_rate else f"losses={self.losses}"
            raise ValueError(f"{named} needs a recovery: {', '.join(RULES)}")
        for step, stage in self.losses:
            if step >= self.steps or stage > self.stages:
                raise ValueError(
                    f"losses={self.losses}: a loss is (step, stage) with step < steps={self.steps} and stage from 1 to "
                    f"{self.stages}, or 0 for embedding and head"
                )
        if self.start is not None:
            self._check_start(self.start)
        if self.branch is not None:
            self._check_branch(self.branch)
        if self.evaluate_every % self.log_every:
            raise ValueError(f"evaluate_every={self.evaluate_every} must be a multiple of log_every={self.log_every}")
        self._check_route()
        if self.sync != "none":
            self._check_sync()
        domains = self.data.count("+") + 1
        if self.shards == "domains" and not 1 < domains <= self.replicas:
            raise ValueError(
                f"shards='domains' shares out the {domains} domain(s) of data={self.data!r} among "
                f"replicas={self.replicas}: join two or more with '+', and have as many replicas"
            )
        if "own shard" in self.probes and self.held_out < self.replicas:
            raise ValueError(f"held_out={self.held_out} must be at least replicas={self.replicas} for 'own shard'")
        return self

    def _check_route(self) -> None:

        taken = fields_of(ROUTES[self.route], RunConfig.model_fields)
        for name in ("paths", "visits", "swaps", "swap_lag", "reach", "keep_first"):
            value = getattr(self, name)
            if name not in taken and value != RunConfig.model_fields[name].default:
                users = [route for route, rule in ROUTES.items() if name in fields_of(rule, RunConfig.model_fields)]
                raise ValueError(f"{name}={value} does nothing for route {self.route!r}: it is for {', '.join(users)}")
        self.route_at(0)

    def _check_sync(self) -> None:

        self.groups_at(0)
        if SYNCS[self.sync].alike and self.replicas > 1 and not self.common_start and not self.parents:
            raise ValueError(
                f"sync {self.sync!r} needs common_start=True: its replicas make the same steps, and would stay as far "
                "apart as they start"
            )
        if SYNCS[self.sync].tied and self.consensus not in (None, self.outer_lr):
            raise ValueError(
                f"consensus={self.consensus} must be outer_lr={self.outer_lr} for sync {self.sync!r}: leave it out"
            )
        most = min(self.stages, self.sync_every)
        if self.fragments > most:
            raise ValueError(
                f"fragments={self.fragments} must be at most {most}: there are stages={self.stages} to share out, and "
                f"each fragment exchanges at a step of its own of sync_every={self.sync_every}"
            )
        if self.delay >= self.sync_every:
            raise ValueError(
                f"delay={self.delay} must be less than sync_every={self.sync_every}: an exchange has to arrive before "
                "the next one"
            )

    def _check_shape(self, parent: "RunConfig", same: set[str]) -> None:
        ours, theirs = (config.model_dump(include=same) for config in (self, parent))
        if ours != theirs:
            name = next(name for name in ours if ours[name] != theirs[name])
            raise ValueError(f"{name}={ours[name]!r} must be that of the run it starts from, {theirs[name]!r}")

    def _check_branch(self, branch: "RunConfig") -> None:
        if self.start is not None:
            raise ValueError(
                "start and branch exclude each other: a run goes on with another, or begins with its weights"
            )
        self._check_shape(branch, ARCHITECTURE - {"replicas"})
        if branch.replicas not in (1, self.replicas):
            raise ValueError(
                f"replicas={self.replicas} cannot begin with the weights of {branch.replicas} replicas: branch from a "
                f"run of 1 replica, or of {self.replicas}"
            )

    def _check_start(self, start: "RunConfig") -> None:
        self._check_shape(start, ARCHITECTURE)
        if start.steps >= self.steps:
            raise ValueError(f"steps={self.steps} must be more than the {start.steps} of the run it starts from")
        earlier = {loss for loss in self.losses if loss[0] < start.steps}
        if earlier - set(start.losses):
            raise ValueError(f"losses={self.losses} must be at steps from {start.steps} on, where the run starts")

    @property
    def key(self) -> str:
        """Names the result: a hash of configuration, data, numerics version, and the code of rules that are not ours.

        Of a user's own route, sync, matching, recovery or probe its own code counts, not that of functions it calls.
        """

        strategy, method = RULES[self.recovery], sync.SYNCS[self.sync]
        named = {"route": ROUTES[self.route], "matching": MATCHINGS[self.matching]}
        named |= {f"probe {name}": MEASUREMENTS[name] for name in self.probes}
        own = {name: code_of(part) for name, part in named.items() if not part.__module__.startswith("swarmbook.")}
        if strategy != recovery.OURS.get(self.recovery):
            own["recovery"] = code_of(strategy.rule)
            own["copies"] = repr([strategy.keeps, strategy.holders, strategy.always, strategy.forwards])
        if method != sync.OURS.get(self.sync):
            own["sync"] = code_of(method.rule)
            own["method"] = repr([method.groups, method.keeps, method.gradients])
        domains = [tokenization.fingerprint(domain, self.tokenizer, None) for domain in self.evaluate_on]
        return key_of(
            {
                "config": self.model_dump(mode="json", exclude_defaults=True, exclude={"start", "branch"}),
                "data": tokenization.fingerprint(self.data, self.tokenizer, self.data_limit),
                "numerics": NUMERICS,
            }
            | ({"start": self.start.key} if self.start else {})
            | ({"branch": self.branch.key} if self.branch else {})
            | ({"rules": own} if own else {})
            | ({"evaluate_on": domains} if domains else {})
        )

    @property
    def parents(self) -> tuple["RunConfig", ...]:
        """The runs whose final states this one begins with."""
        return tuple(parent for parent in (self.start, self.branch) if parent is not None)

    @property
    def tokens_per_step(self) -> int:
        return self.replicas * self.microbatches * self.batch * self.sequence

    def shape(self, vocabulary: int) -> Shape:
        """The sizes of its model; vocabulary: tokens that the tokenizer knows."""
        return Shape(self.stages, self.layers_per_stage, self.width, self.heads, self.hidden, vocabulary)

    def failures(self) -> np.ndarray:
        """Bool [steps, R, S + 1]: which cells die at the start of a step; the last column is the embedding and head."""
        drawn = self.rng("failures"), self.rng("failures", 0)
        return trace(*drawn, self.steps, self.replicas, self.stages, self.failure_rate, self.failing, self.losses)

    def route_at(self, step: int) -> np.ndarray:
        """The cells [P, R, M, 2] that the microbatches of a step visit, as `swarmbook.methods.routing` has them."""
        rule = ROUTES[self.route]
        fields = {name: getattr(self, name) for name in fields_of(rule, RunConfig.model_fields)}
        return rule(self.replicas, self.stages, self.microbatches, self.rng("route", step), **fields)

    def groups_at(self, step: int) -> np.ndarray:
        """Who meets whom, int [N / n, n], in the (step + 1)-th exchange between the replicas.

        ConfigError or ValueError where the matching cannot deal the replicas, each into one group.
        """
        if not SYNCS[self.sync].groups:
            return np.arange(self.replicas)[None]
        groups = MATCHINGS[self.matching](self.replicas, step, self.rng("sync", step), self.group)
        if groups.ndim != 2 or not np.array_equal(np.sort(groups, axis=None), np.arange(self.replicas)):
            raise ValueError(
                f"matching {self.matching!r} deals the groups {groups.tolist()} at outer step {step}: "
                f"give an array [groups, size] with each of the replicas 0..{self.replicas - 1} once"
            )
        return np.ascontiguousarray(groups, dtype=np.int64)

    def present_at(self, step: int) -> np.ndarray | None:
        """Which replicas take part in the (step + 1)-th exchange, bool [N]; None for all."""
        return None if self.absent == 0 else self.rng("sync", step, 1).random(self.replicas) >= self.absent

    def rng(self, purpose: str, *where: int) -> np.random.Generator:
        """The generator of one purpose, the same in all runs of one seed; `where` tells steps or stages apart."""
        return np.random.default_rng(self.seeds(purpose, *where))

    def seeds(self, purpose: str, *where: int) -> np.random.SeedSequence:
        branch = ("weights", "batches", "failures", "route", "recovery", "sync").index(purpose)
        return np.random.SeedSequence(self.seed, spawn_key=(branch, *where))


def run_config(**fields) -> RunConfig:
    """A `RunConfig`, or a `ConfigError` that names every offending field, its value and the valid ones."""
    try:
        return RunConfig(**fields)
    except ValidationError as error:
        raise ConfigError("; ".join(_reason(item) for item in error.errors())) from None


def grid(base: dict | RunConfig, **axes: Iterable) -> list[RunConfig]:
    """All combinations of the axes' values over the base: `grid(base, route=[...], seed=range(3))`."""
    fields = base if isinstance(base, dict) else base.model_dump()
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ConfigError(f"{name}={values!r} must be a list of values; write {name}=[{values!r}]")
    points = itertools.product(*axes.values())
    return [run_config(**{**fields, **dict(zip(axes, point, strict=True))}) for point in points]


def _reason(item: dict) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return unknown("field", name, RunConfig.model_fields)
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"{name}={item['input']!r}: {item['msg']}" if item["type"] != "missing" else f"{name} is missing"


def choose(profile: str, **options):
    """The option of a profile: `choose(profile, smoke=2, cpu=5)`."""
    if profile not in options:
        raise ConfigError(unknown("profile", profile, options))
    return options[profile]
