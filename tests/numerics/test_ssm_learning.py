"""What recurrent layers can and cannot learn: the synthetic tasks of their papers, at a minute each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from protea.models.autoregressive import jamba, llama, mamba, xlstm
from protea.nn.mamba import Mamba

Task = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # (rows, noise) to ids and targets, -100 where none


def learn(net: nn.Module, task: Task, steps: int, rate: float, rows: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    noise = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = task(rows, noise)
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(net: nn.Module, task: Task, rows: int = 512) -> float:
    x, y = task(rows, torch.Generator().manual_seed(1))
    asked = y >= 0
    return (net(x).argmax(-1) == y)[asked].float().mean().item()


# ---- selective copying (Gu & Dao 2023, section 4.1.1) ----

VALUES, COPIED, LENGTH = 8, 4, 20


def copying(n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four symbols among blanks at places that differ, to be said in order at the end."""
    x = torch.full((n, LENGTH + COPIED), VALUES)
    where = torch.rand(n, LENGTH, generator=noise).argsort(1)[:, :COPIED].sort(1).values
    said = torch.randint(0, VALUES, (n, COPIED), generator=noise)
    x.scatter_(1, where, said)
    x[:, LENGTH:] = VALUES + 1
    y = torch.full_like(x, -100)
    y[:, LENGTH:] = said
    return x, y


class Constant(nn.Module):
    """Delta', B and C that do not depend on the input: the state space is time-invariant."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(*x.shape[:-1], -1)


@pytest.mark.slow
@pytest.mark.parametrize("selective", [True, False])
def test_selective_copying_needs_selection(selective, evidence):
    net = mamba.build(mamba.MambaConfig(2, 32, d_state=16, dt_rank=2, tie=False), VALUES + 2, VALUES)
    if not selective:
        for module in net.modules():
            if isinstance(module, Mamba):
                module.select = Constant(sum(module.split))
    learn(net, copying, steps=500, rate=1e-2, rows=48)
    evidence(
        id="AR-21", system="Mamba", claim=f"selective copying, {'selective' if selective else 'time-invariant, gated'}",
        reference="1 = all symbols right" if selective else "fails (below 0.95)", reached=accuracy(net, copying),
        tolerance=0.95, at_least=selective, unit="accuracy",
    )  # fmt: skip


# ---- parity: state tracking (Beck et al. 2024, section 4.1) ----


def parity_of(length: int) -> Task:
    def task(n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, length), generator=noise)
        return x, x.cumsum(1) % 2

    return task


def up_to_20(n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    return parity_of(int(torch.randint(3, 21, (), generator=noise)))(n, noise)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sLSTM", "mLSTM", "transformer"])
def test_parity_needs_memory_mixing(kind, evidence):
    if kind == "transformer":
        net = llama.build(llama.LlamaConfig(2, 32, 2, 2, 64, context=80), 2, 2)
    else:
        slstm = (0,) if kind == "sLSTM" else ()
        net = xlstm.build(xlstm.XLSTMConfig(1, 32, 2, 32, 32, 64, slstm=slstm), 2, 2)
    learn(net, up_to_20, steps=400, rate=5e-3, rows=64)
    mixes = kind == "sLSTM"
    last = parity_of(80)

    def at_the_end(n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = last(n, noise)
        y[:, :40] = -100
        return x, y

    evidence(
        id="AR-22", system="xLSTM", claim=f"parity of 40 to 80 bits after learning up to 20, {kind}",
        reference="1 = all right" if mixes else "chance is 0.5", reached=accuracy(net, at_the_end),
        tolerance=0.95 if mixes else 0.6, at_least=mixes, unit="accuracy",
    )  # fmt: skip


# ---- associative recall: hybrids (Arora et al. 2023; Lieber et al. 2024) ----

KEYS, PAIRS = 16, 8


def recall(n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a key and a value, then the keys in another order: what were their values?"""
    keys = torch.rand(n, KEYS, generator=noise).argsort(1)[:, :PAIRS]
    values = torch.randint(0, KEYS, (n, PAIRS), generator=noise) + KEYS
    x = torch.stack((keys, values), 2).flatten(1)
    order = torch.rand(n, PAIRS, generator=noise).argsort(1)
    asked, answers = keys.gather(1, order), values.gather(1, order)
    y = torch.full((n, 3 * PAIRS), -100)
    y[:, 2 * PAIRS :] = answers
    return torch.cat((x, asked), 1), y


@pytest.mark.slow
@pytest.mark.parametrize("hybrid", [True, False])
def test_associative_recall_needs_attention(hybrid, evidence):
    """The same Mamba layers with a state of two entries a channel; every second one is attention, or none."""
    config = jamba.JambaConfig(
        4, 48, 2, 2, 48, d_state=2, dt_rank=2, attention=(2, 1) if hybrid else (9, 8), n_experts=1, d_conv=2, expand=1
    )
    net = jamba.build(config, 2 * KEYS, 2 * KEYS)
    learn(net, recall, steps=300, rate=3e-3, rows=48)
    kind = "attention every 2nd layer" if hybrid else "no attention"
    evidence(
        id="AR-23", system="Hybrid", claim=f"recall of 8 pairs, {kind}",
        reference="1 = all right" if hybrid else "fails (below 0.95)", reached=accuracy(net, recall), tolerance=0.95,
        at_least=hybrid, unit="accuracy",
    )  # fmt: skip


# ---- memory ----


@torch.no_grad()
def bytes_held(net: nn.Module, tokens: int) -> int:
    from protea.nn.cache import Cache

    cache = Cache(tokens)
    net(torch.zeros(1, tokens, dtype=torch.int64), cache)
    return cache.nbytes


def test_memory_of_a_state_space_is_constant_in_time(evidence):
    net = mamba.build(mamba.MambaConfig(3, 16, d_state=4, dt_rank=1), 7, 7)
    want = 4 * 3 * 32 * (4 + 3)  # layers x channels x (state and the convolution's last three), float32
    grown = {t: bytes_held(net, t) for t in (8, 64, 512)}
    evidence(
        id="AR-21", system="Mamba", claim="bytes remembered after 8, 64 and 512 tokens, less the formula's",
        reference="4 L D (N + K - 1)", reached=max(abs(n - want) for n in grown.values()), tolerance=0, unit="bytes",
    )  # fmt: skip


@pytest.mark.parametrize("period", [2, 4, 8])
def test_memory_of_a_hybrid_grows_by_one_part_in_k(period, evidence):
    def slope(net: nn.Module) -> float:
        return (bytes_held(net, 160) - bytes_held(net, 32)) / 128

    size = {"n_layers": 8, "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "d_ff": 16}
    net = jamba.build(
        jamba.JambaConfig(**size, d_state=4, dt_rank=1, attention=(period, period - 1), n_experts=1), 7, 7
    )
    full = llama.build(llama.LlamaConfig(**size, context=160), 7, 7)
    evidence(
        id="AR-23", system="Hybrid", claim=f"bytes a token, attention every {period} layers, over full attention's",
        reference=f"1 / {period}", reached=abs(slope(net) / slope(full) - 1 / period), tolerance=0, unit="ratio",
    )  # fmt: skip
