"""The keys of runs and tables do not change: what is recorded is found by them.

`frozen_keys.json` lists keys that the library gave when these were recorded, by configuration: runs of every paper that
between them use every field which a recorded run uses, and tables of every kind. Whoever changes a default, a name of
a field, the spelling of JSON or the fingerprint of a corpus would lose the record, and is told here first.
"""

import json
from pathlib import Path

import pytest

from swarmbook.config import RunConfig, run_config
from swarmbook.records.keys import key_of
from swarmbook.reproduction import papers, recorded_runs

FROZEN = json.loads(Path(__file__).with_name("frozen_keys.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded() -> list[recorded_runs.Recorded]:
    """What is recorded at the default profile, paper by paper."""
    known = papers.discover(Path(__file__).parents[1] / "papers")
    return [recorded_runs.recorded(paper) for paper in known.values()]


@pytest.mark.parametrize("key", FROZEN["runs"])
def test_a_run_has_the_key_that_it_always_had(key):
    assert run_config(**FROZEN["runs"][key]).key == key


@pytest.mark.parametrize("key", FROZEN["tables"])
def test_a_table_has_the_key_that_it_always_had(key):
    assert key_of({"computed": FROZEN["tables"][key]}) == key


def test_all_that_was_recorded_is_there(recorded):
    """A record that grows is welcome: raise these numbers, and add some of what is new to the frozen keys."""
    assert [fault for one in recorded for fault in one.faults] == []
    assert sum(len(one.runs) for one in recorded) == 2200
    assert sum(len(one.tables) for one in recorded) == 275
    for one in recorded:
        assert not one.runs or FROZEN["runs"].keys() & one.runs.keys()
        assert not one.tables or FROZEN["tables"].keys() & one.tables.keys()


def test_the_frozen_runs_use_every_field_that_a_recorded_run_uses(recorded):
    def fields(config: RunConfig) -> set[str]:
        return config.model_fields_set & config.model_dump(exclude_defaults=True).keys()

    used = {name for one in recorded for _, config in one.runs.values() for name in fields(config)}
    frozen = {name for values in FROZEN["runs"].values() for name in fields(run_config(**values))}
    assert used <= frozen
