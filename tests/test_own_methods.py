"""A user's own methods: their parameters, their buffers, and an inner optimizer in Adam's place."""

import itertools

import own_methods  # noqa: F401, it registers them
import pytest
import torch
from test_resharding import assert_alike

from swarmbook.config import RunConfig, grid, run_config
from swarmbook.errors import ConfigError
from swarmbook.methods.model_size import Shape
from swarmbook.methods.optimizers import OPTIMIZERS, orthogonal
from swarmbook.methods.sync import SYNCS, Method
from swarmbook.records.store import Store
from swarmbook.results import Runs
from swarmbook.runs import run
from swarmbook.training import trainer
from swarmbook.training.fleet import Fleet
from swarmbook.training.inner_optimizer import InnerOptimizer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "data": "stories_toy", "stages": 2, "width": 16, "heads": 2, "hidden": 32, "sequence": 8, "microbatches": 2,
    "batch": 1, "steps": 8, "log_every": 1, "evaluate_every": 4, "held_out": 4,
}  # fmt: skip
SHAPE = Shape(stages=2, layers_per_stage=2, width=16, heads=2, hidden=24, vocabulary=19)
R, S = 2, SHAPE.stages
SWARM = {"replicas": 4, "common_start": True, "sync_every": 2}


# Inner optimizers


def cells(fleet):
    return [(r, s) for r in range(R) for s in range(S + 1)]


def lion_by_its_formula(parameters, lr, decay):
    """Algorithm 2 of arXiv 2302.06675 as it stands there: c, then theta, then m."""
    m = [torch.zeros_like(p) for p in parameters]

    def step():
        for k, p in enumerate(parameters):
            c = 0.9 * m[k] + 0.1 * p.grad
            p.data = p.data - lr * (torch.sign(c) + decay * p.data)
            m[k] = 0.99 * m[k] + 0.01 * p.grad

    return step


def theirs(name, parameters, lr, decay):
    """A step of an independent implementation over these parameters; decay is decoupled."""
    if name == "Lion":
        return lion_by_its_formula(parameters, lr, decay)
    if name == "Adam":
        return torch.optim.AdamW(parameters, lr, weight_decay=decay).step
    plain = torch.optim.SGD(parameters, lr, momentum=0.9 if name != "plain SGD" else 0, nesterov="Nesterov" in name)

    def step():
        with torch.no_grad():
            for p in parameters:
                p.mul_(1 - lr * decay)
        plain.step()

    return step


@pytest.mark.parametrize("name", ["Adam", "SGD", "SGD, Nesterov", "plain SGD", "Lion"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("disturbed", [False, True])  # else all cells go through the rule at once
def test_each_cell_is_what_another_implementation_makes_of_it(name, decay, disturbed):
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    parameters = {"nesterov": True} if "Nesterov" in name else {}
    ours = InnerOptimizer(fleet, 1e-2, name.split(",")[0], decay, **parameters)
    copies = {c: [w.clone().requires_grad_() for w in fleet.stage(*c).values()] for c in cells(fleet)}
    steps = {c: theirs(name, copy, 1e-2, decay) for c, copy in copies.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        for cell, copy in copies.items():
            for gradient, p in zip(fleet.stage_gradient(*cell).values(), copy, strict=True):
                p.grad = torch.randn(p.shape, generator=generator)
                gradient.copy_(p.grad)
        if disturbed and step == 3:
            ours.reset(1, 1)
            steps[1, 1] = theirs(name, copies[1, 1], 1e-2, decay)
        ours.step()
        for theirs_step in steps.values():
            theirs_step()
    for cell, copy in copies.items():
        for weight, p in zip(fleet.stage(*cell).values(), copy, strict=True):
            torch.testing.assert_close(weight, p.detach(), rtol=1e-5, atol=1e-6)


def test_muon_is_torch_muon_on_the_matrices_and_adam_on_the_rest():
    fleet = Fleet(SHAPE, [1, 2], device="cpu", compile=False)
    ours = InnerOptimizer(fleet, 1e-2, "Muon", 0.1)
    pairs, optimizers = [], []
    for cell, (name, _) in itertools.product(
        cells(fleet), itertools.chain(*(fleet.stage(0, s).items() for s in (0, S)))
    ):
        if name not in fleet.stage(*cell):
            continue
        weight, gradient = fleet.stage(*cell)[name], fleet.stage_gradient(*cell)[name]
        layers = zip(weight, gradient, strict=True) if cell[1] < S else [(weight, gradient)]
        for w, g in layers:
            matrix = cell[1] < S and w.dim() == 2
            copy = (w.T if matrix else w).clone().requires_grad_()  # torch has outputs first
            make = torch.optim.Muon if matrix else torch.optim.AdamW
            options = {} if matrix else {"betas": (0.9, 0.95)}
            pairs.append((w, g, copy, matrix))
            optimizers.append(make([copy], lr=1e-2, weight_decay=0.1, **options))
    assert sum(matrix for *_, matrix in pairs) == R * S * 2 * 4
    generator = torch.Generator().manual_seed(0)
    begun = [w.clone() for w, *_ in pairs]
    for _ in range(4):
        for _, g, copy, matrix in pairs:
            g.copy_(torch.randn(g.shape, generator=generator))
            copy.grad = (g.T if matrix else g).clone()
        ours.step()
        for each in optimizers:
            each.step()
    for (w, _, copy, matrix), before in zip(pairs, begun, strict=True):
        expected = copy.detach().T if matrix else copy.detach()
        far = (w - before).norm()
        assert (w - expected).norm() < (0.03 if matrix else 1e-4) * far  # torch iterates in bf16


def test_newton_and_schulz_make_all_singular_values_near_one():
    for shape in ((6, 20), (20, 6)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)), 5))
        assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("name", ["SGD", "plain SGD", "Lion", "Muon"])
@pytest.mark.parametrize("moments", ["reset", "average", "keep"])
def test_a_rebuilt_stage_has_the_buffers_that_it_should(new_pack, name, moments):
    fields = {**TINY, "stages": 3, "optimizer": name, "recovery": "share of each", "moments": moments, "lr": 1e-30}
    before = new_pack(run_config(**fields), steps=3)
    pack = new_pack(run_config(**fields, lost_stages=((3, 2),)), steps=3)
    kept = {s: {n: [b.clone() for b in bs] for n, bs in pack.optimizer.moments(0, s).items()} for s in range(3)}
    pack._fail(0)
    for parameter, buffers in pack.optimizer.moments(0, 1).items():
        assert len(buffers) == len(OPTIMIZERS[name].buffers)
        for k, buffer in enumerate(buffers):
            wanted = {
                "reset": torch.zeros_like(buffer),
                "keep": kept[1][parameter][k],
                "average": (kept[0][parameter][k] + kept[2][parameter][k]) / 2,
            }[moments]
            assert torch.equal(buffer, wanted)
    assert pack.optimizer.steps[0].tolist() == [3, {"reset": 0, "keep": 3, "average": 3}[moments], 3, 3]
    assert before.optimizer.steps[0].tolist() == [3, 3, 3, 3]


# Whatever a method keeps is in every checkpoint

OWN = {
    "outer Adam": {**SWARM, "sync": "outer Adam", "outer_lr": 0.01, "fragments": 2, "delay": 1},
    "outer Lion": {**SWARM, "sync": "outer Lion", "outer_lr": 1e-3, "method": {"sync.beta1": 0.8}},
    "error feedback": {**SWARM, "sync": "error feedback", "method": {"share": 0.3}},
    "SGD": {"optimizer": "SGD", "method": {"momentum": 0.8}, "weight_decay": 0.1, "lr": 0.1},
    "plain SGD": {"optimizer": "plain SGD", "lr": 0.1},
    "Lion": {"optimizer": "Lion", "lr": 3e-4, "storage": "bf16"},
    "Muon": {"optimizer": "Muon", "lr": 3e-3, "recovery": "share of each", "lost_stages": ((2, 1),)},
    "AdamW": {"weight_decay": 0.1, "method": {"beta2": 0.95}},
}


@pytest.mark.parametrize("case", OWN)
def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(tmp_path, case):
    config = run_config(**TINY, **OWN[case])
    packs = []
    for stop in (8, 5):
        progress = Store(tmp_path / str(stop)).progress([config.key])
        pack = trainer.Pack([config], progress, "cpu")
        for _ in range(stop):
            pack.advance()
        if stop < 8:
            pack.save()
            progress.append([])
            pack = trainer.Pack([config], progress, "cpu")
            assert pack.step == stop
            for _ in range(8 - stop):
                pack.advance()
        packs.append(pack)
    assert_alike(packs[0].state(0), packs[1].state(0), atol=0)
    outer = packs[0].state(0)["outer"]
    if outer:
        assert all(weight.any() for name in SYNCS[config.sync].buffers for weight in outer[name].values())


@pytest.mark.parametrize("case", ["outer Adam", "SGD", "Muon"])
def test_a_run_that_starts_from_another_is_one_that_never_stopped(tmp_path, case):
    whole = run_config(**TINY, **OWN[case])
    parent = run_config(**{**TINY, "steps": 4}, **OWN[case])
    after = run_config(**{**TINY, **OWN[case], "lost_stages": ()}, start=parent)
    a, b = (
        run([c], show=False, store=Store(tmp_path / c.key), device="cpu").table("training loss") for c in (whole, after)
    )
    assert a[a["step"] > 4]["value"].tolist() == b["value"].tolist() and len(b) == 4
    assert a["value"].iloc[-1] < a["value"].iloc[0]


def test_a_run_starts_from_one_of_the_same_optimizer_alone():
    parent = run_config(**{**TINY, "steps": 4}, optimizer="SGD")
    with pytest.raises(ConfigError, match="optimizer='Adam' must be that of the run it starts from, 'SGD'"):
        run_config(**TINY, start=parent)
    assert run_config(**TINY, branch=parent).key  # which takes weights alone


def test_the_outer_step_is_counted_by_fragment_and_from_the_runs_beginning(new_pack, monkeypatch):
    seen = []
    monkeypatch.setitem(SYNCS, "look", Method(lambda x: seen.append(x.step), keeps=False))
    new_pack(**SWARM, sync="look", fragments=2, steps=7)  # a pack's steps, of 8
    assert seen == [0, 0, 1, 1, 2, 2, 3]
    monkeypatch.setitem(SYNCS, "look", Method(lambda x: seen.append(x.step), keeps=False, gradients=True))
    seen.clear()
    new_pack(replicas=2, sync="look", steps=3)
    assert seen == [0, 1, 2]


# Parameters

FIRST, SECOND = {"sync.beta1": 0.8}, {"sync.beta2": 0.8}


def test_parameters_are_in_the_key_where_they_are_not_their_defaults():
    base = {**TINY, **SWARM, "sync": "outer Adam"}
    plain = run_config(**base)
    assert run_config(**base, method={"sync.beta1": 0.9}).key == plain.key
    assert (
        run_config(**base, method={"sync.eps": 1}).key == run_config(**base, method={"sync.eps": 1.0}).key != plain.key
    )
    several = [run_config(**base, method=m) for m in (FIRST, SECOND, FIRST | SECOND)]
    assert len({config.key for config in (plain, *several)}) == 4
    assert run_config(**base, method=SECOND | FIRST) == several[2]
    assert RunConfig(**several[2].model_dump(mode="json")) == several[2]


def test_buffers_are_in_the_key_of_a_users_own_method(monkeypatch):
    def keys():
        keys = []
        for buffers in (None, ("delta",), ("first", "second")):
            monkeypatch.setitem(SYNCS, "mine", Method(SYNCS["DiLoCo"].rule, groups=False, alike=True, buffers=buffers))
            keys.append(run_config(**TINY, **SWARM, sync="mine").key)
        return keys

    unnamed, delta, two = keys()
    assert unnamed == delta != two


def test_runs_are_chosen_and_grouped_by_their_parameters():
    configs = grid({**TINY, **SWARM, "sync": "outer Adam"}, method=[{}, {"sync.beta1": 0.5}], seed=[0, 1])
    runs = Runs(configs, [None] * 4)
    assert runs.axes == ["method", "seed"]
    assert runs.where(method={"sync.beta1": 0.5}).configs == configs[2:]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"method": {"beta": 1}},
            "unknown parameter of this run's route, optimizer, sync: 'beta': did you mean 'beta",
        ),
        (
            {"sync": "DiLoCo", "optimizer": "plain SGD", "method": {"b": 1}},
            "'b': Known: none; parameters stand behind",
        ),
        ({"method": {"sync.eps": "small"}}, "sync.eps='small' must be of type float"),
        ({"method": {"sync.eps": True}}, "sync.eps=True must be of type float"),
        ({"method": {"sync.eps": float("nan")}}, "finite"),
        ({"optimizer": "Muon", "sync": "DiLoCo", "method": {"iterations": 1.5}}, "iterations=1.5 must be of type int"),
        ({"optimizer": "SGD", "sync": "DiLoCo", "method": {"nesterov": 1}}, "nesterov=1 must be of type bool"),
        ({"method": {"beta1": 0.5}}, "'beta1' is one of optimizer and of sync: write sync.beta1"),
        ({"optimizer": "Adan"}, "unknown optimizer 'Adan': did you mean 'Adam'"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"method": [["a"]]}, "method"),
    ],
)
def test_what_is_no_parameter_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        run_config(**{**TINY, **SWARM, "sync": "outer Adam", **fields})


def test_a_parameter_without_a_default_has_to_be_given(monkeypatch):
    def rule(x, *, rate):
        for weight, gradient in x:
            weight.add_(gradient, alpha=-rate)

    monkeypatch.setitem(OPTIMIZERS, "mine", type(OPTIMIZERS["Adam"])(rule))
    with pytest.raises(ConfigError, match="method={} lacks 'rate'"):
        run_config(**TINY, optimizer="mine")
    keys = {run_config(**TINY, optimizer="mine", method={"rate": rate}).key for rate in (0.1, 0.2)}
    assert len(keys) == 2


@pytest.mark.parametrize("buffers", [("phi",), ("a", "a"), ("arriving",)])
def test_a_name_that_is_taken_is_no_buffers(buffers):
    with pytest.raises(ConfigError, match="is taken; give each buffer a name of its own"):
        Method(lambda x: None, buffers=buffers)


def test_a_rule_may_ask_for_a_field_of_the_run(new_pack, monkeypatch):
    seen = []

    def rule(x, *, steps, weight=2.0):
        seen.append((steps, weight))

    monkeypatch.setitem(SYNCS, "look", Method(rule, keeps=False))
    new_pack(**SWARM, sync="look", method={"weight": 3}, steps=2)
    assert seen == [(8, 3.0)]


def test_a_parameter_that_is_called_like_a_field_is_refused(monkeypatch):
    def rule(x, *, steps=5):
        """Which would get the steps of the run."""

    monkeypatch.setitem(SYNCS, "mine", Method(rule, keeps=False))
    with pytest.raises(ConfigError, match="the sync rule's parameter 'steps' is a field of RunConfig: rename it"):
        run_config(**TINY, **SWARM, sync="mine")
