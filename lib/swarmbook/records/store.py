"""The store: finished runs by key, and the work in progress of runs that are being trained.

- A finished run is one parquet file, `<key>.parquet` (see `swarmbook.records.run_files`). It appears whole or not at
  all, and is only ever replaced by another whole one. A damaged file is named in a warning and counts as absent;
  training the run again replaces it.
- What a run ends with (weights, moments) can be kept beside it, `states/<key>.pt`, for runs that start from it. It is
  never published.
- Whoever trains a run holds its lock (`swarmbook.records.locks`). When that process dies, whoever waits takes over from
  the last checkpoint. Nothing here is decided by clocks or process numbers.
- All of it can be deleted at any time. A process that has lost its lock or its work in progress notices, and begins
  again or waits (LostProgress).

Serves: every run and table. A training loop reads like this:

    while missing := [key for key in keys if store.get(key) is None]:
        with store.claim(missing) as mine:
            for pack in store.packs(mine) or ([mine] if mine else []):
                progress = store.progress(pack)
                state, step = progress.load() or (start(pack), 0)
                ...  # progress.append(rows), progress.save(state, step); at last store.put(...) for each key
                progress.discard()
        if not mine:
            store.wait(missing)
"""

import json
import math
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import pandas as pd

from swarmbook.errors import StoreError
from swarmbook.locations import store_folder
from swarmbook.records import locks
from swarmbook.records.atomic_files import open_regular, read, whole_file, write, writes
from swarmbook.records.checkpoint import WorkInProgress
from swarmbook.records.keys import canonical, key_of
from swarmbook.records.run_files import Record, decode_record, encode_record, open_state, write_state

YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")  # what SWARMBOOK_FRESH may say
POLL = 0.2  # seconds between two looks at a lock that another process holds


class Store:
    """Finished runs in `root`, which is made on the first write, and in the folders `recorded`, which are only read.

    The recorded ones are looked at first.
    fresh: a token. Only runs and states count that a store with the same token has put, and no recorded ones; give one
    token to all processes of an invocation. True is a token of this object's own, False no token.
    states: whether only runs whose final state is there count as finished. Recorded runs have none.
    """

    def __init__(self, root: Path, recorded: Sequence[Path] = (), fresh: bool | str = False, states: bool = False):
        self.root = Path(root)
        self.states = states
        self._partial = "partial-states" if states else "partial"
        self.recorded = () if fresh else tuple(Path(folder) for folder in recorded)
        self.token = uuid.uuid4().hex if fresh is True else fresh or None
        self._claimed: dict[str, locks.Lock] = {}  # by key
        with suppress(OSError):  # a read-only store is still good for reading
            self._clean()

    def get(self, key: str) -> Record | None:
        """The finished run, or None if it must be trained. A damaged file is named in a warning, not used."""
        for folder in (*self.recorded, self.root):
            path = _file(folder, key)
            try:
                record, token = decode_record(read(path), key, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                raise StoreError(f"cannot read {path}: {error.strerror}; make it readable") from error
            except (ValueError, KeyError, OSError) as damage:
                cure = "training the run again replaces it" if folder == self.root else "restore it with git"
                warnings.warn(f"{path} is damaged and not used: {damage}; {cure}", stacklevel=2)
                continue
            if self.token is None or token == self.token:
                return record if not self.states or self.state(key) is not None else None
        return None

    def keeping(self) -> "Store":
        """The same folder, where only runs whose final state is there count as finished."""
        return Store(self.root, fresh=self.token or False, states=True)

    def put(self, key: str, config: dict, metrics: pd.DataFrame, provenance: dict) -> Record:
        """Keep a finished run; the file is on disk, whole, when this returns.

        metrics: columns of int, float, bool, str or categories of str, with the default index. What would not read back
        equal, to the dtype, raises ValueError. Raises StoreError for a folder that cannot be written.
        """
        path = _file(self.root, key)
        data = encode_record(key, config, metrics, provenance, self.token)
        record, _ = decode_record(data, key, path)
        try:
            pd.testing.assert_frame_equal(record.metrics, metrics, check_exact=True)
        except AssertionError as error:
            raise ValueError(f"the metrics of run {key} would not read back as they are: {error}") from error
        with writes(path), self._lock(f"{key}.write", blocking=True):
            write(path, data)
        return record

    def state(self, key: str) -> dict[str, Any] | None:
        """What `put_state` was given (tensors on the CPU), or None if the run must be trained to have it.

        It is looked for in `root` only. A damaged file is named in a warning and not used. Raises StoreError for a file
        that may not be read, and for a whole one that the installed torch cannot read.
        """
        path = _file(self.root / "states", key, ".pt")
        try:
            with open_regular(path) as file:
                token = open_state(file, key)
                if self.token is not None and token != self.token:
                    return None
                import torch

                try:
                    return torch.load(file, map_location="cpu", weights_only=True)
                except Exception as error:  # whole, but of another version: torch raises what it likes
                    raise StoreError(f"torch cannot read {path}; delete it and train the run again") from error
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; make it readable") from error
        except (ValueError, KeyError, OSError) as damage:
            cure = "training the run again replaces it"
            warnings.warn(f"{path} is damaged and not used: {damage}; {cure}", stacklevel=2)
            return None

    def put_state(self, key: str, state: dict[str, Any]) -> None:
        """Keep what a run ended with; the file is on disk, whole, when this returns.

        state: tensors on any device, numbers, text, and dicts and lists of them. What torch.load(weights_only=True)
        refuses raises ValueError. Clone slices, because torch writes the whole tensor that a view looks into.
        Put the state before the run, so that a trainer that is killed in between leaves no finished run without one.
        Raises StoreError for a folder that cannot be written.
        """
        path = _file(self.root / "states", key, ".pt")
        with writes(path), self._lock(f"{key}.write", blocking=True):
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as file:
                write_state(file, key, state, self.token)

    @contextmanager
    def claim(self, keys: Iterable[str]) -> Iterator[list[str]]:
        """Lock what nobody else is training: `with store.claim(keys) as mine`.

        `mine` are the keys, in the order given, that are neither finished nor held by anybody else; another claim in
        this process counts as somebody else. The locks last until the block is left or the process dies. A lock is an
        open file, so claim what is trained next and not a grid of thousands.
        """
        mine = []
        with ExitStack() as all_held:
            for key in dict.fromkeys(keys):
                with ExitStack() as lock:
                    with writes(_file(self.root, key)):
                        held = lock.enter_context(self._lock(f"{key}.run"))
                    # Only under the lock is "not there" final: its last holder may just have put it.
                    if held and self.get(key) is None:
                        all_held.enter_context(lock.pop_all())
                        self._claimed[key] = held
                        all_held.callback(self._claimed.pop, key)
                        mine.append(key)
            yield mine
        with suppress(OSError):  # a pack that overlaps with the one just trained may have become needless
            self._clean()

    def wait(self, keys: Iterable[str]) -> None:
        """Return once one of these runs is finished, or its holder gave up or died. The caller must hold no claim.

        Says who is waited for, soon and then every minute.
        """
        keys = list(keys)
        looked, told = time.monotonic(), -math.inf
        while keys and not any(self._unheld(key) or self.get(key) for key in keys):
            time.sleep(max(POLL, 9 * (time.monotonic() - looked)))  # whoever trains needs the processor more
            looked = time.monotonic()
            path = self.root / "locks" / f"{keys[0]}.run"
            if looked - told > locks.TELL and path.exists():
                told = looked
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                cure = "end that process (what it has reached is kept), or set SWARMBOOK_STORE to another folder"
                locks.tell(f"run {keys[0]}{more}", path, cure)

    def progress(self, keys: Sequence[str]) -> WorkInProgress:
        """The work in progress of runs that are trained together. The caller has claimed them."""
        keys = sorted(keys)
        folder = self.root / self._partial / key_of({"pack": keys})
        with writes(folder), self._lock(f"{folder.name}.write", blocking=True):
            found = _keys_and_token(folder)
            if found is None or (self.token is not None and found[1] != self.token):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write(folder / "pack.json", canonical({"keys": keys, "token": self.token}).encode())
        return WorkInProgress(folder, [self._claimed[key] for key in keys if key in self._claimed])

    def packs(self, held: Sequence[str] | None = None) -> list[list[str]]:
        """The packs whose training was begun and that have unfinished runs, each as the keys of its runs.

        held: keys that the caller has claimed. Then only packs count whose unfinished runs are all held, and no two of
        them share a run. None for all packs.
        """
        packs: list[list[str]] = []
        for folder in sorted(self.root.glob(f"{self._partial}/*")):
            found = _keys_and_token(folder)
            if found is None or (self.token is not None and found[1] != self.token):
                continue
            unfinished = {key for key in found[0] if self.get(key) is None}
            if held is not None:
                taken = {key for pack in packs for key in pack}
                if not unfinished <= set(held) or taken & set(found[0]):
                    continue
            if unfinished:
                packs.append(found[0])
        return packs

    def publish(self, keys: Iterable[str], folder: Path, exclusive: bool = False) -> None:
        """Copy finished runs into a folder of recorded runs.

        exclusive: whether the folder's other parquet files are deleted. Raises StoreError for runs that are not there.
        """
        folder = Path(folder)
        records = {key: self.get(key) for key in dict.fromkeys(keys)}
        if missing := [key for key, record in records.items() if record is None]:
            raise StoreError(f"cannot publish {', '.join(missing)}: not in {self.root}; run them first")
        with writes(folder), self._lock("publish.write", blocking=True):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("*.parquet*.tmp"):
                leftover.unlink()
            for key, record in records.items():
                if record.path.parent.resolve() != folder.resolve():
                    data = read(record.path)
                    decode_record(data, key, record.path)
                    write(folder / record.path.name, data)
            if exclusive:
                for path in folder.glob("*.parquet"):
                    if path.stem not in records:
                        path.unlink()

    def _lock(self, name: str, blocking: bool = False) -> AbstractContextManager[locks.Lock | None]:
        return locks.lock(self.root / "locks" / name, blocking, f"the file {name.split('.')[0]} in {self.root}")

    def _unheld(self, key: str) -> bool:
        if not (self.root / "locks" / f"{key}.run").exists():
            return True
        with self._lock(f"{key}.run") as held:
            return held is not None

    def _clean(self) -> None:
        """Remove what killed processes left: half-written files, packs that are finished, locks."""
        for path in (*self.root.glob("*.parquet*.tmp"), *self.root.glob("states/*.pt*.tmp")):
            with self._lock(f"{path.name.split('.')[0]}.write") as dead:
                if dead:
                    path.unlink(missing_ok=True)
        for folder in self.root.glob(f"{self._partial}/*"):
            with ExitStack() as held:
                found = _keys_and_token(folder)
                names = [f"{folder.name}.write", *(f"{key}.run" for key in (found[0] if found else []))]
                if all(held.enter_context(self._lock(name)) for name in names):
                    found = _keys_and_token(folder)
                    if found is None or all(self.get(key) for key in found[0]):
                        shutil.rmtree(folder, ignore_errors=True)
        for path in self.root.glob("locks/*"):
            with self._lock(path.name):
                pass  # whoever gets a lock takes its file away


def open_store(recorded: Sequence[Path] = ()) -> Store:
    """The user's store: SWARMBOOK_STORE, or `runs/store` (see `swarmbook.locations`).

    With SWARMBOOK_FRESH=1 (or "true", "yes", "on") only what this process puts counts. "0", "false", "no" and "off" are
    as if it were not set. Any other text is a token, which the processes of an invocation share; StoreError for one of
    less than four characters, which looks like a slip.
    recorded: folders of recorded runs. After each come those of other profiles beside it, as `runs.gpu` beside `runs`.
    """
    fresh = os.environ.get("SWARMBOOK_FRESH", "").strip()
    if fresh.casefold() in NO:
        fresh = ""
    elif fresh.casefold() in YES:
        fresh = _token_of_process()
    elif len(fresh) < 4:
        words = f"{', '.join(YES)}; or {', '.join(NO[1:])}; or a token of four or more characters"
        raise StoreError(f"SWARMBOOK_FRESH={fresh!r} is neither yes nor no: give {words}")
    folders = [each for at in map(Path, recorded) for each in (at, *sorted(at.parent.glob(f"{escape(at.name)}.*/")))]
    return Store(store_folder(), folders, fresh)


@cache
def _token_of_process() -> str:
    return uuid.uuid4().hex


def _file(folder: Path, key: str, suffix: str = ".parquet") -> Path:
    if not re.fullmatch("[0-9a-f]{8,64}", key):
        raise ValueError(f"{key!r} is no key of a run; expected 8 to 64 hex digits, as key_of gives them")
    return folder / f"{key}{suffix}"


def _keys_and_token(folder: Path) -> tuple[list[str], str | None] | None:
    """Which runs a folder of work in progress is for; None if its maker died before it said so."""
    try:
        pack = json.loads(read(folder / "pack.json"))
        keys, token = pack["keys"], pack["token"]
        return (keys, token) if key_of({"pack": keys}) == folder.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
