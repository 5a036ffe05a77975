"""Keys: what decides the numbers of a run or table, in one spelling, and the hash of that.

Serves: the names of all recorded runs and tables.
"""

import hashlib
import json
import math
from typing import Any


def canonical(value: Any, name: str = "payload") -> str:
    """JSON with one spelling for each value: sorted keys, no spaces, ASCII.

    Raises ValueError for NaN and infinities, and TypeError for what JSON does not have. Messages call the value `name`.
    """

    def check(part: Any, where: str) -> None:
        if isinstance(part, dict):
            for key, item in part.items():
                if not isinstance(key, str):
                    raise TypeError(f"{where} has the key {key!r}; JSON needs strings: use {str(key)!r}")
                check(item, f"{where}.{key}")
        elif isinstance(part, list | tuple):
            if set(map(type, part)) <= {int, float} and all(map(math.isfinite, part)):
                return
            for index, item in enumerate(part):
                check(item, f"{where}[{index}]")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{where} is {part}; JSON has no such number: use None or a string")
        elif not isinstance(part, str | int | float | None):
            kind = type(part).__name__
            raise TypeError(f"{where} is a {kind} ({part!r}); expected dict, list, str, int, float or None")

    check(value, name)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(payload: dict[str, Any]) -> str:
    """The key of a run: 20 hex digits of the SHA-256 of what decides its numbers."""
    return hashlib.sha256(canonical(payload).encode()).hexdigest()[:20]
