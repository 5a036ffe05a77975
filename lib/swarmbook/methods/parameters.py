"""What a rule asks for by name: fields of the configuration, and parameters of its own.

Both stand behind a star in its function, as in `def outer_adam(x, *, beta=0.9)`. A name that is a field of
`swarmbook.config.RunConfig` is that field, and has no default or the field's.
Any other is a parameter of the rule, which `RunConfig.method` sets.

Serves: every run with a method that has parameters, and all routes.
"""

import inspect
from collections.abc import Callable, Container, Mapping
from numbers import Integral, Real
from typing import Any

from swarmbook.errors import unknown

REQUIRED = inspect.Parameter.empty  # stands for the default of a parameter that has none


def fields_of(rule: Callable, known: Container[str]) -> list[str]:
    """The fields of the configuration that a rule asks for; known: the names of all fields."""
    return [name for name in _named(rule) if name in known]


def parameters_of(rule: Callable, known: Container[str]) -> dict[str, Any]:
    """The parameters of a rule's own, with their defaults; REQUIRED where there is none. known: as of `fields_of`."""
    return {name: default for name, default in _named(rule).items() if name not in known}


def chosen(given: dict[str, Any], rules: dict[str, Callable], known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By kind of rule the given parameters that are not their defaults, each of the type of its default.

    rules: what a run uses, by kind, such as "sync". given: by name, or by kind and name, such as "sync.beta". known:
    the fields of the configuration. ValueError for a parameter that no rule has, or two have and no kind is named, for
    a value of another type, for one that is missing and has no default, and for one that is called like a field.
    """
    for kind, rule in rules.items():
        for name in fields_of(rule, known):
            if _named(rule)[name] not in (REQUIRED, known[name].default):
                raise ValueError(f"the {kind} rule's parameter {name!r} is a field of RunConfig: rename it")
    own = {kind: parameters_of(rule, known) for kind, rule in rules.items()}
    found: dict[str, dict[str, Any]] = {kind: {} for kind in rules}
    for spelt, value in given.items():
        kind, _, name = spelt.rpartition(".")
        owners = [each for each, defaults in own.items() if name in defaults and kind in ("", each)]
        if not owners:
            names = [each for defaults in own.values() for each in defaults]
            hint = [] if names else ["none; parameters stand behind a star, as in def rule(x, *, beta=0.9)"]
            raise ValueError(unknown(f"parameter of this run's {', '.join(rules)}:", spelt, names or hint))
        if len(owners) > 1:
            raise ValueError(f"method={given}: {name!r} is one of {' and of '.join(owners)}: write {owners[-1]}.{name}")
        default = own[owners[0]][name]
        if name in found[owners[0]]:
            raise ValueError(f"method={given}: {name!r} is there twice: give it once")
        if not _fits(value, default):
            raise ValueError(f"method={given}: {spelt}={value!r} must be of type {type(default).__name__}")
        found[owners[0]][name] = float(value) if isinstance(default, float) else value
    for kind, defaults in own.items():
        for name, default in defaults.items():
            if default is REQUIRED and name not in found[kind]:
                raise ValueError(f"method={given} lacks {name!r}, which the run's {kind} needs: give it a value")
    return {
        kind: {name: value for name, value in values.items() if value != own[kind][name]}
        for kind, values in found.items()
    }


def _named(rule: Callable) -> dict[str, Any]:
    parameters = inspect.signature(rule).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _fits(value: Any, default: Any) -> bool:
    if default is REQUIRED or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, type(default)) and isinstance(default, type(value))
    number = Integral if isinstance(default, int) else Real
    return isinstance(value, number if isinstance(default, (int, float)) else type(default))
