"""The peer of the benchmarks: transformers' LLaMA."""

from swarmbook.export import llama_config
from swarmbook.methods.model_size import Shape


def llama(shape: Shape, length: int, **fields):
    """A model of the same shape for texts of `length` tokens, with random weights; `fields` of its LlamaConfig."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**llama_config(shape, length, end=0), **fields))
