"""The exceptions that the library raises on purpose. Each message names the value and the remedy.

Serves: all of the library.
"""

import difflib
from collections.abc import Iterable


class DataError(Exception):
    """A corpus, tokenizer or token cache is unknown, missing, damaged or too small."""


class ConfigError(ValueError):
    """A configuration is invalid or inconsistent."""


class StoreError(Exception):
    """A recorded run is missing, damaged or cannot be written."""


class LostProgress(StoreError):
    """What a process wrote of runs in training was deleted, or changed by something else."""


class TrainingError(Exception):
    """A training run cannot go on."""


class PlanError(ValueError):
    """A plan breaks a constraint of its pipeline."""


def unknown(what: str, name: object, valid: Iterable[str]) -> str:
    """The message for a name that is not among the valid ones. It names the nearest of them, then all."""
    names = list(valid)
    folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    hint = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"unknown {what} {name!r}: {hint}Known: {', '.join(names)}"


class UsageError(ValueError):
    """A paper, parameter or value was asked for that does not exist or does not fit."""


class NotebookError(Exception):
    """A notebook cannot be read, or one of its cells failed."""
