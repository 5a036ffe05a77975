"""What runs are charged, against formulas from the shapes of their weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swarmbook.config import run_config
from swarmbook.data import tokenization
from swarmbook.methods.costs import ENTRIES, Costs, bytes_of
from swarmbook.methods.model_size import Shape, flops
from swarmbook.methods.recovery import RULES
from swarmbook.records.store import Store
from swarmbook.runs import run
from swarmbook.training.fleet import Fleet
from swarmbook.training.stacked_stages import plain_layers

pytestmark = pytest.mark.usefixtures("one_thread")

S, LAYERS, D, H, T, STEPS = 4, 2, 16, 24, 8, 20
TINY = {
    "data": "stories_toy", "stages": S, "layers_per_stage": LAYERS, "width": D, "heads": 2, "hidden": H, "sequence": T,
    "microbatches": 2, "batch": 1, "steps": STEPS, "log_every": 10, "evaluate_every": 20, "held_out": 1,
}  # fmt: skip
V = tokenization.tokenizer("swarmbook").get_vocab_size()
STAGE = 4 * LAYERS * (4 * D * D + 3 * D * H + 2 * D)  # bytes of fp32: attention, SwiGLU, two norms
ENDS = 4 * (2 * V * D + D)  # embedding, head, norm
ALL = S * STAGE + ENDS
TOKENS = 2 * T  # a step
TRUNK = TOKENS * S * LAYERS * (2 * (4 * D * D + 3 * D * H) + 2 * D * (T + 1))
HEAD = TOKENS * 2 * D * V


@pytest.fixture
def entries(tmp_path):
    def read(**fields):
        config = run_config(**TINY, **fields)
        table = run([config], show=False, store=Store(tmp_path)).table("ledger")
        assert set(table["label"]) <= set(ENTRIES) and (table["step"] == STEPS).all()
        return dict(zip(table["label"], table["value"], strict=True))

    return read


INSIDE = {"lost_stages": ((4, 2), (9, 3))}
EDGE = {"lost_stages": ((4, 1),)}
OF_ENDS = {"lost_stages": ((4, 0),)}
TRAINING = {"training FLOPs": STEPS * 3 * (TRUNK + HEAD)}


@pytest.mark.parametrize(
    ("recovery", "fields", "expected"),
    [
        ("none", {}, {}),
        ("CheckFree", {}, {}),
        ("CheckFree", INSIDE, {"sent on failure": 2 * (2 * STAGE + 2 * 4), "rebuilt": 2}),  # two stages, two norms
        ("CheckFree", EDGE, {"sent on failure": STAGE + 4, "rebuilt": 1}),
        ("CheckFree", OF_ENDS, {"rebuilt": 1}),
        ("CheckFree", {"lost_stages": ((4, 2), (4, 3))}, {"sent on failure": 2 * (2 * STAGE + 2 * 4), "rebuilt": 2}),
        ("uniform average", INSIDE, {"sent on failure": 2 * 2 * STAGE, "rebuilt": 2}),
        ("copy previous", INSIDE, {"sent on failure": 2 * STAGE, "rebuilt": 2}),
        ("random", INSIDE, {"rebuilt": 2}),
        ("identity", INSIDE, {"rebuilt": 2}),
        (
            "CheckFree",
            {**EDGE, "moments": "average"},
            {"sent on failure": STAGE + 4 + 2 * STAGE, "rebuilt": 1},  # two moments of the only neighbour
        ),
        ("CheckFree+", {}, {"stored": ENDS, "sent in training": STEPS * ENDS}),
        (
            "CheckFree+",
            {"lost_stages": ((4, 2), (9, 0))},
            {
                "stored": ENDS,
                "sent in training": STEPS * ENDS,
                "sent on failure": 2 * STAGE + 2 * 4 + ENDS,
                "rebuilt": 2,
            },
        ),
        (
            "CheckFree+",
            {"lost_stages": ((4, 0), (4, 1))},
            {
                "stored": ENDS,
                "sent in training": STEPS * ENDS,
                "sent on failure": STAGE + 4,
                "rebuilt": 2,
                "not recoverable": 1,
            },
        ),
        (
            "neighbour snapshot",  # a copy with either neighbour, after steps 6, 12 and 18
            {**INSIDE, "keep_every": 6},
            {"stored": 2 * ALL, "sent in training": 3 * 2 * ALL, "sent on failure": 2 * STAGE, "rebuilt": 2},
        ),
        (
            "neighbour snapshot",
            {"lost_stages": ((9, 1), (9, 2), (9, 3)), "keep_every": 100},
            {"stored": 2 * ALL, "sent on failure": 3 * STAGE, "rebuilt": 3, "not recoverable": 1},  # stage 4 instead
        ),
        (
            "redundant computation",
            {"lost_stages": ((4, 2), (9, 0))},
            {
                "stored": ALL,
                "sent in training": STEPS * ALL,
                "redundant FLOPs": STEPS * TRUNK,
                "sent on failure": STAGE + ENDS,
                "rebuilt": 2,
            },
        ),
        ("learning rate alone", INSIDE, {"sent on failure": 2 * STAGE, "rebuilt": 2}),
        ("rollback", {}, {"stored": 3 * ALL}),  # weights and two moments; the first copy follows from the seed
        (
            "rollback",  # of 20 steps, 4 + 3 are repeated: copies after 5 and 10 steps of progress
            {"lost_stages": ((4, 2), (4, 3), (12, 1)), "keep_every": 5},
            {
                "stored": 3 * ALL,
                "sent in training": 2 * 3 * ALL,
                "sent on failure": 2 * 3 * ALL,
                "steps repeated": 4 + 3,
            },
        ),
    ],
)
def test_entries_follow_from_shapes_and_losses(entries, recovery, fields, expected):
    assert entries(recovery=recovery, **fields) == TRAINING | expected


@pytest.mark.parametrize("recovery", ["CheckFree+", "neighbour snapshot", "redundant computation", "rollback"])
def test_two_replicas_cost_twice_as_much(entries, recovery):
    one, two = (
        entries(recovery=recovery, lost_stages=((4, 2), (9, 0)), keep_every=5, replicas=replicas) for replicas in (1, 2)
    )
    alike = {"steps repeated"}
    if recovery == "rollback":  # both replicas go back together
        assert one["steps repeated"] == 4 + 0
    assert two == {name: amount if name in alike else 2 * amount for name, amount in one.items()}


def test_bytes_are_those_of_the_weights():
    fleet = Fleet(Shape(S, LAYERS, D, 2, H, V), [0], device="cpu", compile=False)
    assert bytes_of(fleet.stage(0, 1)) == STAGE and bytes_of(fleet.ends(0)) == ENDS
    assert bytes_of(fleet.state_dict()) == ALL == 4 * fleet.shape.parameters
    assert bytes_of({"half": torch.zeros(3, 5, dtype=torch.bfloat16)}) == 30


def test_flops_are_those_that_torch_counts():
    shape = Shape(stages=3, layers_per_stage=2, width=16, heads=2, hidden=24, vocabulary=50)
    with plain_layers():  # in which attention is an operation of its own
        fleet = Fleet(shape, [0], device="cpu", compile=False)
    with FlopCounterMode(display=False) as counter:
        fleet.loss(torch.zeros(1, 4, 8 + 1, dtype=torch.long))
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matmuls = sum(n for op, n in counted.items() if "attention" not in op)
    # Attention: at position t the scores and the values of t + 1 positions, each a multiply-add of all the width.
    attention = 4 * shape.layers * sum(2 * 2 * shape.width * (t + 1) for t in range(8))
    assert flops(shape, 4 * 8, 8) == matmuls + attention
    assert flops(shape, 4 * 8, 8) - flops(shape, 4 * 8, 8, ends=False) == 4 * 8 * 2 * 16 * 50


def test_an_unknown_entry_is_refused():
    costs = Costs()
    costs.add("rebuilt", 1)
    with pytest.raises(KeyError, match="'sent' is no entry of the costs: stored, sent in training"):
        costs.add("sent", 1)
    assert dict(costs) == {"rebuilt": 1}


def test_every_strategy_with_copies_is_charged_for_them(entries):
    for name, strategy in RULES.items():
        if strategy and strategy.keeps and name != "learning rate alone":  # a control, not a method
            charged = entries(recovery=name, keep_every=5)
            assert charged["stored"] > 0 and charged["sent in training"] >= charged["stored"], name
            assert ("redundant FLOPs" in charged) == strategy.forwards
