"""The files of a finished run: its record as parquet, and the state that it ended with.

- A record is one parquet file that any parquet reader opens. Configuration, provenance and key travel as JSON in its
  metadata, with a SHA-256 over every other byte of the file, which is checked before anything is parsed.
- A state is the SHA-256 of all that follows, a line of JSON, and what torch.save writes.

Serves: `swarmbook.records.store`.
"""

import functools
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from swarmbook.records.atomic_files import save_tensors
from swarmbook.records.keys import canonical

FORMAT = 1
SEAL = b"swarmbook-sha256:"
BLANK = b"0" * 64


@dataclass(frozen=True, eq=False)
class Record:
    """A finished run: its metrics (one row a measurement) and where they come from."""

    key: str
    config: dict[str, Any]
    metrics: pd.DataFrame
    provenance: dict[str, Any]
    path: Path


def encode_record(key: str, config: dict, metrics: pd.DataFrame, provenance: dict, token: str | None) -> bytes:
    categories = {
        name: {"of": list(dtype.categories), "ordered": bool(dtype.ordered)}
        for name, dtype in metrics.dtypes.items()
        if isinstance(dtype, pd.CategoricalDtype)
    }
    header = {
        "config": json.loads(canonical(config, "config")),
        "provenance": json.loads(canonical(provenance, "provenance")),
        "categories": categories,
        "format": FORMAT,
        "key": key,
        "token": token,
    }
    # Categories are stored as text: parquet has no type for them, and its own dictionaries keep that small.
    frame = metrics.astype({name: "str" for name in categories})
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    text = [field.name for field in table.schema if pa.types.is_large_string(field.type)]
    file = io.BytesIO()
    options = {"use_dictionary": text, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(file, table.schema, compression="zstd", **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"swarmbook": canonical(header), "seal": SEAL + BLANK})
    data = file.getvalue()
    if data.count(SEAL) != 1:
        raise ValueError(f"run {key}: config, provenance and metrics must not contain {SEAL.decode()!r}")
    return data.replace(SEAL + BLANK, SEAL + hashlib.sha256(data).hexdigest().encode())


def decode_record(data: bytes, key: str, path: Path) -> tuple[Record, str | None]:
    """The record in a file's bytes, and the token it was put under; ValueError says what is wrong with it."""
    start = data.rfind(SEAL) + len(SEAL)
    seal = data[start : start + len(BLANK)]
    if hashlib.sha256(data[:start] + BLANK + data[start + len(BLANK) :]).hexdigest().encode() != seal:
        raise ValueError(f"its {len(data)} bytes do not match their checksum")
    table = pq.ParquetFile(pa.BufferReader(data))
    header = json.loads(table.metadata.metadata[b"swarmbook"])
    _check(header, key)
    content, kinds = table.read(use_threads=False), header["categories"]
    frame = content.drop_columns(list(kinds)).to_pandas(use_threads=False)  # small: waiting for threads takes longer
    for place, name in enumerate(content.column_names):
        if name not in kinds:
            continue
        dtype = kinds[name]
        codes = pc.index_in(content[name], pa.array(dtype["of"], pa.large_string())).fill_null(-1).to_numpy()
        parts = pd.Categorical.from_codes(codes, dtype=_dtype(tuple(dtype["of"]), dtype["ordered"]), validate=False)
        frame.insert(place, name, parts)
    return Record(key, header["config"], frame, header["provenance"], path), header["token"]


@functools.lru_cache(maxsize=1024)
def _dtype(names: tuple[str, ...], ordered: bool) -> pd.CategoricalDtype:
    return pd.CategoricalDtype(pd.Index(names, dtype="str"), ordered)


def _check(header: dict, key: str) -> None:
    if header["format"] != FORMAT:
        raise ValueError(f"it has format {header['format']}, this version reads {FORMAT}")
    if header["key"] != key:
        raise ValueError(f"it holds run {header['key']} under another name")


def _digest(file: BinaryIO) -> str:
    """SHA-256 of the rest of a file, from where it stands."""
    seen = hashlib.sha256()  # not hashlib.file_digest, which need not begin where a buffered file stands
    while block := file.read(1 << 20):
        seen.update(block)
    return seen.hexdigest()


def write_state(file: BinaryIO, key: str, state: dict[str, Any], token: str | None) -> None:
    """Write a state into an empty file; raises ValueError for what torch.load(weights_only=True) refuses."""
    import torch

    header = canonical({"format": FORMAT, "key": key, "token": token}).encode() + b"\n"
    file.write(BLANK + header)
    save_tensors(state, file)
    file.seek(len(BLANK + header))
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:
        what = "tensors, numbers, text, and dicts and lists of them"
        raise ValueError(f"torch would not read the state of run {key} back; expected {what}") from error
    file.seek(len(BLANK))
    seal = _digest(file)
    file.seek(0)
    file.write(seal.encode())


def open_state(file: BinaryIO, key: str) -> str | None:
    """The token under which a state was put; the file then stands where torch.load begins to read.

    Raises ValueError or KeyError, which say what is wrong, for a damaged file and for the state of another run.
    """
    seal = file.read(len(BLANK))
    if _digest(file).encode() != seal:
        raise ValueError(f"its {file.tell()} bytes do not match their checksum")
    file.seek(len(BLANK))
    header = json.loads(file.readline())
    _check(header, key)
    return header["token"]
