"""Every size, `gpu` and `paper` among them, without a GPU or a hub: valid runs, whose narrow twins make a step.

A notebook runs as far as its first training, where its models are read from what it has named by then; planners search
for a moment only, and what they find is not kept.
"""

import tempfile
from collections.abc import Callable
from functools import cache

import nbformat
import numpy as np
import pytest
from matplotlib import pyplot

from swarmbook.config import RunConfig, grid, run_config
from swarmbook.data import batches, tokenization
from swarmbook.planning.annealing import annealing_search
from swarmbook.reproduction import papers

PAPERS = papers.discover()
NARROW = {"width": 8, "heads": 2, "hidden": 8, "sequence": 4, "batch": 1, "tokenizer": "bytes", "data_limit": None}
MOST = 32  # microbatches of a twin
NARROW |= {"steps": 12, "warmup": 1, "schedule_steps": None, "log_every": 1, "evaluate_every": 1, "evaluate_on": ()}


def checkfree(names: dict) -> list[RunConfig]:
    """All three models; the small one as its checkpoints have it, and one with all that the first figure asks of it."""
    sizes = {size: names[size] for size in ("small", "medium", "large")}
    rolled = {"recovery": "rollback", "failure_rate": names["small_rate"]}
    return [grid(fields)[0] for fields in (*sizes.values(), sizes["small"] | rolled)]


def noloco(names: dict) -> list[RunConfig]:
    """Both methods in all settings of table 2, and the model that stands for FSDP."""
    settings = [names["setting"](*row, text) for row in names["ROWS"] for text in names["texts"]]
    whole = [names["setting"](size, 1, stages) for size, stages in names["whole"].items()]
    both = [grid(fields | method)[0] for fields in settings for method in names["METHODS"].values()]
    return [*both, *(grid(fields)[0] for fields in whole)]


def skippipe(names: dict) -> list[RunConfig]:
    """Every arm."""
    return [grid({**names["base"], **fields})[0] for fields in names["ARMS"].values()]


def hdee(names: dict) -> list[RunConfig]:
    """Every expert of one seed, those of two replicas among them, and their seed models."""
    lanes = [expert for forest in names["lanes"][1].values() for three in forest for expert in three]
    pairs = [expert for more in names["PAIRS"].values() for expert in names["by_pairs"](1, **more)]
    return [*lanes, *pairs, *(names["seeded"](lane.hidden) for lane in lanes)]


def swarm(names: dict) -> list[RunConfig]:
    """Every exchange, and every route, while stages fail."""
    ways = {(exchange, "in order") for exchange in names["COMPARED"]} | {("NoLoCo", route) for route in names["ROUTES"]}
    return [names["cell"](0, exchange, "stages", "peer copy", route) for exchange, route in sorted(ways)]


MODELS: dict[str, Callable[[dict], list[RunConfig]]] = {
    "checkfree": checkfree,
    "noloco": noloco,
    "skippipe": skippipe,
    "hdee": hdee,
    "swarm": swarm,
}


class Reached(Exception):
    """A notebook wants to train; holds the runs."""


@cache
def until_training(name: str, profile: str) -> tuple[list[RunConfig], dict]:
    """What a paper trains first at a profile, and all that its notebook has named until then."""

    def stop(configs, **options):
        raise Reached(configs)

    names: dict = {}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as store:
        patch.setenv("SWARMBOOK_STORE", store)
        patch.chdir(PAPERS[name].notebook.parent)
        patch.setattr("swarmbook.runs.run", stop)
        patch.setattr(
            "swarmbook.planning.planners.annealing_search",
            lambda *given, **named: annealing_search(*given, **{**named, "moves": 200}),
        )
        with pytest.raises(Reached) as reached:
            for cell in nbformat.read(PAPERS[name].notebook, as_version=4).cells:
                if cell.cell_type == "code":
                    exec(cell.source, names)
                    if "parameters" in cell.metadata.get("tags", []):
                        names["profile"] = profile
    pyplot.close("all")
    return reached.value.args[0], names


def runs_of(name: str, profile: str) -> list[RunConfig]:
    """What a paper trains first, and the models that it has named until then, each once."""
    first, names = until_training(name, profile)
    return list(dict.fromkeys([*first, *MODELS[name](names)]))


def narrow(run: RunConfig, text: str) -> RunConfig:
    """A run of the same depth, replicas, route and methods, as narrow as can be, on local text and without a parent."""
    few = {"held_out": max(4, run.replicas), "microbatches": min(run.microbatches, MOST)}
    few["sync_every"] = min(run.sync_every, NARROW["steps"])
    few["away"] = tuple((node, step, None) for step, (node, *_) in enumerate(run.away, 1))  # in the twin's few steps
    fields = {name: getattr(run, name) for name in type(run).model_fields if name not in ("start", "branch")}
    return run_config(**{**fields, **NARROW, **few, "data": text})


@pytest.mark.parametrize("profile", papers.PROFILES)
@pytest.mark.parametrize("name", MODELS)
def test_a_narrow_twin_of_every_model_makes_a_step(name, profile, new_pack, one_thread):
    twins = {narrow(run.model_copy(update={"seed": 0}), "stories_toy") for run in runs_of(name, profile)}
    assert len(twins) > 2
    for twin in twins:
        pack = new_pack(twin)
        pack.advance()
        pack.log()
        assert not pack.diverged and np.isfinite(pack.last_loss)


@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_needs_no_hub_and_has_all_the_text_that_its_runs_ask_for(name):
    for run in runs_of(name, "gpu"):
        for domain in (run.data, *run.evaluate_on):
            assert "hub:" not in domain
            held_out = tokenization.tokens(domain, "validation", run.tokenizer)
            assert len(batches.held_out(held_out, run.sequence, run.held_out)) == run.held_out


def test_a_gpu_has_all_the_text_that_ensembles_are_scored_on():
    _, names = until_training("hdee", "gpu")
    experts = names["lanes"][1]["M_Ho-I_Ho"][2]
    ensemble = names["Ensemble"](experts=experts, domains=names["DOMAINS"], **names["SCORED"])
    for domain in ensemble.domains:
        assert ensemble.windows(domain, "test").shape[1] == ensemble.sequences
        assert ensemble.windows(domain, "validation").shape[1] == ensemble.prior_sequences
