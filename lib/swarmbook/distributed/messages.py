"""What ranks tell each other, as bytes and back: JSON beside the tensors that it names, and nothing that could run.

Reading a message makes numbers, text, lists, dicts and tensors of known types and nothing else, whoever sent it.
Python's own pickle, which torch uses for messages of this kind, runs what the sender likes.

Serves: `python -m swarmbook.distributed`.
"""

import json
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from swarmbook.errors import TrainingError

LENGTH = 8  # bytes of a number


def encode(content: Any) -> bytes:
    """The message. content: None, bools, numbers, text and tensors, in lists, tuples and dicts; TypeError for others.

    Tuples come back as lists, subclasses of dict as dicts, tensors on the CPU.
    """
    tensors: list[Tensor] = []
    said = json.dumps(_plain(content, tensors)).encode()
    body = save({str(i): tensor for i, tensor in enumerate(tensors)})
    return len(said).to_bytes(LENGTH) + said + body


def decode(message: bytes) -> Any:
    """What `encode` was given. TrainingError for bytes that are no such message."""
    size = int.from_bytes(message[:LENGTH]) + LENGTH
    try:
        return _content(json.loads(message[LENGTH:size]), load(message[size:]))
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"a message of {len(message)} bytes is none that this version sends ({error}): start all ranks with one "
            "version, and see that nobody else can reach their ports"
        ) from error


def _plain(part: Any, tensors: list[Tensor]) -> Any:
    """JSON for a part of a message, whose tensors are added to `tensors`."""
    if isinstance(part, Tensor):
        tensors.append(part.detach().cpu().clone(memory_format=torch.contiguous_format))
        return {"tensor": len(tensors) - 1}
    if isinstance(part, dict):
        return {"dict": [[_plain(key, tensors), _plain(value, tensors)] for key, value in part.items()]}
    if isinstance(part, list | tuple):
        return [_plain(item, tensors) for item in part]
    if isinstance(part, np.generic):
        return part.item()
    if isinstance(part, bool | int | float | str | None):
        return part
    raise TypeError(f"a message holds a {type(part).__name__}: send tensors, numbers, text, lists and dicts")


def _content(part: Any, tensors: dict[str, Tensor]) -> Any:
    """The part of a message that this JSON stands for."""
    if isinstance(part, list):
        return [_content(item, tensors) for item in part]
    if not isinstance(part, dict):
        return part
    ((kind, value),) = part.items()
    if kind == "tensor":
        return tensors[str(value)]
    if kind != "dict":
        raise ValueError(f"unknown kind {kind!r}")
    return {_content(key, tensors): _content(item, tensors) for key, item in value}
