"""The five papers as notebooks: how they are executed, swept over settings, recorded, verified and reported.

nbformat loads jsonschema, and jsonschema loads `rfc3987_syntax`, a grammar of addresses that takes a second to compile
and that no notebook is checked against. Once this package is imported, the grammar is compiled when it is first asked.
"""

import sys
from functools import cache
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_GRAMMAR = "rfc3987_syntax"


class _WhenAsked(MetaPathFinder, Loader):
    """Finds a stand-in for the grammar, once."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != _GRAMMAR:
            return None
        sys.meta_path.remove(self)
        return ModuleSpec(name, self) if util.find_spec(name) else None

    def exec_module(self, module: ModuleType) -> None:
        @cache
        def grammar() -> ModuleType:
            del sys.modules[_GRAMMAR]
            return import_module(_GRAMMAR)

        def is_valid_syntax(*given: Any) -> bool:
            return grammar().is_valid_syntax(*given)

        def __getattr__(name: str) -> Any:
            if name.startswith("__"):  # so the import system asks for what only some modules have
                raise AttributeError(name)
            return getattr(grammar(), name)

        module.is_valid_syntax, module.__getattr__ = is_valid_syntax, __getattr__


if _GRAMMAR not in sys.modules:
    sys.meta_path.insert(0, _WhenAsked())
