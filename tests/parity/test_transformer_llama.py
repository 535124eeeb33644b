"""The whole transformer against transformers' LlamaForCausalLM with the same random weights."""

from __future__ import annotations

import pytest
import torch

from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.spaces import Tokens

V, T = 50, 24


def twins(n_kv_heads: int, tie: bool):
    transformers = pytest.importorskip("transformers")
    c = TransformerConfig(n_layers=3, d_model=48, n_heads=6, n_kv_heads=n_kv_heads, d_ff=80, context=T, tie=tie)
    ours = build(Tokens(T, vocabulary=V, tokenizer="ids"), c)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V + 1, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, max_position_embeddings=T,
            rms_norm_eps=c.norm_eps, tie_word_embeddings=tie,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in ours.parameters():  # gains too must differ from one
            p.add_(0.3 * torch.randn_like(p) if p.ndim == 1 else 0.0)
    names = {"self_attn.q_proj": "branches.0.mixer.q", "self_attn.k_proj": "branches.0.mixer.k",
             "self_attn.v_proj": "branches.0.mixer.v", "self_attn.o_proj": "branches.0.mixer.o",
             "mlp.gate_proj": "branches.1.mixer.gate", "mlp.up_proj": "branches.1.mixer.up",
             "mlp.down_proj": "branches.1.mixer.down"}  # fmt: skip
    w = ours.net.state_dict()
    state = {"model.embed_tokens.weight": w["embed.weight"], "model.norm.weight": w["norm.g"]}
    for i in range(c.n_layers):
        state |= {f"model.layers.{i}.{a}.weight": w[f"blocks.{i}.{b}.weight"] for a, b in names.items()}
        state[f"model.layers.{i}.input_layernorm.weight"] = w[f"blocks.{i}.branches.0.norm.g"]
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = w[f"blocks.{i}.branches.1.norm.g"]
    head = w["embed.weight"] if tie else torch.cat((w["head.weight"], torch.zeros(1, c.d_model)))
    theirs.load_state_dict(state | {"lm_head.weight": head})
    return ours, theirs


@pytest.mark.parametrize(("n_kv_heads", "tie"), [(6, False), (2, False), (1, True)])
@torch.no_grad()
def test_logits_equal_llama(n_kv_heads, tie, evidence):
    ours, theirs = twins(n_kv_heads, tie)
    x = torch.randint(0, V + 1, (3, T))
    want = theirs(x).logits[..., :V]
    cache = ours.new_cache(3, T)
    cached = torch.cat([ours.logits(x[:, :9], cache), *(ours.logits(x[:, t : t + 1], cache) for t in range(9, T))], 1)
    for claim, got in (("prefill", ours.logits(x)), ("cached decode", cached)):
        evidence(
            id="AR-13", system="Decoder-only transformer", reference="transformers.LlamaForCausalLM", tolerance=1e-4,
            claim=f"logits, {claim}, {n_kv_heads} of 6 key heads{', tied' if tie else ''}", unit="relative",
            reached=((got - want).abs().max() / want.abs().max()).item(),
        )  # fmt: skip
    begun = torch.cat((torch.full((3, 1), V), x[:, :-1] % V), 1)
    log_p = theirs(begun).logits[..., :V].log_softmax(-1).gather(2, (x % V)[..., None])[..., 0].sum(1)
    evidence(
        id="AR-04", system="Decoder-only transformer", claim="log-likelihood of texts, teacher forcing",
        reference="transformers.LlamaForCausalLM", unit="nats",
        reached=(ours.log_prob(x % V) - log_p).abs().max().item(), tolerance=1e-3,
    )  # fmt: skip


@torch.no_grad()
def test_greedy_continuation_equals_llamas_generate():
    from protea.samplers.tokens import generate

    ours, theirs = twins(2, False)
    prompt = torch.randint(0, V, (1, 5))
    want = prompt
    for _ in range(12):
        want = torch.cat((want, theirs(want).logits[:, -1:, :V].argmax(-1)), 1)
    assert torch.equal(generate(ours, prompt, 12, temperature=0), want[:, 5:])
