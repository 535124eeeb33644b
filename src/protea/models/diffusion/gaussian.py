r"""Gaussian diffusion and flow matching: one model made of a path, a network, a parameterisation and a sampler.

    x_t = alpha_t x_0 + sigma_t eps;  D(x_t, t) = E[x_0 | x_t] learned by regression;  a sampler runs D from t = 1 to 0.

Diffusion (Ho et al. 2020, Nichol & Dhariwal 2021) is the cosine path with v-prediction and DDIM; flow matching (Lipman
et al. 2023; Liu et al. 2023) is the straight path with velocity prediction and Heun's method. Nothing else differs.

The likelihood bound is the continuous-time variational bound of Kingma et al. 2021 ("Variational diffusion models"):
with lambda the log-SNR, running from lambda_0 (noise) to lambda_1 (data),

    -log p(x_0) <= KL(q(x_T | x_0) || p) + 1/2 int e^lambda E|x_0 - D|^2 dlambda + E[-log N(x_0; D_1, v I)],

with v = 1/(1 + e^lambda_1). For data N(0, I) the optimal denoiser is G(x_t) = E[x_0 | x_t] in closed form, and then the
three terms sum to -log N(x_0; 0, I) whatever lambda_0 and lambda_1 are. Subtracting that identity leaves

    log p(x_0) >= log N(x_0; 0, I) + 1/2 int e^lambda E[|x_0 - G|^2 - |x_0 - D|^2] dlambda
                                   + (1 + e^lambda_1)/2 E[|x_0 - G_1|^2 - |x_0 - D_1|^2]:

the same bound term by term (Kong, Brekelmans & Ver Steeg 2023, "Information-theoretic diffusion"), without the noise of
the parts that every smooth density shares. It reads: a normal, plus how much better the network denoises than it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from protea.core import Bounded
from protea.errors import ConfigError
from protea.models.labels import class_frequencies, draw_labels, refuse_labels
from protea.processes.denoiser import Denoiser, GaussianDenoiser
from protea.processes.parameterisation import coefficients, to_denoised
from protea.processes.path import GaussianPath, expand
from protea.rng import Streams, fold
from protea.samplers.ode import time_grid
from protea.space import Rows

Sampler = Callable[[Denoiser, GaussianPath, Tensor, Tensor, Streams], Tensor]

LOG_SNR = (-10.0, 14.0)  # ends of the bound's integral; a true bound for any
_CENTRE, _SPREAD = 2.0, 2.5  # of the logistic density from which its log-SNRs are drawn
_GOLDEN = 0.5 * (math.sqrt(5) - 1)


class GaussianDiffusion(GaussianDenoiser, Bounded):
    """A diffusion model in R^event.

    Args:
        event: shape of one sample; data are expected at about unit scale.
        network: (x_t, t, y) to a tensor shaped as x_t.
        path: alpha_t and sigma_t.
        parameterisation: what the network predicts: "x0", "eps", "v", "velocity" or "score".
        sampler: (denoise, path, x, times, rng) to x at times[-1].
        steps: of the sampler.
        classes: labels; 0 for an unconditional model.
        label_dropout: the share of labels hidden from the network in training, for p(x) and for guidance.
        times: the density of t in training, a name in `protea.objectives.denoising.TIMES`.
        block: samples computed together.
    """

    class_prior: Tensor
    importance = False

    def __init__(
        self,
        event: tuple[int, ...],
        network: nn.Module,
        path: GaussianPath,
        parameterisation: str,
        sampler: Sampler,
        *,
        steps: int = 50,
        classes: int = 0,
        label_dropout: float = 0.1,
        times: str = "uniform",
        block: int = 64,
    ) -> None:
        super().__init__()
        coefficients(path, parameterisation, torch.full((1,), 0.5))  # refuses an unknown name
        if steps < 1:
            raise ConfigError(f"A sampler cannot take {steps} steps.", "Use 1 or more.")
        self.event, self.classes, self.block = tuple(event), classes, block
        self.network, self.path, self.parameterisation = network, path, parameterisation
        self.sampler, self.steps, self.label_dropout, self.times = sampler, steps, label_dropout, times
        self.register_buffer("class_prior", torch.full((classes,), 1.0 / max(classes, 1), dtype=torch.float64))

    def initialise(self, rows: Rows, seed: int = 0) -> None:
        if self.classes:
            self.class_prior.copy_(class_frequencies(rows, self.classes))

    def predict(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.network(x_t, t.to(x_t.dtype), y)

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t] (B, *event); without labels that of the mixture over labels. For "eps" and "score", t < 1."""
        if self.classes == 0:
            refuse_labels(cond)
        return to_denoised(self.path, self.parameterisation, self.predict(x_t, t, cond), x_t, t)

    def labels(self, rng: Streams, cond: Tensor | None) -> Tensor | None:
        return draw_labels(self.class_prior, rng, cond)

    def integrate(self, denoise: Denoiser, rng: Streams) -> Tensor:
        # eps says nothing about x_0 where alpha_t = 0, so those parameterisations start just before.
        whole = self.parameterisation not in ("eps", "score")
        start = 1.0 if whole else float(self.path.time(torch.tensor(LOG_SNR[0], dtype=torch.float64)))
        times = time_grid(self.steps, start).to(rng.device)
        scale = (self.path.alpha(times[0]) ** 2 + self.path.sigma(times[0]) ** 2).sqrt()
        x = rng.child("noise").normal(*self.event) * scale.float()
        return self.sampler(denoise, self.path, x, times, rng.child("sampler"))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        y = self.labels(rng, cond)
        return self.integrate(lambda x_t, t: self.denoise(x_t, t, y), rng)

    def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        """The variational bound of the module's docstring, nats, (B,): an average over k stratified log-SNRs.

        The expectation is the same for every k; more draws only make it less noisy. Log-SNRs are drawn from a
        logistic density cut to `LOG_SNR`, where the integrand is largest, and reweighted (Kong et al. 2023). Over
        rows with neighbouring ids their quantiles are a golden-ratio sequence from one random origin, so that an
        average over rows converges faster than that of independent draws, while each row's own is uniform.
        """
        low, high = ((1 / (1 + math.exp((_CENTRE - end) / _SPREAD))) for end in LOG_SNR)  # quantiles of the ends
        origin = Streams(fold(rng.seed, "log-snr"), 1).uniform(1, dtype=torch.float64)[0]
        u = ((origin + (rng.ids.double() * _GOLDEN).frac()).frac()).to(x.device)

        def gain(lam: Tensor, eps: Tensor) -> Tensor:
            """e^lambda (|x_0 - G|^2 - |x_0 - D|^2), (B,) float64."""
            t = self.path.time(lam)
            x_t = self.path.mix(x, eps, t)
            z = (x.double() + expand((-0.5 * lam).exp(), x.double()) * eps.double()).flatten(1)  # x_t / alpha_t
            normal = torch.sigmoid(lam)[:, None] * z - x.double().flatten(1)
            mine = self.denoise(x_t, t, cond).double().flatten(1) - x.double().flatten(1)
            return lam.exp() * (normal**2 - mine**2).sum(1)

        size = math.prod(self.event)
        log_normal = -0.5 * (x.double() ** 2).flatten(1).sum(1) - 0.5 * size * math.log(2 * math.pi)
        total = torch.zeros_like(log_normal)
        for draw in range(k):
            noise, sign = rng.child("noise", draw // 2), 1 - 2 * (draw % 2)  # pairs: what is odd in eps cancels
            q = low + (high - low) * (u + draw) / k
            weight = (high - low) * _SPREAD / (q * (1 - q))  # 1 / density of lambda
            total += 0.5 * weight * gain(_CENTRE + _SPREAD * torch.logit(q), sign * noise.normal(*self.event))
            end = gain(torch.full_like(u, LOG_SNR[1]), sign * noise.normal(*self.event))
            total += 0.5 * (1 + math.exp(-LOG_SNR[1])) * end  # (1 + e^lambda_1)/2, e^lambda_1 being in `gain`
        return log_normal + total / k
