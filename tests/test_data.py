import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from swarmbook.data import batches as batches_module
from swarmbook.data import corpora as corpora_module
from swarmbook.data import hub, tokenization
from swarmbook.data.source import SPLITS
from swarmbook.errors import DataError

LIBRARY = Path(tokenization.__file__).parents[2]
END = 0


def story(domain: str, split: str, i: int) -> str:
    return f"{domain} {split} story {i}: the cat number {i * 7919 % 1000} sat on mat {i * 31 % 97}."


def write_domain(folder: Path, name: str, kind: str, difficulty: str | None, documents: int = 40) -> None:
    rows = [
        (story(name, split, i), split, "test") for split in ("train", "validation", "test") for i in range(documents)
    ]
    columns = dict(zip(("text", "split", "source"), map(list, zip(*rows, strict=True)), strict=True))
    path = folder / f"{name}.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    card = folder / "card.json"
    entries = json.loads(card.read_text()) if card.exists() else []
    entry = {"name": name, "kind": kind, "difficulty": difficulty, "licence": "own work"}
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card.write_text(json.dumps([known for known in entries if known["name"] != name] + [entry]))


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_domain(folder, "fables", "train", "easy")
    write_domain(folder, "essays", "train", "middle")
    write_domain(folder, "proofs", "train", "hard")
    write_domain(folder, "mix", "seed", None)
    coder = Tokenizer(models.BPE())
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    coder.train_from_iterator([story("fables", "train", i) for i in range(40)], trainer)
    coder.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def corpora(made, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "data"
    shutil.copytree(made, folder)
    monkeypatch.setenv("SWARMBOOK_DATA", str(folder))
    monkeypatch.setenv("SWARMBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SWARMBOOK_HUB_DIR", raising=False)
    return folder


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Sources that were tokenized, in order."""
    calls, encode = [], tokenization._encoded
    monkeypatch.setattr(tokenization, "_encoded", lambda *args: calls.append(args[0]) or encode(*args))
    return calls


def made_up(count: int, vocabulary: int = 1 << 16) -> batches_module.Tokens:
    return batches_module.Tokens(np.arange(count, dtype=np.uint16), vocabulary, "0" * 32, "made up", "train")


def cache_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "tokens").glob("*.tokens")
    return path


def test_domains_follow_the_card(corpora):
    assert corpora_module.domains() == ["fables", "essays", "proofs", "mix"]
    assert corpora_module.domains(kind="train") == ["fables", "essays", "proofs"]
    assert corpora_module.domains(difficulty="hard") == ["proofs"]
    assert corpora_module.domains("seed", "easy") == []
    assert corpora_module.card("mix")["licence"] == "own work"


def test_bytes_are_the_embedded_tokenizer_without_its_merges():
    coder, text = tokenization.tokenizer("bytes"), "Zoë\tsaid: 1 < 2\n"
    ids = coder.encode(text).ids
    assert len(ids) == len(text.encode()) and coder.decode(ids) == text
    assert coder.get_vocab_size() == 257 and coder.token_to_id("<|endoftext|>") == 0
    assert tokenization.fingerprint("stories_toy", "bytes") != tokenization.fingerprint("stories_toy")


def test_unknown_names_are_told_with_the_nearest(corpora):
    with pytest.raises(DataError, match="unknown domain 'fable': did you mean 'fables'"):
        tokenization.tokens("fable", "train")
    with pytest.raises(DataError, match="unknown split of 'fables' 'valid'.*Known: train, validation, test"):
        tokenization.tokens("fables", "valid")
    with pytest.raises(DataError, match="unknown kind 'trian': did you mean 'train'"):
        corpora_module.domains(kind="trian")
    with pytest.raises(DataError, match="unknown difficulty 'simple'"):
        corpora_module.domains(difficulty="simple")
    with pytest.raises(DataError, match="unknown tokenizer 'gpt2'"):
        tokenization.tokenizer("gpt2")
    with pytest.raises(DataError, match="there is no file nowhere.json"):
        tokenization.tokenizer("nowhere.json")
    with pytest.raises(DataError, match="limit=1 leaves no token"):
        tokenization.tokens("fables+essays", "train", limit=1)


def test_missing_or_damaged_data_names_the_file(corpora, monkeypatch):
    path = corpora / "fables.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"fables.parquet has sha256 .* its card says"):
        tokenization.tokens("fables", "train")
    path.unlink()
    with pytest.raises(DataError, match=r"fables.parquet is missing"):
        tokenization.tokens("fables", "train")
    (corpora / "card.json").write_text("[{")
    with pytest.raises(DataError, match=r"card.json is damaged"):
        corpora_module.domains()
    monkeypatch.setenv("SWARMBOOK_DATA", str(corpora / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere.*set SWARMBOOK_DATA"):
        corpora_module.domains()


def test_texts_hold_one_split(corpora):
    documents = tokenization.texts("fables", "validation")
    assert documents["text"][:2] == [story("fables", "validation", 0), story("fables", "validation", 1)]
    assert set(documents["split"]) == {"validation"}
    assert not (corpora.parent / "cache").exists()


def test_tokens_decode_to_the_documents(corpora):
    tokens = tokenization.tokens("fables", "train")
    assert tokens.ids.dtype == np.uint16 and not tokens.ids.flags.writeable
    assert tokens.vocabulary == 300
    pieces = np.split(tokens.ids, np.flatnonzero(tokens.ids == END) + 1)
    assert len(pieces[-1]) == 0
    coder = tokenization.tokenizer()
    assert [coder.decode(piece[:-1].tolist()) for piece in pieces[:-1]] == [
        story("fables", "train", i) for i in range(40)
    ]


def test_a_document_cannot_write_the_end_of_text(corpora, tmp_path, monkeypatch):
    write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-0.jsonl", ["a <|endoftext|> b", " \n", ""])
    ids = tokenization.tokens("hub:tinystories", "train").ids
    assert np.count_nonzero(ids == END) == 1 and ids[-1] == END


def test_joined_sources_are_concatenated(corpora, encoded):
    both = tokenization.tokens("fables+essays", "train")
    parts = [tokenization.tokens(source, "train").ids for source in ("fables", "essays")]
    np.testing.assert_array_equal(both.ids, np.concatenate(parts))
    assert encoded == ["fables", "essays"]
    assert both.fingerprint != tokenization.fingerprint("essays+fables")


def test_limit_is_shared_equally(corpora):
    joined = tokenization.tokens("fables+essays+proofs", "train", limit=200).ids
    shares = [tokenization.tokens(s, "train").ids[:n] for s, n in (("fables", 67), ("essays", 67), ("proofs", 66))]
    np.testing.assert_array_equal(joined, np.concatenate(shares))


def test_wide_vocabulary_takes_four_bytes(corpora, tmp_path):
    content = json.loads((corpora / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"].values())
    content["model"]["vocab"].update({f"<filler {i}>": last + 1 + i for i in range(65_537 - last)})
    wide = tmp_path / "wide.json"
    wide.write_text(json.dumps(content))
    tokens = tokenization.tokens("fables", "train", str(wide))
    assert tokens.ids.dtype == np.uint32 and tokens.vocabulary > 1 << 16
    np.testing.assert_array_equal(tokens.ids, tokenization.tokens("fables", "train").ids)


def test_a_tokenizer_that_cuts_and_pads_gives_whole_texts_all_the_same(corpora, tmp_path):
    """As `save_pretrained` writes one after a call with padding and truncation (tokenizers 0.22, transformers 5)."""
    content = json.loads((corpora / "tokenizer.json").read_text())
    coder = Tokenizer.from_str(json.dumps(content))
    plain = tmp_path / "plain.json"
    coder.save(str(plain))
    coder.enable_truncation(5)
    coder.enable_padding(length=8)
    cutting = tmp_path / "cutting.json"
    coder.save(str(cutting))
    whole, same = (tokenization.tokens("fables", "train", str(path)) for path in (plain, cutting))
    np.testing.assert_array_equal(whole.ids, same.ids)
    assert whole.fingerprint != same.fingerprint  # what was cached of cut texts must not be found again


def test_a_vocabulary_with_holes(corpora, tmp_path):
    content = json.loads((corpora / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    moved = max(vocabulary, key=vocabulary.get)
    vocabulary[moved] = 70_000
    holes = tmp_path / "holes.json"
    holes.write_text(json.dumps(content))
    tokens = tokenization.tokens("fables", "train", str(holes))
    assert tokens.vocabulary == 70_001 and tokens.ids.dtype == np.uint32
    plain = tokenization.tokens("fables", "train").ids.astype(int)
    np.testing.assert_array_equal(
        np.where(plain == plain.max(), 70_000, plain)[plain < plain.max()], tokens.ids[plain < plain.max()]
    )


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_file_is_told(corpora, tmp_path, content):
    (tmp_path / "damaged.json").write_bytes(content)
    with pytest.raises(DataError, match="tokenizer file is damaged"):
        tokenization.tokens("fables", "train", str(tmp_path / "damaged.json"))


def test_warm_cache_does_not_tokenize(corpora, encoded):
    first = tokenization.tokens("fables", "train").ids
    second = tokenization.tokens("fables", "train").ids
    np.testing.assert_array_equal(first, second)
    assert encoded == ["fables"]
    tokenization.tokens("fables", "validation")
    assert encoded == ["fables", "fables"]


@pytest.mark.parametrize("damage", ["truncated", "header only", "empty", "odd length", "bit flip", "header flip"])
def test_damaged_cache_is_made_again(corpora, tmp_path, encoded, damage):
    expected = np.array(tokenization.tokens("fables", "train").ids)
    path = cache_file(tmp_path)
    good = path.read_bytes()
    flipped = {"bit flip": len(good) // 2, "header flip": good.index(b"length") + 10}.get(damage)
    path.write_bytes(
        {
            "truncated": good[: len(good) // 4 * 2],
            "header only": good[:256],
            "empty": b"",
            "odd length": good[:-1],
        }.get(damage)
        if flipped is None
        else good[:flipped] + bytes([good[flipped] ^ 1]) + good[flipped + 1 :]
    )
    os.utime(path, ns=(1, 1))
    with pytest.warns(UserWarning, match=re.escape(str(path))):
        again = tokenization.tokens("fables", "train").ids
    np.testing.assert_array_equal(again, expected)
    assert path.read_bytes() == good
    assert encoded == ["fables", "fables"]


def test_damage_to_a_large_cache_file_is_seen_in_its_sampled_blocks(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "_WHOLE", 1 << 20)
    path = tmp_path / "large.tokens"
    ids = np.arange(1 << 20, dtype="<u2")
    tokenization._write(path, ids.dtype, "large", [ids])
    np.testing.assert_array_equal(tokenization._opened(path, ids.dtype, "large"), ids)
    assert tokenization._opened(path.rename(tmp_path / "small.tokens"), ids.dtype, "small") is None
    (tmp_path / "small.tokens").rename(path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    assert tokenization._opened(path, ids.dtype, "large") is None


def test_interrupted_writer_leaves_nothing_behind(corpora, tmp_path, monkeypatch):
    def stopped(*_):
        yield np.ones(5, np.uint16)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "_encoded", stopped)
        with pytest.raises(KeyboardInterrupt):
            tokenization.tokens("fables", "train")
    assert not list(tmp_path.glob("cache/tokens/*.tokens")) and not list(tmp_path.glob("cache/tokens/*.tmp"))
    name = f"fables-train-{tokenization.fingerprint('fables')}.tokens.0123abcd.tmp"
    leftover = tmp_path / "cache" / "tokens" / name
    leftover.write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tokenization.tokens("fables", "train").ids) > 5
    assert not leftover.exists()


def test_a_cache_folder_that_cannot_be_written_is_done_without(corpora, tmp_path, monkeypatch, encoded):
    expected = {split: np.array(tokenization.tokens("fables+essays", split).ids) for split in ("train", "validation")}
    encoded.clear()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWARMBOOK_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tokenization, "_unkept", {})
    with pytest.warns(UserWarning, match="file/cache/tokens.*set SWARMBOOK_CACHE") as told:
        for split in ("train", "validation", "train"):
            np.testing.assert_array_equal(tokenization.tokens("fables+essays", split).ids, expected[split])
    assert len(told) == 1
    assert encoded == ["fables", "essays"] * 2


def test_a_full_disk_is_done_without(corpora, tmp_path, monkeypatch):
    expected = np.array(tokenization.tokens("fables", "train").ids)
    monkeypatch.setenv("SWARMBOOK_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(tokenization, "_unkept", {})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="other/tokens.*No space left.*set SWARMBOOK_CACHE"):
        np.testing.assert_array_equal(tokenization.tokens("fables", "train").ids, expected)
    assert not list(tmp_path.glob("other/tokens/*"))


def test_a_cache_file_under_anothers_name_is_not_taken_for_it(corpora, tmp_path, encoded):
    wanted = {of: np.array(tokenization.tokens(*of).ids) for of in [("fables", "train"), ("fables", "validation")]}
    other = np.array(tokenization.tokens("essays", "train").ids)
    files = {path.name.rsplit("-", 1)[0]: path for path in (tmp_path / "cache" / "tokens").glob("*.tokens")}
    for of, ids in wanted.items():
        path = files["-".join(of)]
        for source in (files["essays-train"], files["fables-validation" if of[1] == "train" else "fables-train"]):
            path.write_bytes(source.read_bytes())
            with pytest.warns(UserWarning, match=f"{path.name} is damaged or another's; making it again"):
                np.testing.assert_array_equal(tokenization.tokens(*of).ids, ids)
    np.testing.assert_array_equal(tokenization.tokens("essays", "train").ids, other)


def test_what_an_earlier_version_cached_is_not_trusted(corpora, tmp_path, encoded):
    """Its files had no fingerprint inside, and another ending."""
    expected = np.array(tokenization.tokens("fables", "train").ids)
    path = cache_file(tmp_path)
    header = {"format": 1, "dtype": "<u2", "length": len(expected), "checksum": zlib.crc32(expected[::-1].tobytes())}
    old = json.dumps(header).encode().ljust(256) + expected[::-1].tobytes()
    path.with_suffix(".ids").write_bytes(old)
    path.unlink()
    np.testing.assert_array_equal(tokenization.tokens("fables", "train").ids, expected)
    path.write_bytes(old)
    with pytest.warns(UserWarning, match="damaged or another's"):
        np.testing.assert_array_equal(tokenization.tokens("fables", "train").ids, expected)


def test_a_pipe_in_place_of_a_cache_file_hangs_nobody(corpora, tmp_path):
    expected = np.array(tokenization.tokens("fables", "train").ids)
    path = cache_file(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match="damaged or another's"):
        np.testing.assert_array_equal(tokenization.tokens("fables", "train").ids, expected)


def test_two_processes_make_one_file(corpora, tmp_path):
    script = """
import sys, time, pathlib
from swarmbook.data import tokenization as data
encode = data._encoded
def slow(*args):
    pathlib.Path(sys.argv[1]).open("a").write("made ")
    time.sleep(0.3)
    return encode(*args)
data._encoded = slow
print(int(data.tokens("fables", "train").ids.astype(int).sum()))
"""
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "log")]
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    sums = {int(process.communicate(timeout=60)[0]) for process in both}
    assert (tmp_path / "log").read_text() == "made "
    assert sums == {int(tokenization.tokens("fables", "train").ids.astype(int).sum())}
    cache_file(tmp_path)


def test_fingerprint_follows_content_only(corpora, made, tmp_path, monkeypatch):
    first = tokenization.fingerprint("fables")
    assert (
        first == tokenization.tokens("fables", "train").fingerprint == tokenization.tokens("fables", "test").fingerprint
    )
    assert len({first, tokenization.fingerprint("essays"), tokenization.fingerprint("fables", limit=50)}) == 3
    (corpora / "copy.json").write_bytes((corpora / "tokenizer.json").read_bytes())
    os.utime(corpora / "fables.parquet", (1, 1))
    assert tokenization.fingerprint("fables", str(corpora / "copy.json")) == first
    monkeypatch.setenv("SWARMBOOK_DATA", str(made))
    assert tokenization.fingerprint("fables") == first
    monkeypatch.setenv("SWARMBOOK_DATA", str(corpora))
    write_domain(corpora, "fables", "train", "easy", documents=39)
    assert tokenization.fingerprint("fables") != first
    write_domain(corpora, "fables", "train", "easy")
    assert tokenization.fingerprint("fables") == first
    content = json.loads((corpora / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (corpora / "tokenizer.json").write_text(json.dumps(content))
    assert tokenization.fingerprint("fables") != first


def test_import_is_light():
    script = "import sys, swarmbook.data.tokenization\n"
    script += "print([m for m in ('datasets', 'torch', 'pyarrow') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(LIBRARY)}, capture_output=True
    )
    assert run.stdout.strip() == b"[]", run.stderr


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 400),
    sequence=st.integers(1, 20),
    per_step=st.integers(1, 30),
    seed=st.integers(0, 2**63),
    epochs=st.integers(1, 3),
)
def test_each_epoch_visits_every_window_once(count, sequence, per_step, seed, epochs):
    if count < sequence + 1:
        return
    batches = batches_module.Batches(made_up(count), sequence, per_step, seed)
    steps = -(-batches.windows * epochs // per_step)
    rows = np.concatenate([batches[step] for step in range(steps)])
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    starts = np.arange(batches.windows) * sequence
    for epoch in range(epochs):
        visited = rows[epoch * batches.windows : (epoch + 1) * batches.windows, 0]
        np.testing.assert_array_equal(np.sort(visited), starts)
    assert starts[-1] + sequence < count <= starts[-1] + 2 * sequence


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=20), per_step=st.integers(1, 50))
def test_random_access_equals_a_fresh_start(steps, per_step):
    batches = batches_module.Batches(made_up(301), 10, per_step, 5)
    for step in steps:
        np.testing.assert_array_equal(batches[step], batches_module.Batches(made_up(301), 10, per_step, 5)[step])


def test_batch_shape_and_order():
    flat = batches_module.Batches(made_up(1000), 8, 24, 3)
    shaped = batches_module.Batches(made_up(1000), 8, (2, 3, 4), 3)
    assert shaped[7].shape == (2, 3, 4, 9) and shaped[7].dtype == np.int64
    np.testing.assert_array_equal(shaped[7].reshape(24, 9), flat[7])
    np.testing.assert_array_equal(flat[7], batches_module.Batches(made_up(1000), 8, 24, np.random.SeedSequence(3))[7])
    assert (flat[0] != batches_module.Batches(made_up(1000), 8, 24, 4)[0]).any()
    children = np.random.SeedSequence(3).spawn(2)
    first, second = (batches_module.Batches(made_up(1000), 8, 24, child)[0] for child in children)
    assert (first != second).any() and (first != flat[0]).any()
    # of SeedSequence(3, spawn_key=(0,)): recorded runs depend on this order
    assert (flat[0][:6, 0] // 8).tolist() == ORDER
    epochs = [flat._order(epoch).tolist() for epoch in (0, 1)]
    assert epochs[0] != epochs[1]


ORDER = [51, 117, 29, 35, 3, 76]


def test_batches_refuse_what_cannot_be():
    with pytest.raises(DataError, match=r"'made up' \(train\) has 8 tokens, but one window .* needs 9"):
        batches_module.Batches(made_up(8), 8, 1, 0)
    with pytest.raises(IndexError, match="step -1 is negative"):
        batches_module.Batches(made_up(9), 8, 1, 0)[-1]
    with pytest.raises(ValueError, match="sequence=0"):
        batches_module.Batches(made_up(9), 0, 1, 0)
    with pytest.raises(ValueError, match=r"per_step=\(2, 0\)"):
        batches_module.Batches(made_up(9), 8, (2, 0), 0)


def test_each_replica_reads_one_of_the_sources_in_an_order_of_its_own():
    sources = [made_up(1000), dataclasses.replace(made_up(3000), ids=np.arange(1000, 4000, dtype=np.uint16))]
    seed = np.random.SeedSequence(3, spawn_key=(1,))
    shards = batches_module.Shards(sources, 8, (5, 3, 4), seed)
    orders = []
    for r in range(5):
        visited = np.concatenate([shards[step][r] for step in range(40)])  # [120, 4, 9]
        assert visited.dtype == np.int64 and visited.shape == (120, 4, 9)
        source = sources[r % 2].ids
        assert set(visited.ravel()) <= set(source.tolist())
        own = batches_module.Batches(sources[r % 2], 8, (3, 4), np.random.SeedSequence(3, spawn_key=(1, r)))
        np.testing.assert_array_equal(shards[7][r], own[7])
        epoch = visited.reshape(-1, 9)[: own.windows, 0]
        assert len(set(epoch)) == min(own.windows, 480)
        orders.append(tuple(epoch[:20] - source[0]))
    assert len(set(orders)) == 5
    assert shards[0].shape == (5, 3, 4, 9)
    fewer = batches_module.Shards(sources, 8, (2, 3, 4), seed)
    np.testing.assert_array_equal(fewer[11], shards[11][:2])  # whatever the others read


def test_a_busy_machine_puts_no_bar_into_a_notebook(corpora, monkeypatch, capsys):
    """Nobody waits long for text that lies here. A bar would differ from what is stored, and be compared."""
    clock = itertools.count(step=100)  # seconds
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    tokenization.tokens("fables", "train")
    assert capsys.readouterr() == ("", "")


def test_batches_are_fast():
    batches = batches_module.Batches(made_up(60_000), 128, 64, 0)
    batches[0]
    start = time.process_time()
    for step in range(100):
        batches[step]
    assert (time.process_time() - start) / 100 < 2e-3


@given(windows=st.integers(1, 60), share=st.floats(0, 1))
@settings(deadline=None)
def test_held_out_windows_are_distinct_and_spread(windows, share):
    count = max(1, round(share * windows))
    rows = batches_module.held_out(made_up(windows * 5 + 1), 5, count)
    assert rows.shape == (count, 6) and rows.dtype == np.int64
    gaps = np.diff(rows[:, 0]) // 5
    assert count == 1 or gaps.max() - gaps.min() <= 1
    assert count == 1 or gaps.min() >= 1


def test_held_out_never_meets_training_text(corpora):
    coder = tokenization.tokenizer()
    rows = batches_module.held_out(tokenization.tokens("fables", "validation"), 16, 12)
    train = batches_module.Batches(tokenization.tokens("fables", "train"), 16, 8, 0)
    seen = {tuple(row) for step in range(20) for row in train[step]}
    assert not seen & {tuple(row) for row in rows}
    assert "validation" in coder.decode(rows.ravel().tolist())
    with pytest.raises(DataError, match="count=10000 held-out windows .*'fables'"):
        batches_module.held_out(tokenization.tokens("fables", "validation"), 16, 10_000)


def write_text(folder: Path, monkeypatch, name: str, documents: list[str], column: str = "text") -> Path:
    """A file of a local copy of the hub, in the format that its suffix says."""
    monkeypatch.setenv("SWARMBOOK_HUB_DIR", str(folder / "hub"))
    path = folder / "hub" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{column: text, "url": f"u{i}", "meta": {"n": i}} for i, text in enumerate(documents)]
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".txt"):
        path.write_text("\n".join(documents) + "\n")
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("source", "column", "files"),
    [
        (
            "hub:tinystories",
            "text",
            ("data/train-00000-of-00001-2d5a.parquet", "data/validation-00000-of-00001.parquet"),
        ),
        ("hub:tinystories", "text", ("data/train-0.jsonl", "data/validation-0.jsonl")),
        ("hub:c4", "text", ("en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz")),
        ("hub:m2d2/math_l1", "text", ("math_l1/train.txt", "math_l1/valid.txt")),
        ("hub:m2d2/math_l1", "text", ("math_l1/train.jsonl", "math_l1/valid.jsonl")),
    ],
)
def test_hub_corpus_with_splits_from_local_files(corpora, tmp_path, monkeypatch, source, column, files):
    repository = hub.corpus(source).repository
    for name, split in zip(files, ("train", "validation"), strict=True):
        write_text(tmp_path, monkeypatch, f"{repository}/{name}", [story("hub", split, i) for i in range(20)], column)
    for split in ("train", "validation"):
        assert [row["text"] for row in tokenization.texts(source, split)] == [story("hub", split, i) for i in range(20)]
    tokens = tokenization.tokens(source, "train", limit=100)
    assert len(tokens.ids) == 100
    assert tokenization.tokenizer().decode(tokens.ids.tolist()).startswith(story("hub", "train", 0))


@pytest.mark.parametrize(
    ("source", "column", "names"),
    [
        (
            "hub:redpajama",
            "raw_content",
            [f"sample/documents/2023-06/000{i}/en_head.json.gz" for i in range(2)],
        ),
        ("hub:openwebtext", "text", [f"plain_text/train-0000{i}-of-00002.parquet" for i in range(2)]),
        ("hub:pushshift", "body", ["data/RC_2012-01.parquet", "data/RC_2012-02.parquet"]),
        ("hub:openwebtext-en", "text", [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]),
        ("hub:caselaw", "text", [f"{name}.jsonl.gz" for name in ("a", "b")]),
    ],
)
def test_hub_corpus_without_splits_is_carved(corpora, tmp_path, monkeypatch, source, column, names):
    repository = hub.corpus(source).repository
    documents = [story("hub", "any", i) for i in range(1300)]
    for name, part in zip(names, (documents[:170], documents[170:]), strict=True):
        write_text(tmp_path, monkeypatch, f"{repository}/{name}", part, column)
    if source == "hub:redpajama":
        write_text(tmp_path, monkeypatch, f"{repository}/{names[0].replace('en_', 'de_')}", ["nein"], column)
    found = {split: [row["text"] for row in tokenization.texts(source, split)] for split in SPLITS}
    assert found["validation"] == documents[0::100] and found["test"] == documents[50::100]
    assert found["train"] == [text for i, text in enumerate(documents) if i % 100 not in (0, 50)]
    assert list(next(iter(tokenization.texts(source, "train")))) == ["text"]
    with pytest.raises(DataError, match=f"'{source}' is too large.*limit="):
        tokenization.tokens(source, "train")


def test_hub_copy_is_known_by_its_content(corpora, tmp_path, monkeypatch, encoded):
    pinned = tokenization.fingerprint("hub:tinystories")
    path = write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-0.jsonl", ["once", "twice"])
    first = tokenization.fingerprint("hub:tinystories")
    assert first != pinned
    tokenization.tokens("hub:tinystories", "train")
    (tmp_path / "hub").rename(tmp_path / "moved")
    monkeypatch.setenv("SWARMBOOK_HUB_DIR", str(tmp_path / "moved"))
    assert tokenization.fingerprint("hub:tinystories") == first
    tokenization.tokens("hub:tinystories", "train")
    assert encoded == ["hub:tinystories"]
    write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-0.jsonl", ["once", "thrice"])
    assert path.is_file() and tokenization.fingerprint("hub:tinystories") != first


def test_hub_source_that_is_wrong_is_told(corpora, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="unknown hub corpus 'hub:tinystory'.*hub:tinystories"):
        tokenization.tokens("hub:tinystory", "train")
    with pytest.raises(DataError, match="unknown split of 'hub:c4' 'test'.*train, validation"):
        tokenization.tokens("hub:c4", "test", limit=9)
    with pytest.raises(DataError, match="'hub:m2d2/math_l1', with a config"):
        tokenization.tokens("hub:m2d2", "train")
    with pytest.raises(DataError, match="'hub:c4', with no config"):
        tokenization.tokens("hub:c4/en", "train", limit=9)
    with pytest.raises(DataError, match="'main' in 'hub:c4@main' is no commit hash"):
        tokenization.tokens("hub:c4@main", "train", limit=9)
    with pytest.raises(DataError, match="'hub:openwebtext@<commit hash>'"):
        tokenization.fingerprint("hub:openwebtext", limit=9)
    with pytest.raises(DataError, match="'meta-llama/Meta-Llama-3-8B@<commit hash>'"):
        tokenization.tokenizer("llama-3")
    assert tokenization.fingerprint(f"hub:openwebtext@{'0' * 40}") != tokenization.fingerprint(
        f"hub:openwebtext@{'1' * 40}"
    )
    path = write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-0.jsonl", ["once"], "story")
    with pytest.raises(DataError, match="train-0.jsonl has the columns .*'story'.* needs 'text'"):
        tokenization.tokens("hub:tinystories", "train")
    write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-1.parquet", ["once"])
    with pytest.raises(DataError, match="mixes .*'json', 'parquet'"):
        tokenization.tokens("hub:tinystories", "train")
    path.unlink()
    with pytest.raises(DataError, match="'data/validation-\\*'; get it with\n  hf download roneneldan/TinyStories"):
        tokenization.tokens("hub:tinystories", "validation")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_hub_files_are_read_as_they_are_named_and_packed(corpora, tmp_path, monkeypatch, suffix):
    """`datasets` takes file names for patterns: beside train1.jsonl, train[1].jsonl would never be read."""
    home = tmp_path / "hub [y]"
    names = {"data/train1.jsonl": ["one", "two"], "data/train*.jsonl": ["three"], "data/train[1].jsonl": ["four"]}
    if suffix:
        names["data/train2.jsonl"] = names.pop("data/train[1].jsonl")
    for name, documents in names.items():
        path = write_text(home, monkeypatch, f"roneneldan/TinyStories/{name.replace('train', 'train-')}", documents)
        if suffix == ".gz":
            path.with_name(path.name + suffix).write_bytes(gzip.compress(path.read_bytes()))
        elif suffix:
            path.with_name(path.name + suffix).write_bytes(zstandard.compress(path.read_bytes()))
        if suffix:
            path.unlink()
    found = [row["text"] for row in tokenization.texts("hub:tinystories", "train")]
    assert sorted(found) == ["four", "one", "three", "two"]


def test_a_packed_file_with_brackets_in_its_name_is_told(corpora, tmp_path, monkeypatch):
    """`datasets` 5 makes an address of the packed file's name, in which Python's urlsplit finds no valid host."""
    write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-[1].jsonl.gz", ["once"])
    with pytest.raises(DataError, match=r"train-\[1\].jsonl.gz .*rename it"):
        tokenization.tokens("hub:tinystories", "train")


DAMAGED = {
    "half a parquet": ("train-0.parquet", lambda whole: whole[: len(whole) // 2], "train-0.parquet is damaged"),
    "half a gz": ("train-0.jsonl.gz", lambda whole: whole[: len(whole) // 2], "train-0.jsonl.gz is damaged"),
    "a pointer": ("train-0.parquet", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "train-0.parquet is"),
    "numbers": ("train-0.jsonl", lambda _: b'{"text": 3}\n{"text": 4}\n', "holds 3 in place of a text"),
    "half a line": ("train-0.jsonl", lambda whole: whole[:-9], "train-0.jsonl is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_hub_files_that_cannot_be_read_are_named(corpora, tmp_path, monkeypatch, kind):
    name, damage, said = DAMAGED[kind]
    documents = [story("hub", "train", i) for i in range(3000)]
    path = write_text(tmp_path, monkeypatch, f"roneneldan/TinyStories/data/{name}", documents)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=said):
        tokenization.tokens("hub:tinystories", "train")


def test_hub_files_that_do_not_fit_together_are_told(corpora, tmp_path, monkeypatch):
    folder = write_text(tmp_path, monkeypatch, "roneneldan/TinyStories/data/train-0.jsonl", ["once"]).parent
    (folder / "train-1.jsonl").write_text('{"text": "twice", "url": "u", "meta": {"n": 1, "more": {"a": 2}}}\n')
    with pytest.raises(DataError, match="'hub:tinystories' .*cannot be read: its files do not fit together"):
        tokenization.tokens("hub:tinystories", "train")


@pytest.mark.parametrize("network", ["refused", "silent"])
def test_missing_hub_data_is_told_at_once(corpora, tmp_path, monkeypatch, network):
    import socket

    import huggingface_hub.constants

    monkeypatch.setattr(hub, "TIMEOUT", 0.5)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if network == "silent":
            listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        limits, connect = [], socket.create_connection

        def connected(address, timeout=None, **named):
            limits.append(timeout)
            return connect(address, timeout, **named)

        monkeypatch.setattr(socket, "create_connection", connected)
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits to try again"))
        with pytest.raises(DataError, match="(?s)TinyStories.*hf download .*--repo-type dataset.*SWARMBOOK_HUB_DIR"):
            tokenization.tokens("hub:tinystories", "train")
        with pytest.raises(DataError, match="(?s)archives.*data/cs_l1.tar.gz --repo-type dataset .*tar -xzf"):
            tokenization.tokens("hub:m2d2/cs_l1", "train")
        with pytest.raises(DataError, match="(?s)Llama-2-7b-hf cannot be fetched.*hf download .* tokenizer.json"):
            tokenization.tokens("fables", "train", tokenizer="llama-2")
        # The hub's client may ask once in a process who uses it, and waits up to 3 s for that.
        assert limits.count(hub.TIMEOUT) == 2 and len(limits) <= 3 and max(limits) <= 3
    with pytest.raises(DataError, match="'owner/model@<commit hash>'"):
        tokenization.tokenizer("owner/model")


def test_hub_files_are_addressed_at_the_pinned_revision(corpora, monkeypatch):
    import huggingface_hub

    listed = [
        "en/c4-validation.00001-of-00008.json.gz",
        "en/c4-validation.00000-of-00008.json.gz",
        "en/README.md",
    ]
    asked = []

    def tree(_, repository, folder, **options):
        asked.append((repository, folder, options["revision"], options["repo_type"]))
        return [types.SimpleNamespace(path=path) for path in listed]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", tree)
    other = "0" * 40
    wanted = hub.corpus(f"hub:c4@{other}")
    assert hub._files(wanted, wanted.files["validation"]) == [
        f"hf://datasets/allenai/c4@{other}/en/c4-validation.0000{i}-of-00008.json.gz" for i in (0, 1)
    ]
    assert asked == [("allenai/c4", "en", other, "dataset")]
    with pytest.raises(DataError, match="allenai/c4 has no file 'en/c4-train.\\*' at revision 0000"):
        tokenization.tokens(f"hub:c4@{other}", "train", limit=9)


def test_hub_tokenizer_from_local_files(corpora, tmp_path, monkeypatch):
    folder = tmp_path / "hub/meta-llama/Llama-2-7b-hf"
    folder.mkdir(parents=True)
    content = (corpora / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
    (folder / "tokenizer.json").write_text(content)
    monkeypatch.setenv("SWARMBOOK_HUB_DIR", str(tmp_path / "hub"))
    tokens = tokenization.tokens("fables", "train", tokenizer="llama-2")
    np.testing.assert_array_equal(tokens.ids, tokenization.tokens("fables", "train").ids)
    assert tokens.fingerprint != tokenization.fingerprint("fables")
    (folder / "tokenizer.json").write_text(content.replace("</s>", "<end>"))
    with pytest.raises(DataError, match="none of the end-of-text tokens"):
        tokenization.tokens("fables", "train", tokenizer="llama-2")


@pytest.mark.skipif(
    not (Path(tokenization.__file__).parents[3] / "data/card.json").exists(), reason="data/card.json is not built yet"
)
def test_embedded_corpora_load(tmp_path, monkeypatch):
    monkeypatch.delenv("SWARMBOOK_DATA", raising=False)
    monkeypatch.setenv("SWARMBOOK_CACHE", str(tmp_path))
    coder = tokenization.tokenizer()
    assert coder.token_to_id("<|endoftext|>") == END
    assert corpora_module.domains()
    for domain in corpora_module.domains():
        assert corpora_module.card(domain)["kind"] in corpora_module.KINDS
        held_back = corpora_module.card(domain)["kind"] == "evaluation"
        for split in SPLITS[1:] if held_back else SPLITS:
            tokens = tokenization.tokens(domain, split)
            assert tokens.vocabulary == coder.get_vocab_size()
            assert len(tokens.ids) > 1000, (domain, split)
    with pytest.raises(DataError, match="scripture_kjv has no text in its train split"):
        tokenization.tokens("scripture_kjv", "train")
