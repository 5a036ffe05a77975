"""What the fields of one configuration demand of one another; each message says how to mend the breach.

It is one concept, longer than most: how fields bear on one another. Every function takes a
`swarmbook.config.RunConfig`, which asks for the check and so cannot be imported here. What a single field may be is
said there.

A field that no rule of the run reads is refused, because it would have a key of its own and the numbers of another run.
Three kinds stay allowed, since the arms of a grid share them:

- the fields of `unread`, which a key leaves out
- in recorded runs, whose keys cannot change, `keep_every` where no copies are kept, and `common_start` with one replica
  or with weights of a parent
- a value at which one method becomes another, such as `mixing=1` or one replica in an exchange: a series may end there

Serves: every run of CheckFree, NoLoCo, SkipPipe and HDEE.
"""

import math
from typing import Any

import numpy as np

from swarmbook.errors import unknown
from swarmbook.methods import availability
from swarmbook.methods.gossip_groups import MATCHINGS
from swarmbook.methods.optimizers import OPTIMIZERS
from swarmbook.methods.parameters import chosen, fields_of
from swarmbook.methods.recovery import RULES
from swarmbook.methods.routing import ROUTES
from swarmbook.methods.sync import OURS, SYNCS

ARCHITECTURE = {"tokenizer", "stages", "layers_per_stage", "width", "heads", "hidden", "replicas"}
EXCHANGE_FIELDS = {  # what of an exchange a run may choose, and which kinds of methods read it
    "sync_every": lambda method: not method.gradients,
    "outer_lr": lambda method: method.keeps,
    "outer_momentum": lambda method: method.keeps,
    "consensus": lambda method: any(method == OURS[name] for name in OURS if name.startswith("NoLoCo")),
    "group": lambda method: method.groups,
    "matching": lambda method: method.groups,
    "absent": lambda method: True,
    "rejoin": lambda method: not method.gradients,
    "density": lambda method: method == OURS["SparseLoCo"],
    "fragments": lambda method: not method.gradients,
    "delay": lambda method: not method.gradients,
    "mixing": lambda method: not method.gradients,
}
NUMBERS = {"outer_lr", "outer_momentum", "consensus", "density"}  # of which a user's own rule may read any
SHARED = {"sync_every", "outer_lr", "outer_momentum"}  # what the arms of a grid have in common, "none" among them
ROUTE_FIELDS = ("paths", "visits", "swaps", "swap_lag", "reach", "keep_first")


MOST = 10**8  # entries of a table that is made to check a run; more are a slip, and would fill the memory


def check(run: Any) -> None:
    """ValueError, or its kind ConfigError, if the fields of a run do not go together."""
    _check_sizes(run, "stages", "replicas", "microbatches")
    if run.width % run.heads or run.width // run.heads % 2:
        raise ValueError(f"width={run.width} must be an even multiple of heads={run.heads}")
    registries = {"route": ROUTES, "recovery": RULES, "sync": SYNCS, "matching": MATCHINGS, "optimizer": OPTIMIZERS}
    for rule, known in registries.items():
        if getattr(run, rule) not in known:
            raise ValueError(unknown(rule, getattr(run, rule), known))
    chosen(dict(run.method), run.rules, type(run).model_fields)  # which raises what is wrong
    _check_schedule(run)
    _check_failures(run)
    _check_absences(run)
    if run.start is not None:
        _check_start(run)
    if run.branch is not None:
        _check_branch(run)
    if run.evaluate_every % run.log_every:
        raise ValueError(f"evaluate_every={run.evaluate_every} must be a multiple of log_every={run.log_every}")
    _check_route(run)
    _check_read(run)
    if run.sync != "none":
        _check_sync(run)
    domains = run.data.count("+") + 1
    if run.shards == "domains" and not 1 < domains <= run.replicas:
        raise ValueError(
            f"shards='domains' shares out the {domains} domain(s) of data={run.data!r} among "
            f"replicas={run.replicas}: join two or more with '+', and have as many replicas"
        )
    if "own shard" in run.measurements and run.held_out < run.replicas:
        raise ValueError(f"held_out={run.held_out} must be at least replicas={run.replicas} for 'own shard'")


def _check_schedule(run: Any) -> None:
    """The warm-up ends within the run, and the learning rate stays above 0 where a rollback compares two of them."""
    for name in ("schedule_steps", "lr_floor"):
        if run.schedule == "constant" and _is_set(run, name):
            raise ValueError(
                f"{name}={getattr(run, name)} does nothing for schedule 'constant': leave it out, or take 'cosine'"
            )
    length = run.schedule_steps or run.steps
    if run.warmup > length:
        raise ValueError(f"warmup={run.warmup} must be at most the {length} steps of the schedule")
    strategy = RULES[run.recovery]
    ends = run.schedule == "cosine" and run.lr_floor == 0 and length < run.steps
    if ends and strategy is not None and strategy.keeps == "run":
        raise ValueError(
            f"lr_floor=0 with schedule_steps={length} leaves no learning rate from step {length} on, where recovery "
            f"{run.recovery!r} may put the run back: give lr_floor above 0 or a longer schedule"
        )


def _check_failures(run: Any) -> None:
    """Failures need a recovery, and are within the run; what is said of them, or of rebuilt stages, is read."""
    fails = run.failure_rate or run.lost_stages
    if run.recovery == "none" and fails and run.downtime is not None:
        named = f"failure_rate={run.failure_rate}" if run.failure_rate else f"lost_stages={run.lost_stages}"
        raise ValueError(f"{named} needs a recovery: {', '.join(RULES)}; or downtime=None, by which it stays away")
    if _is_set(run, "downtime") and not fails:
        raise ValueError(
            f"downtime={run.downtime} does nothing where nothing is lost: give failure_rate or lost_stages"
        )
    for name in ("failing", "moments", "boost_half_life", "slow_weights"):
        if run.recovery == "none" and _is_set(run, name):
            value = getattr(run, name)
            raise ValueError(f"{name}={value!r} does nothing for recovery 'none': leave it out, or take another")
    if run.recovery != "none" and RULES[run.recovery].peers and run.replicas == 1:
        raise ValueError(f"recovery {run.recovery!r} asks other replicas, and replicas=1 has none: give more")
    method = SYNCS[run.sync]
    if run.recovery != "none" and RULES[run.recovery].slow and not (method and method.keeps):
        fine = ", ".join(name for name, each in SYNCS.items() if each and each.keeps)
        raise ValueError(
            f"recovery {run.recovery!r} asks for slow weights, and sync {run.sync!r} has none: take one of {fine}"
        )
    if _is_set(run, "slow_weights") and not (method and (method.keeps or method.buffers)):
        raise ValueError(
            f"slow_weights={run.slow_weights!r} does nothing for sync {run.sync!r}, which has neither slow weights nor "
            "buffers: leave it out"
        )
    apart = run.slow_weights == "reset" or (run.slow_weights == "likewise" and not RULES[run.recovery].peers)
    if apart and method.alike and method.keeps and run.replicas > 1:
        raise ValueError(
            f"slow_weights={run.slow_weights!r} would leave the stage apart for good: replicas of sync {run.sync!r} "
            "make the same steps, and nothing pulls them together; take 'keep' or 'peer'"
        )
    if run.slow_weights == "peer" and run.replicas == 1:
        raise ValueError("slow_weights='peer' asks other replicas, and replicas=1 has none: take another")
    if run.failing == "replicas" and run.failure_rate and run.downtime is not None:
        _check_whole(run, "failing='replicas'")
    if run.failing == "interior" and run.stages < 3:
        raise ValueError(f"failing='interior' leaves none of stages={run.stages} that could fail: take 'stages'")
    for step, stage in run.lost_stages:
        if step >= run.steps or stage > run.stages:
            raise ValueError(
                f"lost_stages={run.lost_stages}: a loss is (step, stage) with step < steps={run.steps} and stage from "
                f"1 to {run.stages}, or 0 for embedding and head"
            )


def _check_sizes(run: Any, *names: str) -> None:
    """The tables of a run, with an entry for each combination of these fields, fit into memory."""
    if math.prod(getattr(run, name) for name in names) > MOST:
        raise ValueError(
            f"{', '.join(f'{name}={getattr(run, name)}' for name in names)} are too many together: give less"
        )


def _check_whole(run: Any, named: str) -> None:
    """A replica that is lost as a whole can be rebuilt: something is left of it, or like it."""
    if RULES[run.recovery].neighbours:
        fine = [name for name, rule in RULES.items() if rule and not rule.neighbours]
        raise ValueError(
            f"{named}: recovery {run.recovery!r} makes a stage of others of its replica, and all of them are lost at "
            f"once; take one of {', '.join(fine)}"
        )


def _check_absences(run: Any) -> None:
    """Who is away is a node of the run, leaves somebody who trains, and can be rebuilt when it comes back."""
    if run.away or run.downtime != 0:
        _check_sizes(run, "steps", "replicas", "stages")
        availability.check(run.away, run.steps, run.replicas, run.stages)
    found = run.absences()
    if found is None or not found.gone.any():
        if _is_set(run, "detour") and (found is None or not run.failure_rate):  # a seed may lose nothing
            raise ValueError(f"detour={run.detour!r} does nothing where no node is away: give away or downtime")
        return
    if run.detour == "peer" and run.replicas == 1:
        raise ValueError("detour='peer' leads to other replicas, and replicas=1 has none: leave it out")
    if run.absent:
        raise ValueError(f"absent={run.absent} draws who misses an exchange, and away or downtime say it: give one")
    if (nobody := found.gone[..., -1].all(1)).any():
        raise ValueError(
            f"all of replicas={run.replicas} are away at step {np.argmax(nobody)}, and nobody could train: leave one"
        )
    if run.measurements and found.gone[-1].any():
        raise ValueError(f"measurements={run.measurements} are of all nodes, of which some are away at the end")
    returning = np.concatenate([found.gone[:1], found.gone[:-1]]) & found.back
    if not returning.any():
        return
    step, replica, stage = np.argwhere(returning)[0]
    named = f"node {replica + 1}.{stage + 1} comes back at step {step}"
    if run.recovery == "none":
        raise ValueError(f"{named} and needs a recovery: {', '.join(RULES)}")
    if returning[..., -1].any():
        _check_whole(
            run, f"a replica that comes back at step {np.argmax(returning[..., -1].any(1))} is lost as a whole"
        )
    for name in ("moments", "slow_weights"):
        kept = name == "moments" or (method := SYNCS[run.sync]) and (method.keeps or method.buffers)
        if kept and getattr(run, name) == "keep" and name not in RULES[run.recovery].decides:
            raise ValueError(f"{named} without anything that it had: {name}='keep' must be another")


def _check_route(run: Any) -> None:
    """A field that only some routes use is set for these alone, and the route can be drawn."""
    known = type(run).model_fields
    taken = fields_of(ROUTES[run.route], known)
    for name in ROUTE_FIELDS:
        if name not in taken and _is_set(run, name):
            users = [route for route, rule in ROUTES.items() if name in fields_of(rule, known)]
            value = getattr(run, name)
            raise ValueError(f"{name}={value} does nothing for route {run.route!r}: it is for {', '.join(users)}")
    run.route_at(0)
    if run.route == "planned":
        _check_paths(run)
    total = (run.visits or 0) * run.microbatches
    if run.route in ("random paths", "blind paths") and abs(total - round(total)) > 1e-6:
        least = math.floor(total)
        raise ValueError(
            f"visits={run.visits} cannot be the mean of microbatches={run.microbatches}, which would visit {total:g} "
            f"stages together: give {least / run.microbatches:g} or {(least + 1) / run.microbatches:g}"
        )


def _check_paths(run: Any) -> None:
    """Every path is taken, and every stage is trained on one."""
    if len(run.paths) > run.microbatches:
        raise ValueError(
            f"paths holds {len(run.paths)} paths, of which microbatches={run.microbatches} take the first ones only: "
            "give at most one for each microbatch"
        )
    if untrained := set(range(run.stages)) - {stage for path in run.paths for stage in path}:
        raise ValueError(
            f"paths={run.paths} leave stages {', '.join(map(str, sorted(untrained)))} untrained, through which "
            f"evaluations go: each of 0..{run.stages - 1} must be on a path"
        )
    gone = run.gone_at(0)
    if gone is not None and run.detour == "skip" and (gone[:, :-1] & ~gone[:, -1:]).any():
        replica, stage = np.argwhere(gone[:, :-1] & ~gone[:, -1:])[0]
        raise ValueError(
            f"a planned path goes through node {replica + 1}.{stage + 1}, which is away before the first step: let it "
            "leave later, or take detour='peer'"
        )


def unread(run: Any) -> set[str]:
    """The fields that may be set though this run does not read them, and of exchanges all: its key leaves them out."""
    found = {name for name in EXCHANGE_FIELDS if not _reads(run.sync, name)}
    strategy = RULES[run.recovery]
    found.update(strategy.decides if strategy else ["lr_boost"])
    if run.failure_rate == 0:
        found.add("failing")
    if run.parents and strategy is None:  # nothing is drawn
        found.add("init_std")
    if run.lr_boost == 1:
        found.add("boost_half_life")
    if run.route == "random paths" and run.swaps == 0:
        found |= {"swap_lag"} if run.visits else {"swap_lag", "reach", "keep_first"}
    return found


def _reads(sync: str, name: str) -> bool:
    """Whether a method reads a field of exchanges."""
    method = SYNCS[sync]
    if method is None:
        return False
    named = name in fields_of(method.rule, EXCHANGE_FIELDS)
    return named or EXCHANGE_FIELDS[name](method) or (name in NUMBERS and method != OURS.get(sync))


def _is_set(run: Any, name: str) -> bool:
    """Whether a field is not what it is where nobody says anything."""
    return getattr(run, name) != type(run).model_fields[name].default


def _check_read(run: Any) -> None:
    """A field that the run's method does not read is not set, unless arms of a grid may share it."""
    for name in EXCHANGE_FIELDS:
        if name not in SHARED and _is_set(run, name) and not _reads(run.sync, name):
            users = ", ".join(sync for sync in SYNCS if _reads(sync, name))
            value = getattr(run, name)
            raise ValueError(
                f"{name}={value!r} does nothing for sync {run.sync!r}: leave it out, or take one of {users}"
            )


def _check_sync(run: Any) -> None:
    """The replicas can be dealt into groups, and the exchange fits the method, the fragments and the interval."""
    run.groups_at(0)
    if SYNCS[run.sync].alike and run.replicas > 1 and not run.common_start and not run.parents:
        raise ValueError(
            f"sync {run.sync!r} needs common_start=True: its replicas make the same steps, and would stay as far "
            "apart as they start"
        )
    if SYNCS[run.sync].tied and run.consensus not in (None, run.outer_lr):
        raise ValueError(
            f"consensus={run.consensus} must be outer_lr={run.outer_lr} for sync {run.sync!r}: leave it out"
        )
    _check_rejoin(run)
    most = min(run.stages, run.sync_every)
    if run.fragments > most:
        raise ValueError(
            f"fragments={run.fragments} must be at most {most}: there are stages={run.stages} to share out, and "
            f"each fragment exchanges at a step of its own of sync_every={run.sync_every}"
        )
    if run.delay >= run.sync_every:
        raise ValueError(
            f"delay={run.delay} must be less than sync_every={run.sync_every}: an exchange has to arrive before "
            "the next one"
        )
    begun, first = (run.start.steps if run.start else 0), run.sync_every // run.fragments
    exchanges = run.steps // run.sync_every - begun // run.sync_every if begun else run.steps // first
    if not SYNCS[run.sync].gradients and not exchanges:
        raise ValueError(
            f"sync_every={run.sync_every} leaves no exchange in steps={run.steps}: give a smaller one, or sync='none'"
        )


def _check_rejoin(run: Any) -> None:
    """What an absent replica goes on from matters: one can be absent, and its weights are not replaced at once."""
    method = SYNCS[run.sync]
    if run.rejoin == "slow":
        return
    if run.absent == 0 or run.replicas == 1:
        raise ValueError(
            f"rejoin={run.rejoin!r} does nothing where no replica is absent while others exchange: give absent above 0 "
            "and more replicas than one"
        )
    if run.rejoin == "own" and not method.keeps:
        raise ValueError(f"rejoin='own' does nothing for sync {run.sync!r}, which has no slow weights: leave it out")
    if run.rejoin == "fast" and not method.groups and run.fragments == 1 and run.delay == run.mixing == 0:
        raise ValueError(
            f"rejoin='fast' does nothing for sync {run.sync!r}, whose result replaces all fast weights at once: give "
            "fragments, delay or mixing as well, or leave it out"
        )


def _check_shape(run: Any, parent: Any, same: set[str]) -> None:
    """The fields `same` are equal in a run and in the one that it starts from."""
    ours, theirs = (config.model_dump(include=same) for config in (run, parent))
    if ours != theirs:
        name = next(name for name in ours if ours[name] != theirs[name])
        raise ValueError(f"{name}={ours[name]!r} must be that of the run it starts from, {theirs[name]!r}")


def _check_branch(run: Any) -> None:
    """The final weights of the run `branch` fit."""
    if run.start is not None:
        raise ValueError("start and branch exclude each other: a run goes on with another, or begins with its weights")
    _check_shape(run, run.branch, ARCHITECTURE - {"replicas"})
    if run.branch.replicas not in (1, run.replicas):
        raise ValueError(
            f"replicas={run.replicas} cannot begin with the weights of {run.branch.replicas} replicas: branch from a "
            f"run of 1 replica, or of {run.replicas}"
        )


def _check_start(run: Any) -> None:
    """The run `start` can be continued: it has the same model, is shorter, and lost what this one lost until then."""
    start = run.start
    _check_shape(run, start, ARCHITECTURE | {"optimizer"})
    if start.steps >= run.steps:
        raise ValueError(f"steps={run.steps} must be more than the {start.steps} of the run it starts from")
    earlier = {loss for loss in run.lost_stages if loss[0] < start.steps}
    if earlier - set(start.lost_stages):
        raise ValueError(f"lost_stages={run.lost_stages} must be at steps from {start.steps} on, where the run starts")
