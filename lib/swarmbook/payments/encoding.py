"""One byte string for each statement, so that a signature on one can never pass for a signature on another.

A statement is a tuple of text, bytes, integers and tuples of them. The encoding is injective (every part carries its
type and its length) and begins with the domain of this package; the first part of a statement is its kind.

Serves: signatures and digests of every protocol.
"""

import hashlib
from typing import TypeAlias

Part: TypeAlias = "str | bytes | int | None | tuple[Part, ...]"
DOMAIN = b"swarmbook.payments 1\n"


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
        tag, body = b"s", value.encode()
    elif value is None:
        tag, body = b"n", b""
    elif isinstance(value, int) and not isinstance(value, bool):
        tag, body = b"i", b"%d" % value
    else:
        raise TypeError(f"a statement cannot hold {value!r}: give text, bytes, integers, None or tuples of them")
    return tag + b"%d:" % len(body) + body
