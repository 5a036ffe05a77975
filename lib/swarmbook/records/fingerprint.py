"""What a user's own function does, as a short text that is the same in every process and changes with what it does.

- A run's key holds the fingerprints of the rules that are not ours, so that an edited rule never finds its old runs.
- It covers the function's code and defaults, the variables that it closes over, the globals that it reads, the
  functions of the user that it calls, and the state of objects among all of these.
- Installed packages, the standard library and swarmbook itself count by the name of what is used. Nobody looks into
  their code.

Serves: `RunConfig.key` and the keys of ensembles, and so every record of a run with a rule of one's own.
"""

import dis
import functools
import hashlib
import math
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from swarmbook.errors import ConfigError

INSTALLED = tuple({str(Path(path).resolve()) for path in sysconfig.get_paths().values()})
INSTALLED += (str(Path(__file__).resolve().parents[1]),)
HEAP_TYPE = 1 << 9  # of the flags of a class: made by Python code, not compiled into an extension
PLAIN = (str, bytes, int, bool, complex, type(None), type(...), range)
# What classes hold besides what their author wrote; `__slotnames__` and `_abc_impl` come with use.
NOT_CONTENT = ("__dict__", "__weakref__", "__module__", "__doc__", "__slotnames__", "_abc_impl")
NOT_CONTENT += ("__dataclass_fields__", "__dataclass_params__")


def fingerprint_of(part: object, name: str = "the rule") -> str:
    """32 hex digits that stand for all that a function, a method or an object with `__call__` does.

    name: what the error calls it. ConfigError names the variable that has no content which could be compared with that
    of another process, such as an open file, a lock or a running generator.
    """
    return _Reader().digest(part, name).hex()[:32]


class _Reader:
    """Takes values apart. `path` holds the values that are being read, `known` the digests of those read before."""

    def __init__(self):
        self.path: dict[int, int] = {}
        self.known: dict[int, tuple[Any, bytes]] = {}
        self.highest = math.inf  # the outermost value on the path that a value met again refers to

    def digest(self, part: Any, name: str) -> bytes:
        """The SHA-256 of a value; what contains itself refers to itself by how many steps out it lies."""
        digest = hashlib.sha256(type(part).__qualname__.encode())
        if isinstance(part, PLAIN):
            digest.update(repr(part).encode())
            return digest.digest()
        if isinstance(part, (float, np.generic)):  # repr tells all numbers apart
            digest.update(repr(part.item() if isinstance(part, np.generic) else part).encode())
            return digest.digest()
        if id(part) in self.known:
            return self.known[id(part)][1]
        if id(part) in self.path:
            self.highest = min(self.highest, self.path[id(part)])
            return f"{len(self.path) - self.path[id(part)]} steps out".encode()
        place, outside, self.highest = len(self.path), self.highest, math.inf
        self.path[id(part)] = place
        for piece in self._pieces(part, name):
            digest.update(f"{len(piece)}:".encode() + piece)
        del self.path[id(part)]
        if self.highest >= place:
            self.known[id(part)] = part, digest.digest()
        self.highest = min(outside, self.highest if self.highest < place else math.inf)
        return digest.digest()

    def _pieces(self, part: Any, name: str) -> Iterator[bytes]:
        if home := _installed(part):
            yield home.encode()
        elif isinstance(part, ModuleType):
            yield _source(part, name)
        elif isinstance(part, FunctionType):
            yield self.digest(part.__code__, name)
            for default in (*(part.__defaults__ or ()), *sorted((part.__kwdefaults__ or {}).items())):
                yield self.digest(default, f"a default of {name}")
            for variable, value in _read(part):
                yield variable.encode()
                yield self.digest(value, f"{variable!r} in {name}")
        elif isinstance(part, CodeType):
            yield part.co_code
            yield repr((part.co_names, part.co_argcount, part.co_posonlyargcount, part.co_kwonlyargcount)).encode()
            for constant in part.co_consts:
                yield self.digest(constant, f"a constant of {name}")
        elif isinstance(part, MethodType):
            yield self.digest(part.__func__, name)
            yield self.digest(part.__self__, f"the object of {name}")
        elif isinstance(part, functools.partial):
            for value in (part.func, *part.args, *sorted(part.keywords.items())):
                yield self.digest(value, name)
        elif isinstance(part, (tuple, list)):
            for i, value in enumerate(part):
                yield self.digest(value, f"item {i} of {name}")
        elif isinstance(part, (dict, MappingProxyType)):
            for key, value in part.items():
                yield self.digest(key, f"a key of {name}")
                yield self.digest(value, f"{name}[{key!r}]")
        elif isinstance(part, (set, frozenset)):  # in an order of its own in every process
            yield from sorted(self.digest(value, f"an item of {name}") for value in part)
        elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
            yield f"{part.dtype.str} {part.shape}".encode()
            yield np.ascontiguousarray(part).tobytes()
        elif _is_tensor(part):
            whole = part.detach().cpu().contiguous().clone()
            yield f"{whole.dtype} {tuple(whole.shape)}".encode()
            yield bytes(whole.untyped_storage())
        elif isinstance(part, type):
            for base in part.__bases__:
                yield self.digest(base, f"a base of {name}")
            for attribute, value in vars(part).items():
                if attribute not in NOT_CONTENT:
                    yield attribute.encode()
                    for content in _bare(value):
                        yield self.digest(content, f"{name}.{attribute}")
        else:
            yield from self._object(part, name)

    def _object(self, part: Any, name: str) -> Iterator[bytes]:
        """An object by its class and its state: as pickle would take it apart."""
        yield self.digest(type(part), f"the class of {name}")
        try:
            taken = part.__reduce_ex__(4)
        except Exception as error:  # objects raise what they like
            raise ConfigError(
                f"{name} is a {type(part).__qualname__}, which cannot be compared with that of another process "
                f"({error}): make it within the rule, or use numbers, text or arrays in its place"
            ) from error
        if isinstance(taken, str):
            yield taken.encode()
            return
        for value in taken:  # how to make one anew, from what, its state, its items
            yield self.digest(list(value) if isinstance(value, Iterator) else value, name)


def _read(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables that a function closes over and the globals that it, or a function within it, reads."""
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield variable, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for variable in sorted(_globals(function.__code__)):
        if variable in function.__globals__:
            yield variable, function.__globals__[variable]


def _globals(code: CodeType) -> set[str]:
    found = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_globals(constant) for constant in code.co_consts if isinstance(constant, CodeType)))


def _bare(value: Any) -> tuple:
    """The functions of a class's attribute, or the attribute itself."""
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    return (value.func,) if isinstance(value, functools.cached_property) else (value,)


def _is_tensor(part: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(part, torch.Tensor)


def _installed(part: Any) -> str:
    """Where something of an installed package, the standard library or swarmbook is found by name; else empty."""
    if isinstance(part, ModuleType):
        return part.__name__ if _is_installed(part) else ""
    if isinstance(part, type) and not part.__flags__ & HEAP_TYPE:
        return f"{part.__module__}.{part.__qualname__}"
    if isinstance(part, BuiltinFunctionType) and isinstance(part.__self__, (ModuleType, type(None))):
        return f"{part.__module__}.{part.__qualname__}"
    if not isinstance(part, (FunctionType, type)) and not hasattr(part, "__wrapped__") and not _is_descriptor(part):
        return ""
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if module is None and _is_descriptor(part):  # such as str.upper
        return f"{part.__objclass__.__qualname__}.{part.__name__}"
    home = sys.modules.get(module or "")
    if home is None or name is None or not _is_installed(home):
        return ""
    found: Any = home
    for step in name.split("."):
        found = getattr(found, step, None)
    return f"{module}.{name}" if found is part else ""


def _is_descriptor(part: Any) -> bool:
    """Whether it is a method or an attribute that C code gives a class."""
    return type(part).__name__.endswith("_descriptor")


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ != "__main__"
    return str(Path(file).resolve()).startswith(INSTALLED)


def _source(module: ModuleType, name: str) -> bytes:
    """A module of the user's by the text of its file."""
    try:
        return Path(module.__file__).read_bytes()
    except (OSError, TypeError) as error:
        raise ConfigError(f"{name} is the module {module.__name__!r}, whose file cannot be read: {error}") from error
