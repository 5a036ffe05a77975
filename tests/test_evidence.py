"""Which figure or table shows what a claim stands on."""

import json
from pathlib import Path

import pytest

from swarmbook.reproduction import papers
from swarmbook.reproduction.evidence import evidence

PAPERS = Path(__file__).parents[1] / "papers"


def cell(source: str, *tags: str, kind: str = "code") -> dict:
    return {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}}


NOTEBOOK = [
    cell("rate = 0.1", "parameters"),
    cell("import numpy as np\nRULES = ['a', 'b']\ndef paired(x): return x"),
    cell("losses = np.ones(3)\nplot(losses, RULES, rate)", "figure 1"),
    cell("hours = np.ones(3)\nplot(hours, RULES)", "table 2"),
    cell("colour = 'C1'"),  # no claim, though it has the name of one
    cell("gap = paired(losses)\ndisplay(claims.add('C1', gap, rate))"),
    cell("claims.add('C2', paired(hours))\nclaims.add('C3', losses, hours)"),
    cell("## Another section", kind="markdown"),
    cell("own = np.zeros(2)\nfor id in ('C4', 'C5'):\n    claims.add(id, own, RULES)"),
    cell("hours = np.zeros(3)"),
    cell("claims.add('C6', hours)", "figure 3"),
    cell("claims.add('C7', hours)\n"),
    cell("own = 3\nclaims.add('C8', own)"),
    cell("%magic\nclaims.add('C9', hours)"),
]
IDS = [f"C{i}" for i in range(1, 10)]


def shown(cells: list, ids: list[str]) -> dict[str, list[str]]:
    return {id: [papers.label_of(cells[n]) for n in numbers] for id, numbers in evidence(cells, ids).items()}


def test_evidence_is_where_the_names_of_a_claim_lead():
    assert shown(NOTEBOOK, IDS) == {
        "C1": ["figure 1"],  # through a name of its own cell, past a nearer table
        "C2": ["table 2"],
        "C3": ["figure 1", "table 2"],
        "C4": [],  # a constant of another section, and nothing else
        "C5": [],
        "C6": ["figure 3"],  # its own cell
        "C7": ["figure 3"],  # not the table of what was called hours before
        "C8": ["figure 3"],  # the nearest under the same heading
        "C9": [],  # of code that is no Python nothing is known
    }


@pytest.mark.parametrize(
    ("paper", "wanted"),
    [
        (
            "syncpcn",
            {
                "S1": {"table impossibility"},
                "S2": {"table four worlds"},
                "S8": {"table requirements"},
                "S9": {"table requirements"},
                "S10": {"table schedules"},
                "S14": {"figure privacy", "table wormhole"},
                "S15": {"figure privacy"},
            },
        ),
        ("checkfree", {"C1": {"figure 2"}, "C9": {"table 3"}, "edge 1": {"figure loss jump"}}),
        ("swarm", {"W1": {"figure effects"}, "W5": {"figure apart"}, "W6": {"figure poison"}}),
        ("noloco", {"3A": {"figure 3a"}, "T3": {"table 3"}, "B5": {"figure causes"}}),
        ("skippipe", {"K1": {"figure iteration times"}, "K3": {"figure inference"}}),
        ("hdee", {"1, best of two": {"table wins"}, "6, difficulty": {"figure difficulty"}}),
    ],
)
def test_evidence_of_the_papers(paper, wanted):
    cells = json.loads((PAPERS / paper / f"{paper}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = shown(cells, list(wanted))
    assert {id: labels for id, labels in wanted.items() if not labels <= set(found[id])} == {}
    assert all(len(labels) <= 3 for labels in found.values())
