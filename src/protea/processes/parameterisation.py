r"""What a network predicts. Every target is y = a_t x_0 + b_t eps, and x_t = alpha_t x_0 + sigma_t eps is known,
so any prediction gives x_0 and eps by solving two equations:

    x_0 = (b x_t - sigma y) / (b alpha - a sigma),    eps = (alpha y - a x_t) / (b alpha - a sigma).

    kind       a        b         meaning
    x0         1        0         the data
    eps        0        1         the noise                  (Ho et al. 2020)
    v          -sigma   alpha     the angular velocity       (Salimans & Ho 2022, "Progressive distillation")
    velocity   alpha'   sigma'    dx_t/dt                    (Lipman et al. 2023, "Flow matching")
    score      0        -1/sigma  grad log p(x_t | x_0)      (Song et al. 2021)

The least-squares predictor of y is the same linear combination of E[x_0|x_t] and E[eps|x_t]; for "score" it is
the score of the marginal p_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protea.errors import ConfigError, nearest
from protea.processes.path import GaussianPath, expand

PARAMETERISATIONS = ("x0", "eps", "v", "velocity", "score")


def coefficients(path: GaussianPath, kind: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and b_t of the target a_t x_0 + b_t eps, each shaped as t.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind == "x0":
        return torch.ones_like(t), torch.zeros_like(t)
    if kind == "eps":
        return torch.zeros_like(t), torch.ones_like(t)
    if kind == "v":
        return -path.sigma(t), path.alpha(t)
    if kind == "velocity":
        return path.alpha_dot(t), path.sigma_dot(t)
    if kind == "score":
        return torch.zeros_like(t), -1 / path.sigma(t)
    raise ConfigError(f"There is no parameterisation {kind!r}.", nearest(kind, PARAMETERISATIONS))


def target(path: GaussianPath, kind: str, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the network should say: a_t x_0 + b_t eps, for x_0, eps (B, *event) and t (B,)."""
    a, b = coefficients(path, kind, t)
    return expand(a, x_0) * x_0 + expand(b, x_0) * eps


def _solve(path: GaussianPath, kind: str, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    alpha, sigma = path.alpha(t), path.sigma(t)
    a, b = coefficients(path, kind, t)
    return alpha, sigma, a, b, b * alpha - a * sigma


def to_denoised(path: GaussianPath, kind: str, y: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 from a prediction y of the given kind; "eps" and "score" need alpha_t > 0, that is t < 1.

    >>> from protea.processes.path import Rectified
    >>> x_0, eps, t = torch.ones(1, 1), torch.full((1, 1), 3.0), torch.tensor([0.5])
    >>> x_t = Rectified().mix(x_0, eps, t)
    >>> to_denoised(Rectified(), "velocity", eps - x_0, x_t, t).tolist()
    [[1.0]]
    """
    if kind == "x0":
        return y
    _, sigma, _, b, det = _solve(path, kind, t)
    return expand(b / det, x_t) * x_t - expand(sigma / det, x_t) * y


def to_noise(path: GaussianPath, kind: str, y: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """eps from a prediction y of the given kind; "x0" needs sigma_t > 0, that is t > 0."""
    if kind == "eps":
        return y
    alpha, _, a, _, det = _solve(path, kind, t)
    return expand(alpha / det, x_t) * y - expand(a / det, x_t) * x_t


def from_denoised(path: GaussianPath, kind: str, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The prediction of the given kind that agrees with E[x_0 | x_t]; needs t > 0 (except for "x0")."""
    if kind == "x0":
        return x_0
    return target(path, kind, x_0, to_noise(path, "x0", x_0, x_t, t), t)
