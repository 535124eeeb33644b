r"""Between generative and discriminative: two sets of parameters, tied by a prior (Bishop & Lasserre).

    L(theta_D, theta_G) = sum_labelled log p(y | x, theta_D) + sum_all log p(x | theta_G)
                          - |theta_D - theta_G|^2 / (2 sigma^2) + log p(theta_G) - l2/2 |w_D|^2

With sigma = 0 the two are one and L is the log-likelihood of rows with and without labels: the generative classifier.
With sigma = inf rows without labels say nothing about theta_D: the discriminative one. Between, they pull at it.

Here p(x, y | theta) is the Bernoulli naive Bayes in natural parameters, theta = (a, w),

    log p(x, y) = log softmax(a)_y + sum_j [x_j w_yj - log(1 + exp w_yj)],

whose p(y | x) is logistic regression; its prior is Lidstone's, alpha sum_yj [log p_yj + log(1 - p_yj)]. So both ends
are known: `BernoulliNB(alpha)` and softmax regression with the penalty l2.

Source: Bishop & Lasserre 2007, "Generative or discriminative? Getting the best of both worlds"; Minka 2005,
"Discriminative models, not discriminative training".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from protea.errors import ConfigError, DataError

ROUNDS = 400  # of L-BFGS at most


class Theta(NamedTuple):
    """Natural parameters of a Bernoulli naive Bayes: a (K,) and w (K, D)."""

    a: Tensor
    w: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y) of rows x (B, D), (B, K)."""
        return torch.log_softmax(self.a, 0) + x @ self.w.T - softplus(self.w).sum(1)

    def log_posterior(self, x: Tensor) -> Tensor:
        """log p(y | x), (B, K)."""
        return torch.log_softmax(self.log_joint(x), 1)


class Hybrid(NamedTuple):
    """A trained classifier, and the density it is tied to.

    Args:
        discriminative: theta_D, which classifies.
        generative: theta_G, which draws and scores.
        objective: L at the optimum, nats.
    """

    discriminative: Theta
    generative: Theta
    objective: float


def fit_hybrid(
    x: Tensor, y: Tensor, classes: int, sigma: float, unlabelled: Tensor | None = None, *, alpha: float = 1.0,
    l2: float = 1e-3,
) -> Hybrid:  # fmt: skip
    """Maximise L by L-BFGS, from the counts of the labelled rows.

    Args:
        x: labelled rows (N, D) of 0 and 1.
        y: their labels (N,), 0 .. classes - 1.
        classes: K.
        sigma: of the tie; 0 for generative, math.inf for discriminative.
        unlabelled: further rows (M, D).
        alpha: Lidstone's pseudo-count.
        l2: penalty of w_D, so that separable classes have a solution.

    Raises:
        ConfigError: sigma, alpha or l2 below 0. DataError: rows or labels that do not fit.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    >>> found = fit_hybrid(x, torch.tensor([0, 0, 1, 1]), 2, sigma=0.0, l2=0.0)
    >>> found.generative.w.sigmoid()[:, 0]  # (2 + 1) / (2 + 2), (0 + 1) / (2 + 2)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if min(sigma, alpha, l2) < 0:
        raise ConfigError(f"sigma {sigma}, alpha {alpha} and l2 {l2} must not be negative.", "Give 0 or more.")
    rows = x if unlabelled is None else torch.cat((x, unlabelled))
    if rows.ndim != 2 or not bool(((rows == 0) | (rows == 1)).all()):
        raise DataError(f"Rows of shape {tuple(rows.shape)} are not 0 and 1.", "Binarise them: (x > 7).")
    if len(y) != len(x) or len(x) == 0 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise DataError(f"{len(y)} labels of {len(x)} rows outside 0 .. {classes - 1}.", "Give a label for each row.")
    x, rows = x.double(), rows.double()
    start = _counted(x, y, classes, max(alpha, 0.1))
    shapes = [start.a.shape, start.w.shape]
    tied = sigma == 0
    flat = torch.cat([t.flatten() for t in (start if tied else (*start, *start))])
    flat = flat.detach().clone().requires_grad_(True)

    def parts() -> tuple[Theta, Theta]:
        sizes = [math.prod(s) for s in shapes] * (1 if tied else 2)
        values = [v.view(s) for v, s in zip(flat.split(sizes), shapes * 2)]
        d = Theta(values[0], values[1])
        return d, d if tied else Theta(values[2], values[3])

    def loss() -> Tensor:
        d, g = parts()
        value = d.log_posterior(x).gather(1, y[:, None]).sum() + torch.logsumexp(g.log_joint(rows), 1).sum()
        value = value + alpha * (logsigmoid(g.w) + logsigmoid(-g.w)).sum() - l2 / 2 * d.w.square().sum()
        if not tied and math.isfinite(sigma):
            value = value - sum((p - q).square().sum() for p, q in zip(d, g)) / (2 * sigma**2)
        return -value / len(rows)

    optimiser = torch.optim.LBFGS(
        [flat], max_iter=ROUNDS, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        d, g = (Theta(*(p.clone() for p in theta)) for theta in parts())
        return Hybrid(d, g, -float(loss()) * len(rows))


def _counted(x: Tensor, y: Tensor, classes: int, alpha: float) -> Theta:
    """Naive Bayes of the labelled rows; a class without a row starts with a tenth of one."""
    hot = torch.nn.functional.one_hot(y, classes).double()
    n = hot.sum(0)
    p = (hot.T @ x + alpha) / (n + 2 * alpha)[:, None]
    return Theta((n + 0.1).log(), torch.logit(p))
