r"""Expectation-maximisation over minibatches and ranks (Dempster, Laird and Rubin 1977).

One epoch adds the expected statistics of all rows under the present parameters, then maximises:

    S_t = \sum_i E[s(x_i, z) | x_i; \theta_t],      \theta_{t+1} = \arg\max_\theta Q(\theta; S_t).

The pass that computes S_t also measures the log-likelihood of theta_t, which exact EM never lowers; with a prior on the
parameters it is log p(x | theta) + log p(theta) that never falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protea.core import Batch, Countable, Learner
from protea.errors import Diverged
from protea.training import parallel
from protea.training.checkpoint import load_weights


class EM(Learner):
    """Sum additive statistics, then maximise, until the log-likelihood settles.

    Args:
        model: a `Countable`.
        tolerance: converged when the mean log-likelihood of a row rises by less than this fraction of itself.
        epochs: converged after so many passes (1 for models that only count); None for no such limit.
        batch_size: rows of a batch; results do not depend on it beyond rounding.

    If a likelihood would fall (regularised or approximate steps), the best parameters are restored.

    >>> class Coin(Countable):
    ...     def __init__(self): super().__init__(); self.register_buffer("p", torch.tensor(0.5, dtype=torch.float64))
    ...     def draw(self, rng, cond=None): return (rng.uniform(1) < self.p).long()
    ...     def expect(self, x, cond=None):
    ...         ones, n = x.double().sum(), torch.tensor(float(len(x)))
    ...         return {"ones": ones, "count": n, "log_prob": ones * self.p.log() + (n - ones) * (1 - self.p).log()}
    ...     def maximise(self, stats): self.p.copy_(stats["ones"] / stats["count"])
    >>> from protea.rng import Streams
    >>> model = Coin(); learner = EM(model)
    >>> _ = learner.step(Batch(torch.tensor([[1], [1], [1], [0]]), None, Streams(0, 4))), learner.end_epoch()
    >>> float(model.p)
    0.75
    """

    by_epoch = True

    def __init__(
        self, model: Countable, *, tolerance: float = 1e-6, epochs: int | None = None, batch_size: int | None = 4096
    ) -> None:
        self.model, self.tolerance, self.batch_size = model, tolerance, batch_size
        self.limit, self.epochs = epochs, 0
        self.stats: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}  # parameters of the epoch before, and their likelihood
        self.log_prob = -math.inf
        self._converged = False
        parallel.broadcast_(model)

    @torch.no_grad()
    def step(self, batch: Batch) -> Mapping[str, float]:
        if len(batch.x):
            for name, value in self.model.expect(batch.x, batch.y).items():
                value = value.detach().double() if value.is_floating_point() else value.detach()
                self.stats[name] = self.stats[name] + value if name in self.stats else value.clone()
        log_prob = float(self.stats["log_prob"])
        if not math.isfinite(log_prob) and (self.epochs or log_prob != -math.inf):  # untrained, -inf is an answer
            ids = batch.rng.ids.tolist()
            raise Diverged(
                f"EM met a non-finite log-likelihood in epoch {self.epochs}: first bad tensor: statistic log_prob "
                f"({log_prob}); rows of the batch: {', '.join(map(str, ids[:16]))}"
                f"{' ...' if len(ids) > 16 else ''}.",
                "Look at the rows named: values out of the model's support have probability 0.",
            )
        return {}

    @torch.no_grad()
    def end_epoch(self) -> Mapping[str, float]:
        parallel.add_([self.stats[name] for name in sorted(self.stats)])
        count = float(self.stats["count"])
        log_prob = float(self.stats["log_prob"]) / count + float(self.model.log_prior()) / count  # what EM raises
        gain = log_prob - self.log_prob
        if gain < 0:  # the last step went down: take it back
            load_weights(self.model, self.before, "the state before")
            log_prob, self._converged = self.log_prob, True
        elif gain <= self.tolerance * abs(log_prob):
            self._converged = True
        else:
            self.before = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
            self.model.maximise(self.stats)
        self.log_prob = log_prob
        self.stats = {}
        self.epochs += 1
        if self.limit is not None and self.epochs >= self.limit:
            self._converged = True
        return {"loss": -log_prob, "log_prob": log_prob}

    @property
    def converged(self) -> bool:
        return self._converged

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"stats/{name}": t for name, t in _unfolded(self._summed()).items()}
        tensors |= {f"before/{name}": t for name, t in self.before.items()}
        log_prob = self.log_prob if math.isfinite(self.log_prob) else None
        return tensors, {"epochs": self.epochs, "log_prob": log_prob, "converged": self._converged}

    def _summed(self) -> dict[str, Tensor]:
        """This epoch's statistics over all ranks."""
        stats = {name: self.stats[name].clone() for name in sorted(self.stats)}
        parallel.add_(stats.values())
        return stats

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        device = next((t.device for t in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))
        part = {
            kind: {name[len(kind) :]: t.to(device).clone() for name, t in tensors.items() if name.startswith(kind)}
            for kind in ("stats/", "before/")
        }
        part["stats/"] = _folded(part["stats/"])
        # Summed statistics go to the first rank: the next sum over ranks counts them once.
        self.stats = {n: t if parallel.data_rank() == 0 else torch.zeros_like(t) for n, t in part["stats/"].items()}
        self.before = part["before/"]
        self.epochs, self._converged = int(values["epochs"]), bool(values["converged"])
        self.log_prob = -math.inf if values["log_prob"] is None else float(values["log_prob"])


def _unfolded(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics as plain tensors for a file: a sparse vector (counts of n-grams) as its keys, values and length."""
    out: dict[str, Tensor] = {}
    for name, t in stats.items():
        if t.is_sparse:
            t = t.coalesce()
            parts = {"keys": t.indices()[0], "values": t.values(), "length": torch.tensor(len(t))}
            out |= {f"{name}:{part}": value for part, value in parts.items()}
        else:
            out[name] = t
    return out


def _folded(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_unfolded`."""
    out = {name: t for name, t in stats.items() if ":" not in name}
    for name in {name.split(":")[0] for name in stats if ":" in name}:
        keys, values, length = (stats[f"{name}:{part}"] for part in ("keys", "values", "length"))
        size = (int(length),)
        out[name] = torch.sparse_coo_tensor(keys[None], values, size, is_coalesced=True, check_invariants=True)
    return out
