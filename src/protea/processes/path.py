r"""Gaussian paths from data to noise: x_t = alpha_t x_0 + sigma_t eps, with t = 0 data and t = 1 noise.

A path is two functions of time, and everything else follows from them:

    log-SNR      lambda_t = 2 log(alpha_t / sigma_t), decreasing in t
    velocity     u_t = alpha'_t x_0 + sigma'_t eps          (Lipman et al. 2023, "Flow matching")
    forward SDE  dx = f_t x dt + g_t dw,  f = alpha'/alpha,  g^2 = 2 sigma sigma' - 2 f sigma^2
                                                            (Song et al. 2021, "Score-based generative modelling")

All paths with the same log-SNR are one path up to a change of scale and of clock (Kingma et al. 2021,
"Variational diffusion models"), which is why `time`, the inverse of the log-SNR, is part of the contract.
Values are computed in double precision: sigma_t near t = 0 and alpha_t near t = 1 are small differences.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


def expand(a: Tensor, x: Tensor) -> Tensor:
    """(B,) coefficients shaped to multiply x (B, *event), in the dtype of x."""
    return a.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class GaussianPath(ABC):
    """x_t = alpha_t x_0 + sigma_t eps on t in [0, 1]. Functions take t of any shape and keep its dtype."""

    @abstractmethod
    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and d alpha_t / dt, float64."""

    @abstractmethod
    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma_t and d sigma_t / dt, float64."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has a value; the inverse of `log_snr`."""

    def alpha(self, t: Tensor) -> Tensor:
        """The scale of the data at time t."""
        return self._alpha(t.double())[0].to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at time t."""
        return self._sigma(t.double())[0].to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha_t / dt."""
        return self._alpha(t.double())[1].to(t.dtype)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma_t / dt; infinite at t = 0 where the variance, not the deviation, grows linearly."""
        return self._sigma(t.double())[1].to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = log(alpha_t^2 / sigma_t^2): +inf at pure data, -inf at pure noise."""
        d = t.double()
        return (2 * (self._alpha(d)[0].log() - self._sigma(d)[0].log())).to(t.dtype)

    def log_snr_dot(self, t: Tensor) -> Tensor:
        """d lambda_t / dt = 2 (alpha'/alpha - sigma'/sigma), negative."""
        (a, da), (s, ds) = self._alpha(t.double()), self._sigma(t.double())
        return (2 * (da / a - ds / s)).to(t.dtype)

    def mix(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps for x_0, eps (B, *event) and t (B,).

        >>> mix = Rectified().mix(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
        >>> mix.tolist()
        [[0.75, 0.75]]
        """
        return expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * eps


@dataclass(frozen=True)
class VPLinear(GaussianPath):
    """Variance preserving with linear rate beta(t): log alpha_t = -t beta_min/2 - t^2 (beta_max - beta_min)/4.

    The continuous limit of DDPM's schedule (Ho et al. 2020; Song et al. 2021), beta_i = beta(i/T)/T.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = (-0.5 * self.beta_min * t - 0.25 * (self.beta_max - self.beta_min) * t**2).exp()
        return alpha, -0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t) * alpha

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, alpha_dot = self._alpha(t)
        sigma = (-torch.expm1(-self.beta_min * t - 0.5 * (self.beta_max - self.beta_min) * t**2)).sqrt()
        return sigma, -alpha * alpha_dot / sigma

    def time(self, log_snr: Tensor) -> Tensor:
        # -log alpha_t^2 = softplus(-lambda) is a quadratic in t; this form of its root does not cancel.
        c = torch.nn.functional.softplus(-log_snr.double())
        t = 2 * c / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * c).sqrt())
        return t.to(log_snr.dtype)


@dataclass(frozen=True)
class VPCosine(GaussianPath):
    """Variance preserving with alpha_t = cos(a_t) / cos(a_0), a_t = (t + s)/(1 + s) pi/2.

    Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models".
    """

    s: float = 0.008

    def _angle(self, t: Tensor) -> tuple[Tensor, float, float]:
        rate = 0.5 * math.pi / (1 + self.s)
        return rate * (t + self.s), rate * self.s, rate

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, a_0, rate = self._angle(t)
        alpha = (a.cos() / math.cos(a_0)).clamp(min=0).where(t < 1, torch.zeros(()).to(t))
        return alpha, -rate * a.sin() / math.cos(a_0)

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, a_0, _ = self._angle(t)
        sigma = ((a - a_0).sin() * (a + a_0).sin()).clamp(min=0).sqrt() / math.cos(a_0)  # 1 - alpha^2, uncancelled
        alpha, alpha_dot = self._alpha(t)
        return sigma, -alpha * alpha_dot / sigma

    def time(self, log_snr: Tensor) -> Tensor:
        _, a_0, rate = self._angle(log_snr.double())
        # sin^2 a = sin^2 a_0 + sigma^2 cos^2 a_0, and its complement: atan2 keeps both ends exact.
        alpha2, sigma2 = torch.sigmoid(log_snr.double()), torch.sigmoid(-log_snr.double())
        sine = (math.sin(a_0) ** 2 + sigma2 * math.cos(a_0) ** 2).sqrt()
        a = torch.atan2(sine, alpha2.sqrt() * math.cos(a_0))
        return (a / rate - self.s).clamp(0, 1).to(log_snr.dtype)


@dataclass(frozen=True)
class Rectified(GaussianPath):
    """The straight path alpha_t = 1 - t, sigma_t = t, whose velocity eps - x_0 does not depend on t.

    Liu et al. 2023, "Flow straight and fast"; CondOT of Lipman et al. 2023 with time reversed.
    """

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, -torch.ones_like(t)

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr.double()).to(log_snr.dtype)


PATHS: dict[str, type[GaussianPath]] = {"linear": VPLinear, "cosine": VPCosine, "rectified": Rectified}
