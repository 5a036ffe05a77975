"""What a user's rule does, told in the same way by every process: an edit of whatever it uses changes it."""

import functools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from swarmbook.errors import ConfigError
from swarmbook.methods.recovery import norm_average
from swarmbook.records.fingerprint import fingerprint_of

SHARE = 1.0
BIG = np.arange(5000.0)
TENSOR = torch.arange(8).to(torch.bfloat16)


def helper(weight):
    return SHARE * weight


def rule(lost):
    return helper(lost)


def reads_an_array(lost):
    return BIG[lost] + TENSOR[0]


def deep(lost):
    return [(lambda: helper(x))() for x in lost]


class Rule:
    scale = 2

    def __init__(self, share):
        self.share = share

    def __call__(self, lost):
        return self.share * self.scale * lost

    def apply(self, lost):
        return self(lost)


def changed(monkeypatch, name, value, *rules):
    """Whether the fingerprints of these rules change with a global, and come back with it."""
    before = [fingerprint_of(each) for each in rules]
    with monkeypatch.context() as patch:
        patch.setitem(globals(), name, value)
        during = [fingerprint_of(each) for each in rules]
    assert [fingerprint_of(each) for each in rules] == before
    return [a != b for a, b in zip(before, during, strict=True)]


def test_globals_count_also_through_functions_that_are_called(monkeypatch):
    assert changed(monkeypatch, "SHARE", 0.0, rule, helper, deep, reads_an_array) == [True, True, True, False]


def test_an_edited_helper_counts(monkeypatch):
    assert changed(monkeypatch, "helper", lambda weight: 2 * weight, rule, deep, helper) == [True, True, False]


def test_numbers_count_to_the_last_bit(monkeypatch):
    assert changed(monkeypatch, "SHARE", np.nextafter(1.0, 2.0), rule) == [True]
    assert changed(monkeypatch, "SHARE", 1, rule) == [True]  # an integer computes otherwise than a float


def test_entries_in_the_middle_of_large_arrays_count(monkeypatch):
    other = BIG.copy()
    other[2500] = np.nextafter(other[2500], np.inf)
    assert changed(monkeypatch, "BIG", other, reads_an_array, rule) == [True, False]
    assert changed(monkeypatch, "TENSOR", TENSOR.roll(1), reads_an_array) == [True]


def test_objects_count_by_their_class_and_state():
    def other_call(self, lost):
        return lost

    assert fingerprint_of(Rule(1.0)) == fingerprint_of(Rule(1.0)) != fingerprint_of(Rule(0.5))
    assert fingerprint_of(Rule(1.0).apply) != fingerprint_of(Rule(0.5).apply)
    assert fingerprint_of(Rule(1.0).apply) != fingerprint_of(Rule(1.0).__call__)
    edited = type("Rule", (Rule,), {"__call__": other_call})
    assert fingerprint_of(edited(1.0)) != fingerprint_of(Rule(1.0))


def test_ones_own_values_of_our_functions_count():
    assert fingerprint_of(norm_average(3)) == fingerprint_of(norm_average(3)) != fingerprint_of(norm_average(4))
    assert fingerprint_of(functools.partial(rule, 1)) != fingerprint_of(functools.partial(rule, 2))


def test_equal_values_count_alike_whether_or_not_they_are_one_object():
    def closing(value):
        return lambda: value

    one = [1.5]
    assert fingerprint_of(closing([one, one])) == fingerprint_of(closing([[1.5], [1.5]]))


def test_what_contains_itself_ends():
    ring: list = [1]
    ring.append(ring)

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert fingerprint_of(lambda: ring) and fingerprint_of(even) != fingerprint_of(odd)


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in ()), sys.stdout], ids=["lock", "generator", "file"])
def test_what_cannot_be_compared_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="'value' in 'mine' is a .* make it within the rule"):
        fingerprint_of(lambda: value, "'mine'")


def test_all_processes_agree(tmp_path):
    (tmp_path / "mine.py").write_text("STEP = 3\ndef double(x): return STEP * x\n")
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import dataclasses, math, numpy as np, pandas as pd, mine
from mine import double
from swarmbook.records.fingerprint import fingerprint_of
names, rng, table = {"a", "b", "c"}, np.random.default_rng(3), pd.DataFrame({"x": [1.0, 2.0], "y": ["p", "q"]})
@dataclasses.dataclass
class Part:
    size: int = 3
part = Part()
def rule(lost):
    return [double(lost), mine.double(lost), math.sqrt(lost), names, rng, table, part, np.linalg.norm]
print(fingerprint_of(rule))
"""

    def told(seed):
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**__import__("os").environ, "PYTHONHASHSEED": seed}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = told("1")
    assert first == told("2")
    (tmp_path / "mine.py").write_text("STEP = 4\ndef double(x): return STEP * x\n")
    assert told("1") != first
