"""The edits of a notebook that README promises: a method of one's own by its name, a text of one's own.

The cells that a figure needs are executed at `smoke`, with nothing else of the notebook.
"""

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from swarmbook.analysis import figures
from swarmbook.data import corpora
from swarmbook.ensembles.experts import in_place_of
from swarmbook.errors import ConfigError
from swarmbook.methods.recovery import RULES
from swarmbook.methods.sync import SYNCS
from swarmbook.reproduction import papers

PAPERS = Path(__file__).parents[1] / "papers"
pytestmark = pytest.mark.usefixtures("one_thread")


def code_of(paper):
    notebook = json.loads((PAPERS / paper / f"{paper}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def replaced(cells, old, new):
    assert sum(cell.count(old) for cell in cells) == 1, old
    return [cell.replace(old, new) for cell in cells]


def executed(paper, cells, wanted, monkeypatch, folder):
    """What the notebook has in the end; figures stay open. wanted: what says which cell, or a cell of the test's."""
    for name in ("STORE", "CACHE", "RUNS"):
        monkeypatch.setenv(f"SWARMBOOK_{name}", str(folder / name.lower()))
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(PAPERS / paper)
    plt.close("all")
    scope = {"__name__": "__main__"}
    begin = next(i for i, cell in enumerate(cells) if "partial(printed, paper)" in cell) + 1  # parameters and imports
    for cell in cells[:begin] + [next((cell for cell in cells if mark in cell), mark) for mark in wanted]:
        exec(compile(cell.replace('profile = "cpu"', 'profile = "smoke"'), f"{paper}: {cell[:40]!r}", "exec"), scope)
    return scope


def said_in(figure):
    figure.canvas.draw()
    axes = [text.get_text() for ax in figure.axes for text in (*ax.get_yticklabels(), *ax.texts)]
    return axes + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


MINE = '''
from swarmbook.methods.recovery import recovery


@recovery("first neighbour alone")
def first_neighbour_alone(lost):
    """A copy of the nearest surviving stage before it."""
    lost.mix({lost.neighbours[0]: 1.0})

'''
OUTER = '''
from swarmbook.methods.sync import sync


@sync("half way")
def half_way(x):
    """Slow weights go half the way to the mean of the fast weights of the pair."""
    for theta, phi, _ in x:
        phi.lerp_(x.mean(theta), 0.5)
        theta.copy_(phi)
    x.send_to_group(copies=1)

'''


MODELS = ("sizes = choose(", "layers = choose(", "def setting(", "def both(")  # of NoLoCo
EIGHT = 'eight = setting("small", 8, 2)\nNOLOCO, DILOCO = METHODS["NoLoCo"], METHODS["DiLoCo"]'


def test_a_recovery_is_added_to_checkfrees_figure_2_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(RULES, "first neighbour alone", None)  # to be removed again
    own = MINE + 'strategies = ["first neighbour alone", "random",'
    cells = replaced(code_of("checkfree"), 'strategies = ["random",', own)
    calm = "in_order = train(grid(medium, seed=seeds))"
    wanted = ("sizes = choose(", "medium = {", calm, "strategies = [", 'title="Figure 2: 16 % an hour"')
    scope = executed("checkfree", cells, wanted, monkeypatch, tmp_path)
    assert said_in(scope["figure"]).count("first neighbour alone") >= 2  # in the legend and beside an interval
    assert list(scope["worse"])[:2] == ["none", "first neighbour alone"] and "CheckFree" not in scope["worse"]
    colour = figures.colour_of("first neighbour alone")
    assert colour in {line.get_color() for line in scope["left"].lines}


def test_an_exchange_is_added_to_nolocos_variants_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(SYNCS, "half way", None)
    own = OUTER + 'OWN = {"half way": {**NOLOCO, "sync": "half way"}}  #'
    cells = replaced(code_of("noloco"), "OWN = {}  #", own)
    few = ["one tensor", "gossip", "half way"]  # each costs a second
    fewer = f"FIELDS = {{name: FIELDS[name] for name in {few}}}\nother = both(eight)\n"
    fewer += "other |= {name: train(grid({**eight, **fields}, seed=seeds)) for name, fields in FIELDS.items()}\n"
    fewer += (
        'final = arms(other, Runs.final)\nfsdp = {("small", "talk"): train(grid(setting("small", 1, 2), seed=seeds))}'
    )
    front = [cell for cell in cells if "front = pd.DataFrame(" in cell][0]
    begin, end = front.index("FRONT = ["), front.index("    *OWN,\n]")
    shorter = front[:begin] + 'FRONT = ["NoLoCo", "one tensor", "DiLoCo", "gossip",\n' + front[end:]
    cells = [cell.replace('"oPsoss*^vX<>dphH8ov^P"', '"oPso"') for cell in replaced(cells, front, shorter)]
    wanted = (*MODELS, EIGHT, "FIELDS |= OWN", fewer, "front = pd.DataFrame(", "marks = dict(zip(FRONT")
    scope = executed("noloco", cells, wanted, monkeypatch, tmp_path)
    assert scope["front"].loc["half way", "copies sent per step"] > 0
    assert sum("half way" in text for text in said_in(scope["figure"])) >= 2  # in both panels


def test_a_text_of_ones_own_takes_the_profiles_place(monkeypatch, tmp_path):
    (tmp_path / "notes.txt").write_text("a line of my own notes\n" * 200)
    source = f"file:{tmp_path / 'notes.txt'}"

    def executed_with_it(paper, *wanted):
        cells = replaced(code_of(paper), 'data = ""', f"data = {source!r}")
        return executed(paper, cells, wanted, monkeypatch, tmp_path)

    noloco = executed_with_it("noloco", *MODELS, EIGHT, "FIELDS |= OWN")
    assert set(noloco["texts"].values()) == {source} and noloco["eight"]["data"] == source
    assert "gossip" in noloco["FIELDS"] and not any("own domains" in name for name in noloco["FIELDS"])  # it is one
    assert executed_with_it("skippipe", 'probes=["partial model"]')["base"]["data"] == source
    (sizes,) = (cell.split("often = {")[0] + "# without training" for cell in code_of("hdee") if "def card_of(" in cell)
    hdee = executed_with_it("hdee", "domain = choose(", "TRAINED = in_place_of", sizes)
    assert hdee["LANES"]["easy"][0] == source and len(set(hdee["TRAINED"])) == 9
    assert hdee["DOMAINS"][0] == source and len(set(hdee["DOMAINS"])) == len(hdee["DOMAINS"]) == 21
    assert 0.3 < hdee["per_byte"](source, "test") < 1.5  # bits a byte for a nat a token: it was counted


@pytest.mark.parametrize("paper", ["checkfree", "noloco", "skippipe", "hdee"])
def test_a_text_that_is_not_there_is_told_before_the_first_cell(paper):
    found = papers.discover(PAPERS)[paper]
    assert found.parameters()["data"].default == ""
    for text, said in (
        ("file:nowhere.txt", "there is no file"),
        ("hub:owner/name", "hub:owner/name@"),
        ("codego", "code_go"),
    ):
        with pytest.raises(ValueError, match=said):
            papers.checked(found, {"data": text})


def test_own_domains_come_first_and_none_is_there_twice():
    nine = corpora.domains("train")[:9]
    assert in_place_of(nine, "") == nine
    assert in_place_of(nine, f"file:a.txt+{nine[4]}") == ["file:a.txt", nine[4], *nine[:4], *nine[5:8]]
    for wrong in (f"{nine[0]}+{nine[0]}", "+".join(f"file:{i}" for i in range(10))):
        with pytest.raises(ConfigError, match="at most 9 different domains"):
            in_place_of(nine, wrong)


def test_an_unknown_arm_has_a_colour_of_its_own_that_stays():
    colours = figures.Colours({"known": "C1"})
    assert colours["known"] == "C1" and colours["mine"] == figures.colour_of("mine") == "#117733"
    assert "mine" not in colours
