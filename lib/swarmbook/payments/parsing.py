"""Which messages a receiver takes: those whose parts are all of the types that their class says. It drops all others.

A real receiver would find that out when it reads the bytes of a message. Here nothing is read, and a faulty node can
send anything under the name of a message. `parsed` keeps it from an honest node's code. What is of the right type may
still be wrong, which is for the rules to find out. Handlers of the most frequent messages (`Announce`, `Ack`, `Share`)
look themselves at the few parts that they rely on. Where nobody is faulty, all messages are well formed, and nobody
looks (`Simulation.parses`).

Serves: the parties and members of every protocol with committees; claims S8 and S9.
"""

import functools
import math
import typing
from collections.abc import Callable
from types import NoneType, UnionType

Check = Callable[[object], bool]


def parsed(handler: Callable) -> Callable:
    """A handler of (sender, message) that drops what is not `well_formed`."""

    @functools.wraps(handler)
    def handle(self, sender, message):
        if not self.sim.parses or well_formed(message):
            handler(self, sender, message)

    return handle


def well_formed(message: object) -> bool:
    """Whether all parts of a named tuple are of the types that its class says, and can be keys of a table."""
    try:
        hash(message)
    except TypeError:
        return False
    return _named_tuple(message.__class__)(message)


def _of(hint: object) -> Check | None:
    """How to see whether a value is of a type; None if any is. Whole numbers are no truth values, floats finite."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is object:
        return None
    if hint is float:
        return lambda value: value.__class__ in (float, int) and math.isfinite(value)
    if origin in (typing.Union, UnionType):
        kinds = [NoneType if argument is NoneType else argument for argument in arguments]
        checks = [_of(kind) for kind in kinds]
        return None if None in checks else lambda value: any(check(value) for check in checks)
    if origin is tuple and arguments[-1] is Ellipsis:
        part = _of(arguments[0])
        return lambda value: value.__class__ is tuple and (part is None or all(map(part, value)))
    if origin is tuple:
        each = [(place, check) for place, check in enumerate(map(_of, arguments)) if check is not None]
        return lambda value: (
            value.__class__ is tuple and len(value) == len(arguments) and all(check(value[at]) for at, check in each)
        )
    if hasattr(hint, "_fields"):
        return _named_tuple(hint)
    return lambda value: value.__class__ is hint


@functools.cache
def _named_tuple(kind: type) -> Check:
    hints = typing.get_type_hints(kind)
    each = [
        (place, check) for place, check in enumerate(_of(hints[name]) for name in kind._fields) if check is not None
    ]

    def check(value: object) -> bool:
        whole = value.__class__ is kind and len(value) == len(kind._fields)
        return whole and all(of(value[place]) for place, of in each)

    return check
