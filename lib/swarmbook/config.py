"""What a run is: a frozen, validated configuration whose hash names its result.

- `RunConfig` holds everything that changes the numbers of a run, and nothing else. Where and how fast the run is
  computed is decided elsewhere
- `run_config` makes one, and names the offending field, its value and the valid ones if it cannot
- `grid` spells an experiment as a product of axes; its runs with one seed see the same weights, batches and failures
- `NUMERICS` is raised by hand when training numbers change on purpose; a golden run in the tests guards it

It is one concept: what each field means has to stand beside it.

Serves: every run of CheckFree, NoLoCo, SkipPipe and HDEE.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from swarmbook.data import tokenization
from swarmbook.errors import ConfigError, unknown
from swarmbook.methods import availability, consistency, optimizers, recovery, sync
from swarmbook.methods.failures import trace
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.measurements import MEASUREMENTS
from swarmbook.methods.model_size import INIT_STD, Shape
from swarmbook.methods.optimizers import OPTIMIZERS
from swarmbook.methods.parameters import chosen, fields_of
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import ROUTES, around, in_order
from swarmbook.methods.sync import SYNCS, Method
from swarmbook.records.fingerprint import fingerprint_of
from swarmbook.records.keys import key_of

NUMERICS = 1

Count = Annotated[int, Field(ge=1)]
Count0 = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class RunConfig(BaseModel):
    """One training run. `RunConfig.model_fields["lr"].description` tells what a field is.

    In a step every replica makes one step of its optimiser. A replica is one copy of the model. Its layers lie in equal
    pipeline stages; its embedding, last norm and head are called its ends. In an exchange the replicas combine what
    they have learnt. Progress counts the steps that no rollback has undone.

    Two fields have other names in records, and so in the columns of tables: `lost_stages` is "losses" there, and
    `measurements` is "probes". Both names are accepted, but not both at once.

    An evaluation that coincides with an exchange sees the weights after it; any other sees the fast weights.

    A key holds only the fields that differ from their defaults, and none of an exchange that `sync` does not read: what
    the arms of a grid share may be set for "none" as well. `methods.consistency.unread` has all that a key leaves out.
    So a default never changes unless `NUMERICS` does, and the default of a new field changes no number.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True, allow_inf_nan=False
    )

    # Data
    data: str
    """Text that is trained on: embedded domains, corpora of a hub ("hub:tinystories", "hub:owner/name@<hash>", see
    `swarmbook.data.hub_dataset`), or text of your own ("file:notes.txt", "dir:folder", see
    `swarmbook.data.local_text`); "+" joins several."""
    tokenizer: str = "swarmbook"
    """Tokenizer: "swarmbook" for the embedded one, "bytes", or the path of another in JSON."""
    data_limit: Count | None = None
    """Tokens that are read of the text; None for all, which a corpus without end does not allow."""
    shards: Literal["mixed", "domains"] = "mixed"
    """What a replica reads: "mixed" for all of `data`, "domains" for one part of it, dealt to replicas in turn."""

    # Model: a LLaMA with equal pipeline stages
    stages: Count = 6
    """Pipeline stages of a replica, without its ends."""
    layers_per_stage: Count = 1
    """Transformer layers of a stage."""
    width: Count = 64
    """Width of the residual stream, an even multiple of `heads`."""
    heads: Count = 4
    """Attention heads of a layer."""
    hidden: Count = 256
    """Hidden width of the SwiGLU."""
    init_std: Positive = INIT_STD
    """Standard deviation of the entries of fresh matrices, and of a stage that is drawn anew.

    A matrix of fan-in D multiplies the size of its input by about init_std * sqrt(D). `scaled_init_std` keeps this
    number at what it is in the papers' models."""

    # Batch and steps: a step trains replicas * microbatches * batch sequences
    sequence: Annotated[int, Field(ge=2)] = 128
    """Tokens of a training sequence, all of which are predicted."""
    replicas: Count = 1
    """Copies of the model, which train on different batches."""
    microbatches: Count = 4
    """Parts of a replica's batch, each of which takes its own path through the pipeline."""
    batch: Count = 2
    """Sequences of a microbatch."""
    steps: Count
    """Training steps, those of the run `start` included."""

    # Optimiser in each replica, which is the inner optimiser of DiLoCo and NoLoCo
    optimizer: str = "Adam"
    """Inner optimiser; a name in `methods.optimizers.OPTIMIZERS`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, in multiples of the learning rate; with Adam, AdamW. All weights decay, gains too."""
    lr: Positive = 1e-3
    """Learning rate at its highest: after the warm-up and before the cosine."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: it stays, or falls along half a cosine."""
    warmup: Count0 = 0
    """Steps in which the learning rate rises linearly to `lr`."""
    schedule_steps: Count | None = None
    """Step at which the cosine ends; None for the last step of the run."""
    lr_floor: Share = 0.1
    """Learning rate at which the cosine ends, in multiples of `lr`."""
    clip: Positive = 1.0
    """Largest L2 norm of a gradient, of what `clipping` says."""
    clipping: Literal["cells", "workers"] = "cells"
    """Whose gradient has one norm: "cells" for each stage of each replica, and its ends, on their own; "workers" for
    each stage with what its pipeline worker also holds: the embedding with the first stage, the last norm and head with
    the last (NoLoCo's released code)."""

    # Numbers
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward passes."""
    storage: Literal["fp32", "bf16", "bf16, fp32 moments"] = "fp32"
    """Number format to which weights, moments, slow weights and buffers are rounded after every step.

    In "bf16" no second moment of Adam ever falls: 0.999 of a number with 8 significant bits rounds back to that number.
    "bf16, fp32 moments" rounds all but Adam's moments."""

    # Route (SkipPipe, section 4; NoLoCo, section 3.1; CheckFree+, section 4.3)
    route: str = "in order"
    """Rule for the stages, and their replicas, that a microbatch visits; a name in `methods.routing.ROUTES`."""
    paths: tuple[tuple[int, ...], ...] = ()
    """For the route "planned": the stages, from 0, that microbatches visit; microbatches take the paths in turn."""
    visits: Annotated[float, Field(ge=1)] | None = None
    """For random and blind paths: the stages on a path, on average over the microbatches; None for all."""
    swaps: Count0 = 0
    """For random paths: how many stages of a path, at most, are put off until after a later one."""
    swap_lag: Count = 1
    """For random paths: a stage that is put off comes after the stage that is this many stages above it."""
    reach: Count | None = None
    """For random paths: how many stages above the highest so far the next one may be; None for any number."""
    keep_first: bool = True
    """For random paths: whether every path begins with stage 0, which is then never skipped or swapped."""

    # Exchange between replicas (NoLoCo, section 3.2)
    common_start: bool = False
    """Whether all replicas start with the weights of the first."""
    sync: str = "none"
    """Method by which replicas combine what they have learnt; a name in `methods.sync.SYNCS`."""
    sync_every: Count = 50
    """Steps of progress between two exchanges: the inner steps of an outer step."""
    outer_lr: Positive = 0.7
    """Learning rate of the outer step (beta in NoLoCo, Eq. 2)."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the outer step (alpha in NoLoCo, Eq. 2); of SparseLoCo, the decay of what was not sent."""
    consensus: Annotated[float, Field(ge=0)] | None = None
    """Strength of the pull to the group's mean slow weights (gamma in NoLoCo, Eq. 2); None for `outer_lr`."""
    group: Count = 2
    """Replicas in a group, which combine their weights in an exchange (n in NoLoCo)."""
    matching: str = "random"
    """Rule that deals the replicas into groups; a name in `methods.gossip_groups.MATCHINGS`."""
    absent: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a replica misses an exchange; `rejoin` says with which weights it goes on.

    `training.outer` has the details. An exchange that all would miss does not take place."""
    rejoin: Literal["slow", "fast", "own"] = "slow"
    """Weights of a replica that missed an exchange: its slow ones, the fast ones of a peer, or its own fast ones.

    "slow" and "fast" mean that it crashed. "own" means that messages were lost alone (DiLoCo, arXiv 2311.08105, on
    asynchronous communication). "fast" is what torchft does. Gossip has no slow weights: "slow" is "own" there."""
    density: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each matrix's entries that SparseLoCo sends (arXiv 2508.15706)."""

    # Fragments and delay (Streaming DiLoCo, arXiv 2501.18512)
    fragments: Count = 1
    """Parts of the model, some stages each, that exchange one after another, each once in `sync_every` steps."""
    delay: Count0 = 0
    """Steps from an exchange to the arrival of its result (tau there; `fragment_sync_delay` in torchft)."""
    mixing: Share = 0.0
    """Share of the fast weights that is kept then (alpha there; `fragment_update_alpha` in torchft)."""

    # Failures and recovery (CheckFree, sections 4 and 5)
    recovery: str = "none"
    """Rule that rebuilds a lost stage; a name in `methods.recovery.RULES`."""
    failure_rate: Share = 0.0
    """Probability that a stage fails in a step (CheckFree, section 5, has it per hour)."""
    failing: Literal["interior", "stages", "all", "replicas"] = "stages"
    """What can fail: stages but the first and last, all stages, all stages and the ends, or whole replicas at once."""
    lost_stages: tuple[tuple[Count0, Count0], ...] = Field((), serialization_alias="losses")
    """Further losses, in every replica: step from 0, and stage from 1, or 0 for the ends."""
    downtime: Count0 | None = 0
    """Steps for which what is lost is away before it is rebuilt; None for good, which needs no recovery."""
    away: tuple[tuple[str, Count0, Count0 | None], ...] = ()
    """Absences: the node, such as "2.3" for the third stage of the second replica or "2" for all of that, the first
    step that it misses, and the step at which it comes back and is rebuilt, None for never.

    `swarmbook.methods.availability` reads them from a file, or draws them."""
    detour: Literal["skip", "peer"] = "skip"
    """What a microbatch does about a stage that is away: "skip" it, or visit it on the next replica that has it."""
    moments: Literal["reset", "keep", "average"] = "reset"
    """Moments of a rebuilt stage, which are all buffers of its optimiser: set to 0, kept as they were, or the mean of
    the neighbours' moments."""
    slow_weights: Literal["keep", "reset", "likewise", "peer"] = "keep"
    """Slow weights of a rebuilt stage, with the buffers of its exchange (outer momentum, what was not sent yet).

    "keep" for those that it had, as if they lay elsewhere; "reset" for the weights that it was rebuilt with, and
    buffers of 0; "likewise" for what the recovery makes of the slow weights and buffers of the others, or as "reset"
    where the stage comes from a copy, which has none; "peer" for those of the next replica that has the stage, as
    "reset" if none does. In torchft a healed replica takes a peer's; the others are ours. A result that is on its way
    arrives all the same."""
    lr_boost: Positive = 1.1
    """Learning rate of a rebuilt stage, in multiples of that of the others (CheckFree, Algorithm 1)."""
    boost_half_life: Positive | None = None
    """Steps in which half of the boost is gone; None if it stays."""
    keep_every: Count = 100
    """Steps of progress between two copies that the recovery keeps, such as checkpoints."""

    # Parameters that methods have of their own
    method: tuple[tuple[str, bool | int | float | str], ...] = ()
    """Parameters of the run's own sync, recovery, route, matching and optimizer, such as {"beta": 0.9}.

    They are the keyword-only parameters of the rule's function. Those not given have their defaults. Where two of these
    methods have a parameter of one name, "sync.beta" says whose is meant."""

    # Logging and measurements
    log_every: Count = 10
    """Steps between two records of the training loss, each a mean over them."""
    evaluate_every: Count = 100
    """Steps between two evaluations, which visit all stages in order; a multiple of `log_every`."""
    held_out: Count = 64
    """Sequences of the validation split on which the run is evaluated."""
    evaluate_on: tuple[str, ...] = ()
    """Further texts, named as in `data`, on which the finished run is evaluated."""
    measurements: tuple[str, ...] = Field((), serialization_alias="probes")
    """What is measured on the finished run; names in `methods.measurements.MEASUREMENTS`."""

    # Start
    start: "RunConfig | None" = None
    """Run whose training this one continues, with its optimisers and place in the data; its steps count."""
    branch: "RunConfig | None" = None
    """Run whose final weights this one begins with; all else begins anew (HDEE, Branch-Train-Merge)."""
    seed: Count0 = 0
    """Seed of everything that is drawn at random: weights, batches, failures, routes, groups."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, fields: Any) -> Any:
        return by_name(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _consistent(self):
        for name in self.measurements:
            if name not in MEASUREMENTS:
                raise ValueError(unknown("measurement", name, MEASUREMENTS))
        consistency.check(self)
        return self

    @property
    def rules(self) -> dict[str, Callable]:
        """The rules of the methods that the run uses, by kind."""
        strategy, exchange = RULES[self.recovery], SYNCS[self.sync]
        found = {"route": ROUTES[self.route], "optimizer": OPTIMIZERS[self.optimizer].rule}
        found |= {"recovery": strategy.rule} if strategy else {}
        found |= {"sync": exchange.rule} if exchange else {}
        return found | ({"matching": MATCHINGS[self.matching]} if exchange and exchange.groups else {})

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """What `method` sets of each kind of rule, without what is its default."""
        return chosen(dict(self.method), self.rules, type(self).model_fields)

    def arguments(self, kind: str) -> dict[str, Any]:
        """What the run's rule of a kind asks for by name: fields of the configuration, and parameters of its own."""
        fields = {name: getattr(self, name) for name in fields_of(self.rules[kind], type(self).model_fields)}
        return fields | (self.parameters[kind] if self.method else {})

    @property
    def key(self) -> str:
        """The name of the result: a hash of configuration, data, `NUMERICS`, and the code of a user's own rules.

        A user's own route, sync, matching, recovery, optimizer or measurement counts with the helpers that it calls,
        the globals that it reads and the state of objects; `swarmbook.records.fingerprint` says how. ConfigError names
        what cannot be compared with that of another process, such as an open file.
        """
        strategy, method = RULES[self.recovery], SYNCS[self.sync]
        named = {"route": ROUTES[self.route], "matching": MATCHINGS[self.matching]}
        named |= {f"probe {name}": MEASUREMENTS[name] for name in self.measurements}  # "probe" is in old keys
        own = {
            name: fingerprint_of(part, name)
            for name, part in named.items()
            if not part.__module__.startswith("swarmbook.")
        }
        if strategy != recovery.OURS.get(self.recovery):
            own["recovery"] = fingerprint_of(strategy.rule, f"recovery {self.recovery!r}")
            own["copies"] = repr([strategy.keeps, strategy.holders, strategy.always, strategy.forwards])
            own |= {"peers": "for slow weights" if strategy.slow else "asked"} if strategy.peers else {}
        if method != sync.OURS.get(self.sync):
            own["sync"] = fingerprint_of(method.rule, f"sync {self.sync!r}")
            own["method"] = repr([method.groups, method.keeps, method.gradients])
            if method.buffers != Method(method.rule, keeps=method.keeps).buffers:
                own["buffers"] = repr(method.buffers)
        inner = OPTIMIZERS[self.optimizer]
        if inner != optimizers.OURS.get(self.optimizer):
            own["optimizer"] = fingerprint_of(inner.rule, f"optimizer {self.optimizer!r}")
            own["moments"] = repr([inner.buffers, inner.elementwise])
        parameters = self.parameters if self.method else {}
        apart = {"start", "branch", "method"} | consistency.unread(self)
        domains = [tokenization.fingerprint(domain, self.tokenizer, None) for domain in self.evaluate_on]
        config = self.model_dump(mode="json", exclude_defaults=True, exclude=apart)
        return key_of(
            {
                "config": config | {"data": "+".join(part.name_in_key for part in tokenization.sources_of(self.data))},
                "data": tokenization.fingerprint(self.data, self.tokenizer, self.data_limit),
                "numerics": NUMERICS,
            }
            | ({"start": self.start.key} if self.start else {})
            | ({"branch": self.branch.key} if self.branch else {})
            | ({"rules": own} if own else {})
            | ({"method": parameters} if any(parameters.values()) else {})
            | ({"evaluate_on": domains} if domains else {})
        )

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields by the names that they have in records and in columns of tables."""
        return {alias: getattr(self, name) for name, alias in _aliases().items()}

    @property
    def parents(self) -> tuple["RunConfig", ...]:
        """The runs whose final states this one begins with."""
        return tuple(parent for parent in (self.start, self.branch) if parent is not None)

    @property
    def tokens_per_step(self) -> int:
        """The tokens that all replicas together predict in a step."""
        return self.replicas * self.microbatches * self.batch * self.sequence

    def shape(self, vocabulary: int) -> Shape:
        """The sizes of the model; vocabulary: the number of tokens that the tokenizer knows."""
        return Shape(self.stages, self.layers_per_stage, self.width, self.heads, self.hidden, vocabulary, self.init_std)

    def failures(self) -> np.ndarray:
        """The cells that are lost at the start of each step, bool [steps, R, S + 1]; the last column is the ends."""
        found = self.absences()
        return _dying(self) if found is None else found.lost

    def absences(self) -> availability.Absences | None:
        """What is lost, away, and rebuilt in each step; None if nothing can be away, and all that is lost is rebuilt
        at once.
        """
        return _absences(self) if self.away or self.downtime != 0 else None

    def gone_at(self, step: int) -> np.ndarray | None:
        """The cells that are away in a step, bool [R, S + 1]; None if none is."""
        found = self.absences()
        return None if found is None or not found.gone[step].any() else found.gone[step]

    def route_at(self, step: int) -> np.ndarray:
        """The cells [P, R, M, 2] that the microbatches of a step visit, as `swarmbook.methods.routing` defines them."""
        rule, gone = ROUTES[self.route], self.gone_at(step)
        replicas = self.replicas if gone is None else int((~gone[:, -1]).sum())
        cells = rule(replicas, self.stages, self.microbatches, self.rng("route", step), **self.arguments("route"))
        return cells if gone is None else around(cells, gone, self.detour == "peer")

    def in_order(self, gone: np.ndarray | None, microbatches: int = 1) -> np.ndarray:
        """The route by which the run is evaluated, [S, R, M, 2]: in order, past the cells that are away."""
        replicas = self.replicas if gone is None else int((~gone[:, -1]).sum())
        cells = in_order(replicas, self.stages, microbatches, self.rng("route"))
        return cells if gone is None else around(cells, gone, self.detour == "peer")

    def groups_at(self, step: int) -> np.ndarray:
        """The groups of replicas that meet in the (step + 1)-th exchange, int [N / n, n].

        ConfigError or ValueError if the matching cannot deal every replica into exactly one group.
        """
        if not SYNCS[self.sync].groups:
            return np.arange(self.replicas)[None]
        drawn = self.rng("sync", step)
        groups = MATCHINGS[self.matching](self.replicas, step, drawn, self.group, **self.arguments("matching"))
        if groups.ndim != 2 or not np.array_equal(np.sort(groups, axis=None), np.arange(self.replicas)):
            raise ValueError(
                f"matching {self.matching!r} deals the groups {groups.tolist()} at outer step {step}: "
                f"give an array [groups, size] with each of the replicas 0..{self.replicas - 1} once"
            )
        return np.ascontiguousarray(groups, dtype=np.int64)

    def present_at(self, step: int) -> np.ndarray | None:
        """The replicas that take part in the (step + 1)-th exchange, bool [N]; None for all."""
        return None if self.absent == 0 else self.rng("sync", step, 1).random(self.replicas) >= self.absent

    def rng(self, purpose: str, *where: int) -> np.random.Generator:
        """The generator of one purpose, the same in all runs of one seed; `where` tells steps or stages apart."""
        return np.random.default_rng(self.seeds(purpose, *where))

    def seeds(self, purpose: str, *where: int) -> np.random.SeedSequence:
        """The seeds from which `rng` draws."""
        branch = ("weights", "batches", "failures", "route", "recovery", "sync").index(purpose)
        return np.random.SeedSequence(self.seed, spawn_key=(branch, *where))


@lru_cache(maxsize=64)
def _absences(run: RunConfig) -> availability.Absences:
    return availability.absences(_dying(run), run.away, run.downtime)


def _dying(run: RunConfig) -> np.ndarray:
    """The losses that are drawn or given, whoever is away."""
    drawn = run.rng("failures"), run.rng("failures", 0)
    return trace(*drawn, run.steps, run.replicas, run.stages, run.failure_rate, run.failing, run.lost_stages)


NAMES = {field.serialization_alias: name for name, field in RunConfig.model_fields.items() if field.serialization_alias}


@cache
def _aliases() -> dict[str, str]:
    """The name of each field in records."""
    return {name: field.serialization_alias or name for name, field in RunConfig.model_fields.items()}


def by_name(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields by their names in `RunConfig`; ConfigError for one that is given by this name and by that in records."""
    for recorded, name in NAMES.items():
        if recorded in fields and name in fields:
            raise ConfigError(f"{recorded} and {name} are one field: give {name} alone")
    fields = {NAMES.get(name, name): value for name, value in fields.items()}
    if isinstance(method := fields.get("method"), dict):
        fields["method"] = tuple(sorted(method.items()))
    return fields


def run_config(**fields) -> RunConfig:
    """A `RunConfig`, or a `ConfigError` that names every offending field, its value and the valid ones."""
    try:
        return RunConfig(**fields)
    except ValidationError as error:
        raise ConfigError("; ".join(_reason(item) for item in error.errors())) from None


def grid(base: dict | RunConfig, **axes: Iterable) -> list[RunConfig]:
    """All combinations of the axes' values over the base: `grid(base, route=[...], seed=range(3))`."""
    fields, axes = by_name(dict(base)), by_name(axes)
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
    """The option of a profile: `choose(profile, smoke=2, cpu=5)`. ConfigError for a profile without an option."""
    if profile not in options:
        raise ConfigError(unknown("profile", profile, options))
    return options[profile]
