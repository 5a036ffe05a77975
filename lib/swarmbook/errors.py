"""The exceptions that the library raises on purpose. Each message names the value and the remedy.

`whole` and `finite` refuse what is no number of the wanted kind.

Serves: all of the library.
"""

import difflib
import errno
import math
import os
from collections.abc import Iterable
from numbers import Integral, Real


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


def whole(what: str, value: object, least: int = 0) -> int:
    """A whole number of at least `least`. ConfigError for anything else: a fraction, a truth value, NaN or text."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{what}={value!r} is refused: give a whole number of at least {least}")
    return int(value)


def finite(what: str, value: object, least: float = -math.inf, most: float = math.inf, above: bool = False) -> float:
    """A finite number from `least` (or above it) to `most`. ConfigError for anything else: NaN, infinity or text."""
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (above and value == least):
        low = f" {'above' if above else 'of at least'} {least:g}" if math.isfinite(least) else ""
        high = f"{' and' if low else ''} of at most {most:g}" if math.isfinite(most) else ""
        raise ConfigError(f"{what}={value!r} is refused: give a finite number{low}{high}")
    return value


def unusable(error: OSError) -> str:
    """What the operating system refused, with the path if it names one, and the remedy."""
    path = error.filename2 or error.filename
    told = error.strerror or str(error) or type(error).__name__
    parts = [os.fsdecode(path)] if isinstance(path, (str, bytes)) else []
    return "; ".join([": ".join([*parts, told]), *filter(None, [_REMEDIES.get(error.errno)])])


_ELSEWHERE = "with --output (of `plan` with --folder), or with SWARMBOOK_STORE or SWARMBOOK_CACHE for runs and tokens"
_REMEDIES = {
    errno.ENOSPC: f"make room, or name another disk {_ELSEWHERE} (TMPDIR for temporary files)",
    errno.EDQUOT: f"make room, or name another disk {_ELSEWHERE} (TMPDIR for temporary files)",
    errno.EROFS: f"name another folder {_ELSEWHERE}",
    errno.EACCES: f"give yourself the right to it, or name another folder {_ELSEWHERE}",
    errno.EPERM: f"give yourself the right to it, or name another folder {_ELSEWHERE}",
    errno.ENOTDIR: f"name another folder {_ELSEWHERE}",
    errno.EEXIST: f"name another folder {_ELSEWHERE}",
    errno.EISDIR: "name a file in place of the folder, or move the folder away",
    errno.ENAMETOOLONG: f"name a folder with a shorter path {_ELSEWHERE}",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOMEM: "close other programs, or choose a smaller --profile or fewer --workers",
}


class UsageError(ValueError):
    """A paper, parameter or value was asked for that does not exist or does not fit."""


class NotebookError(Exception):
    """A notebook cannot be read, or one of its cells failed."""
