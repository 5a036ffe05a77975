"""One byte string for each statement, so that a signature on one can never pass for a signature on another.

A statement is a tuple of text, bytes, integers and tuples of them. The encoding is injective (every part carries its
type and its length) and begins with the domain of this package; the first part of a statement is its kind.

Serves: signatures and digests of every protocol.
"""

import functools
import hashlib
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

Part: TypeAlias = "str | bytes | int | None | tuple[Part, ...]"
DOMAIN = b"swarmbook.payments 1\n"
new = tuple.__new__  # new(Class, fields) makes a message in half the time, where most are made


def encode(statement: tuple[Part, ...]) -> bytes:
    """The canonical bytes of a statement. TypeError for a part that is neither text, bytes, integer, None nor tuple."""
    return DOMAIN + _part(statement)


def digest(statement: tuple[Part, ...]) -> bytes:
    """SHA-256 of the canonical bytes."""
    return hashlib.sha256(encode(statement)).digest()


def _part(value: Part) -> bytes:
    if isinstance(value, tuple):
        tag, body = b"t", b"".join(map(_part, value))
    elif isinstance(value, bytes):
        tag, body = b"b", value
    elif isinstance(value, str):
        tag, body = b"s", value.encode(errors="surrogatepass")
    elif value is None:
        tag, body = b"n", b""
    elif isinstance(value, int) and not isinstance(value, bool):
        tag, body = b"i", b"%d" % value
    else:
        raise TypeError(f"a statement cannot hold {value!r}: give text, bytes, integers, None or tuples of them")
    return tag + b"%d:" % len(body) + body


def well_formed(message: object) -> bool:
    """Whether every field of a message has the type that its class declares, and so do the fields of these.

    A field of type `object` holds what a statement can hold. Who decodes what came over a network refuses everything
    else before anybody reads it.
    """
    return _fits(type(message))(message)


@functools.cache
def _fits(kind: object) -> Callable[[object], bool]:
    """The check for a type, as annotations write it."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is object:
        return _plain
    if origin in (Union, UnionType):
        ways = [_fits(one) for one in inner]
        return lambda value: any(way(value) for way in ways)
    if origin is Literal:
        return lambda value: type(value) is int and value in inner
    if origin is tuple and inner[-1] is Ellipsis:
        every = _fits(inner[0])
        return lambda value: type(value) is tuple and all(map(every, value))
    if origin is tuple:
        each = [_fits(one) for one in inner]
        return lambda value: (
            type(value) is tuple
            and len(value) == len(each)
            and all(fits(part) for fits, part in zip(each, value, strict=True))
        )
    if hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        fields = [_fits(hints[name]) for name in kind._fields]
        return lambda value: type(value) is kind and all(fits(part) for fits, part in zip(fields, value, strict=True))
    if kind is tuple:
        return lambda value: type(value) is tuple and _plain(value)
    if kind is float:  # a number, which may be whole
        return lambda value: type(value) in (int, float)
    return lambda value: type(value) is kind


def _plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return type(value) in (str, bytes, int, NoneType)
