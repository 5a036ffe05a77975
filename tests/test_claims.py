"""Verdicts: the rule that gives them, and how a notebook shows them."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from swarmbook.analysis.claims import (
    DIRECTION,
    FAILS,
    HOLDS,
    MARK,
    MIMETYPE,
    POWERLESS,
    UNDECIDED,
    VERDICTS,
    Claim,
    Claims,
    Strip,
    all_of,
    by_verdict,
    decided,
    verdict,
    whatever,
)
from swarmbook.analysis.confidence import Estimate, estimate
from swarmbook.reproduction import execution, papers

PAPERS = {name: paper for name, paper in papers.records(Path(__file__).parents[1] / "papers").items()}
NUMBER = r"\d+(?:[.,]\d+)*(?: ± \d+(?:\.\d+)?)?"  # an estimate counts as one number
COUNTED = {HOLDS: "hold", DIRECTION: "hold in direction alone", FAILS: "do not hold"}
COUNTED |= {UNDECIDED: "are undecided", POWERLESS: "cannot be judged for want of power"}

each_paper = pytest.mark.parametrize("paper", [p for p in PAPERS.values() if not p.profile], ids=lambda p: p.name)


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [(1.5, 0.2, HOLDS), (0.5, 0.2, FAILS), (1.1, 0.2, UNDECIDED), (1.5, np.inf, UNDECIDED)],
)
def test_verdict_needs_the_whole_interval_on_one_side(mean, half, expected):
    assert verdict(Estimate(mean, half, 3), above=1.0) == expected
    mirrored = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}[expected]
    assert verdict(Estimate(mean, half, 3), below=1.0) == mirrored


@pytest.mark.parametrize(
    ("mean", "half", "size", "expected"),
    [
        (1.065, 0.031, (1.25, 1.40), DIRECTION),  # swapping costs 7 %, and not 25 to 40 %
        (1.2, 0.06, (1.25, 1.40), HOLDS),
        (1.45, 0.06, (1.25, 1.40), HOLDS),
        (1.45, 0.04, (1.25, 1.40), DIRECTION),  # too large a number is as wrong as one too small
        (1.3, 0.4, (1.25, 1.40), UNDECIDED),  # an interval so wide that it meets everything decides nothing
        (0.9, 0.05, (1.25, 1.40), FAILS),
        (1.1, 0.05, 1.12, HOLDS),
        (1.1, 0.05, 1.16, DIRECTION),
    ],
)
def test_a_verdict_has_a_direction_and_a_size(mean, half, size, expected):
    assert verdict(Estimate(mean, half, 3), above=1.0, size=size) == expected
    low, high = size if isinstance(size, tuple) else (size, size)
    assert verdict(Estimate(-mean, half, 3), below=-1.0, size=(-high, -low)) == expected


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, DIRECTION), DIRECTION),
        ((DIRECTION, UNDECIDED), UNDECIDED),
        ((HOLDS, UNDECIDED), UNDECIDED),
        ((UNDECIDED, POWERLESS), POWERLESS),
        ((UNDECIDED, FAILS), FAILS),
        ((POWERLESS, FAILS), FAILS),
        ((HOLDS, FAILS), FAILS),
    ],
)
def test_a_claim_of_several_parts_is_as_good_as_its_worst(parts, whole):
    assert all_of(*parts) == all_of(*reversed(parts)) == whole


def test_a_verdict_that_depends_on_an_assumption_is_undecided():
    assert whatever(HOLDS, HOLDS) == HOLDS and whatever(FAILS, FAILS) == FAILS
    assert whatever(HOLDS, FAILS) == whatever(HOLDS, DIRECTION) == whatever(UNDECIDED, HOLDS) == UNDECIDED


def test_arithmetic_decides_without_spread():
    assert (decided(2 > 1), decided(1 > 2)) == (HOLDS, FAILS)
    assert (decided(True, False), decided(False, True)) == (DIRECTION, FAILS)


def test_two_seeds_decide_nothing():
    assert verdict(Estimate(1.5, 0.0, 2), above=1.0) == UNDECIDED


@pytest.mark.parametrize("sides", [{}, {"above": 1.0, "below": 2.0}])
def test_a_direction_has_one_bound(sides):
    with pytest.raises(ValueError, match="one of above= and below="):
        verdict(Estimate(1.5, 0.1, 3), **sides)


def test_a_target_never_reached_decides_nothing():
    measured = estimate([1.0, float("nan"), 2.0])
    assert verdict(measured, above=0.0) == UNDECIDED
    assert str(measured) == "not reached"


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (Estimate(0.5, 0.1, 3), FAILS),
        (Estimate(0.3, 0.1, 3), POWERLESS),  # the interval reaches below what is needed
        (Estimate(0.5, 0.1, 2), POWERLESS),
        (Estimate(0.5, np.inf, 1), POWERLESS),
    ],
)
def test_without_power_nothing_is_judged(effect, expected):
    claims = Claims()
    claims.add("C1", "text", 1, 2, FAILS, power=(effect, 0.25, "dead stages over none"))
    (claim,) = claims.claims
    assert claim.verdict == expected
    assert claim.power == f"dead stages over none: {effect}, where more than 0.25 is needed"
    assert claim.power in claim.markdown() and claim.power in claims.table().to_string()


def test_claims_show_and_tell():
    claims = Claims()
    claims.add("C1", "first", 1.0, Estimate(1.0, 0.1, 3), HOLDS)
    claims.add("C1", "again", 1.0, Estimate(2.0, 0.1, 3), FAILS)
    bundle = claims._repr_mimebundle_()
    row = {"id": "C1", "text": "again", "paper": "1.0", "ours": "2.00 ± 0.10", "verdict": FAILS, "power": ""}
    assert bundle[MIMETYPE] == [row]
    assert "does not hold" in bundle["text/plain"] and "power" not in bundle["text/plain"]
    with pytest.raises(ValueError, match="maybe"):
        claims.add("C2", "text", 1, 2, "maybe")


def test_every_verdict_has_a_sign_of_its_own():
    assert len(set(MARK.values())) == len(VERDICTS) == 5


def test_a_strip_has_every_claim_once_below_its_verdict():
    found = [Claim(f"T{i}, of {i}", "", "", "", verdict) for i, verdict in enumerate([*VERDICTS, HOLDS])]
    strip = Strip(tuple(found), "smoke")
    lines = strip._repr_markdown_().split("  \n")
    assert lines[:2] == [
        "Verdicts at the profile `smoke`, 6 claims",
        "✓ holds (2): [T0, of 0](#T0,-of-0) · [T5, of 5](#T5,-of-5)",
    ]
    assert [line.split(" (")[0] for line in lines[1:]] == [f"{MARK[verdict]} {verdict}" for verdict in VERDICTS]
    assert list(by_verdict(found)) == list(VERDICTS) and by_verdict([]) == {}
    assert "∅ no power at this scale (1): T4, of 4" in repr(strip)


def test_what_stands_in_a_claim_is_text():
    odd = "a\n\n![b](http://c) <i onclick=d> `e` *f* $g$ # |h|"
    claim = Claim(odd, odd, odd, odd, HOLDS)
    told = "a !\\[b\\](http://c) &lt;i onclick=d&gt; \\`e\\` \\*f\\* \\$g\\$ \\# \\|h\\|"
    assert claim.markdown() == f"##### {told}\n\n✓ **holds**: {told}. Paper: {told}. Ours: {told}."
    assert f"[{told}](#" in Strip((claim,), "cpu")._repr_markdown_()
    assert not set("()<>[] ") & set(Strip((claim,), "cpu")._repr_markdown_().rpartition("](")[2].removesuffix(")"))


STRIP = "from swarmbook.analysis.claims import Claims, decided\nclaims = Claims()\nclaims.strip()"
ADDED = "claims.profile = profile\nclaims.add('T 1', 'toys work', 3, steps, decided(steps == 3))\nNone"
BOTH = "claims.add('T2', 'toys rest', 3, steps, decided(False))\nclaims.add('T3', 'toys play', 3, steps, decided(True))"


@pytest.fixture
def executed(toy, tmp_path):
    """A notebook with a strip at its top, executed at a profile that is not the default."""
    path = toy("toy", (STRIP, ""), (ADDED, ""), (BOTH, ""), ("claims", "claims"))
    done = execution.execute(papers.read_paper(path), {"profile": "smoke", "steps": 4}, tmp_path / "runs")
    return nbformat.read(done.notebook, as_version=4), done


def shown(cell) -> list[str]:
    return [output["data"].get("text/markdown", "") for output in cell.get("outputs", []) if "data" in output]


def test_an_id_to_which_no_link_can_lead_is_refused():
    with pytest.raises(ValueError, match="'at 5 %' has a %"):
        Claims().add("at 5 %", "text", 1, 1, HOLDS)


def test_a_notebook_shows_its_verdicts_at_its_top_and_every_claim_where_it_is_added(executed):
    notebook, done = executed
    strip, added, both = (
        next(cell for cell in notebook.cells if cell.source == source) for source in (STRIP, ADDED, BOTH)
    )
    assert [claim.id for claim in done.claims] == ["T 1", "T2", "T3"]
    assert shown(strip) == [Strip(done.claims, "smoke")._repr_markdown_()]
    assert "(#T-1)" in shown(strip)[0] and "`smoke`" in shown(strip)[0]
    assert [text.split("\n")[0] for text in shown(added) + shown(both)] == ["##### T 1", "##### T2", "##### T3"]
    assert "**does not hold**: toys work. Paper: 3. Ours: 4." in shown(added)[0]
    assert [papers.claims_shown(cell) for cell in (strip, added, both)] == [[], ["T 1"], ["T2", "T3"]]


def test_a_link_of_the_strip_leads_to_the_claim_in_a_page_of_html(executed):
    page = Path(executed[1].html).read_text()
    for claim in executed[1].claims:
        assert page.count(f'id="{claim.anchor}"') == 1 and f'href="#{claim.anchor}"' in page


def test_claims_of_before_there_was_a_check_of_power_are_read(toy):
    path = toy()
    content = json.loads(path.read_text())
    row = {"id": "T1", "text": "a", "paper": "b", "ours": "c", "verdict": HOLDS}
    content["cells"][-1]["outputs"] = [{"data": {MIMETYPE: [row]}}]
    assert papers.claims_of(content, "toy") == (Claim("T1", "a", "b", "c", HOLDS),)


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_the_strip_below_the_title_has_the_verdicts_of_the_claims_below(paper):
    title, strip, answer, *_ = nbformat.read(paper.notebook, as_version=4).cells
    assert title.source.startswith("# ") and answer.metadata.tags == ["answer"]
    (text,) = shown(strip)
    found = {}
    for line in text.split("  \n")[1:]:
        verdict = re.fullmatch(r". (.+) \((\d+)\): .*", line)
        found[verdict[1]] = set(re.findall(r"\[(.+?)\]\(#", line))
        assert len(found[verdict[1]]) == int(verdict[2])
    assert found == {verdict: {claim.id for claim in group} for verdict, group in by_verdict(paper.claims).items()}
    assert f"`{paper.profile or 'cpu'}`, {len(paper.claims)} claims" in text


@each_paper
def test_an_answer_has_its_three_parts_and_no_number_of_its_own(paper):
    """A number of an answer is one that a claim has, or counts claims."""
    parts = re.findall(r"^\*\*(.+?)\.\*\* ", paper.answer, re.MULTILINE)
    assert parts == ["The paper says", "Found", "What would change our mind"]
    fields = [text for c in paper.claims for text in (c.id, c.text, c.paper, c.ours, c.power)]
    counts = [len(paper.claims), *(len(group) for group in by_verdict(paper.claims).values())]
    known = set(re.findall(NUMBER, " ".join(fields))) | set(map(str, counts))
    assert set(re.findall(NUMBER, paper.answer)) <= known


@each_paper
def test_what_an_answer_counts_are_the_verdicts(paper):
    said = re.findall(
        rf"(\d+) of (\d+) claims ({'|'.join(sorted(COUNTED.values(), key=len, reverse=True))})", paper.answer
    )
    assert said
    groups = by_verdict(paper.claims)
    for number, of, words in said:
        verdict = next(verdict for verdict, counted in COUNTED.items() if counted == words)
        assert (int(number), int(of)) == (len(groups.get(verdict, ())), len(paper.claims))
