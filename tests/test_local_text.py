"""Text of one's own: its documents, their splits, and what is said of files that cannot be read."""

import gzip
import json
from pathlib import Path

import pytest

from swarmbook import cli
from swarmbook.config import run_config
from swarmbook.data import local_text, tokenization
from swarmbook.errors import DataError
from swarmbook.records.store import Store
from swarmbook.runs import run

BOOK = "".join(f"Line {i} of a book that is long enough to be cut.\n" for i in range(400))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    return path


def documents(source: str, split: str = "train") -> list[str]:
    return list(local_text.documents(local_text.local_text(source), split))


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_book_is_one_document_whose_end_is_held_out(book):
    parts = {split: documents(f"file:{book}", split) for split in ("train", "test", "validation")}
    assert "".join(text for part in parts.values() for text in part) == BOOK
    assert all(len(part) == 1 for part in parts.values())
    shares = [len(parts[split][0]) / len(BOOK) for split in parts]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.005)
    assert all(part[0].endswith("\n") for part in parts.values())


def test_a_folder_gives_its_files_by_name(tmp_path, book):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("a first short file")
    (tmp_path / "notes.md").write_text("not read")
    found = [text for split in ("train", "test", "validation") for text in documents(f"dir:{tmp_path}", split)]
    assert "".join(found) == BOOK + "a first short file"


def test_of_many_documents_every_hundredth_is_held_out(tmp_path):
    path = jsonl(tmp_path / "posts.jsonl", [{"text": f"post {i}"} for i in range(250)])
    assert documents(f"file:{path}", "validation") == ["post 0", "post 100", "post 200"]
    assert documents(f"file:{path}", "test") == ["post 50", "post 150"]
    assert len(documents(f"file:{path}")) == 245


def test_columns_packing_and_paths(tmp_path, monkeypatch):
    rows = [{"id": i, "body": f"post {i} " * 40, "url": "x"} for i in range(20)]
    path = jsonl(tmp_path / "posts.jsonl", rows)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert documents(f"file:{path}:body") == documents(f"file:{packed}:body")
    with pytest.raises(DataError, match="has no column 'text' but id, body, url: write file:posts.jsonl:COLUMN"):
        documents(f"file:{path}")
    only = jsonl(tmp_path / "only.jsonl", [{"id": row["id"], "body": row["body"]} for row in rows])
    assert documents(f"file:{only}") == documents(f"file:{path}:body")
    monkeypatch.chdir(tmp_path)
    assert local_text.absolute("file:only.jsonl+docs_node+dir:.") == f"file:{only}+docs_node+dir:{tmp_path}"


def test_texts_is_a_stream_of_datasets(book):
    rows = list(tokenization.texts(f"file:{book}", "test"))
    assert [row["text"] for row in rows] == documents(f"file:{book}", "test")


def test_content_identifies_a_text_and_its_place_does_not(tmp_path, book):
    fields = dict(width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1, steps=2, tokenizer="bytes")
    first = run_config(data=f"file:{book}", **fields).key
    moved = book.rename(tmp_path / "moved.txt")
    assert run_config(data=f"file:{moved}", **fields).key == first
    moved.write_text(BOOK + "one line more\n")
    assert run_config(data=f"file:{moved}", **fields).key != first
    joined = [run_config(data=data, **fields).key for data in (f"file:{moved}+docs_node", f"docs_node+file:{moved}")]
    assert joined[0] != joined[1]


def test_a_run_trains_on_it(book, tmp_path):
    fields = dict(
        width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1, steps=2, evaluate_every=2, log_every=2
    )
    config = run_config(data=f"file:{book}", tokenizer="bytes", held_out=4, **fields)
    table = run([config], store=Store(tmp_path / "store"), device="cpu", show=False).table("validation loss")
    assert len(table) and table["value"].between(4, 8).all()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"good\nb\xff\xfed\n", r"a\.txt cannot be read: line 2 is not UTF-8 .*iconv"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "cut of', r"a\.jsonl cannot be read: line 2 is no JSON"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of git LFS.*git lfs pull"),
        ("a.parquet", b"PAR1 half a file", r"a\.parquet cannot be read"),
        ("a.jsonl", b'{"text": "good"}\n{"text": 5}\n', r"a\.jsonl"),
        ("a.jsonl", b'{"text": {"a": 1}}\n', r"holds {'a': 1} in place of a text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "good"}\n' * 999, mtime=0)[:-20], r"a\.jsonl\.gz cannot be read"),
        ("a.txt", b"", r"a\.txt' \(train\) has no text: 0 characters"),
        ("a.md", b"text", r"no kind that is read here: \.parquet/"),
    ],
)
def test_what_cannot_be_read_is_named_before_anything_trains(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        tokenization.tokens(f"file:{tmp_path / name}", "train", "bytes")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("file:nowhere.txt", "there is no file .*nowhere.txt"),
        ("file:{}", "is a folder: write dir:"),
        ("dir:{}/nowhere", "there is no folder"),
        ("dir:{}", r"no \.parquet/.* file"),
    ],
)
def test_sources_that_name_nothing(tmp_path, source, told):
    with pytest.raises(DataError, match=told):
        tokenization.fingerprint(source.format(tmp_path))


def test_too_short_is_said_with_the_remedy(tmp_path):
    path = tmp_path / "short.txt"
    config = run_config(data=f"file:{path}", tokenizer="bytes", steps=1, evaluate_every=1, log_every=1)
    for text, told in (
        ("too short", "too little to hold some out; add more"),
        (BOOK[:900], "shorter sequence|shorten"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"short\.txt.*({told})"):
            run([config], store=Store(tmp_path / "store"), device="cpu", show=False)


def test_on_the_command_line_a_path_is_that_of_the_shell(toy, book, tmp_path, monkeypatch):
    toy("toy", ("print(note)", "table 1"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "toy", "-p", "note", "file:book.txt"]) == 0
    assert f"file:{book}" in (tmp_path / "runs" / "toy" / "toy.ipynb").read_text()
