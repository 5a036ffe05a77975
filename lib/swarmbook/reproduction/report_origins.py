"""Where the numbers of a page come from: the runs that a cell stands on, what made them, and how to repeat it.

All of it is text: no HTML or Markdown in a label or a configuration counts.

Serves: the blocks below figures, tables and claims in `swarmbook report`, and the list that ends each page.
"""

import html
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from swarmbook import __version__
from swarmbook.reproduction.papers import Paper

if TYPE_CHECKING:
    from swarmbook.records.store import Record
    from swarmbook.reproduction.recorded_runs import Recorded


def origin(shown: str, paper: Paper, record: "Recorded", keys: Set[str], ancestors: Set[str]) -> str:
    """Where what a cell shows comes from, as a closed block of HTML."""
    command = escaped(paper.command)
    again = f"<code>{command}</code>"
    if not keys:
        said = f"{escaped(shown)}: computed by {again}, from nothing recorded"
        return f"<details class='origin'><summary>{said}</summary></details>"
    text = [
        f"<summary>{escaped(shown)}: from {_count(keys, record)}</summary>",
        f"<p>From the record again by {again}, from nothing by <code>{command} --fresh</code>.</p>",
        *(f"<p>{escaped(made)}</p>" for made in sorted({_made(_of(key, record)) for key in keys | ancestors})),
        f"<p class='keys'>{_linked(keys)}</p>",
    ]
    if ancestors:
        text.append(f"<p class='keys'>These were made from {_count(ancestors, record)}: {_linked(ancestors)}</p>")
    return f"<details class='origin'>{''.join(text)}</details>"


def record_of(paper: Paper, record: "Recorded", parents: Mapping[str, Set[str]]) -> str:
    """All that is recorded beside a notebook, by what made it, as Markdown."""
    command, name = escaped(paper.command), escaped(paper.name)
    text = [
        "## Where these numbers come from",
        f"<p>All of this page comes from executing its notebook with swarmbook {__version__}: "
        f"<code>{command}</code>. Below each figure, table and claim are the keys of the runs that it stands on.</p>",
    ]
    groups: dict[str, list[str]] = {}
    for key in sorted(parents):
        groups.setdefault(_made(_of(key, record)), []).append(key)
    if groups:
        text.append(
            f"<p><code>{command} --fresh</code> trains all runs again; <code>swarmbook verify {name}</code> does so "
            "with a sample of them, and compares. What is told of a run is what differs from the defaults of "
            "<code>RunConfig</code>.</p>"
        )
    else:
        text.append("Nothing is recorded beside it: it computes everything, from the seed among its parameters.")
    for made, keys in groups.items():
        told = {key: f"{escaped(_described(key, record))} {_linked(parents[key])}" for key in keys}
        rows = (f"<tr id='run-{key}'><td>{key}</td><td>{text}</td></tr>" for key, text in told.items())
        summary = f"{_count(set(keys), record)}: {escaped(made)}"
        text.append(f"<details><summary>{summary}</summary><table class='keys'>{''.join(rows)}</table></details>")
    return "\n\n".join(text)


def _of(key: str, record: "Recorded") -> "Record":
    return record.runs[key][0] if key in record.runs else record.tables[key]


def _made(record: "Record") -> str:
    """What made a run or table."""
    made = record.provenance
    how = f"swarmbook {made['swarmbook']}"
    if "torch" in made:
        how += f", torch {made['torch']}, numpy {made['numpy']}, Python {made['python']}, {made['device']}, "
        how += f"{made['threads']} thread{'s' * (made['threads'] > 1)}"
    return how


def _described(key: str, record: "Recorded") -> str:
    """The configuration of a run, or what a table depends on."""
    if key in record.runs:
        fields = record.runs[key][1].model_dump(mode="json", exclude_defaults=True, exclude={"start", "branch"})
    else:
        fields = {name: value for name, value in record.tables[key].config.items() if name not in ("data", "experts")}
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _count(keys: Set[str], record: "Recorded") -> str:
    runs, tables = len(keys & record.runs.keys()), len(keys & record.tables.keys())
    counts = (f"{n} {name}{'s' * (n > 1)}" for n, name in ((runs, "run"), (tables, "recorded table")) if n)
    return " and ".join(counts)


def _linked(keys: Set[str]) -> str:
    return " ".join(f"<a href='#run-{key}'>{key}</a>" for key in sorted(keys))


def escaped(text: str) -> str:
    """Text as HTML, on one line: a blank one would end the block of HTML, and what follows would count as Markdown."""
    return html.escape(" ".join(text.split()))
