"""Positions against transformers: scaled rotary frequencies, linear biases, interleaved pairs; and against formulas."""

from __future__ import annotations

import math

import pytest
import torch

from protea.errors import ConfigError
from protea.nn.attention import ALiBi, SoftCap, alibi_slopes, reference
from protea.nn.context import Seen, plain_context, visible
from protea.nn.position import RoPE, Sinusoidal, half_split, interleaved, rope_frequencies, rotate, rotate_interleaved
from protea.nn.rope import SCALINGS, frequencies, make_rope

transformers = pytest.importorskip("transformers")

D, THETA, CONTEXT = 32, 10000.0, 256
SHORT, LONG = [1.0 + 0.1 * j for j in range(D // 2)], [1.0 + 2.0 * j for j in range(D // 2)]
CASES = {
    "linear": [{"factor": 4.0}],
    "dynamic": [{"factor": 4.0}],
    "yarn": [
        {"factor": 4.0, "original_max_position_embeddings": 64},
        {"factor": 40.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.8,
         "beta_fast": 16.0},
        {"factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 0.7, "truncate": False},
    ],
    "longrope": [
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64, "factor": 4.0},
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64, "attention_factor": 1.5},
    ],
    "llama3": [
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 8192},
    ],
    "proportional": [{"factor": 1.0, "partial_rotary_factor": 0.25}, {"factor": 4.0, "partial_rotary_factor": 1.0}],
}  # fmt: skip


def theirs(kind, settings, length=None):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=4 * D, num_attention_heads=4, head_dim=D, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": kind, "rope_theta": THETA, **settings},
    )  # fmt: skip
    more = {} if length is None else {"seq_len": length}
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **more)


def test_every_scaling_is_tried():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(CASES) == set(SCALINGS) == set(ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize(("kind", "settings"), [(k, s) for k, several in CASES.items() for s in several])
def test_frequencies(kind, settings, evidence):
    theta, scale = frequencies(D, THETA, {"rope_type": kind, **settings}, CONTEXT)
    lengths = [CONTEXT] if isinstance(theta, torch.Tensor) else [1, 64, 65, 255, 256, 257, 300, 1000]
    worst = 0.0
    for length in lengths:
        want, factor = theirs(kind, settings, length)
        got = theta if isinstance(theta, torch.Tensor) else theta(torch.tensor(length))
        worst = max(worst, (got - want).abs().max().item(), abs(scale - factor))
    evidence(
        id="AR-18", system=f"RoPE scaling: {kind}", claim=f"inverse frequencies and factor, {settings}"[:160],
        reference="transformers ROPE_INIT_FUNCTIONS", reached=worst, tolerance=1e-7, unit="abs",
    )  # fmt: skip


def test_partial_heads(evidence):
    """A share of each head turns, the rest stays."""
    rope = make_rope(D, THETA, {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, CONTEXT)
    want, _ = theirs("linear", {"factor": 2.0, "partial_rotary_factor": 0.5})
    assert rope.frequencies is not None and torch.equal(rope.frequencies, want)
    x, at = torch.randn(2, 3, 5, D), torch.arange(5)
    assert torch.equal(rope(x, at)[..., D // 2 :], x[..., D // 2 :])
    assert torch.equal(rope(x, at)[..., : D // 2], RoPE(want)(x[..., : D // 2], at))


def test_rows_of_a_batch_have_lengths_of_their_own():
    """What depends on the length of a text does not depend on its neighbours."""
    rope = make_rope(D, THETA, {"rope_type": "dynamic", "factor": 4.0}, 8)
    x = torch.randn(2, 1, 12, D)
    positions = torch.stack((torch.arange(12), torch.arange(12) - 6))
    both = rope(x, positions)
    assert torch.allclose(both[:1], rope(x[:1], positions[:1])) and torch.allclose(both[1:], rope(x[1:], positions[1:]))
    plain = RoPE(rope_frequencies(D, THETA))
    assert torch.allclose(both[1, 0, 6:], plain(x[1:, :, 6:], torch.arange(6))[0, 0])  # short: as it was trained
    assert not torch.allclose(both[0], plain(x[:1], positions[0])[0])


@pytest.mark.parametrize("settings", [{"rope_type": "spiral"}, {"rope_type": "yarn"}, {"rope_type": "linear", "f": 1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ConfigError):
        frequencies(D, THETA, settings)
    with pytest.raises(ConfigError, match="all 16 frequencies"):
        frequencies(D, THETA, {**CASES["longrope"][0], "rope_type": "longrope", "short_factor": [1.0]})


def test_interleaved_pairs(evidence):
    from transformers.models.cohere2.modeling_cohere2 import apply_rotary_pos_emb

    q, k, at = torch.randn(2, 3, 7, D), torch.randn(2, 3, 7, D), torch.arange(7)
    rope = RoPE(rope_frequencies(D), turn=rotate_interleaved)
    angle = (at[:, None] * rope_frequencies(D)).repeat_interleave(2, -1)[None]
    want = torch.cat(apply_rotary_pos_emb(q, k, angle.cos(), angle.sin()))
    evidence(
        id="AR-17", system="RoPE", claim="interleaved layout", reference="transformers Cohere2 apply_rotary_pos_emb",
        reached=(torch.cat((rope(q, at), rope(k, at))) - want).abs().max().item(), tolerance=1e-5, unit="abs",
    )  # fmt: skip
    split = RoPE(rope_frequencies(D), turn=rotate)
    evidence(
        id="AR-17", system="RoPE", claim="one layout is a permutation of the other", reference="the other layout",
        reached=(interleaved(split(half_split(q), at)) - rope(q, at)).abs().max().item(), tolerance=1e-6, unit="abs",
    )  # fmt: skip


def test_sharing_angles_changes_nothing():
    ctx, x = plain_context(6, pad=torch.tensor([0, 2])), torch.randn(2, 3, 6, D)
    rope = make_rope(D, THETA, {"rope_type": "yarn", **CASES["yarn"][0]}, CONTEXT)
    assert torch.equal(rope.share(x, ctx), rope(x, ctx.positions)) and torch.equal(
        rope.share(x, ctx), rope.share(x, ctx)
    )
    other = RoPE(rope_frequencies(D))
    assert torch.equal(other.share(x, ctx), other(x, ctx.positions)) and len(ctx.shared) == 2


@pytest.mark.parametrize("heads", [1, 4, 6, 12, 16])
def test_alibi(heads, evidence):
    """Slopes, and the attention they make, against Bloom's bias tensor; slopes against MPT's, which sorts alike."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    t = 11
    bloom = build_alibi_tensor(torch.ones(1, t, dtype=torch.int64), heads, torch.float32)  # (H, 1, t)
    mpt = build_mpt_alibi_tensor(heads, t)  # (H, 1, t)
    slopes = alibi_slopes(heads)
    ours = slopes[:, None, None] * torch.arange(t)
    worst = max((ours - bloom).abs().max().item(), (ours - ours[..., -1:] - mpt).abs().max().item())
    q, k, v = (torch.randn(2, heads, t, 8) for _ in range(3))
    scores = q @ k.mT / math.sqrt(8) + bloom
    want = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -torch.inf).softmax(-1) @ v
    slots = torch.arange(t)
    got = ALiBi(slopes)(q, k, v, Seen(slots, slots, causal=True))
    evidence(
        id="AR-28", system="ALiBi", claim=f"slopes of {heads} heads and the attention they make",
        reference="transformers Bloom and MPT", reached=max(worst, (got - want).abs().max().item()), tolerance=1e-5,
        unit="abs",
    )  # fmt: skip


def test_alibi_counts_slots_of_a_rolling_memory():
    """Keys in the order of a ring, as a memory with a window hands them out."""
    q, k, v = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    kernel, order = ALiBi(alibi_slopes(2)), torch.tensor([2, 0, 3, 1])
    keys, query = torch.arange(6, 10), torch.tensor([9])
    straight = kernel(q, k, v, Seen(query, keys))
    assert torch.allclose(kernel(q, k[:, :, order], v[:, :, order], Seen(query, keys[order])), straight, atol=1e-6)
    many = Seen(query.expand(3, 1), keys.expand(3, 4))
    three = kernel(q.expand(3, -1, -1, -1), k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1), many)
    assert torch.allclose(three, straight.expand_as(three), atol=1e-6)


def test_soft_cap(evidence):
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    class Module(torch.nn.Module):
        num_key_value_groups, training = 2, False

    q, k, v = 5 * torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    slots = torch.arange(7)
    mask = visible(slots, slots, 3)
    bias = torch.zeros(1, 1, 7, 7).masked_fill(~mask, torch.finfo(torch.float32).min)
    want = eager_attention_forward(Module(), q, k, v, bias, scaling=0.3, softcap=2.0)[0].transpose(1, 2)
    got = SoftCap(2.0)(q, k, v, Seen(slots, slots, mask), 0.3)
    evidence(
        id="AR-19", system="Soft-capped attention", claim="windowed, grouped heads",
        reference="transformers Gemma2 eager_attention_forward", reached=(got - want).abs().max().item(),
        tolerance=1e-5, unit="abs",
    )  # fmt: skip
    assert not torch.allclose(got, reference(q, k, v, Seen(slots, slots, mask), 0.3), atol=1e-2)


def test_sinusoids(evidence):
    """Entry 2i of position m is sin(m / 10000^(2i / d)), entry 2i + 1 its cosine (Vaswani et al. 2017, section 3.5)."""
    got, worst = Sinusoidal(16)(torch.arange(50)), 0.0
    for m in range(50):
        for i in range(8):
            angle = m / 10000 ** (2 * i / 16)
            worst = max(worst, abs(got[m, 2 * i] - math.sin(angle)), abs(got[m, 2 * i + 1] - math.cos(angle)))
    evidence(
        id="AR-06", system="Sinusoidal positions", claim="50 positions of 16 entries", reference="the paper's formula",
        reached=float(worst), tolerance=1e-5, unit="abs",
    )  # fmt: skip
