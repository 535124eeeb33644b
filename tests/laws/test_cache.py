"""The cache: capacity, and the masks a context gives to tokens that follow it."""

from __future__ import annotations

import pytest
import torch

from protea.errors import DataError
from protea.nn.cache import Cache, causal_context


def test_layers_write_and_the_engine_advances():
    cache = Cache(4)
    for layer in (0, 1):
        k, v = cache.extend(layer, torch.full((2, 3, 2, 5), layer + 1.0), torch.zeros(2, 3, 2, 7))
        assert k.shape == (2, 3, 2, 5) and v.shape == (2, 3, 2, 7) and (k == layer + 1).all()
    assert cache.length == 0
    assert cache.extend(0, torch.full((2, 3, 1, 5), 9.0), torch.zeros(2, 3, 1, 7))[0].eq(9).all()  # not kept: rewritten
    cache.advance(2)
    assert cache.extend(1, torch.zeros(2, 3, 2, 5), torch.zeros(2, 3, 2, 7))[0][0, 0, :, 0].tolist() == [2, 2, 0, 0]
    assert cache.nbytes == 2 * 2 * 3 * 4 * (5 + 7) * 4
    cache.advance(2)
    with pytest.raises(DataError, match="cannot hold 5"):
        cache.extend(0, torch.zeros(2, 3, 1, 5), torch.zeros(2, 3, 1, 7))


@pytest.mark.parametrize(("held", "new"), [(0, 1), (0, 4), (3, 1), (3, 4)])
def test_every_token_sees_itself_and_all_before_it(held, new):
    ctx = causal_context(new, Cache(9, length=held))
    assert ctx.positions.tolist() == list(range(held, held + new))
    if ctx.mask is not None:
        seen = ctx.mask[0, 0]
    elif ctx.causal:
        seen = torch.ones(new, new, dtype=torch.bool).tril()
    else:
        seen = torch.ones(new, held + new, dtype=torch.bool)
    assert seen.tolist() == [[s <= held + t for s in range(held + new)] for t in range(new)]
