"""Keys: what decides the numbers of a run or table, in one spelling, and the hash of that.

Serves: the names of all recorded runs and tables.
"""

import hashlib
import json
import math
from functools import partial
from types import CodeType, FunctionType
from typing import Any


def code_of(part: object, within: tuple = ()) -> list | str:
    """What a function does, as text and lists of it: its code, its defaults, and the values that it closes over.

    Where it stands (file, line) does not count, nor does the code of functions that it calls.
    part: a function, or what one consists of. within: the functions that are being described, which may refer to
    themselves.
    """
    if isinstance(part, FunctionType) and part not in within:
        held = [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
        held += [cell.cell_contents for cell in part.__closure__ or ()]
        return [code_of(part.__code__), [code_of(value, (*within, part)) for value in held]]
    if isinstance(part, CodeType):
        return [part.co_code.hex(), list(part.co_names), [code_of(const) for const in part.co_consts]]
    if isinstance(part, partial):
        return [code_of(value, within) for value in (part.func, part.args, part.keywords)]
    if isinstance(part, (tuple, list)):
        return [code_of(value, within) for value in part]
    if isinstance(part, dict):
        return [[code_of(name), code_of(value, within)] for name, value in part.items()]
    if isinstance(part, (set, frozenset)):  # in an order of its own in every process
        return sorted(repr(code_of(value, within)) for value in part)
    text = repr(part)
    return type(part).__qualname__ if " at 0x" in text else text


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
