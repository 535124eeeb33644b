"""Discrete schedules and steps against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch

from protea.processes.ddpm import SCHEDULES, Tabulated, alphas_cumprod, betas, zero_terminal_snr
from protea.processes.parameterisation import to_denoised
from protea.processes.path import Rectified
from protea.samplers.ddim import ancestral_step, ddim_step
from protea.samplers.ode import euler

diffusers = pytest.importorskip("diffusers")
KIND = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def exactly(scheduler):
    """The same scheduler on double-precision tables: its own, of float32, lose 1 - alpha-bar to cancellation."""
    for name in ("betas", "alphas"):
        setattr(scheduler, name, getattr(scheduler, name).double())
    scheduler.alphas_cumprod = (1 - scheduler.betas).cumprod(0)
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, torch.tensor(1.0, dtype=torch.float64))
    return scheduler


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_parity(schedule: str, evidence) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule)
    beta = betas(schedule, dtype=torch.float32)
    gap = max(float((beta - theirs.betas).abs().max()),
              float((alphas_cumprod(beta) - theirs.alphas_cumprod).abs().max()))  # fmt: skip
    evidence(id="DI-01", system="DDPM noise schedule", claim=f"betas and alpha-bar of {schedule}",
             reference="diffusers.DDPMScheduler", reached=gap, tolerance=1e-7)  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr_parity(schedule: str, evidence) -> None:
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    beta = betas(schedule)
    bar = zero_terminal_snr(alphas_cumprod(beta))
    assert bar[-1] == 0
    gap = (bar - (1 - rescale_zero_terminal_snr(beta)).cumprod(0)).abs().max()
    evidence(id="DI-05", system="Zero terminal SNR", claim=f"alpha-bar of {schedule}, rescaled",
             reference="diffusers rescale_zero_terminal_snr", reached=gap, tolerance=1e-7)  # fmt: skip


def test_add_noise_parity(evidence) -> None:
    theirs = diffusers.DDPMScheduler()
    path = Tabulated(theirs.alphas_cumprod)
    x_0, eps, index = noise(50, 3, 4, 4), noise(50, 3, 4, 4, seed=1), torch.arange(0, 1000, 20)
    gap = path.mix(x_0, eps, (index.double() + 1) / 1000) - theirs.add_noise(x_0, eps, index)
    evidence(id="DI-02", system="Closed-form q(x_t | x_0)", claim="x_t at 50 times",
             reference="diffusers.DDPMScheduler.add_noise", reached=gap.abs().max(), tolerance=1e-6)  # fmt: skip


@pytest.mark.parametrize("prediction", KIND)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_parity(prediction: str, eta: float, evidence) -> None:
    theirs = exactly(diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False))
    theirs.set_timesteps(50)
    path, worst = Tabulated(theirs.alphas_cumprod), 0.0
    for i, index in enumerate(theirs.timesteps.tolist()):
        x_t, y, z = (noise(4, 3, 5, seed=3 * i + j) for j in range(3))
        t, s = (torch.full((4,), max(n + 1, 0) / 1000, dtype=torch.float64) for n in (index, index - 20))
        expected = theirs.step(y, index, x_t, eta=eta, variance_noise=z if eta else None).prev_sample
        x_0 = to_denoised(path, KIND[prediction], y, x_t, t)
        found = ddim_step(path, x_t, x_0, t, s, eta, z if eta else None)
        worst = max(worst, float(((found - expected).abs() / (1 + expected.abs())).max()))
    evidence(id="DI-14", system="DDIM", claim=f"50 steps, {prediction}, eta {eta}",
             reference="diffusers.DDIMScheduler.step", reached=worst, tolerance=1e-6, unit="relative")  # fmt: skip


@pytest.mark.parametrize("prediction", KIND)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ancestral_step_parity(prediction: str, variance: str, monkeypatch: pytest.MonkeyPatch, evidence) -> None:
    module = "diffusers.schedulers.scheduling_ddpm"
    theirs = exactly(diffusers.DDPMScheduler(prediction_type=prediction, variance_type=variance, clip_sample=False))
    path, worst = Tabulated(theirs.alphas_cumprod), 0.0
    for index in (0, 1, 2, 10, 100, 500, 998, 999):
        x_t, y, z = (noise(4, 3, 5, 5, seed=3 * index + j) for j in range(3))
        raw = noise(4, 3, 5, 5, seed=9999).tanh()  # a network's variance output, in [-1, 1]
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, z=z, **k: z)
        learned = variance == "learned_range"
        expected = theirs.step(torch.cat((y, raw), 1) if learned else y, index, x_t).prev_sample
        share = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": (raw + 1) / 2}[variance]
        t, s = (torch.full((4,), n / 1000, dtype=torch.float64) for n in (index + 1, index))
        found = ancestral_step(path, x_t, to_denoised(path, KIND[prediction], y, x_t, t), t, s, z, share)
        worst = max(worst, float(((found - expected).abs() / (1 + expected.abs())).max()))
    evidence(id="DI-03", system="DDPM posterior", claim=f"step, {prediction}, {variance}",
             reference="diffusers.DDPMScheduler.step", reached=worst, tolerance=1e-6, unit="relative")  # fmt: skip


def test_flow_matching_euler_parity(evidence) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(20)
    weight = noise(6, 6)

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # any smooth velocity
        return torch.tanh(x @ weight.to(x) + t[:, None].to(x))

    x = start = noise(8, 6).float()
    for step, sigma in zip(theirs.timesteps, theirs.sigmas):
        x = theirs.step(field(x, sigma.expand(8)), step, x).prev_sample
    times = theirs.sigmas.double()
    found = euler(lambda x, t: to_denoised(Rectified(), "velocity", field(x, t), x, t), Rectified(), start, times)
    evidence(id="DI-27", system="Flow matching", claim="a 20-step Euler trajectory",
             reference="diffusers.FlowMatchEulerDiscreteScheduler",
             reached=(found - x).abs().max(), tolerance=5e-6)  # fmt: skip
