"""Any data set of the hub, read from copies on the disk by `datasets` itself; the hub's answers are made up."""

import json

import huggingface_hub
import pytest

from swarmbook.config import run_config
from swarmbook.data import tokenization
from swarmbook.data.source import SPLITS
from swarmbook.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = {"steps": 20, "data_limit": 1000}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Writes `owner/name/<file>` of rows below SWARMBOOK_HUB_DIR; its folder."""
    monkeypatch.setenv("SWARMBOOK_HUB_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("SWARMBOOK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "owner" / "name"

    def write(file, documents, **columns):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        column = columns.pop("column", "text")
        path.write_text(
            "".join(json.dumps({column: each, "id": i, **columns}) + "\n" for i, each in enumerate(documents))
        )
        return folder

    return write


@pytest.fixture
def network(monkeypatch):
    """The hub's newest commit of any data set, or that there is no network."""
    monkeypatch.delenv("SWARMBOOK_HUB_DIR", raising=False)

    def set_to(commit):
        def dataset_info(self, repository, **options):
            if not commit:
                raise OSError("no network")
            return type("Info", (), {"sha": commit})()

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)

    return set_to


def documents(source, split):
    return [text for batch in tokenization.source_of(source).batches(split) for text in batch]


def named(word, count):
    return [f"{word} {i} of the story" for i in range(count)]


def test_its_own_splits_are_read_as_datasets_finds_them(copy):
    copy("data/train-0.jsonl", named("first", 3))
    copy("data/train-1.jsonl", named("second", 2))
    copy("data/validation-0.jsonl", named("held", 2))
    copy("data/test-0.jsonl", named("last", 2))
    assert documents("hub:owner/name", "train") == named("first", 3) + named("second", 2)
    assert documents("hub:owner/name", "validation") == named("held", 2)
    assert documents("hub:owner/name", "test") == named("last", 2)
    assert tokenization.source_of("hub:owner/name").held_out == "validation: its own; test: its own"


def test_of_splits_that_it_has_not_a_part_of_train_is_held_out(copy):
    every = named("any", 230)
    copy("train.jsonl", every)
    assert documents("hub:owner/name", "validation") == every[::100]
    assert documents("hub:owner/name", "test") == every[50::100]
    assert documents("hub:owner/name", "train") == [d for i, d in enumerate(every) if i % 50 or i % 100 not in (0, 50)]
    copy("validation.jsonl", named("held", 2))
    assert documents("hub:owner/name", "validation") == named("held", 2)
    assert documents("hub:owner/name", "test") == every[50::100]
    assert documents("hub:owner/name", "train") == [d for i, d in enumerate(every) if i % 100 != 50]
    said = tokenization.source_of("hub:owner/name").held_out
    assert said == "validation: its own; test: documents 50, 150, 250, ... of its train split"


def test_a_config_and_a_column_are_chosen_by_name(copy):
    folder = copy("de/train.jsonl", ["eins", "zwei"], title="Buch")
    copy("en/train.jsonl", ["one", "two"], title="book")
    configs = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("de", "en")]
    (folder / "README.md").write_text("---\n" + json.dumps({"configs": configs}) + "\n---\n")
    assert documents("hub:owner/name:en", "train") == ["two"]  # document 0 is held out
    assert documents("hub:owner/name:de:title", "train") == ["Buch"]
    with pytest.raises(DataError, match="cannot be loaded: .*'fr' not found. Available: .*'de', 'en'"):
        documents("hub:owner/name:fr", "train")
    with pytest.raises(DataError, match="has no column 'body' but text, id, title: write hub:owner/name:en:COLUMN"):
        documents("hub:owner/name:en:body", "train")


def test_the_only_column_of_texts_needs_no_name(copy):
    copy("train.jsonl", named("post", 3), column="body")
    assert documents("hub:owner/name", "validation") == named("post", 1)
    copy("train.jsonl", named("post", 3), column="body", title="x")
    with pytest.raises(DataError, match="has no column 'text' but body, id, title: write hub:owner/name::COLUMN"):
        documents("hub:owner/name", "train")
    assert documents("hub:owner/name::title", "train") == ["x", "x"]
    with pytest.raises(DataError, match="holds 1 in place of a text"):
        tokenization.tokens("hub:owner/name::id", "train")


def test_a_copy_is_known_by_its_content_and_needs_no_revision(copy, tmp_path, monkeypatch):
    copy("train.jsonl", named("any", 3))
    first = run_config(data="hub:owner/name", **BASE).key
    (tmp_path / "hub").rename(tmp_path / "moved")
    monkeypatch.setenv("SWARMBOOK_HUB_DIR", str(tmp_path / "moved"))
    assert run_config(data="hub:owner/name", **BASE).key == first
    monkeypatch.setenv("SWARMBOOK_HUB_DIR", str(tmp_path / "hub"))
    copy("train.jsonl", named("other", 3))
    assert run_config(data="hub:owner/name", **BASE).key != first
    assert len(tokenization.tokens("hub:owner/name+stories_toy", "train").ids) > 20  # a copy is read whole


def test_a_pinned_revision_is_in_the_key_and_asks_nobody(network):
    network(None)
    keys = {run_config(data=f"hub:owner/name{form}", **BASE).key for form in (f"@{COMMIT}", f"::text@{COMMIT}")}
    keys |= {run_config(data=f"hub:owner/name@{COMMIT[::-1]}", **BASE).key}
    assert len(keys) == 3
    with pytest.raises(DataError, match="is too large to tokenize whole: pass limit"):
        tokenization.tokens(f"hub:owner/name@{COMMIT}", "train")


@pytest.mark.parametrize("name", ["hub:owner/name", "hub:owner/name:en:text", "hub:owner/name@main"])
def test_what_may_change_is_refused_with_the_newest_commit(network, name):
    network(COMMIT)
    with pytest.raises(DataError, match=rf"Write '{name.partition('@')[0]}@{COMMIT}', its newest commit, or set SWARM"):
        tokenization.fingerprint(name, limit=9)
    network(None)
    with pytest.raises(DataError, match="@<commit hash>', with one from https://huggingface.co/datasets/owner/name"):
        tokenization.fingerprint(name, limit=9)


def test_the_hub_is_read_at_the_pinned_revision(network, monkeypatch):
    import datasets

    network(COMMIT)
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options["revision"], options["streaming"]))
        rows = datasets.Dataset.from_dict({"body": named("any", 101)}).to_iterable_dataset()
        return {"train": rows}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert documents(f"hub:owner/name:en@{COMMIT}", "validation") == [named("any", 101)[0], named("any", 101)[100]]
    assert asked == [(("owner/name", "en"), COMMIT, True)]


def test_a_hub_that_does_not_answer_is_told_with_the_way_to_a_copy(network):
    network(None)
    with pytest.raises(DataError, match=f"no network.*\n  hf download owner/name .*--revision {COMMIT} --local-dir"):
        documents(f"hub:owner/name@{COMMIT}", "train")


def test_a_data_set_without_a_train_split_is_told(copy):
    copy("test.jsonl", named("any", 3))
    with pytest.raises(DataError, match="has no train split but test"):
        documents("hub:owner/name", "train")


def test_a_damaged_copy_is_told(copy):
    path = copy("train.jsonl", named("any", 3)) / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="'hub:owner/name' .train. cannot be read"):
        documents("hub:owner/name", "train")


@pytest.mark.parametrize("name", ["hub:owner/", "hub:owner/na me", "hub:a/b:c:d:e", "hub:/name", "hub:owner/name@"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(DataError, match=r"is not of the form hub:owner/name\[:config\]\[:column\]\[@revision\]"):
        tokenization.source_of(name)


def test_every_kind_of_source_says_what_it_holds_out(tmp_path):
    (tmp_path / "notes.txt").write_text("a line of text\n" * 50)
    names = ["stories_toy", "hub:tinystories", "hub:openwebtext", f"file:{tmp_path}/notes.txt"]
    said = [tokenization.source_of(name).held_out for name in names]
    assert all("validation" in each for each in said) and len(set(said)) == 4
    assert set(tokenization.source_of("stories_toy").splits) == set(SPLITS)
