"""What a memory costs: formulas of attention's kinds to the byte, and codes of 8 and 4 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.nn.cache import Cache
from protea.serving.blocks import Blocks
from protea.serving.paged import PagedCache
from protea.serving.quantised import Quantised, cost, dequantise, quantise
from protea.spaces import Tokens

V, T = 40, 48


def model(name: str, **changes):
    torch.manual_seed(0)
    config = replace(ARCHITECTURES[name].scaled(2, 64, T), **changes)
    return language_model(name, Tokens(12, vocabulary=V, tokenizer="ids"), config).eval().requires_grad_(False), config


def values(name: str, c) -> tuple[int, int]:
    """Values that two layers of 4 heads keep of one token, by the formulas; and how many tokens they keep."""
    if name.startswith("deepseek"):
        return 2 * (c.d_c + c.d_rope), T
    heads = c.n_heads if name == "gpt2" else c.n_kv_heads
    return 2 * 2 * heads * (c.d_model // c.n_heads), min(T, getattr(c, "window", None) or T)


CASES = [
    ("multi-head", "gpt2", {"n_heads": 4}), ("grouped-query", "llama", {"n_heads": 4, "n_kv_heads": 2}),
    ("multi-query", "llama", {"n_heads": 4, "n_kv_heads": 1}), ("multi-head latent", "deepseek-v2", {}),
    ("sliding window", "mistral", {"n_heads": 4, "n_kv_heads": 2, "window": 16}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "changes"), CASES)
def test_bytes_are_those_of_the_formula(kind, name, changes, evidence):
    if name not in ARCHITECTURES:
        pytest.skip(f"{name} is not registered")
    net, config = model(name, **changes)
    each, held = values(name, config)
    memory = net.new_cache(1, T)
    net.logits(torch.randint(0, V, (1, T - 1)), memory)
    net.logits(torch.randint(0, V, (1, 1)), memory)
    measured = memory.nbytes
    assert cost(net, T).total == each * held * 4
    evidence(id="AR-25", system="Memory of keys and values", claim=f"{kind}: bytes of {T} tokens",
             reference=f"{each} values a token of {held} tokens", reached=abs(measured - each * held * 4), tolerance=0,
             unit="bytes")  # fmt: skip


def test_hybrids_cost_attention_by_the_token_and_states_once():
    net, _ = model("jamba")
    one, two = cost(net, 10), cost(net, 20)
    assert two.total - one.total == 10 * one.per_token > 0 and one.fixed > 0
    assert cost(model("mamba")[0], 10).per_token == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_within_half_a_step(bits):
    x = 3 * torch.randn(5, 2, 7, 32) + 1
    back = dequantise(quantise(x, bits), bits, x.dtype)
    step = (x.amax(-1) - x.amin(-1)) / (2**bits - 1)
    assert ((back - x).abs().amax(-1) <= 0.55 * step + 2e-3).all()
    assert quantise(x, bits).shape[-1] == 32 * bits // 8 + 4
    assert dequantise(quantise(torch.full((1, 8), 2.5), bits, ), bits, x.dtype).tolist() == [[2.5] * 8]  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek-v2", "jamba"])
def test_codes_live_in_any_memory(name):
    if name not in ARCHITECTURES:
        pytest.skip(f"{name} is not registered")
    net, _ = model(name)
    x = torch.randint(0, V, (1, 30))
    straight, blocks = Quantised(Cache(T), 8), Blocks(256, T, block=4)
    text = blocks.new()
    got = []
    for a, b in ((0, 12), (12, 13), (13, 30)):
        one = net.logits(x[:, a:b], straight)
        two = net.logits(x[:, a:b], Quantised(PagedCache(blocks, [text]), 8))
        assert torch.allclose(one, two, atol=1e-4)
        got.append(one)
    want = net.logits(x)
    assert (torch.cat(got, 1) - want).abs().max() < 0.05 * want.abs().max()
    parts = [p for layer in straight.memory.layers.values() for p in layer]
    assert all(p.dtype == torch.uint8 for p in parts)
    assert straight.memory.nbytes - sum(t.nbytes for s in straight.memory.states.values() for t in s) == sum(
        p.nbytes for p in parts
    )


@pytest.mark.slow
def test_eight_bits_change_the_loss_by_less_than_half_a_percent(evidence):
    """A model that has learnt the text, read token by token with memories of floats, of 8 and of 4 bits."""
    import this

    text = "".join(this.d.get(c, c) for c in this.s).encode()
    x = torch.tensor(list(text))
    torch.manual_seed(0)
    net = language_model("llama", Tokens(64), ARCHITECTURES["llama"].scaled(2, 64, 64))
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(200):
        at = torch.randint(0, len(x) - 64, (8,))
        loss = -net.log_prob(torch.stack([x[a : a + 64] for a in at])).mean() / 64
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval().requires_grad_(False)
    rows = x[: len(x) // 64 * 64].reshape(-1, 64)
    inputs = torch.cat((torch.full((len(rows), 1), net.begin), rows[:, :-1]), 1)

    def nats(memory) -> float:
        logits = torch.cat([net.logits(inputs[:, t : t + 1], memory) for t in range(64)], 1)
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.flatten()))

    plain = nats(Cache(64))
    assert plain < 2.2  # it has learnt something
    for bits, most in ((8, 0.005), (4, 0.05)):
        evidence(
            id="AR-25", system="Memory of keys and values", claim=f"codes of {bits} bits: change of the loss",
            reference="the same model with a memory of float32", tolerance=most, unit="relative",
            reached=abs(nats(Quantised(Cache(64), bits)) / plain - 1),
        )  # fmt: skip
