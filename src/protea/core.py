"""The contract. Read this file first.

A *model* is a conditional distribution p(x | cond) you can draw from. What else it can do is its
*type*: the abstract classes below. How it learns is a separate object, a `Learner`. What a sample
is to the user (a picture, a row of a table, a text) belongs to its `Space` (see `space.py`).

Shapes: B rows of a batch, N rows of a data set, `event` the shape of one sample in canonical units.
Units: log-densities are in nats, of the canonical units of the space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from protea.rng import Streams
from protea.space import Rows, Space

Stats = dict[str, Tensor]  # additive sufficient statistics


class Batch(NamedTuple):
    """What a loss sees: x (B, *event), labels y (B,) or None, and one random stream for each row."""

    x: Tensor
    y: Tensor | None
    rng: Streams


class Model(nn.Module, ABC):
    """A conditional distribution p(x | cond) you can draw from.

    `cond` is None or (B,) int64 labels; a conditional model asked without labels draws them from
    the class frequencies it was trained on.
    """

    space: Space
    block: int = 64  # samples are computed in aligned blocks of this fixed size

    @abstractmethod
    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        """One sample for each stream: (B, *event). Authors write this; users call `sample`."""

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        """Set data-dependent buffers before training (scales, k-means++ centres). Default: none."""

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None, *, rng: int | Streams = 0) -> Tensor:
        """Draw n samples (n, *event); sample i depends on the seed and on i alone, bit for bit.

        Floating-point kernels may round differently for another batch shape, so samples are always
        computed in whole aligned blocks: sample i sits in slot i mod `block`, whatever n is.

        Args:
            n: how many; 0 is allowed.
            cond: None, or (n,) labels.
            rng: a seed for samples 0 .. n-1, or `Streams` that name which samples are wanted.
        """
        streams = rng if isinstance(rng, Streams) else Streams(rng, n)
        if len(streams) != n:
            raise ValueError(f"{n} samples were asked for, but {len(streams)} streams were given.")
        device = next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        out: Tensor | None = None
        which = streams.ids // self.block
        for b in which.unique().tolist():
            here = (which == b).nonzero()[:, 0]
            slots = streams.ids[here] % self.block
            full = Streams(streams.seed, torch.arange(b * self.block, (b + 1) * self.block), device)
            labels = None
            if cond is not None:
                labels = torch.zeros(self.block, dtype=torch.int64, device=device)
                labels[slots] = cond[here.to(cond.device)].to(device)
            x = self.draw(full, labels).cpu()
            out = x.new_empty((n, *x.shape[1:])) if out is None else out
            out[here] = x[slots]
        return torch.empty((0, *self.space.event), dtype=self.space.dtype) if out is None else out


class Normalised(Model):
    """A model with an exact, normalised density."""

    @abstractmethod
    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Exact log p(x | cond) in nats, (B,)."""


class Bounded(Model):
    """A model with a stochastic lower bound of its log-likelihood."""

    importance: bool = True  # E[exp(bound)] <= p(x), as of importance weights; if not, draws may only be averaged

    @abstractmethod
    def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        """(B,) nats with E[bound] <= log p(x | cond); tightens as the number k of draws grows."""


class Energy(Model):
    """An unnormalised density."""

    @abstractmethod
    def energy(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """E(x) with p(x) proportional to exp(-E(x)), (B,)."""


class Denoises(Model):
    """A model of E[x_0 | x_t] along a path of noise."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], shaped as x_t; t (B,) in [0, 1]."""


class NextToken(Model):
    """A model of the next token given those before it."""

    @abstractmethod
    def logits(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """(B, T) tokens to (B, T, V) logits of the tokens that follow; causal.

        With a cache, the tokens continue those it remembers, and it remembers them too.
        """

    @abstractmethod
    def new_cache(self, batch: int, length: int) -> Any:
        """An empty cache for `logits` of `batch` texts of up to `length` tokens."""


class Encodes(Model):
    """A model with latent variables it can infer."""

    @abstractmethod
    def encode(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """q(z | x, cond)."""

    @abstractmethod
    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """p(x | z, cond)."""


class Countable(Model):
    """A model that learns from additive expected statistics (EM; counting is its one-step case)."""

    @abstractmethod
    def expect(self, x: Tensor, cond: Tensor | None = None) -> Stats:
        """Expected sufficient statistics of a batch; they add over batches and ranks.

        The entries "log_prob" (sum over rows, nats) and "count" (rows) are always there.
        """

    @abstractmethod
    def maximise(self, stats: Stats) -> None:
        """Set the parameters to the maximiser given the statistics of the whole data set."""

    def log_prior(self) -> Tensor | float:
        """log p(parameters) up to a constant: what `maximise` weighs beside the likelihood. Default: none."""
        return 0.0


class Conditionable(Model):
    """A model that can be conditioned on observed entries."""

    @abstractmethod
    def given(self, x: Tensor, observed: Tensor) -> Model:
        """p(. | x[observed]): draws return the observed entries unchanged; `observed` is boolean, shaped as x."""


class Loss(NamedTuple):
    """A sum over items and their count, so that the mean over any accumulation is exact."""

    total: Tensor  # scalar
    count: Tensor | float  # items summed (rows or tokens)


@dataclass(frozen=True)
class Phase:
    """One update of one group of parameters: minimise the mean of `loss` with respect to `params`."""

    name: str
    params: Sequence[nn.Parameter]
    loss: Callable[[Batch], Loss]
    every: int = 1  # updated on every n-th step


class Learner(ABC):
    """How a model learns. The training loop knows nothing else."""

    model: Model
    batch_size: int | None = None  # rows of a global batch; None lets the loop choose
    horizon: int | None = None  # planned steps, set by the loop once they are known; for schedules
    by_epoch: bool = False  # the model changes only at the ends of epochs, so a run stops only there

    @abstractmethod
    def step(self, batch: Batch) -> Mapping[str, float]:
        """Learn from one global batch (under several processes, from this rank's rows of it); returns figures."""

    def end_epoch(self) -> Mapping[str, float]:
        """Called after every pass over the data; returns figures to log."""
        return {}

    @property
    def converged(self) -> bool:
        """True when more epochs would not change the model."""
        return False

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        """The model with the weights it is judged and saved by (their average, where one is kept)."""
        yield self.model

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resume needs beside the model's weights: tensors, and JSON values."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


def capabilities(model: Model | type[Model]) -> list[str]:
    """The names of the capabilities of a model, for people.

    >>> capabilities(Normalised)
    ['Normalised']
    """
    cls = model if isinstance(model, type) else type(model)
    kinds: Iterable[type] = (Normalised, Bounded, Energy, Denoises, NextToken, Encodes, Countable, Conditionable)
    return [kind.__name__ for kind in kinds if issubclass(cls, kind)]
