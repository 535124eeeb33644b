r"""Recurrent layers: LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000) and GRU (Cho et al. 2014).

    LSTM   i, f, o = sigmoid(W x_t + R h_{t-1} + b),   g = tanh(W_g x_t + R_g h_{t-1} + b_g),
           c_t = f c_{t-1} + i g,   h_t = o tanh(c_t)
    GRU    r, z = sigmoid(W x_t + R h_{t-1} + b),      n = tanh(W_n x_t + b_n + r (R_n h_{t-1} + b_hn)),
           h_t = (1 - z) n + z h_{t-1}

h_{t-1} goes through a nonlinearity, so no scan applies: W x is computed for all tokens at once, the rest in a loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from protea.nn.context import Context
from protea.nn.ssm import restarts

State = tuple[Tensor, ...]


class Cell(nn.Module, ABC):
    """One step of a recurrence, and what it needs of the input.

    Args:
        d_in: width of x.
        d: width of h.
        gates: blocks of d rows of W, R and b.
        states: tensors of the state; the first is h.
    """

    def __init__(self, d_in: int, d: int, gates: int, states: int) -> None:
        super().__init__()
        self.d, self.states = d, states
        self.W = nn.Parameter(torch.empty(gates * d, d_in).uniform_(-(d**-0.5), d**-0.5))
        self.R = nn.Parameter(torch.empty(gates * d, d).uniform_(-(d**-0.5), d**-0.5))
        self.b = nn.Parameter(torch.zeros(gates * d))

    @abstractmethod
    def step(self, wx: Tensor, state: State) -> State:
        """The next state, from W x + b (B, gates d)."""

    def forward(self, x: Tensor, state: State | None = None, restart: Tensor | None = None) -> tuple[Tensor, State]:
        """h of all tokens (B, T, d) and the last state, of x (B, T, d_in).

        Args:
            x: inputs.
            state: what the last call returned; None for zeros.
            restart: (B, T), True where a text begins, that sees nothing before it; or None.
        """
        state = state or (x.new_zeros(len(x), self.d),) * self.states
        keep = None if restart is None else (~restart)[..., None].to(x.dtype).unbind(1)
        out = []
        for t, wx in enumerate(nn.functional.linear(x, self.W, self.b).unbind(1)):
            if keep is not None:
                state = tuple(s * keep[t] for s in state)
            state = self.step(wx, state)
            out.append(state[0])
        return torch.stack(out, 1), state


class LSTMCell(Cell):
    """Gates in the order i, f, g, o; the state is h, c.

    >>> h, (last, c) = LSTMCell(3, 4)(torch.zeros(2, 5, 3))
    >>> h.shape, torch.equal(h[:, -1], last)
    (torch.Size([2, 5, 4]), True)
    """

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__(d_in, d, 4, 2)
        with torch.no_grad():
            self.b[d : 2 * d] = 1.0  # remember at first (Jozefowicz et al. 2015)

    def step(self, wx: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = torch.addmm(wx, h, self.R.T).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class GRUCell(Cell):
    """Gates in the order r, z, n; the state is h.

    >>> GRUCell(3, 4)(torch.zeros(2, 5, 3))[0].shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__(d_in, d, 3, 1)
        self.b_hn = nn.Parameter(torch.zeros(d))

    def step(self, wx: Tensor, state: State) -> State:
        (h,) = state
        rh = h @ self.R.T
        d = self.d
        r, z = (wx[:, : 2 * d] + rh[:, : 2 * d]).sigmoid().chunk(2, -1)
        n = (wx[:, 2 * d :] + r * (rh[:, 2 * d :] + self.b_hn)).tanh()
        return ((1 - z) * n + z * h,)


class Recurrent(nn.Module):
    """A cell as a mixer: its h, projected back to the stream.

    Args:
        cell: of width d_in = d_model.
        d_model: width of the residual stream.

    >>> from protea.nn.context import plain_context
    >>> Recurrent(GRUCell(8, 12), 8)(torch.zeros(2, 5, 8), plain_context(5)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, cell: Cell, d_model: int) -> None:
        super().__init__()
        self.cell = cell
        self.o = nn.Linear(cell.d, d_model, bias=False)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, d_model) to the same."""
        state = ctx.cache.state(ctx.layer) if ctx.cache is not None else None
        h, state = self.cell(x, state, restarts(ctx))
        if ctx.cache is not None:
            ctx.cache.keep(ctx.layer, *state)
        return self.o(h)
