"""Norm, rotary positions, attention and gated perceptron against transformers and torch."""

from __future__ import annotations

import pytest
import torch

from protea.errors import ConfigError
from protea.nn.attention import GQA, pool_heads, reference, sdpa
from protea.nn.cache import Cache
from protea.nn.context import Context, Seen, plain_context
from protea.nn.mlp_gated import GatedMLP, SwiGLU
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, half_split, interleaved, rope_frequencies, rotate

B, T, H, D = 2, 17, 4, 8


def llama():
    return pytest.importorskip("transformers.models.llama.modeling_llama")


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def test_rms_norm_equals_llamas(evidence):
    theirs, ours, x = llama().LlamaRMSNorm(32, eps=1e-5), RMSNorm(32, 1e-5), torch.randn(B, T, 32)
    with torch.no_grad():
        theirs.weight.copy_(torch.rand(32))
        ours.g.copy_(theirs.weight)
    evidence(id="AR-14", system="RMSNorm", claim="output", reference="transformers LlamaRMSNorm",
             reached=gap(ours(x), theirs(x)), tolerance=1e-6, unit="max abs")  # fmt: skip
    assert gap(ours(3.0 * x), ours(x)) < 1e-4  # scale invariance


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_equals_apply_rotary_pos_emb(theta, evidence):
    module = llama()
    from transformers import LlamaConfig

    scheme = {"rope_type": "default", "rope_theta": theta}
    config = LlamaConfig(hidden_size=H * D, num_attention_heads=H, rope_parameters=scheme)
    q, k, positions = torch.randn(B, H, T, D), torch.randn(B, 2, T, D), torch.arange(100, 100 + T)
    cos, sin = module.LlamaRotaryEmbedding(config)(q, positions[None])
    a, b = module.apply_rotary_pos_emb(q, k, cos, sin)
    rope = RoPE(rope_frequencies(D, theta))
    reached = max(gap(rope(q, positions), a), gap(rope(k, positions.expand(B, T)), b))
    evidence(id="AR-17", system="RoPE", claim=f"half-split rotation, theta {theta:g}",
             reference="transformers apply_rotary_pos_emb", reached=reached, tolerance=1e-6,
             unit="max abs")  # fmt: skip


def test_interleaved_layout_is_the_complex_product(evidence):
    """Su et al. 2021: x_{2j} + i x_{2j+1} times exp(i m theta_j)."""
    x, positions = torch.randn(B, H, T, D), torch.arange(T)
    angle = positions[:, None] * rope_frequencies(D)
    turned = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones(()), angle))
    got = interleaved(rotate(half_split(x), angle.cos(), angle.sin()))
    assert torch.equal(interleaved(half_split(x)), x)
    evidence(id="AR-17", system="RoPE", claim="interleaved layout through the converter", reference="complex product",
             reached=gap(got, turned.flatten(-2)), tolerance=1e-6, unit="max abs")  # fmt: skip


def test_rope_depends_on_the_distance_alone(evidence):
    rope, q, k = RoPE(rope_frequencies(D)), torch.randn(1, 1, 1, D), torch.randn(1, 1, 1, D)
    here = (rope(q, torch.tensor([9])) * rope(k, torch.tensor([4]))).sum()
    there = (rope(q, torch.tensor([59])) * rope(k, torch.tensor([54]))).sum()
    other = (rope(q, torch.tensor([59])) * rope(k, torch.tensor([4]))).sum()
    assert gap(here, other) > 1e-2
    evidence(id="AR-17", system="RoPE", claim="<R_m q, R_n k> depends on m - n", reference="closed form",
             reached=gap(here, there), tolerance=1e-5, unit="abs")  # fmt: skip


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_kernels_agree_with_the_definition(kv, evidence):
    q, k, v = torch.randn(B, H, T, D), torch.randn(B, kv, T, D), torch.randn(B, kv, T, D)
    slots = torch.arange(T)
    ragged = torch.arange(T) < torch.tensor([[5], [T]])  # keys of a shorter text are hidden
    views = Seen(slots, slots), Seen(slots, slots, causal=True), Seen(slots, slots, ragged[:, None, None])
    reached = max(gap(sdpa(q, k, v, s), reference(q, k, v, s)) for s in views)
    evidence(id="AR-06", system="Attention", claim=f"fused kernel, {H} heads on {kv}", reference="definition",
             reached=reached, tolerance=1e-6, unit="max abs")  # fmt: skip


def test_multi_head_equals_torchs(evidence):
    theirs = torch.nn.MultiheadAttention(H * D, H, bias=False, batch_first=True)
    ours, x = GQA(H * D, H, H), torch.randn(B, T, H * D)
    with torch.no_grad():
        for mine, weight in zip((ours.q, ours.k, ours.v), theirs.in_proj_weight.chunk(3), strict=True):
            mine.weight.copy_(weight)
        ours.o.weight.copy_(theirs.out_proj.weight)
    hidden = ~torch.ones(T, T, dtype=torch.bool).tril()
    want = theirs(x, x, x, attn_mask=hidden, need_weights=False)[0]
    evidence(id="AR-06", system="Attention", claim="multi-head, causal", reference="torch.nn.MultiheadAttention",
             reached=gap(ours(x, plain_context(T)), want), tolerance=1e-6, unit="max abs")  # fmt: skip
    order = torch.randperm(T)  # without positions and mask, attention is equivariant
    blind = Context(torch.arange(T), causal=False)
    assert gap(ours(x[:, order], blind), ours(x, blind)[:, order]) < 1e-6


def test_grouped_heads_share_their_keys(evidence):
    """Pooling equal heads changes nothing, and the cache shrinks by n_kv / n_heads exactly."""
    many, x = GQA(H * D, H, H, position=RoPE(rope_frequencies(D)), bias=True), torch.randn(B, T, H * D)
    with torch.no_grad():
        for linear in (many.k, many.v):
            for p in linear.parameters():
                p.copy_(p.unflatten(0, (2, 2, D))[:, :1].expand(2, 2, D, *p.shape[1:]).reshape(p.shape))
    few = pool_heads(many, 2)
    caches = Cache(T), Cache(T)
    a, b = many(x, caches[0].context(T)), few(x, caches[1].context(T))
    assert caches[1].nbytes * 2 == caches[0].nbytes == 2 * B * H * T * D * 4
    evidence(id="AR-15", system="Grouped-query attention", claim="2 shared heads equal 4 that repeat them",
             reference="multi-head attention", reached=gap(a, b), tolerance=1e-6, unit="max abs")  # fmt: skip


def test_gated_perceptron_equals_llamas(evidence):
    from transformers import LlamaConfig

    theirs = llama().LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=40, num_attention_heads=4))
    ours, x = SwiGLU(16, 40), torch.randn(B, T, 16)
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    ours.load_state_dict({f"{a}.weight": theirs.state_dict()[f"{b}.weight"] for a, b in names.items()})
    evidence(id="AR-16", system="SwiGLU", claim="output", reference="transformers LlamaMLP",
             reached=gap(ours(x), theirs(x)), tolerance=1e-6, unit="max abs")  # fmt: skip
    relu = GatedMLP(16, 40, torch.relu)
    relu.load_state_dict(ours.state_dict())
    assert gap(relu(x), ours(x)) > 1e-3


def test_heads_that_do_not_divide():
    with pytest.raises(ConfigError, match="n_kv_heads must divide"):
        GQA(32, 4, 3)
