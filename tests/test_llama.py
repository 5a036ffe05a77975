"""The model is transformers' LLaMA: same logits, loss and gradients from the same weights."""

from dataclasses import replace

import pytest
import torch

from swarmbook.methods.model_size import Shape, scaled_init_std
from swarmbook.training import llama
from swarmbook.training.fleet import Fleet

SHAPE = Shape(stages=2, layers_per_stage=2, width=32, heads=4, hidden=56, vocabulary=67)


def twin(fleet, replica=0):
    """transformers' LLaMA holding one replica's weights, and for each of its parameters ours [out, in]."""
    transformers = pytest.importorskip("transformers")
    shape = fleet.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({**model.state_dict(), **named(fleet, fleet.stage, fleet.ends, replica)})
    return model


def named(fleet, stage, ends, replica=0):
    """One replica's tensors (weights or gradients) under transformers' names, in its layout [out, in]."""
    own = ends(replica)
    tensors = {
        "model.embed_tokens.weight": own["embedding"],
        "model.norm.weight": own["norm"],
        "lm_head.weight": own["head"].T,
    }
    for i in range(fleet.shape.layers):
        s, j = divmod(i, fleet.shape.layers_per_stage)
        layer = {name: tensor[j] for name, tensor in stage(replica, s).items()}
        query, key, value = layer["qkv"].chunk(3, -1)
        gate, up = layer["gate_up"].chunk(2, -1)
        parts = {
            "input_layernorm": layer["attention_norm"],
            "self_attn.q_proj": query.T,
            "self_attn.k_proj": key.T,
            "self_attn.v_proj": value.T,
            "self_attn.o_proj": layer["output"].T,
            "post_attention_layernorm": layer["mlp_norm"],
            "mlp.gate_proj": gate.T,
            "mlp.up_proj": up.T,
            "mlp.down_proj": layer["down"].T,
        }
        tensors |= {f"model.layers.{i}.{name}.weight": part for name, part in parts.items()}
    return tensors


def test_one_replica_is_transformers_llama():
    fleet = Fleet(SHAPE, [3], device="cpu", compile=False)
    for s in range(SHAPE.stages):  # weights far from the start, so that every term counts
        for weight in fleet.stage(0, s).values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(s)) * 0.2)
    llama = twin(fleet)
    tokens = torch.randint(67, (1, 3, 2, 21), generator=torch.Generator().manual_seed(1))  # [R, M, B, T + 1]
    flat = tokens.flatten(0, 2)  # [M * B, T + 1]
    theirs = llama(input_ids=flat[:, :-1]).logits
    torch.testing.assert_close(fleet.logits(flat[None, :, :-1])[0], theirs, rtol=1e-5, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), flat[:, 1:].flatten())
    loss.backward()
    ours = fleet.gradients(tokens)
    torch.testing.assert_close(ours[0], loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fleet.loss(flat[None])[0], loss.detach(), rtol=1e-5, atol=1e-5)
    gradients = named(fleet, fleet.stage_gradient, fleet.ends_gradient)
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=name)
        assert parameter.grad.abs().max() > 1e-4, name


def test_parameters_are_counted():
    fleet = Fleet(SHAPE, [0], device="cpu", compile=False)
    assert SHAPE.parameters == sum(p.numel() for p in twin(fleet).parameters())
    assert SHAPE.stage_parameters == sum(w.numel() for w in fleet.stage(0, 1).values())
    assert SHAPE.ends_parameters == sum(w.numel() for w in fleet.ends(0).values())
    assert SHAPE.layers == 4


def test_start_is_normal_with_norms_of_one():
    fleet = Fleet(Shape(1, 1, 64, 4, 256, 512), [0], device="cpu", compile=False)
    for name, weight in (fleet.stage(0, 0) | fleet.ends(0)).items():
        if name.endswith("norm"):
            assert (weight == 1).all()
        else:
            assert abs(weight.mean()) < 2e-3
            assert 0.019 < weight.std() < 0.021


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stages", 0, r"stages=0 .* at least 1"),
        ("vocabulary", 2.5, r"vocabulary=2.5 .* whole number"),
        ("heads", 5, r"width=32 .* heads=5.*heads=4"),
        ("width", 12, r"odd width 3.*even"),
    ],
)
def test_shapes_that_make_no_model_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Shape(**{**SHAPE.__dict__, field: value})


def test_fresh_matrices_have_the_deviation_that_the_shape_names():
    wide = Shape(stages=2, layers_per_stage=1, width=64, heads=2, hidden=96, vocabulary=101, init_std=0.08)
    fleet, usual = (Fleet(shape, [3], device="cpu", compile=False) for shape in (wide, replace(wide, init_std=0.02)))
    fleet.initialise(0, 1, 5)
    usual.initialise(0, 1, 5)
    for name, weight in fleet.named_weights().items():
        times = 1 if name.endswith("norm") else 4
        torch.testing.assert_close(weight, times * usual.named_weights()[name])
    assert fleet.layers["qkv"].std().item() == pytest.approx(0.08, rel=0.03)


def test_a_fresh_stage_changes_its_input_alike_at_all_widths_where_the_deviation_follows_the_width():
    def gain(width, std):
        shape = Shape(stages=1, layers_per_stage=1, width=width, heads=4, hidden=4 * width, vocabulary=11, init_std=std)
        weights = {name: w[0, 0] for name, w in Fleet(shape, [0], device="cpu", compile=False).layers.items()}
        x = torch.randn(1, 64, width, generator=torch.Generator().manual_seed(0))
        after = llama.layer(x, *weights.values(), *llama.rotary(64, width // 4, x.device))[0]
        return ((after - x).norm() / x.norm()).item()

    assert scaled_init_std(1024) == 0.02
    wide = gain(1024, 0.02)
    assert gain(64, scaled_init_std(64)) == pytest.approx(wide, rel=0.15)
    assert gain(64, 0.02) < wide / 10
