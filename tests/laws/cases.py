"""One line a model for the law tests: its name in MODELS, a tiny configuration, and the tiny data it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.rng import Streams
from protea.space import Rows, Space
from protea.spaces import Image, Series, Table, Tokens, Vector


def vector() -> tuple[Space, Rows]:
    """Two correlated blobs in the plane."""
    streams = Streams(11, 160)
    z = streams.normal(2, dtype=torch.float64)
    side = (streams.uniform(1, dtype=torch.float64) < 0.4).double()
    x = torch.stack((2 + 1.5 * side[:, 0] + 0.4 * z[:, 0], -1 + z[:, 0] - 0.5 * z[:, 1]), 1)
    return Vector(("a", "b")), Rows(x, None, torch.arange(160))


def labelled() -> tuple[Space, Rows]:
    """Points in the plane whose label says on which side they lie."""
    space, rows = vector()
    return Vector(space.names, ("left", "right")), Rows(rows.x, (rows.x[:, 0] > 2.6).long(), rows.ids)  # type: ignore[attr-defined]


def image() -> tuple[Space, Rows]:
    """4 x 4 pictures of 4 levels: bright on the left or on the right, by class."""
    streams = Streams(12, 96)
    y = (streams.uniform(1)[:, 0] < 0.5).long()
    bright = torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]])[y][:, None, None, :]
    noise = (streams.uniform(1, 4, 4) * 3).long() - 1
    x = (bright + noise).clamp(0, 3).to(torch.uint8)
    return Image(1, 4, 4, levels=4, classes=("left", "right")), Rows(x, y, torch.arange(96))


def binary() -> tuple[Space, Rows]:
    """3 x 3 pictures of two levels: a row or a column is set, each pixel flipped now and then."""
    streams = Streams(15, 96)
    which, where = (streams.uniform(2) * torch.tensor([2, 3])).long().T
    lines = torch.zeros(96, 3, 3)
    lines[torch.arange(96), where] = 1.0
    x = torch.where(which[:, None, None] == 0, lines, lines.mT) != (streams.uniform(3, 3) < 0.05)
    return Image(1, 3, 3, levels=2), Rows(x.to(torch.uint8)[:, None], None, torch.arange(96))


def table() -> tuple[Space, Rows]:
    """A real column, an integer with missing values, a category with missing values, a boolean."""
    streams = Streams(13, 120)
    z = streams.normal(2, dtype=torch.float64).numpy()
    u = streams.uniform(3).numpy()
    frame = pd.DataFrame({
        "real": z[:, 0],
        "count": pd.array((3 + 2 * z[:, 0] + z[:, 1]).round().astype(int), dtype="Int64"),
        "city": pd.Series(["Bonn", "Ulm", "Kiel"] * 40),
        "paid": u[:, 0] < 0.3,
    })  # fmt: skip
    frame.loc[u[:, 1] < 0.15, "count"] = pd.NA
    frame.loc[u[:, 2] < 0.1, "city"] = None
    space = Table.infer(frame)
    return space, Rows(space.encode(frame), None, torch.arange(120))


def target_table() -> tuple[Space, Rows]:
    """The same table with a column of labels to predict, some of which are missing."""
    space, rows = table()
    assert isinstance(space, Table)
    return replace(space, target="city"), rows


def tokens() -> tuple[Space, Rows]:
    """Words of 6 letters over an alphabet of 4, each letter likely to repeat or follow the one before."""
    u = Streams(14, 96).uniform(6)
    x = [torch.zeros(96, dtype=torch.int64)]
    for t in range(6):
        x.append((x[-1] + (u[:, t] > 0.4).long() + (u[:, t] > 0.85).long()) % 4)
    return Tokens(6, vocabulary=4, tokenizer="ids"), Rows(torch.stack(x[1:], 1), None, torch.arange(96))


def series() -> tuple[Space, Rows]:
    """Walks of 0 to 5 steps in the plane that turn about, with gaps."""
    streams = Streams(15, 96)
    step = streams.normal(5, 2, dtype=torch.float64)
    x = step.cumsum(1) + torch.tensor([0.0, 3.0]).double()
    u = streams.uniform(7)
    x[(u[:, :5] < 0.1)[..., None].expand_as(x)] = float("nan")
    x[torch.arange(5) >= (u[:, 5:6] * 6).long()] = float("nan")
    return Series(("x", "y"), 5), Rows(x, None, torch.arange(96))


def labelled_series() -> tuple[Space, Rows]:
    """The same, where labels shift the walks."""
    space, rows = series()
    y = (Streams(16, 96).uniform(1)[:, 0] < 0.5).long()
    x = rows.x + 4 * y[:, None, None]
    return Series(space.names, 5, ("low", "high")), Rows(x, y, rows.ids)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Case:
    """A model on a data set, small enough for a law to be tried in a second."""

    model: str
    data: Callable[[], tuple[Space, Rows]]
    config: dict[str, Any] = field(default_factory=dict)
    idle: tuple[str, ...] = ()  # parameters that no gradient can reach, for a reason given in the list below

    def __str__(self) -> str:
        return f"{self.model}-{self.data.__name__}"


def cases(model: str, *data: Callable[[], tuple[Space, Rows]], idle: tuple[str, ...] = (), **config: Any) -> list[Case]:
    return [Case(model, d, config, idle) for d in data]


CONTINUOUS = (vector, labelled, image, table)

CASES: list[Case] = [
    *cases("marginals", *CONTINUOUS, bins=8),
    *cases("naive-bayes", labelled, image, target_table, bins=8),
    *cases("mixture", *CONTINUOUS, target_table, k=2, bins=8),
    *cases("mixture", table, k=2, kinds=("gaussian", "gaussian", "categorical", "bernoulli")),
    *cases("gmm", *CONTINUOUS, k=2),
    *cases("tmm", *CONTINUOUS, k=2),
    *cases("flow", *CONTINUOUS, transforms=2, width=8, depth=1, bins=4),
    *cases("vae", *CONTINUOUS, latent=2, width=8, depth=1, channels=4),
    # A critic's last bias drops out of E[f(real)] - E[f(fake)].
    *cases("wgan", *CONTINUOUS, idle=("inner.critic.last.1.bias",), latent=2, width=8, depth=1, channels=4),
    *cases("diffusion", *CONTINUOUS, width=8, depth=1, multipliers=(1, 2), steps=5),
    *cases("diffusion", image, network="unet", patch=2, width=8, depth=1, multipliers=(1,), steps=3),
    *cases("flow-matching", *CONTINUOUS, width=8, depth=1, multipliers=(1, 2), steps=5),
    *cases("rbm", *CONTINUOUS, binary, hidden=8, sweeps=40, chains=16),
    *cases("boltzmann", *CONTINUOUS, binary, hidden=4, sweeps=20, chains=16),
    *cases("dbm", *CONTINUOUS, binary, hidden=8, top=4, sweeps=40, chains=16, pretrain=4),
    *cases("ngram", tokens, order=3),
    *cases("hmm", tokens, series, states=3),
    *cases("hmm", labelled_series, states=2, chains=2, mixtures=2),
    *cases("transformer", tokens, n_layers=1, d_model=16, n_heads=2, n_kv_heads=2, d_ff=16, context=8),
    *cases(
        "blt",
        tokens,
        encoder=[1, 8, 2, 2, 8],
        latent=[1, 16, 2, 1, 16],
        decoder=[1, 8, 2, 2, 8],
        patcher=[1, 8, 2, 2, 8],
        ngrams=[3, 4],
        buckets=16,
        context=8,
    ),
    *cases("rnn", tokens, n_layers=1, d_model=8, d_hidden=8, cell="gru", context=8),
    *cases("mamba", tokens, n_layers=1, d_model=8, d_state=4, dt_rank=2, context=8),
    *cases("mamba2", tokens, n_layers=1, d_model=8, d_head=8, d_state=4, context=8),
    *cases("xlstm", tokens, n_layers=2, d_model=16, n_heads=2, d_qk=8, d_v=16, d_ff=16, context=8, slstm=[1]),
    *cases(
        "jamba", tokens, n_layers=2, d_model=16, n_heads=2, d_ff=16, d_state=4, dt_rank=2, attention=[2, 1], context=8
    ),
]
# Without rotary positions q . (k + b) adds the same to every score of a query: its gradient is rounding.
KEY_BIAS = ("net.blocks.0.branches.0.mixer.k.bias",)
CASES += [
    case
    for name, architecture in ARCHITECTURES.items()
    if name not in {case.model for case in CASES}
    for case in cases(
        name, tokens, idle=KEY_BIAS if name.startswith("gpt") else (), **asdict(architecture.scaled(1, 16, 8))
    )
]
