"""Objects show themselves in a notebook as whole tables, from which no row is left out."""

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from swarmbook import tables
from swarmbook.analysis.claims import Claims
from swarmbook.config import run_config
from swarmbook.payments.payment_network import line
from swarmbook.payments.syncpcn.world import SyncPCN
from swarmbook.planning.annealing import annealing_search
from swarmbook.planning.path_rules import PathRules
from swarmbook.planning.pipeline import Pipeline, Plan
from swarmbook.records.store import Record
from swarmbook.results import Runs


def read(shown):
    """The tables as a browser has them, each as its rows of texts, the head first."""
    tables = BeautifulSoup(shown, "html.parser").find_all("table")
    return [[[cell.get_text() for cell in row.find_all(["th", "td"])] for row in t.find_all("tr")] for t in tables]


def test_no_row_column_or_text_is_left_out_and_text_is_escaped():
    wide = [{f"column {c}": f"{'long ' * 30}{r}.{c}" for c in range(40)} for r in range(300)]
    (table,) = read(tables.html("<title>", wide))
    assert len(table) == 301 and {len(row) for row in table} == {40}
    assert table[151][20] == f"{'long ' * 30}150.20"
    assert tables.html("<title>", wide).startswith("<p>&lt;title&gt;</p>")
    assert "&lt;b&gt;" in tables.html("", [{"a": "<b>"}])


def test_runs_show_what_differs_the_loss_and_the_key():
    configs = [run_config(data="stories_toy", steps=20, seed=seed, lr=lr) for lr in (1e-3, 2e-3) for seed in range(50)]
    losses = {"step": [0, 20], "metric": "validation loss", "stage": 0, "label": "", "value": [9.0, 2.5]}
    records = [Record(config.key, {}, pd.DataFrame(losses), {}, None) for config in configs]
    (table,) = read(Runs(configs, records)._repr_html_())
    assert table[0] == ["lr", "seed", "validation loss", "key"] and len(table) == 101
    assert table[71] == ["0.002", "20", "2.5", configs[70].key]
    assert "0 runs" in Runs([], [])._repr_html_()


@pytest.fixture(scope="module")
def searched():
    hops = np.full((6, 6), 0.1)
    pipeline = Pipeline(((0,), (1, 2), (3,), (4, 5)), hops, forward=0.4, rules=PathRules(visits=2))
    return annealing_search(pipeline, np.random.default_rng(0), moves=50)


def test_plans_and_searches_show_every_path_and_every_order(searched):
    first, paths, orders = read(searched._repr_html_())
    assert len(first) == 1 + len(searched.history)
    assert [row[1] for row in paths[1:]] == [" ".join(map(str, path)) for path in searched.plan.paths]
    assert [row[0] for row in orders[1:]] == [str(node) for node in searched.plan.order]
    by_rule = Plan(searched.plan.paths)._repr_html_()
    assert read(by_rule) == [paths] and "by the rule &#x27;fifo&#x27;" in by_rule


def test_a_world_shows_its_payments():
    world = SyncPCN(line(3))
    world.pay(["u0", "u1", "u2", "u3"], 10)
    world.run()
    (table,) = read(world._repr_html_())
    assert table[1][:2] == ["0", "u0 u1 u2 u3"] and table[1][3] == "Paid, Paid, Paid"
    assert "SyncPCN: 4 parties, 3 channels" in world._repr_html_()


def test_claims_show_every_claim():
    claims = Claims()
    for i in range(80):
        claims.add(f"C{i}", "word " * 40, "paper", "ours", "holds")
    (table,) = read(claims._repr_mimebundle_()["text/html"])
    assert len(table) == 82 and ("word " * 40).strip() in {cell.strip() for cell in table[80]}
