r"""One layer that is a softmax and a Gaussian mixture at once, on the features of a network (Hayashi's coupling).

Of features z in R^d, with one covariance Sigma for all classes (linear discriminant analysis),

    p(z | y) = N(mu_y, Sigma),  p(y) = pi_y    =>    p(y | z) = softmax(W z + b)_y,
    w_y = Sigma^-1 mu_y,   b_y = log pi_y - mu_y' Sigma^-1 mu_y / 2,

so the classifier p(y | z) and the density p(z) = sum_y pi_y N(z; mu_y, Sigma) share every parameter
(`GaussianSoftmax`), and rows without labels teach the classifier through p(z). Trained with features z = f(x):

    L = - mean_labelled log p(y | f(x)) + weight * mean_all U(x)                                        (`fit_coupled`)

U = -log p(f(x)) alone has no minimum: f maps every row to one point and p(z) grows without bound. What stops it here is
that U is a bound on nats of x, not of z. The features are noisy, q(z | x) = N(f(x), TAU^2 I), a network g reads the
row back, p(x | z) = N(g(z), s^2 I), and

    U(x) = E_q [-log p(x | z) - log p(z) + log q(z | x)]  >=  -log p(x).

The noise has a fixed entropy, so Sigma cannot shrink below it, and features that forget the row pay in -log p(x | z).
At weight 0 the noise, g and the density play no part: an ordinary softmax network.

Source of the layer: Hayashi 2023, "A hybrid of generative and discriminative models based on the Gaussian-coupled
softmax layer" (arXiv 2305.05912). The guard against collapse is ours, put together from Kingma & Welling 2014,
"Auto-encoding variational Bayes", with the mixture as its prior (Jiang et al. 2017, "Variational deep embedding").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from protea.errors import ConfigError, DataError
from protea.nn.mlp import ResidualMLP
from protea.rng import Streams, fold, permutation

TAU = 0.5  # of the features' noise; only its ratio to f's scale matters, and that is learnt
ROWS = 256  # of a step, of each kind
LOG_2PI = math.log(2 * math.pi)


class GaussianSoftmax(nn.Module):
    """p(y), p(z | y) and p(y | z) by one set of parameters: a, mu and R with Sigma^-1 = R R', R lower triangular.

    Args:
        features: d.
        classes: K.

    >>> head = GaussianSoftmax.of(torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0]]), torch.tensor([0.5, 0.5]))
    >>> head.linear()  # w = mu / 1, b = log 0.5 - 1/2
    (tensor([[-1.],
            [ 1.]], grad_fn=<MmBackward0>), tensor([-1.1931, -1.1931], grad_fn=<SubBackward0>))
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(classes))
        self.mu = nn.Parameter(torch.randn(classes, features))
        self.below = nn.Parameter(torch.zeros(features, features))  # of R's diagonal
        self.log_diagonal = nn.Parameter(torch.zeros(features))

    @classmethod
    def of(cls, mu: Tensor, sigma: Tensor, pi: Tensor) -> GaussianSoftmax:
        """The layer of known means (K, d), covariance (d, d) and priors (K,), in their dtype.

        Raises:
            ConfigError: shapes that do not fit, a prior that is not positive, or sigma not positive definite.
        """
        k, d = mu.shape
        if sigma.shape != (d, d) or pi.shape != (k,) or not bool((pi > 0).all()):
            raise ConfigError(
                f"Means {(k, d)}, covariance {tuple(sigma.shape)} and priors {pi.tolist()} do not fit.",
                f"Give ({d}, {d}) and {k} positive priors.",
            )
        factor, info = torch.linalg.cholesky_ex(sigma)
        if int(info):
            raise ConfigError("The covariance is not positive definite.", "Add a multiple of the identity.")
        root = torch.linalg.cholesky(torch.cholesky_inverse(factor))
        head = cls(d, k).to(mu.dtype)
        with torch.no_grad():
            for own, value in zip(
                (head.a, head.mu, head.below, head.log_diagonal),
                (pi.log(), mu, root.tril(-1), root.diagonal().log()),
            ):
                own.copy_(value)
        return head

    def root(self) -> Tensor:
        """R (d, d)."""
        return self.below.tril(-1) + torch.diag(self.log_diagonal.exp())

    def linear(self) -> tuple[Tensor, Tensor]:
        """W (K, d) and b (K,) of the softmax."""
        whitened = self.mu @ self.root()
        return whitened @ self.root().T, torch.log_softmax(self.a, 0) - whitened.square().sum(1) / 2

    def log_posterior(self, z: Tensor) -> Tensor:
        """log p(y | z), (B, K) of z (B, d): log_softmax(W z + b)."""
        w, b = self.linear()
        return torch.log_softmax(z @ w.T + b, 1)

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(z, y), (B, K), nats."""
        root = self.root()
        squares = ((z @ root)[:, None] - self.mu @ root).square().sum(2)
        constant = self.log_diagonal.sum() - z.shape[1] / 2 * LOG_2PI
        return torch.log_softmax(self.a, 0) + constant - squares / 2

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), (B,), nats."""
        return torch.logsumexp(self.log_joint(z), 1)


class Coupled(nn.Module):
    """Features, the coupled layer on them, and the network that reads rows back.

    Args:
        inputs: D, numbers in a row.
        classes: K.
        features: d.
        width: of the hidden layers of f and g.
    """

    def __init__(self, inputs: int, classes: int, features: int, width: int) -> None:
        super().__init__()
        self.f = ResidualMLP(inputs, features, width=width, depth=1)
        self.head = GaussianSoftmax(features, classes)
        self.g = ResidualMLP(features, inputs, width=width, depth=1)
        self.log_s = nn.Parameter(torch.zeros(()))

    def log_posterior(self, x: Tensor) -> Tensor:
        """log p(y | f(x)), (B, K) of rows x (B, D)."""
        return self.head.log_posterior(self.f(x))

    def bound(self, x: Tensor, rng: Streams) -> Tensor:
        """U(x) >= -log p(x) at one draw of the noise, (B,), nats."""
        mean = self.f(x)
        eps = rng.normal(mean.shape[1], dtype=mean.dtype)
        z = mean + TAU * eps
        log_q = -eps.square().sum(1) / 2 - mean.shape[1] * (math.log(TAU) + LOG_2PI / 2)
        errors = ((x - self.g(z)) * torch.exp(-self.log_s)).square().sum(1)
        log_x = -errors / 2 - x.shape[1] * (self.log_s + LOG_2PI / 2)
        return log_q - log_x - self.head.log_prob(z)

    def draw(self, y: Tensor, rng: Streams) -> Tensor:
        """Rows (B, D) of p(x | y): z of class y's Gaussian, read back by g, without the noise s."""
        head = self.head
        with torch.no_grad():
            eps = rng.normal(head.mu.shape[1], dtype=head.mu.dtype)
            return self.g(head.mu[y] + torch.linalg.solve_triangular(head.root().T, eps.T, upper=True).T)


def fit_coupled(
    x: Tensor, y: Tensor, classes: int, weight: float, unlabelled: Tensor | None = None, *, features: int = 16,
    width: int = 128, steps: int = 1500, rate: float = 2e-3, seed: int = 0,
) -> Coupled:  # fmt: skip
    """Minimise L by Adam with a rate that falls to 0 along a cosine.

    Args:
        x: labelled rows (N, D), each column of a scale near 1 (float32).
        y: their labels (N,), 0 .. classes - 1.
        classes: K.
        weight: of U; 0 is an ordinary softmax network, to which rows without labels say nothing.
        unlabelled: further rows (M, D).
        features: d.
        width: of the hidden layers.
        steps: of Adam, each of at most ROWS rows with labels and ROWS of all.
        rate: Adam's, at the start.
        seed: of weights, batches and noise.

    Raises:
        ConfigError: a negative weight. DataError: rows or labels that do not fit.

    >>> x = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]])
    >>> net = fit_coupled(x, torch.tensor([0, 0, 1, 1]), 2, 0.1, features=2, width=8, steps=60, rate=2e-2)
    >>> net.log_posterior(x).argmax(1)
    tensor([0, 0, 1, 1])
    """
    if not weight >= 0:
        raise ConfigError(f"The weight {weight} is negative.", "Give 0 or more.")
    rows = x if unlabelled is None else torch.cat((x, unlabelled))
    if rows.ndim != 2 or not bool(rows.isfinite().all()):
        raise DataError(f"Rows of shape {tuple(rows.shape)} are not (N, D) finite numbers.", "Fill or drop holes.")
    if len(y) != len(x) or len(x) == 0 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise DataError(f"{len(y)} labels of {len(x)} rows outside 0 .. {classes - 1}.", "Give a label for each row.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "weights"))
        net = Coupled(x.shape[1], classes, features, width).to(x.dtype)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    some, all_ = _Batches(len(x), seed, "labelled"), _Batches(len(rows), seed, "all")
    rng = Streams(fold(seed, "noise"), min(ROWS, len(rows)))
    for _ in range(steps):
        chosen = some.next()
        loss = nll_loss(net.log_posterior(x[chosen]), y[chosen])
        if weight > 0:
            loss = loss + weight * net.bound(rows[all_.next()], rng).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.requires_grad_(False)


class _Batches:
    """Endless batches of min(ROWS, n) of n rows, every epoch in a new order; a last one that is short is left out."""

    def __init__(self, n: int, seed: int, name: str) -> None:
        self.n, self.seed, self.name, self.size = n, seed, name, min(ROWS, n)
        self.order, self.at, self.epoch = torch.arange(n), n, 0

    def next(self) -> Tensor:
        """Indices of the next batch."""
        if self.at + self.size > self.n:
            self.order, self.at = permutation(self.n, fold(self.seed, self.epoch), self.name), 0
            self.epoch += 1
        self.at += self.size
        return self.order[self.at - self.size : self.at]
