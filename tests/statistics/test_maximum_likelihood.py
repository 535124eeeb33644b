"""Maximum likelihood: the closed form is what gradients find, and its error falls as one over the root of the rows."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from protea.distributions.categorical import Categorical
from protea.distributions.gaussian import Gaussian
from protea.models.classical.mixture import Mixture
from protea.space import Rows


def counted(model: Mixture, x: Tensor) -> Mixture:
    model.initialise(Rows(x, None, torch.arange(len(x))))
    model.maximise(model.expect(x))
    return model


def test_the_closed_form_is_the_optimum_of_gradients(evidence):
    """Categories and a Gaussian: L-BFGS on -log p, written out in two lines, ends where counting does."""
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.choice(4, 500, p=[0.1, 0.2, 0.3, 0.4]))
    points = torch.from_numpy(rng.normal(2.0, 3.0, 500))
    logits, normal = torch.zeros(4).double(), torch.zeros(2).double()  # mean, log deviation
    for theta, loss in (
        (logits, lambda t: -torch.log_softmax(t, 0)[codes].mean()),
        (normal, lambda t: (0.5 * ((points - t[0]) / t[1].exp()).square() + t[1]).mean()),
    ):
        theta.requires_grad_(True)
        optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure(theta=theta, loss=loss, optimiser=optimiser) -> Tensor:
            optimiser.zero_grad()
            value = loss(theta)
            value.backward()
            return value

        optimiser.step(closure)  # type: ignore[arg-type]
    share = counted(Mixture(Categorical(1, 4, (1,)), 1), codes[:, None])
    every = torch.arange(4)[:, None]
    one = counted(Mixture(Gaussian(1, (1,), "full", 1e-12), 1), points[:, None])
    mean, scale = float(normal.detach()[0]), float(normal.detach()[1].exp())
    error = max(
        float((share.log_prob(every).exp().detach() - torch.softmax(logits.detach(), 0)).abs().max()),
        float(np.abs(one.log_prob(points[:, None]).detach().numpy() - stats.norm(mean, scale).logpdf(points)).max()),
    )
    evidence(
        id="TR-01", system="Maximum likelihood", claim="categories and a Gaussian: closed form and gradients",
        reference="L-BFGS on -log p", reached=error, tolerance=1e-4, unit="max abs",
    )  # fmt: skip


def test_the_error_falls_as_the_root_of_the_rows(evidence):
    """|theta_hat - theta| over n = 100 .. 25,600, mean of 60 draws each: slope of the logarithms."""
    rng = np.random.default_rng(1)
    p = np.array([0.15, 0.25, 0.6])
    sizes, errors = [100 * 4**i for i in range(5)], []
    for n in sizes:
        each = []
        for _ in range(60):
            x = torch.from_numpy(rng.choice(3, n, p=p))[:, None]
            found = counted(Mixture(Categorical(1, 3, (1,)), 1), x).log_prob(torch.arange(3)[:, None]).exp()
            each.append(float(np.linalg.norm(found.detach().numpy() - p)))
        errors.append(np.mean(each))
    slope = float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
    evidence(
        id="TR-01", system="Maximum likelihood", claim="slope of log error over log rows, three categories",
        reference="-1/2", reached=abs(slope + 0.5), tolerance=0.05, unit="from -1/2",
    )  # fmt: skip
