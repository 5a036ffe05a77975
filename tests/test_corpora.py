"""The embedded corpora are what their card says, and the functions that made them do what they promise."""

import hashlib
import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

# isort: split
import build
import extract
import prepare
import sources
import stories

DATA = build.DATA
CARD = json.loads((DATA / "card.json").read_text(encoding="utf-8"))
PERMISSIVE = {
    "public domain",
    "own work",
    "CC0-1.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "MIT",
    "MIT OR Apache-2.0",
    "PSF-2.0",
    "PostgreSQL",
    "WordNet-3.0",
}


@pytest.fixture(scope="module")
def corpora() -> dict[str, list[dict]]:
    return {entry["name"]: pq.read_table(DATA / entry["file"]).to_pylist() for entry in CARD}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DATA / "tokenizer.json"))


# What is committed


def test_card_lists_every_file_with_its_checksum():
    assert sorted(entry["file"] for entry in CARD) == sorted(path.name for path in DATA.glob("*.parquet"))
    for entry in CARD:
        assert hashlib.sha256((DATA / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], entry["name"]


def test_card_follows_the_sources():
    for entry, domain in zip(CARD, sources.DOMAINS, strict=True):
        assert (entry["name"], entry["kind"], entry["difficulty"]) == (
            domain.name,
            domain.kind,
            domain.difficulty,
        )
        if domain.package:
            package = sources.PACKAGES[domain.package]
            assert (entry["origin"]["file"], entry["origin"]["sha256"]) == (package.file, package.sha256)


def test_three_training_domains_of_each_difficulty():
    trained = [entry["difficulty"] for entry in CARD if entry["kind"] == "train"]
    assert sorted(trained) == ["easy"] * 3 + ["hard"] * 3 + ["middle"] * 3
    assert len([entry for entry in CARD if entry["kind"] == "evaluation"]) >= 12


def test_counts_match_the_files(corpora):
    for entry in CARD:
        rows = corpora[entry["name"]]
        for split, documents in entry["documents"].items():
            texts = [row["text"] for row in rows if row["split"] == split]
            assert len(texts) == documents > 0
            assert sum(len(text.encode()) for text in texts) == entry["bytes"][split]
        assert len(rows) == sum(entry["documents"].values())


def test_sizes(corpora):
    for entry in CARD:
        total = sum(entry["bytes"].values())
        least = {"essay_cfi": 450_000, "epic_milton": 1_200_000, "children_alice": 140_000}.get(entry["name"])
        assert (least or 0.98 * build.TARGET[entry["kind"]]) <= total <= build.TARGET[entry["kind"]], entry["name"]
        for split, share in build.SHARES[entry["kind"]].items():
            assert entry["bytes"][split] / total == pytest.approx(share, abs=0.03), (entry["name"], split)
        limit = build.BLOCK[entry["kind"]]
        assert max(len(row["text"].encode()) for row in corpora[entry["name"]]) <= limit
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) <= 12_000_000


def test_splits_share_neither_source_nor_text(corpora):
    for name, rows in corpora.items():
        assert len({row["source"] for row in rows}) == len(rows), name
        assert len({row["text"] for row in rows}) == len(rows), name
    texts = [row["text"] for rows in corpora.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_no_held_out_document_is_nearly_training_text(corpora):
    # Shingles spelt out, not the hashes that build.py uses; every 8th held-out document.
    def shingles(text: str) -> set[str]:
        words = text.lower().split()
        return {" ".join(words[i : i + 8]) for i in range(0, max(1, len(words) - 7))}

    held_out = {}
    for entry in CARD:
        rows = [row for row in corpora[entry["name"]] if row["split"] != "train"]
        for row in rows[::8] if entry["kind"] != "toy" else []:
            held_out[entry["name"], row["source"]] = shingles(row["text"])
    wanted = set().union(*held_out.values())
    # A shingle can only be found in training text that has its first word triple.
    starts = {tuple(shingle.split(" ", 3)[:3]) for shingle in wanted}
    known = set()
    for entry in CARD:
        for row in corpora[entry["name"]] if entry["kind"] in ("train", "seed") else []:
            if row["split"] == "train":
                words = row["text"].lower().split()
                for i, start in enumerate(zip(words, words[1:], words[2:], strict=False)):
                    if start in starts:
                        known.add(" ".join(words[i : i + 8]))
    for where, found in held_out.items():
        assert len(found & known) <= 0.4 * len(found), where


def test_text_is_normalised(corpora):
    for name, rows in corpora.items():
        for row in rows[::4]:
            assert prepare.normalise(row["text"]) == row["text"], (name, row["source"])


def test_licences_are_permissive_and_their_notices_are_here():
    notices = (DATA / "LICENCES.md").read_text(encoding="utf-8")
    for entry in CARD:
        assert entry["licence"] in PERMISSIVE, entry["name"]
        if entry["licence"] not in ("public domain", "own work", "CC0-1.0"):
            applies = [line for line in notices.splitlines() if line.startswith("Applies to")]
            assert any(entry["name"] in line for line in applies), entry["name"]
            assert f"\n## {entry['licence']}: " in notices, entry["licence"]


def test_readme_shows_the_card():
    assert build.table(CARD) in (DATA / "README.md").read_text(encoding="utf-8")


def test_tokenizer(corpora, tokenizer):
    assert tokenizer.get_vocab_size() == 2048
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    for name, rows in corpora.items():
        text = rows[-1]["text"]
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text, name
        assert 0 not in ids, name
    strange = "caf\u00e9 \u4e2d\u6587 \U0001f600\ttab\r\n\x00  end "
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange


def test_tokens_of_a_split_match_the_card(corpora, tokenizer):
    for entry in CARD[::5]:
        texts = [row["text"] for row in corpora[entry["name"]] if row["split"] == "test"]
        assert build.count(tokenizer, texts) == entry["tokens"]["test"], entry["name"]


# How it was made


def test_normalise():
    assert prepare.normalise("\ufeff\u201cIt\u2019s\u201d \u2014 a \ufb01ne\u00a0day \t\r\n\n\n\nx\u2013y\u2026\n") == (
        '"It\'s" -- a fine day\n\nx-y...'
    )


@pytest.mark.parametrize("limit", [10, 64, 1000])
def test_blocks_lose_nothing_and_keep_the_limit(limit):
    text = "\n\n".join(f"paragraph {i} " + "w" * (i % 40) + "\nsecond line \u00e9" for i in range(60))
    cut = prepare.blocks(text, limit)
    assert max(map(prepare.size, cut)) <= limit
    assert "".join("".join(cut).split()) == "".join(text.split())


def test_blocks_cut_between_paragraphs():
    text = "\n\n".join(["one " * 10, "two " * 10, "three " * 10, "four " * 10])
    cut = prepare.blocks(text, 120)
    assert len(cut) == 2
    assert all(len(set(paragraph.split())) == 1 for block in cut for paragraph in block.split("\n\n"))
    assert prepare.blocks("short", 120) == ["short"]
    assert prepare.blocks(" \n", 120) == []
    assert prepare.blocks("word " * 40, 50)[0] == ("word " * 10).strip()


def test_documents_are_numbered_and_scraps_left_out():
    units = [("long", "line of text\n\n" * 40), ("short", "x" * 250), ("scrap", "x" * 20)]
    found = list(prepare.documents(units, 300))
    assert [source for source, _ in found] == ["long#0", "long#1", "short"]


def test_near_duplicates_are_dropped():
    seen = prepare.Seen()
    words = [f"w{i}" for i in range(100)]
    assert seen.keep(" ".join(words))
    assert not seen.keep(" ".join(words).upper())
    assert not seen.keep(" ".join(words[:60] + [f"v{i}" for i in range(30)]))
    assert seen.keep(" ".join(words[:30] + [f"u{i}" for i in range(90)]))
    assert seen.keep(" ".join(reversed(words)))


def test_shingles():
    assert len(prepare.shingles("a b c d e f g h i j")) == 3
    assert prepare.shingles("A  b\nc") == prepare.shingles("a b c") != prepare.shingles("c b a")
    assert prepare.shingles("") == set()
    # The same in every process and on every machine.
    assert prepare.shingles("one two three") == {8562259237561308895}


def test_order_is_fixed_and_depends_on_the_name():
    assert prepare.order(8, 1, "a") == [2, 3, 5, 6, 7, 1, 0, 4]
    assert prepare.order(50, 1, "a") != prepare.order(50, 1, "b")
    assert sorted(prepare.order(50, 1, "a")) == list(range(50))


def test_sample_stops_at_the_target_and_counts_repetitions():
    found = [(str(i), f"{i % 50:04d}" * 25) for i in range(100)]
    kept, dropped = prepare.sample(found, list(range(100)), 6_000, None)
    assert (len(kept), dropped) == (50, 50)
    kept, dropped = prepare.sample(found, list(range(100)), 1_000, None)
    assert (len(kept), dropped) == (10, 0)


def test_split_is_by_bytes():
    kept = [(str(i), "x" * (1 + i % 7)) for i in range(700)]
    splits = prepare.split(kept, {"train": 0.8, "validation": 0.1, "test": 0.1})
    train = sum(prepare.size(text) for (_, text), name in zip(kept, splits, strict=True) if name == "train")
    assert train / 2800 == pytest.approx(0.8, abs=0.01)
    assert splits == sorted(splits, key=["train", "validation", "test"].index)
    with pytest.raises(ValueError, match="larger target"):
        prepare.split(kept[:2], {"train": 0.8, "validation": 0.1, "test": 0.1})


def test_ngram_bits():
    assert prepare.ngram_bits(b"ab" * 500, b"ab" * 100) < 0.1
    assert prepare.ngram_bits(b"", b"anything") == pytest.approx(8)
    # One byte of context by hand: (0 + 1 * p0) / (1 + 1) with p0 = (0 + 2 / 256) / (2 + 2).
    assert prepare.ngram_bits(b"xy", b"xq", order=1) == pytest.approx(math.log2(4 / (2 / 256)))


def test_html_text():
    page = "<head><title>t</title></head><div class='toc'><div>a</div>b</div>"
    page += "<h1>Head</h1><p>one\ntwo &amp; <b>three</b><pre>x  y\n  z</pre>end"
    expected = "Head\n\none two & three\n\nx  y\n  z\n\nend"
    assert prepare.normalise(extract.html_text(page, ["toc"])) == expected


def test_osis_text():
    markup = '<title>T</title> <div sID="1" type="x-p"/>In <w lemma="x">the</w> start<note>no</note>.'
    text = extract.osis_text(markup + " <l>A</l><l>B &amp; C</l>")
    assert prepare.normalise(text) == "T\n\nIn the start.\nA\nB & C"


def test_grouped_keeps_entries_whole():
    groups = list(extract.grouped("g", ["aaaa", "bbbb", "cccc"], limit=11))
    assert groups == [("g#0", "aaaa\n\nbbbb"), ("g#1", "cccc")]


def test_stories_are_fixed_and_keep_their_hero():
    first = list(stories.stories(seed=7, count=50))
    assert first == list(stories.stories(seed=7, count=50))
    assert first != list(stories.stories(seed=8, count=50))
    assert "{" not in "".join(text for _, text in first)
    heroes = set(stories.NAMES["she"] + stories.NAMES["he"])
    for _, text in first:
        named = {name for name in heroes if name in text}
        assert 1 <= len(named) <= 2
        assert 4 <= sum(text.count(mark) for mark in ".!?") <= 16


def test_a_wrong_package_file_is_refused(tmp_path):
    package = sources.Package("thing", "1.0", "thing_1.0_all.deb", "0" * 64)
    (tmp_path / package.file).write_bytes(b"not it")
    with pytest.raises(ValueError, match="expected 0000"):
        build.fetch(package, tmp_path)


def test_a_missing_tool_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--packages"):
        build.fetch(sources.Package("thing", "1.0", "thing_1.0_all.deb", "0" * 64), tmp_path)


def test_a_withdrawn_version_names_the_file(tmp_path, monkeypatch):
    refusal = build.subprocess.CompletedProcess([], 100, "", "E: Version '1.0' for 'thing' was not found")
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: refusal)
    monkeypatch.setattr(build, "tool", lambda name: name)
    with pytest.raises(FileNotFoundError, match="withdrawn.*thing_1.0_all.deb with SHA-256 0000"):
        build.fetch(sources.Package("thing", "1.0", "thing_1.0_all.deb", "0" * 64), tmp_path)


def test_differences_sees_changed_and_missing_files(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "same.parquet").write_bytes(b"1")
        (folder / "card.json").write_text(folder.name)
    (old / "gone.parquet").write_bytes(b"1")
    assert build.differences(old, new) == ["card.json", "gone.parquet"]
