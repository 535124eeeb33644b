r"""Stepwise EM: the parameters move after every minibatch, so that one pass over much data may be enough.

    s_{t+1} = (1 - rho_t) s_t + rho_t sbar(batch_t; theta_t),    theta_{t+1} = maximise(N s_{t+1}),
    rho_t = (t + 2)^{-kappa},    1/2 < kappa <= 1

where sbar are expected statistics of one row on average and N the rows they stand for (which a prior is weighed
against). The first batch sets s. Under the usual conditions it converges to a stationary point of the likelihood, not
monotonically; exact EM from there on polishes it. The memory taken does not depend on the number of rows.

Cappe & Moulines 2009, "On-line expectation-maximization algorithm for latent data models"; Liang & Klein 2009,
"Online EM for unsupervised models" (whose kappa = 0.7 is the default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protea.core import Batch, Countable, Learner, Stats
from protea.errors import ConfigError, Diverged
from protea.training import parallel


class OnlineEM(Learner):
    """Stepwise EM of a `Countable` model with dense statistics.

    Args:
        model: a `Countable`.
        kappa: how fast old batches are forgotten, in (1/2, 1]; 1 forgets nothing.
        rows: N; None counts the rows of the first epoch as they come.
        batch_size: rows of a batch; some tens for every member.

    Raises:
        ConfigError: kappa outside (1/2, 1].
        Diverged: (`step`) a batch of non-finite log-likelihood.

    >>> from protea.distributions.gaussian import Gaussian
    >>> from protea.models.classical.mixture import Mixture
    >>> from protea.rng import Streams
    >>> model = Mixture(Gaussian(1, (1,)), 1); learner = OnlineEM(model, kappa=1.0)
    >>> for value in (0.0, 2.0, 1.0):
    ...     _ = learner.step(Batch(torch.tensor([[value], [value + 6]]), None, Streams(0, 2)))
    >>> learner.steps
    3
    """

    def __init__(
        self, model: Countable, *, kappa: float = 0.7, rows: int | None = None, batch_size: int | None = 4096
    ) -> None:
        if not 0.5 < kappa <= 1:
            raise ConfigError(f"kappa={kappa} is outside (1/2, 1].", "Try 0.7.")
        self.model, self.kappa, self.rows, self.batch_size = model, float(kappa), rows, batch_size
        self.steps, self.seen, self.epochs = 0, 0.0, 0
        self.stats: Stats = {}
        parallel.broadcast_(model)

    @torch.no_grad()
    def step(self, batch: Batch) -> Mapping[str, float]:
        found = {name: value.detach().double() for name, value in self.model.expect(batch.x, batch.y).items()}
        parallel.add_([found[name] for name in sorted(found)])
        count = float(found["count"])
        log_prob = float(found["log_prob"]) / max(count, 1.0)
        if not math.isfinite(log_prob):
            raise Diverged(f"Stepwise EM met a log-likelihood of {log_prob} at step {self.steps}.",
                           "Values out of the model's support have probability 0.")  # fmt: skip
        rho = (self.steps + 2) ** -self.kappa if self.stats else 1.0
        old = self.stats or {name: torch.zeros_like(value) for name, value in found.items()}
        self.stats = {name: old[name] + rho * (value / max(count, 1.0) - old[name]) for name, value in found.items()}
        self.seen += count if self.epochs == 0 else 0.0
        total = float(self.rows or self.seen)
        self.model.maximise({name: total * value for name, value in self.stats.items()})
        self.steps += 1
        return {"loss": -log_prob, "log_prob": log_prob}

    def end_epoch(self) -> Mapping[str, float]:
        self.epochs += 1
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.stats), {"steps": self.steps, "seen": self.seen, "epochs": self.epochs}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        device = next((t.device for t in (*self.model.parameters(), *self.model.buffers())), torch.device("cpu"))
        self.stats = {name: t.to(device).clone() for name, t in tensors.items()}
        self.steps, self.seen, self.epochs = int(values["steps"]), float(values["seen"]), int(values["epochs"])
