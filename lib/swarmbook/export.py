"""Finished runs as models of the Hugging Face ecosystem: a folder that transformers loads, with the Fleet's logits.

- Weights are in fp32 under transformers' names for its LLaMA: those of one replica, or the mean of all replicas.
- The model is the whole one, all stages in order, whatever paths microbatches took through it in training.
- The tokenizer encodes as for training: a text begins and ends without marks, and end-of-text separates documents.
- The folder appears whole or not at all. Weights that were trained for an export are kept: another one trains nothing.

Serves: `swarmbook export`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from swarmbook.config import RunConfig
from swarmbook.data import tokenization
from swarmbook.errors import ConfigError, StoreError
from swarmbook.locations import recorded_folders
from swarmbook.methods.model_size import Shape
from swarmbook.records.atomic_files import write_folder, writes
from swarmbook.records.store import Record, Store, open_store
from swarmbook.reproduction.training_time import duration
from swarmbook.runs import config_of, final_states
from swarmbook.training.llama import NORM_EPS, ROPE_THETA
from swarmbook.training.state_layout import ENDS, LAYERS, WEIGHTS, of_layers

MEAN = "mean"
CURE = "Make room or make it writable, or name another folder; the weights are kept, and nothing is trained again."


def export(
    run: RunConfig,
    folder: str | Path,
    replica: int | str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Write the final weights of a run, its tokenizer and a model card to a new `folder`; returns its absolute path.

    replica: its number from 0, "mean", or None for the only one.
    say: is told about how long it takes if the weights have to be trained first, because the store does not keep them.
    Recorded runs come without weights.
    Raises ConfigError for a replica that is not there and for a folder that is not empty, before anything is trained;
    StoreError for a folder that cannot be written; TrainingError for a run that diverges.
    """
    folder = Path(folder).absolute()
    _check_replica(replica, run.replicas)
    _check_folder(folder)
    if first := untrained(run, open_store()):
        say(plan(first))
    state = final_states([run], device)[run.key]["fleet"]
    coder = tokenization.tokenizer(run.tokenizer)
    shape = run.shape(tokenization.vocabulary_of(coder))
    files = files_of(state, shape, 0 if replica is None else replica, run.sequence, coder)
    files["run.json"] = (run.model_dump_json(indent=2, exclude_defaults=True) + "\n").encode()
    files["README.md"] = card(run, open_store().get(run.key), replica).encode()
    with writes(folder, CURE):
        write_folder(folder, files)
    return folder


def run_named(name: str) -> RunConfig:
    """The configuration in a JSON file, or that of the recorded or finished run of this key.

    Raises ConfigError for a name that is neither, and for a run which this version would give another key.
    """
    run = config_of(name)
    if not Path(name).is_file() and run.key != name:
        raise ConfigError(
            f"run {name} was trained on other data or by other code than is here, which makes {run.key} of its "
            f"configuration: export that, or the version of its time"
        )
    return run


def untrained(run: RunConfig, store: Store) -> list[RunConfig]:
    """The runs to be trained for the final weights of a run, in this order: those with which it begins, and itself."""
    keeping, line = store.keeping(), []
    waiting = [run]
    while waiting:
        one = waiting.pop()
        if keeping.get(one.key) is None:
            line.append(one)
            waiting += one.parents
    return line[::-1]


def plan(runs: list[RunConfig]) -> str:
    """What is said before these runs are trained for an export."""
    store = open_store(recorded_folders())
    records = [store.get(run.key) for run in runs]
    steps = sum(run.steps - (run.start.steps if run.start else 0) for run in runs)
    others = f" after {len(runs) - 1} that it begins with" if len(runs) > 1 else ""
    text = f"the weights of run {runs[-1].key} are not kept: it is trained now{others}, {steps:,} steps in all"
    if any(record is None for record in records):
        return text
    took = sum(record.provenance["seconds"] / record.provenance["packed"] for record in records)
    return f"{text}; that took {duration(took)} when it was recorded"


def files_of(
    state: dict[str, Tensor], shape: Shape, replica: int | str, sequence: int, coder: Tokenizer
) -> dict[str, bytes]:
    """The files that transformers reads, by name.

    state: a `Fleet.state_dict`. replica: its number, or "mean". sequence: tokens of the longest text in training.
    """
    end = tokenization.end_of_text(coder)
    return {
        "config.json": _json(llama_config(shape, sequence, end)),
        "generation_config.json": _json({"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}),
        "model.safetensors": save(tensors(state, replica), {"format": "pt"}),
        "tokenizer.json": plain(coder).to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(tokenizer_config(coder.id_to_token(end), sequence)),
    }


def tensors(state: dict[str, Tensor], replica: int | str) -> dict[str, Tensor]:
    """The weights of one replica of a `Fleet.state_dict`, or their "mean", under transformers' names, [out, in]."""

    def chosen(name: str, weight: Tensor) -> Tensor:
        axis = WEIGHTS.replica_axis(name)
        return weight.double().mean(axis).float() if replica == MEAN else weight.select(axis, replica)

    layers = {
        name.removeprefix(LAYERS): chosen(name, weight).transpose(0, 1).flatten(0, 1)  # stage after stage: [L, ...]
        for name, weight in state.items()
        if of_layers(name)
    }
    ends = {name.removeprefix(ENDS): chosen(name, weight) for name, weight in state.items() if not of_layers(name)}
    found = {
        "model.embed_tokens": ends["embedding"],
        "model.norm": ends["norm"],
        "lm_head": ends["head"].T,
    }
    for i in range(len(layers["qkv"])):
        query, key, value = layers["qkv"][i].chunk(3, -1)
        gate, up = layers["gate_up"][i].chunk(2, -1)
        parts = {
            "input_layernorm": layers["attention_norm"][i],
            "self_attn.q_proj": query.T,
            "self_attn.k_proj": key.T,
            "self_attn.v_proj": value.T,
            "self_attn.o_proj": layers["output"][i].T,
            "post_attention_layernorm": layers["mlp_norm"][i],
            "mlp.gate_proj": gate.T,
            "mlp.up_proj": up.T,
            "mlp.down_proj": layers["down"][i].T,
        }
        found |= {f"model.layers.{i}.{name}": part for name, part in parts.items()}
    return {f"{name}.weight": t.clone(memory_format=torch.contiguous_format) for name, t in found.items()}


def llama_config(shape: Shape, sequence: int, end: int) -> dict:
    """transformers' configuration of its LLaMA; `rope_theta` alone is what releases before 5 read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": sequence,
        "initializer_range": shape.init_std,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rope_theta": ROPE_THETA,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
    }


def tokenizer_config(end: str, sequence: int) -> dict:
    """transformers' configuration of the tokenizer. One token begins, ends and pads a text: what ends a document.

    Padding goes to the left, so that texts of unequal length can be continued side by side.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "model_max_length": sequence,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def plain(coder: Tokenizer) -> Tokenizer:
    """The tokenizer without what would put marks around a text, because training does without them."""
    return Tokenizer.from_str(json.dumps(json.loads(coder.to_str()) | {"post_processor": None}))


def card(run: RunConfig, record: Record, replica: int | str | None) -> str:
    """A model card: what was exported, how it was trained, on which texts, and where the numbers come from."""
    of = f"the mean of {run.replicas} replicas" if replica == MEAN else f"replica {replica or 0} of {run.replicas}"
    losses = record.metrics[record.metrics["metric"] == "validation loss"]["value"]
    texts = [f"- {part.name}: {part.origin}" for part in tokenization.sources_of(run.data)]
    provenance = [f"| {name} | {value} |" for name, value in record.provenance.items()]
    about = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["swarmbook"])
    lines = [
        "---",
        about.to_yaml(),
        "---",
        f"# Run {run.key}, {of}",
        "",
        f"A LLaMA out of swarmbook's experiments on training with unreliable computers: {run.stages} stages of "
        f"{run.layers_per_stage} layers, {run.steps:,} steps of {run.tokens_per_step:,} tokens. At the end the "
        f"validation loss was {losses.iloc[-1]:.3f} nats a token, averaged over {run.replicas} replica(s).",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        'prompt = tokenizer(tokenizer.bos_token + "The ", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))",
        "```",
        "",
        f"It was trained on windows of {run.sequence} tokens, out of documents one after another, each closed by the "
        "end-of-text token, and with no other mark. All weights are here, whatever route microbatches took "
        f"({run.route!r}).",
        "",
        "## Texts",
        "",
        *texts,
        "",
        "## Configuration",
        "",
        "What differs from the defaults, as in `run.json`:",
        "",
        "```json",
        run.model_dump_json(indent=2, exclude_defaults=True),
        "```",
        "",
        "## Provenance",
        "",
        "| | |",
        "|---|---|",
        f"| key | {run.key} |",
        *provenance,
    ]
    return str(ModelCard("\n".join(lines) + "\n"))


def _check_replica(replica: int | str | None, replicas: int) -> None:
    if replica is None and replicas > 1:
        raise ConfigError(f"the run has {replicas} replicas: choose one of 0..{replicas - 1}, or their mean")
    if isinstance(replica, int) and not 0 <= replica < replicas:
        raise ConfigError(f"replica {replica} is not in this run: it has 0..{replicas - 1}")
    if isinstance(replica, str) and replica != MEAN:
        raise ConfigError(f"replica {replica!r} must be a number, or {MEAN!r} for the mean of all")


def _check_folder(folder: Path) -> None:
    with writes(folder, CURE):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already and no empty folder: name another")
        if folder.exists() and folder.samefile(Path.cwd()):  # which the new one would replace under our feet
            raise ConfigError(f"{folder} is the current folder: name a new one, such as model")
        near = next(parent for parent in folder.parents if parent.exists())
        if not near.is_dir():
            raise ConfigError(f"{folder} cannot be made: {near} is no folder")
        if not os.access(near, os.W_OK):
            raise StoreError(f"cannot write {folder}: make {near} writable, or name another folder")


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
