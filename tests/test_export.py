"""An exported run is the Fleet's replica: same logits, same ids, same validation loss, by transformers alone."""

import json
import os
import re
import shutil
import subprocess

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from swarmbook.config import run_config
from swarmbook.data import tokenization
from swarmbook.errors import ConfigError, StoreError
from swarmbook.export import export, files_of, plain, plan, run_named, untrained
from swarmbook.methods.model_size import Shape
from swarmbook.records.atomic_files import write_folder
from swarmbook.records.store import open_store
from swarmbook.runs import final_states
from swarmbook.training import trainer as training
from swarmbook.training.fleet import Fleet
from swarmbook.training.setup import held_out_of

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "data": "stories_toy", "stages": 4, "layers_per_stage": 2, "width": 16, "heads": 2, "hidden": 24, "sequence": 16,
    "steps": 20, "lr": 1e-2, "log_every": 5, "evaluate_every": 10, "held_out": 4,
}  # fmt: skip
ALONE = run_config(**TINY)
SKIPPING = run_config(**TINY, route="random paths", visits=2.5, swaps=1)
GOSSIP = run_config(**TINY, replicas=4, sync="gossip", sync_every=6)  # pairs have parted again when it ends
SAMPLES = ["", " ", "Once upon a time.\n\nZoë said: 1 < 2 — don't!", "a<|endoftext|>b", "  two  spaces , and 's  \t\n"]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMBOOK_STORE", str(tmp_path / "store"))


def quiet(*arguments, **options):
    return export(*arguments, **{"device": "cpu", "say": lambda line: None, **options})


def fleet_of(run):
    """All replicas of a run as it ended."""
    vocabulary = tokenization.tokenizer(run.tokenizer).get_vocab_size()
    fleet = Fleet(run.shape(vocabulary), range(run.replicas), device="cpu", compile=False)
    fleet.load_state_dict(final_states([run], "cpu", False)[run.key]["fleet"])
    return fleet


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_logits(model, fleet, replica):
    tokens = torch.randint(fleet.shape.vocabulary, (1, 3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(input_ids=tokens[0]).logits
    ours = fleet.logits(tokens)[replica]
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def words(count):
    """A tokenizer of as many words."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, count)}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))


SIZES = st.builds(
    lambda stages, layers, heads, half, hidden, vocabulary: Shape(
        stages, layers, 2 * half * heads, heads, hidden, vocabulary
    ),
    *(st.integers(1, most) for most in (4, 3, 4, 5, 40)),
    st.integers(2, 90),
)


@settings(max_examples=12, deadline=None)
@given(SIZES, st.integers(1, 4), st.data())
def test_any_replica_of_any_shape_is_the_fleets(tmp_path_factory, shape, replicas, more):
    fleet = Fleet(shape, range(replicas), device="cpu", compile=False)
    generator = torch.Generator().manual_seed(7)
    for weight in (*fleet.layers.values(), *fleet.outer.values()):  # far from the start, so that every term counts
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    replica = more.draw(st.integers(0, replicas - 1))
    folder = tmp_path_factory.mktemp("any") / "model"
    write_folder(folder, files_of(fleet.state_dict(), shape, replica, 32, words(shape.vocabulary)))
    assert_same_logits(loaded(folder)[0], fleet, replica)


def test_a_run_gives_transformers_the_validation_loss_that_was_recorded(tmp_path):
    """Text in, loss out, without anything of ours but the texts."""
    model, tokenizer = loaded(quiet(ALONE, tmp_path / "model"))
    documents = tokenization.texts(ALONE.data, "validation")["text"]
    stream = [i for text in documents for i in (*tokenizer(text).input_ids, tokenizer.eos_token_id)]
    T, count = ALONE.sequence, ALONE.held_out
    windows = (len(stream) - 1) // T
    held_out = torch.tensor([stream[i * windows // count * T :][: T + 1] for i in range(count)])
    assert torch.equal(held_out, torch.from_numpy(held_out_of(ALONE, ALONE.data))[0])
    with torch.no_grad():
        loss = float(model(input_ids=held_out, labels=held_out).loss)
    metrics = open_store().get(ALONE.key).metrics
    recorded = metrics[metrics["metric"] == "validation loss"]["value"]
    assert loss == pytest.approx(recorded.iloc[-1], abs=1e-5)
    assert recorded.iloc[-1] < recorded.iloc[0] - 0.1  # it has learnt something that could differ


def test_a_run_with_skipping_paths_gives_the_whole_model(tmp_path):
    model, _ = loaded(quiet(SKIPPING, tmp_path / "model"))
    assert model.config.num_hidden_layers == 8
    assert_same_logits(model, fleet_of(SKIPPING), 0)


def test_replicas_and_their_mean(tmp_path, monkeypatch):
    quiet(GOSSIP, tmp_path / "1", replica=1)
    monkeypatch.setattr(training, "train", None)  # training again would fail
    quiet(GOSSIP, tmp_path / "2", replica=2)
    quiet(GOSSIP, tmp_path / "mean", replica="mean", say=pytest.fail)
    fleet = fleet_of(GOSSIP)
    for replica in (1, 2):
        assert_same_logits(loaded(tmp_path / str(replica))[0], fleet, replica)
    mean = Fleet(fleet.shape, [0], device="cpu", compile=False)
    middle = {n: w.mean(2 if n.startswith("layers.") else 0) for n, w in fleet.state_dict().items()}
    mean.load_state_dict({n: middle[n].view(w.shape) for n, w in mean.state_dict().items()})
    assert_same_logits(loaded(tmp_path / "mean")[0], mean, 0)
    logits = fleet.logits(torch.arange(8)[None, None])
    assert (logits[1] - logits[2]).abs().max() > 1e-2  # replicas that could be mistaken for each other tell nothing


@pytest.fixture(scope="module", params=["swarmbook", "bytes"])
def coders(request, tmp_path_factory):
    """One of our tokenizers, and what transformers makes of its export."""
    coder = tokenization.tokenizer(request.param)
    shape = Shape(1, 1, 4, 1, 4, coder.get_vocab_size())
    folder = tmp_path_factory.mktemp("coder") / "model"
    write_folder(folder, files_of(Fleet(shape, [0], device="cpu", compile=False).state_dict(), shape, 0, 64, coder))
    return coder, loaded(folder)[1]


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.sampled_from(SAMPLES), st.text(max_size=60)))
def test_the_tokenizer_is_ours(coders, text):
    ours, theirs = coders
    ids = ours.encode(text).ids
    assert theirs(text).input_ids == theirs.encode(text) == ids
    assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False) == text
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_special_tokens(coders):
    _, theirs = coders
    assert (theirs.bos_token, theirs.eos_token, theirs.bos_token_id, theirs.eos_token_id) == ("<|endoftext|>",) * 2 + (
        0,
        0,
    )
    assert theirs.all_special_ids == [0]
    assert theirs.model_max_length == 64
    assert set(theirs("a")) == {"input_ids", "attention_mask"}


def test_marks_that_training_did_not_set_are_not_set_either():
    """Llama 2's tokenizer opens each text with <s>; training leaves that out."""
    coder = words(5)
    coder.add_special_tokens(["<s>", "</s>"])
    coder.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 5)])
    assert coder.encode("w1").ids == [5, 1]
    assert plain(coder).encode("w1").ids == coder.encode("w1", add_special_tokens=False).ids == [1]


def test_generation_ends_with_the_text(tmp_path):
    model, tokenizer = loaded(quiet(ALONE, tmp_path / "model"))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are equally likely: the first of them, end-of-text, is taken
    prompt = tokenizer("Once", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=5)[0].tolist() == [*prompt.input_ids[0].tolist(), 0]


def test_the_card_and_the_configuration_lead_back_to_the_run(tmp_path):
    folder = quiet(GOSSIP, tmp_path / "deep" / "model", replica=2)
    card = (folder / "README.md").read_text()
    about = huggingface_hub.ModelCard(card)
    assert (about.data.library_name, about.data.pipeline_tag) == ("transformers", "text-generation")
    assert about.content == card and about.text.startswith(f"# Run {GOSSIP.key}, replica 2 of 4\n")
    assert "- stories_toy: template stories, own work" in card
    assert f"| torch | {torch.__version__} |" in card
    assert json.loads(card.split("```json\n")[1].split("```")[0]) == json.loads((folder / "run.json").read_text())
    assert run_named(str(folder / "run.json")) == GOSSIP and run_named(GOSSIP.key) == GOSSIP
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "run.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert (folder.stat().st_mode & 0o777, (folder / "config.json").stat().st_mode & 0o777) == (0o755, 0o644)


def test_what_will_be_trained_is_told_before(tmp_path, monkeypatch):
    grown = run_config(**{**TINY, "steps": 30, "start": ALONE})
    assert untrained(grown, open_store()) == [ALONE, grown]
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            quiet(grown, tmp_path / "model", say=said.append)
    wanted = (
        f"the weights of run {grown.key} are not kept: it is trained now after 1 that it begins with, 30 steps in all"
    )
    assert said == [wanted]
    quiet(ALONE, tmp_path / "first")
    assert untrained(grown, open_store()) == [grown] and untrained(ALONE, open_store()) == []
    quiet(grown, tmp_path / "second")
    assert untrained(grown, open_store()) == []
    shutil.rmtree(tmp_path / "store" / "states")  # as for recorded runs, which come without weights
    assert re.search(r" 20 steps in all; that took \d+ s when it was recorded$", plan([ALONE]))


def stopped(*_):
    raise KeyboardInterrupt


def broken(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("replica", "message"),
    [
        (None, r"4 replicas: choose one of 0\.\.3, or their mean"),
        (4, r"replica 4 is not in this run: it has 0\.\.3"),
        (-1, r"replica -1 is not in this run"),
        ("average", r"replica 'average' must be a number, or 'mean'"),
    ],
)
def test_replicas_that_are_not_there_are_refused_before_anything_is_trained(tmp_path, replica, message):
    with pytest.raises(ConfigError, match=message):
        quiet(GOSSIP, tmp_path / "model", replica=replica, say=pytest.fail)


def test_folders_that_cannot_be_written_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="full is there already and no empty folder: name another"):
        quiet(ALONE, tmp_path / "full", say=pytest.fail)
    with pytest.raises(ConfigError, match="thesis.tex is there already"):
        quiet(ALONE, tmp_path / "full" / "thesis.tex", say=pytest.fail)
    with pytest.raises(ConfigError, match="thesis.tex is no folder"):
        quiet(ALONE, tmp_path / "full" / "thesis.tex" / "model", say=pytest.fail)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="make .* writable"):
        quiet(ALONE, tmp_path / "model", say=pytest.fail)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"


def test_runs_that_are_not_known(tmp_path):
    with pytest.raises(ConfigError, match="'0123456789abcdef0123' is neither a JSON file nor the key"):
        run_named("0123456789abcdef0123")
    quiet(ALONE, tmp_path / "model")
    key = ALONE.key
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swarmbook.config.NUMERICS", 0)
        with pytest.raises(ConfigError, match=f"run {key} was trained on other data or by other code"):
            run_named(key)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_done(tmp_path, monkeypatch, call):
    final_states([ALONE], "cpu", False)
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        for folder in (tmp_path / "exports" / "model", tmp_path / "empty"):
            with pytest.raises(StoreError, match="cannot write .*: No space left on device. .* another folder"):
                quiet(ALONE, folder)
    assert not list((tmp_path / "exports").iterdir()) and not list((tmp_path / "empty").iterdir())
    monkeypatch.setattr(training, "train", None)
    for folder in (tmp_path / "exports" / "model", tmp_path / "empty"):
        assert_same_logits(loaded(quiet(ALONE, folder))[0], fleet_of(ALONE), 0)
    assert not [path for path in tmp_path.rglob(".partial-*")]


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        with pytest.raises(StoreError, match="No space left"):
            quiet(ALONE, disk / "model")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
