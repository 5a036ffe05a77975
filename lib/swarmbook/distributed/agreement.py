"""What all ranks must have alike before the first step, and what is said where they do not.

Ranks that were started by hand may have been given other files or options. They would train a mixture of two runs, or
wait for one another for ever.

Serves: `python -m swarmbook.distributed`.
"""

from collections.abc import Mapping

LONGEST = 80  # characters of a value in a message


def difference(statements: Mapping[int, Mapping[str, str]]) -> str | None:
    """What ranks that do not have all alike are told; None if they do.

    statements: of each rank, what it was started with, as text by name.
    """
    names = dict.fromkeys(name for said in statements.values() for name in said)
    differing = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for rank, said in sorted(statements.items()):
            holders.setdefault(said.get(name, "nothing"), []).append(rank)
        if len(holders) > 1:
            who = [f"{_short(value)} on rank {', '.join(map(str, ranks))}" for value, ranks in holders.items()]
            differing.append(f"{name} is {', '.join(who)}")
    if not differing:
        return None
    told = [text for text in differing if "by its key" not in text] or differing  # a key differs if any field does
    return f"the ranks were started with different things: {'; '.join(told)}. Start all with the same files and options"


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
