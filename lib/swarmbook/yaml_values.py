"""YAML as its version 1.2 reads it, for parameters and grids.

PyYAML follows version 1.1, where `010` is 8, `1:30` is 90, `on` is true, and `1e-3` is text. Here plain words are what
they look like (YAML 1.2, core schema). Tags, which would make objects, and aliases, which can grow without bound, are
refused.

Serves: `swarmbook run -p NAME VALUE`, `sweep` and `plan`.
"""

import re
from typing import Any

import yaml
from yaml import Node

DEEPEST = 50  # lists and mappings within each other


class Loader(yaml.SafeLoader):
    """Reads one document; every error is a YAMLError."""

    yaml_implicit_resolvers: dict = {}  # those of version 1.1 are not inherited
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """One node, unless it is an alias, bears a tag or lies too deep."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases such as *a are not read", event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, "tags such as !!int are not read", event.start_mark)
        if self.depth == DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _integer(loader: Loader, node: Node) -> int:
    text = loader.construct_scalar(node)
    if len(text) > 100:
        raise yaml.constructor.ConstructorError(None, None, "an integer of more than 100 digits", node.start_mark)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(loader: Loader, node: Node) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for name, pattern, first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", NUMBER, list("-+.0123456789")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$"), first)
Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _number)


def load(text: str) -> Any:
    """The value of a text; raises YAMLError."""
    return yaml.load(text, Loader)


def compose(text: str) -> Node | None:
    """The nodes of a text, each with its line; raises YAMLError."""
    return yaml.compose(text, Loader)


def plain(node: Node) -> Any:
    """The value of a node; raises YAMLError."""
    return Loader("").construct_document(node)
