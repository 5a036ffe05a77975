"""Corpora and tokenizers of the `paper` profile: Hugging Face hub repositories, or local copies of them.

- a source reads `hub:<name>[/<config>][@<revision>]`, such as `hub:tinystories` or `hub:m2d2/math_l1`
- always streamed: the only copy kept is the token cache of `swarmbook.data.tokenization`
- `$SWARMBOOK_HUB_DIR/<owner>/<name>/`, laid out as on the hub, replaces the network; such a copy is
  identified by its content and needs no revision, since it may hold only a part of the files
- where a data set has only a train split, documents 0, 100, 200, ... (in order of file name, then row) are
  the validation split, documents 50, 150, 250, ... the test split, and training reads the others
"""

import dataclasses
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmbook.data.document_files import CARVE, READERS, carved, first_line, hub_folder, reader, sampled_digest, stream
from swarmbook.data.source import BATCH, HASH, TIMEOUT
from swarmbook.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True)
class HubCorpus:
    """Where a data set of the hub keeps its documents.

    `files` maps a split to a pattern over file names inside the repository (`*` also matches `/`). `whole`
    says that it can be tokenized whole. `archive` is set where the files only exist inside an archive, which
    must be unpacked.
    """

    repository: str
    files: dict[str, str]
    revision: str | None
    folder: str | None = None
    column: str = "text"
    whole: bool = False
    archive: str | None = None
    name: str = ""

    origin = "of the Hugging Face hub, under the licence given there"

    @property
    def name_in_key(self) -> str:
        return self.name

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of a data set, carved ones included."""
        return ("train", *CARVE) if set(self.files) == {"train"} else tuple(self.files)

    @property
    def held_out(self) -> str:
        if set(self.files) != {"train"}:
            return "; ".join(f"{split}: its own" for split in self.files if split != "train")
        return "validation: documents 0, 100, 200, ... of its train split; test: documents 50, 150, 250, ..."

    def content(self) -> str:
        """What identifies the documents: repository and revision, or the bytes of a local copy; needs no network.

        Of a local file above 1 MiB, its size and 8 blocks of 16 KiB are hashed.
        """
        local = _local_files(self, list(self.files.values()))
        if local is not None:
            parts = [(name, sampled_digest(path, path.stat().st_size, path.stat().st_mtime_ns)) for name, path in local]
            return hashlib.blake2b(repr((parts, self.column)).encode(), digest_size=16).hexdigest()
        return f"{self.repository}@{_pinned(self)} {sorted(self.files.items())}"

    def texts(self, split: str) -> "IterableDataset":
        """Stream the documents of a split as a `datasets.IterableDataset` with the one column `text`.

        Raises `DataError` without delay if neither a local copy nor the hub can give them.
        """
        names = _files(self, self.files.get(split, self.files["train"]))
        readers = {reader(name) for name in names}
        if len(readers) > 1:
            raise DataError(f"{self.repository} mixes {sorted(readers)} files for {split!r}: keep one format")
        rows = stream(readers.pop(), names)
        try:
            columns = rows.column_names or list(next(iter(rows), {}))
        except Exception as error:  # the readers raise what they like
            said = unreadable(self, split) or first_line(error)
            raise DataError(f"{self.repository} ({split}) cannot be read: {said}") from error
        if self.column not in columns:
            raise DataError(f"{names[0]} has the columns {columns}, but {self.repository} needs {self.column!r}")
        rows = rows.select_columns(self.column)
        if self.column != "text":
            rows = rows.rename_column(self.column, "text")
        if set(self.files) != {"train"}:
            return rows
        return rows.filter(lambda _, index: [carved(i) == split for i in index], with_indices=True, batched=True)

    def batches(self, split: str) -> Iterator[list]:
        """The documents of a split, some at a time."""
        try:
            for batch in self.texts(split).iter(batch_size=BATCH):
                yield batch["text"]
        except DataError:
            raise
        except Exception as error:  # the readers raise what they like: TypeError, ArrowInvalid, EOFError, ...
            said = unreadable(self, split) or f"its files do not fit together: {first_line(error)}"
            raise DataError(f"{self.name!r} ({split}) cannot be read: {said}") from error


CORPORA = {
    # CheckFree, small model
    "tinystories": HubCorpus(
        "roneneldan/TinyStories",
        {"train": "data/train-*", "validation": "data/validation-*"},
        "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        folder="data",
        whole=True,
    ),
    # CheckFree, medium model. No revision is known to hold all 80 parquet files, so the user names one.
    "openwebtext": HubCorpus("Skylion007/openwebtext", {"train": "*/train-*"}, None),
    # CheckFree, large model. The hub holds a sample (snapshot 2023-06, ten shards); a local copy may hold any
    # snapshots of data.together.xyz/redpajama-data-v2/v1.0.0/documents. English, partition head_middle.
    "redpajama": HubCorpus(
        "togethercomputer/RedPajama-Data-V2",
        {"train": "*documents/*/en_*"},
        "ada48bd1dc36ba2a71fc5c7226ea9bfd618d2195",
        folder="sample/documents",
        column="raw_content",
    ),
    # NoLoCo
    "c4": HubCorpus(
        "allenai/c4",
        {"train": "en/c4-train.*", "validation": "en/c4-validation.*"},
        "607bd4c8450a42878aa9ddc051a65a055450ef87",
        folder="en",
    ),
    # NoLoCo says "Pushshift Reddit comments" and names no repository; this one holds 2012-01 to 2016-02.
    "pushshift": HubCorpus(
        "fddemarco/pushshift-reddit-comments",
        {"train": "data/RC_*"},
        "ff199a53725baa102c30a92bc10c8a816ff2cabf",
        folder="data",
        column="body",
    ),
    # HDEE; a config is a domain, such as math_l1, physics_l1, cs_l1, History_and_events
    "m2d2": HubCorpus(
        "machelreid/m2d2",
        {"train": "{config}/train*", "validation": "{config}/valid*", "test": "{config}/test*"},
        "5a9ea583b95508c0bcd38d16c2ae9ad650d0cdbf",
        whole=True,
        archive="data/{config}.tar.gz",
    ),
    # HDEE's seed models and easy domains, named in its code without revisions. Of TinyStories its code takes the hub's
    # test split for validation and has no test split; here both are carved out of the training split.
    "openwebtext-en": HubCorpus("vietgpt/openwebtext_en", {"train": "*train*"}, None),
    "caselaw": HubCorpus("free-law/Caselaw_Access_Project", {"train": "*"}, None),
    "simple-wikipedia": HubCorpus(
        "pszemraj/simple_wikipedia_LM",
        {"train": "*train*", "validation": "*validation*", "test": "*test*"},
        None,
        whole=True,
    ),
    "tinystories-v2": HubCorpus("fhswf/TinyStoriesV2_cleaned", {"train": "*train*"}, None, whole=True),
}
# CheckFree's, 32,000 entries, and HDEE's, 128,002; the repositories ask for a licence click and a token.
TOKENIZERS = {
    "llama-2": "meta-llama/Llama-2-7b-hf@01c7f73d771dfac7d292323805ebc428287df4f9",
    "llama-3": "meta-llama/Meta-Llama-3-8B",
}


def corpus(source: str) -> HubCorpus:
    """The data set that `source` means, with its config and revision filled in.

    Raises `DataError` if the name is not in `CORPORA`, or if a config or revision is missing, malformed or
    unwanted.
    """
    name, _, revision = source.removeprefix("hub:").partition("@")
    name, _, config = name.partition("/")
    if name not in CORPORA:
        raise DataError(
            f"unknown hub corpus {source!r}; known: {', '.join('hub:' + known for known in CORPORA)}, and any data set "
            "hub:owner/name@<commit hash>"
        )
    found = CORPORA[name]
    if bool(config) != bool(found.archive):
        example = f"hub:{name}/math_l1" if found.archive else f"hub:{name}"
        raise DataError(f"{source!r} must read like {example!r}, with {'a' if found.archive else 'no'} config")
    if revision and not re.fullmatch(HASH, revision):
        raise DataError(f"revision {revision!r} in {source!r} is no commit hash of 40 hex digits; a branch may move")
    return dataclasses.replace(
        found,
        files={split: pattern.format(config=config) for split, pattern in found.files.items()},
        archive=found.archive and found.archive.format(config=config),
        revision=revision or found.revision,
        name=source,
    )


def is_named(source: str) -> bool:
    """Whether a source is one of `CORPORA`, known or not, and no `hub:owner/name`."""
    name = source.removeprefix("hub:").partition("@")[0].partition("/")
    return name[0] in CORPORA or not name[1]


def unreadable(wanted: HubCorpus, split: str) -> str:
    """What is wrong with the first file of a split that cannot be read on its own; empty if each can."""
    for name in _files(wanted, wanted.files.get(split, wanted.files["train"])):
        try:
            for _ in stream(reader(name), [name]).iter(batch_size=1000):
                pass
        except Exception as error:  # the readers raise what they like
            return f"{name} is damaged or no such file ({first_line(error)}); get it anew"
    return ""


def tokenizer_file(name: str) -> Path:
    """The `tokenizer.json` of `llama-2` or of `<owner>/<name>@<commit hash>`, downloaded at most once."""
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = TOKENIZERS.get(name, name).partition("@")
    folder = os.environ.get("SWARMBOOK_HUB_DIR")
    if folder and (local := Path(folder, repository, "tokenizer.json")).is_file():
        return local
    if not re.fullmatch(HASH, revision):
        raise DataError(
            f"tokenizer {name!r} needs a pinned revision: write {repository + '@<commit hash>'!r}, "
            f"with a hash from https://huggingface.co/{repository}/commits/main"
        )
    cached = huggingface_hub.try_to_load_from_cache(repository, "tokenizer.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # hf_hub_download alone would retry for 20 s without a network
        huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=TIMEOUT)
        return Path(huggingface_hub.hf_hub_download(repository, "tokenizer.json", revision=revision))
    except (errors.HTTPError, OSError) as error:
        raise DataError(
            f"tokenizer {repository} cannot be fetched ({first_line(error)}). "
            f"Where there is a network, run\n  hf download {repository} tokenizer.json --revision {revision} "
            f"--local-dir $SWARMBOOK_HUB_DIR/{repository}\n"
            "(after `hf auth login` if it is gated) and set SWARMBOOK_HUB_DIR"
        ) from error


def _files(wanted: HubCorpus, pattern: str) -> list[str]:
    """Local paths or `hf://` addresses of the files that match, sorted by name."""
    local = _local_files(wanted, [pattern])
    if local == []:
        raise DataError(
            f"{hub_folder(wanted.repository)} holds no {'/'.join(READERS)} file (plain, .gz or .zst) "
            f"named {pattern!r}; get it with\n  {_download(wanted)}"
        )
    if local is not None:
        for _, path in local:  # `datasets` takes the name of what lies in a packed file for an address
            if path.suffix in (".gz", ".zst") and set("[]") & set(path.name):
                raise DataError(f"{path} cannot be streamed with brackets in its name: rename it")
        return [str(path) for _, path in local]
    _pinned(wanted)
    if wanted.archive:
        raise DataError(
            f"{wanted.repository} is a set of archives: with SWARMBOOK_HUB_DIR set, run\n  {_download(wanted)}"
        )
    from huggingface_hub import HfApi, errors

    hub = HfApi()
    try:
        # listing alone would retry for 20 s without a network
        hub.dataset_info(wanted.repository, revision=wanted.revision, timeout=TIMEOUT)
        tree = hub.list_repo_tree(
            wanted.repository, wanted.folder, recursive=True, revision=wanted.revision, repo_type="dataset"
        )
        names = sorted(entry.path for entry in tree if _matches(entry.path, [pattern]))
    except (errors.HTTPError, OSError) as error:
        raise DataError(
            f"{wanted.repository} cannot be reached on the Hugging Face hub ({first_line(error)}). "
            f"Where there is a network, run\n  {_download(wanted)}\n"
            "with SWARMBOOK_HUB_DIR set to a folder that this machine sees, and set it here too"
        ) from error
    if not names:
        raise DataError(f"{wanted.repository} has no file {pattern!r} at revision {wanted.revision}; try another one")
    return [f"hf://datasets/{wanted.repository}@{wanted.revision}/{name}" for name in names]


def _local_files(wanted: HubCorpus, patterns: list[str]) -> list[tuple[str, Path]] | None:
    """Name inside the repository and path of each matching file of the local copy; None without a copy."""
    folder = hub_folder(wanted.repository)
    if folder is None:
        return None
    named = ((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return sorted((name, path) for name, path in named if _matches(name, patterns))


def _matches(name: str, patterns: list[str]) -> bool:
    return reader(name) is not None and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _pinned(wanted: HubCorpus) -> str:
    if wanted.revision is None:
        short = next(name for name, known in CORPORA.items() if known.repository == wanted.repository)
        raise DataError(
            f"{wanted.repository} has no pinned revision: write 'hub:{short}@<commit hash>', with a "
            f"hash from https://huggingface.co/datasets/{wanted.repository}/commits/main, "
            "or set SWARMBOOK_HUB_DIR to a local copy"
        )
    return wanted.revision


def _download(wanted: HubCorpus) -> str:
    target = f"$SWARMBOOK_HUB_DIR/{wanted.repository}"
    chosen = wanted.archive or " ".join(f"--include '{pattern}'" for pattern in wanted.files.values())
    command = f"hf download {wanted.repository} {chosen} --repo-type dataset --revision {wanted.revision or 'main'}"
    unpack = f" && tar -xzf {target}/{wanted.archive} -C {target}" if wanted.archive else ""
    return f"{command} --local-dir {target}{unpack}"
