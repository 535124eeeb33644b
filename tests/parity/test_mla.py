"""Multi-head latent attention: its two forms, its memory, where positions enter, and DeepSeek's own layers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from protea.nn.attention import GQA, reference
from protea.nn.cache import Cache
from protea.nn.context import plain_context
from protea.nn.mla import MLA, Absorbed, Cheapest, LowRank, Materialised
from protea.nn.position import RoPE, rope_frequencies, rotate, rotate_interleaved

D, H, D_C, D_NOPE, D_ROPE, D_V = 48, 4, 20, 12, 8, 10


def layer(form=None, q_rank: int | None = 14, turn=rotate_interleaved, d_v: int = D_V) -> MLA:
    torch.manual_seed(0)
    q = None if q_rank is None else LowRank(D, q_rank, H * (D_NOPE + D_ROPE))
    made = MLA(
        D, H, d_c=D_C, d_nope=D_NOPE, d_rope=D_ROPE, d_v=d_v, q=q,
        position=RoPE(rope_frequencies(D_ROPE), turn=turn), form=form or Cheapest(),
    )  # fmt: skip
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) * p.shape[1] ** -0.5)
    return made


def decode(mla: MLA, x: torch.Tensor, cuts: list[int], pad: torch.Tensor | None = None) -> torch.Tensor:
    cache, parts = Cache(x.shape[1], pad), []
    for a, b in pairwise(cuts):
        parts.append(mla(x[:, a:b], cache.context(b - a)))
        cache.advance(b - a)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("d_v", [D_V, 24])  # values narrower and wider than keys
@pytest.mark.parametrize("pad", [None, torch.tensor([0, 5, 3])])
@torch.no_grad()
def test_absorbed_equals_materialised(pad, d_v, evidence):
    x, worst = torch.randn(3, 14, D), 0.0
    real = torch.arange(14) >= (torch.zeros(3, dtype=torch.int64) if pad is None else pad)[:, None]
    want = layer(Materialised(reference), d_v=d_v)(x, plain_context(14, pad=pad))[real]
    forms = (Materialised(), Absorbed(), Absorbed(reference), Cheapest())
    for form in forms:
        mla = layer(form, d_v=d_v)
        for cuts in ([0, 14], [0, 9, *range(10, 15)], list(range(15)), [0, 4, 11, 14]):
            worst = max(worst, (decode(mla, x, cuts, pad)[real] - want).abs().max().item())
        worst = max(worst, (mla(x, plain_context(14, pad=pad))[real] - want).abs().max().item())
    evidence(id="AR-24", system="Multi-head latent attention", reference="materialised, term by term", unit="max abs",
             claim=f"absorbed decode, every cut, values of {d_v}{', padded' if pad is not None else ''}",
             reached=worst, tolerance=1e-5)  # fmt: skip


def test_gradients_of_the_forms_agree():
    x, slopes = torch.randn(2, 9, D), []
    for form in (Materialised(reference), Materialised(), Absorbed()):
        mla = layer(form)
        torch.manual_seed(1)
        (mla(x, plain_context(9)) * torch.randn(2, 9, D)).sum().backward()
        slopes.append([p.grad for p in mla.parameters()])
    for others in slopes[1:]:
        for a, b in zip(slopes[0], others, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other():
    x = torch.randn(1, 9, D)
    for form in (Materialised(), Absorbed()):
        mla = layer(form)
        packed = mla(x, plain_context(9, documents=torch.tensor([[7, 7, 7, 7, 2, 2, 9, 9, 9]])))
        apart = torch.cat([mla(x[:, a:b], plain_context(b - a)) for a, b in ((0, 4), (4, 6), (6, 9))], 1)
        assert torch.allclose(packed, apart, atol=1e-5)


@torch.no_grad()
def test_memory_is_the_latents_alone(evidence):
    """d_c + d_R numbers a token, where multi-head attention of the same heads holds 2 H d_h."""
    b, t, d_head = 3, 11, D_NOPE
    latent, full = Cache(t), Cache(t)
    layer()(torch.randn(b, t, D), latent.context(t))
    GQA(D, H, H, d_head=d_head)(torch.randn(b, t, D), full.context(t))
    for claim, cache, numbers in (("MLA", latent, D_C + D_ROPE), ("MHA of the same heads", full, 2 * H * d_head)):
        evidence(id="AR-25", system="Multi-head latent attention", claim=f"bytes remembered a token and layer, {claim}",
                 reference=f"{numbers} float32", reached=abs(cache.nbytes / (b * t) - 4 * numbers), tolerance=0,
                 unit="bytes too many or few")  # fmt: skip


def test_decoding_absorbs_and_reading_materialises():
    mla = MLA(2048, 16, d_c=512, d_nope=128, d_rope=64, d_v=128, position=RoPE(rope_frequencies(64)))  # V2-Lite's
    choose = Cheapest().choose
    assert isinstance(choose(mla, 1, 4096), Absorbed) and isinstance(choose(mla, 4, 4096), Absorbed)
    assert isinstance(choose(mla, 4096, 4096), Materialised) and isinstance(choose(mla, 512, 512), Materialised)


@pytest.mark.parametrize("turn", [rotate, rotate_interleaved])
@torch.no_grad()
def test_positions_enter_by_the_rotary_part_alone(turn, evidence):
    mla, x = layer(turn=turn), torch.randn(1, 8, D)
    ctx = plain_context(8)
    moved = mla(x, type(ctx)(ctx.positions + 1000))
    relative = (mla(x, ctx) - moved).abs().max()
    evidence(id="AR-26", system="Decoupled RoPE", claim=f"output after a shift of positions by 1000, {turn.__name__}",
             reference="unshifted", reached=relative, tolerance=2e-4, unit="max abs")  # fmt: skip
    stretched = type(ctx)(3 * ctx.positions)
    assert (mla(x, ctx) - mla(x, stretched)).abs().max() > 1e-2
    rows = mla.q.expand.weight.view(H, D_NOPE + D_ROPE, -1)
    rows[:, D_NOPE:] = 0.0
    assert torch.equal(mla(x, ctx), mla(x, stretched))


@torch.no_grad()
def test_rotated_keys_could_not_be_absorbed(evidence):
    """q^T R_{s-t} k with k = W c: one matrix per distance. Unrotated it is one matrix for all distances."""
    torch.manual_seed(0)
    d, d_c, distances = 8, 6, 5
    w_q, w_k, theta = torch.randn(d, 16), torch.randn(d, d_c), rope_frequencies(d, 100.0)
    turned = []
    for n in range(distances):
        angle = n * theta
        turned.append(w_q.T @ rotate(w_k.T, angle.cos(), angle.sin()).T)
    stacked = torch.stack(turned).flatten(1)
    evidence(id="AR-26", system="Decoupled RoPE", claim=f"matrices W_Q^T R W_UK that {distances} distances need",
             reference="1 without rotation", reached=torch.linalg.matrix_rank(stacked), tolerance=distances,
             at_least=True)  # fmt: skip
    best = stacked.mean(0)  # the one matrix nearest to all
    assert (stacked - best).norm() / stacked.norm() > 0.3
    plain = torch.stack([w_q.T @ w_k] * distances).flatten(1)
    assert torch.linalg.matrix_rank(plain) == 1


@pytest.mark.parametrize("q_rank", [None, 14])
@pytest.mark.parametrize("interleave", [True, False])
@torch.no_grad()
def test_layer_equals_deepseeks(q_rank, interleave, evidence):
    pytest.importorskip("transformers")
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=H, q_lora_rank=q_rank, kv_lora_rank=D_C,
        qk_nope_head_dim=D_NOPE, qk_rope_head_dim=D_ROPE, v_head_dim=D_V, rope_interleave=interleave,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = DeepseekV3Attention(config, 0).eval()
    ours = layer(q_rank=q_rank, turn=rotate_interleaved if interleave else rotate)
    names = {"kv_a_proj_with_mqa": "kv_down", "kv_a_layernorm": "norm", "kv_b_proj": "kv_up", "o_proj": "o"}
    names |= (
        {"q_a_proj": "q.compress", "q_a_layernorm": "q.norm", "q_b_proj": "q.expand"} if q_rank else {"q_proj": "q"}
    )
    for a, b in names.items():
        theirs.get_submodule(a).weight.copy_(next(ours.get_submodule(b).parameters()))
    x, positions = torch.randn(2, 12, D), torch.arange(12)[None]
    mask = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    want = theirs(x, DeepseekV3RotaryEmbedding(config)(x, positions), mask)[0]
    got = ours(x, plain_context(12))
    evidence(id="AR-24", system="Multi-head latent attention", reference="transformers DeepseekV3Attention",
             claim=f"output, queries of rank {q_rank}, rotary pairs {'interleaved' if interleave else 'half-split'}",
             reached=(got - want).abs().max(), tolerance=1e-5, unit="max abs")  # fmt: skip
