"""What every recurrent layer must do: whole = any split of it, no padding, no other document, states of one size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from protea.nn.cache import Cache
from protea.nn.context import plain_context
from protea.nn.delta import GatedDeltaNet
from protea.nn.mamba import Mamba
from protea.nn.mamba2 import Mamba2
from protea.nn.mlstm import MLSTM
from protea.nn.recurrent import GRUCell, LSTMCell, Recurrent
from protea.nn.slstm import SLSTM

D = 16
LAYERS = {
    "Mamba": lambda: Mamba(D, d_state=4),
    "Mamba, biases and inner norms": lambda: Mamba(D, d_inner=24, d_state=4, d_conv=3, bias=True, norm_eps=1e-6),
    "Mamba-2": lambda: Mamba2(D, n_heads=4, d_head=8, d_state=8, n_groups=2, bias=True, chunk=4),
    "mLSTM": lambda: MLSTM(D, 2, chunk=4),
    "LSTM": lambda: Recurrent(LSTMCell(D, 24), D),
    "GRU": lambda: Recurrent(GRUCell(D, 24), D),
    "sLSTM": lambda: SLSTM(D, 2),
    "Gated delta net": lambda: GatedDeltaNet(D, 4, 2, 8, 8, chunk=4),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    made = LAYERS[request.param]()
    with torch.no_grad():
        for p in made.parameters():  # steps and gates away from their gentle beginnings
            p.add_(0.3 * torch.randn_like(p))
    return made


def run(layer, x, sizes, pad=None):
    cache, parts, start = Cache(x.shape[1], pad), [], 0
    for size in sizes:
        parts.append(layer(x[:, start : start + size], cache.context(size)))
        cache.advance(size)
        start += size
    return torch.cat(parts, 1), cache


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 13, [5, 8], [1, 11, 1], [7, 1, 5]])
def test_a_text_in_parts_is_the_whole(layer, sizes):
    x = torch.randn(2, 13, D)
    whole = layer(x, plain_context(13))
    assert (run(layer, x, sizes)[0] - whole).abs().max() < 1e-5 * whole.abs().max()


@torch.no_grad()
def test_nothing_later_is_seen(layer):
    x, changed = torch.randn(1, 13, D).repeat(2, 1, 1), torch.randn(8, D)
    x[1, 5:] = changed
    a, b = layer(x, plain_context(13))
    assert torch.allclose(a[:5], b[:5], atol=1e-6) and not torch.allclose(a[5:], b[5:], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [None, [13], [2, 11], [9, 1, 1, 2]])
def test_padding_is_not_seen(layer, sizes):
    x, pad = torch.randn(3, 13, D), torch.tensor([0, 3, 8])
    got = layer(x, plain_context(13, pad=pad)) if sizes is None else run(layer, x, sizes, pad)[0]
    for row, p in enumerate(pad.tolist()):
        want = layer(x[row : row + 1, p:], plain_context(13 - p))[0]
        assert (got[row, p:] - want).abs().max() < 1e-5 * want.abs().max()


@torch.no_grad()
def test_documents_of_a_packed_row_are_apart(layer):
    x, cuts = torch.randn(2, 13, D), [[0, 4, 5, 13], [0, 1, 9, 13]]
    documents = torch.tensor([[i for i in range(3) for _ in range(c[i], c[i + 1])] for c in cuts])
    got = layer(x, plain_context(13, documents=documents))
    for row, c in enumerate(cuts):
        for a, b in pairwise(c):
            want = layer(x[row : row + 1, a:b], plain_context(b - a))[0]
            assert (got[row, a:b] - want).abs().max() < 1e-5 * want.abs().max()


@torch.no_grad()
def test_what_is_remembered_does_not_grow(layer):
    x = torch.randn(2, 40, D)
    short, long = (run(layer, x[:, :n], [1, *[1] * (n - 1)])[1] for n in (3, 40))
    assert short.nbytes == long.nbytes > 0 and not long.layers


def test_gradients_reach_every_parameter_and_are_finite(layer):
    x = torch.randn(2, 13, D, requires_grad=True)
    layer(x, plain_context(13, pad=torch.tensor([0, 4]))).square().mean().backward()
    for name, p in [*layer.named_parameters(), ("x", x)]:
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name
