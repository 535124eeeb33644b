"""The cache: capacity, rings, padding, taking back, and the masks it gives to tokens that follow it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from protea.errors import DataError
from protea.nn.attention import GQA
from protea.nn.cache import Cache
from protea.nn.context import plain_context
from protea.nn.position import RoPE, rope_frequencies


def write(cache: Cache, layer: int, *new: torch.Tensor):
    return cache.context(new[0].shape[-2]).at(layer).remember(*new)[0]


def test_layers_write_and_the_engine_advances():
    cache = Cache(4)
    for layer in (0, 1):
        k, v = write(cache, layer, torch.full((2, 3, 2, 5), layer + 1.0), torch.zeros(2, 3, 2, 7))
        assert k.shape == (2, 3, 2, 5) and v.shape == (2, 3, 2, 7) and (k == layer + 1).all()
    assert cache.length == 0
    assert write(cache, 0, torch.full((2, 3, 1, 5), 9.0), torch.zeros(2, 3, 1, 7))[0].eq(9).all()  # not kept: rewritten
    cache.advance(2)
    assert write(cache, 1, torch.zeros(2, 3, 2, 5), torch.zeros(2, 3, 2, 7))[0][0, 0, :, 0].tolist() == [2, 2, 0, 0]
    assert cache.nbytes == 2 * 2 * 3 * 4 * (5 + 7) * 4
    cache.advance(2)
    with pytest.raises(DataError, match="cannot hold 5"):
        cache.context(1)


def grid(ctx, held: int, new: int) -> list[list[bool]]:
    """What a full layer's queries see, as lists."""
    _, seen = ctx.remember(torch.zeros(1, 1, new, 2))
    if seen.mask is not None:
        return seen.mask[0, 0].tolist()
    if seen.causal:
        return torch.ones(new, new, dtype=torch.bool).tril().tolist()
    return torch.ones(new, held + new, dtype=torch.bool).tolist()


@pytest.mark.parametrize(("held", "new"), [(0, 1), (0, 4), (3, 1), (3, 4)])
def test_every_token_sees_itself_and_all_before_it(held, new):
    cache = Cache(9)
    write(cache, 0, torch.zeros(1, 1, held, 2))
    cache.advance(held)
    ctx = cache.context(new)
    assert ctx.positions.tolist() == list(range(held, held + new))
    assert grid(ctx, held, new) == [[s <= held + t for s in range(held + new)] for t in range(new)]


def windowed(window: int | None) -> GQA:
    torch.manual_seed(0)
    return GQA(16, 4, 2, position=RoPE(rope_frequencies(4)), window=window)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 11, 40])
@torch.no_grad()
def test_a_ring_equals_the_whole_text_at_every_split(window, evidence):
    layer, x = windowed(window), torch.randn(2, 12, 16)
    whole, worst = layer(x, plain_context(12)), 0.0
    for first in range(1, 12):
        for step in (1, 2, 5):
            cache, parts = Cache(12), []
            cuts = [0, *range(first, 12, step), 12]
            for a, b in pairwise(cuts):
                parts.append(layer(x[:, a:b], cache.context(b - a)))
                cache.advance(b - a)
            worst = max(worst, (torch.cat(parts, 1) - whole).abs().max().item())
            assert cache.layers[0][0].shape[-2] == min(window, 12)  # never more than the window
    evidence(id="AR-19", system="Sliding-window attention", claim=f"rolling cache of {window}, 33 ways to cut a text",
             reference="no cache", reached=worst, tolerance=1e-5, unit="max abs")  # fmt: skip


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_tokens_taken_back_leave_no_trace(window):
    layer, x = windowed(window), torch.randn(1, 12, 16)
    whole, cache, out = layer(x, plain_context(12)), Cache(12, spare=4), []
    for a in (0, 3, 6, 9):
        layer(torch.randn(1, 3, 16), cache.context(3))  # a guess, three tokens long
        cache.advance(3)
        cache.retract(3)
        out.append(layer(x[:, a : a + 3], cache.context(3)))
        cache.advance(3)
    assert torch.allclose(torch.cat(out, 1), whole, atol=1e-5)
    with pytest.raises(DataError, match="taken back"):
        cache.retract(13)


@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(window):
    layer, x, pad = windowed(window), torch.randn(2, 8, 16), torch.tensor([3, 0])
    alone = layer(x[:1, 3:], plain_context(5))[0], layer(x[1:], plain_context(8))[0]
    cache, cached = Cache(8, pad), []
    for a, b in ((0, 4), (4, 5), (5, 8)):
        cached.append(layer(x[:, a:b], cache.context(b - a)))
        cache.advance(b - a)
    for got in (layer(x, plain_context(8, pad=pad)), torch.cat(cached, 1)):
        assert torch.allclose(got[0, 3:], alone[0], atol=1e-5) and torch.allclose(got[1], alone[1], atol=1e-5)
        assert got.isfinite().all()


@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(window):
    layer, x = windowed(window), torch.randn(1, 9, 16)
    packed = layer(x, plain_context(9, documents=torch.tensor([[7, 7, 7, 7, 2, 2, 9, 9, 9]])))
    apart = torch.cat([layer(x[:, a:b], plain_context(b - a)) for a, b in ((0, 4), (4, 6), (6, 9))], 1)
    assert torch.allclose(packed, apart, atol=1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "jamba", "xlstm", "rnn"])
@torch.no_grad()
def test_states_hold_nothing_of_the_text_behind_them(name, evidence):
    """What stays in memory after a prompt, storages and not views of them, does not grow with the prompt."""
    from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
    from protea.spaces import Tokens

    model = language_model(name, Tokens(64), ARCHITECTURES[name].scaled(2, 32, 64)).eval()
    held = []
    for t in (8, 64):
        cache = model.new_cache(1, 64)
        model.logits(torch.arange(t)[None], cache)
        held.append(sum(part.untyped_storage().nbytes() for state in cache.states.values() for part in state))
        assert held[-1] == sum(part.nbytes for state in cache.states.values() for part in state)
    evidence(id="AR-21", system="Recurrent memory", claim=f"bytes after 64 tokens less those after 8, {name}",
             reference="constant", unit="bytes", reached=held[1] - held[0], tolerance=0)  # fmt: skip
