"""Held-out likelihoods: units, exactness, and the marginal over labels."""

import math

import pytest
import torch
from torch import Tensor

from protea.core import Bounded, Model, Normalised
from protea.evaluation.likelihood import class_prior, likelihood, log_likelihood
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Image, Vector


class Gaussians(Normalised):
    """N(y, 1) in one dimension given the label y, with a class prior."""

    class_prior: Tensor

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.space = Vector(("x",), classes=tuple(map(str, range(classes))))
        self.register_buffer("class_prior", torch.tensor([0.3, 0.7], dtype=torch.float64))

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        each = [torch.distributions.Normal(float(k), 1.0).log_prob(x[:, 0]) for k in range(2)]
        if cond is None:
            return torch.logsumexp(torch.stack([e + p.log() for e, p in zip(each, self.class_prior)]), 0)
        return torch.stack(each, 1).gather(1, cond[:, None])[:, 0]


class BoundedGaussians(Bounded):
    """The same, known only by a bound that is a noisy 0.5 nats low."""

    class_prior: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.exact = Gaussians()
        self.space = self.exact.space

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def log_prob_bound(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams, k: int = 1) -> Tensor:
        return self.exact.log_prob(x, cond) - 0.5 * rng.uniform(1, dtype=torch.float64)[:, 0]


@pytest.fixture
def rows():
    y = torch.arange(400) % 2
    return Rows(Streams(0, 400).normal(1, dtype=torch.float64) + y[:, None], y, torch.arange(400))


def test_exact_is_the_marginal_over_labels(rows, evidence):
    from scipy.stats import norm

    found = likelihood(Gaussians(), rows)
    x = rows.x[:, 0].numpy()
    import numpy as np

    expected = -np.log(0.3 * norm.pdf(x, 0) + 0.7 * norm.pdf(x, 1)).mean()
    assert found.exactness == "exact" and found.unit == "nats per row"
    assert found.figure.low < found.figure.value < found.figure.high
    evidence(
        id="EV-03", system="Held-out likelihood", claim="exact marginal over labels", reference="scipy.stats.norm",
        reached=abs(found.figure.value - expected), tolerance=1e-12, unit="nats",
    )  # fmt: skip


def test_a_conditional_bound_stays_below_the_marginal_row_by_row(rows):
    bound, kind = log_likelihood(BoundedGaussians(), rows)
    exact, _ = log_likelihood(Gaussians(), rows)
    assert kind == "bound" and bool((bound <= exact + 1e-12).all())
    found = likelihood(BoundedGaussians(), rows, k=3)
    assert found.exactness == "bound" and found.figure.protocol["k"] == 3
    assert found.to_json()["exactness"] == "bound"


def test_the_bounds_noise_belongs_to_the_row(rows):
    whole, _ = log_likelihood(BoundedGaussians(), rows)
    part, _ = log_likelihood(BoundedGaussians(), rows[300:])
    assert torch.equal(whole[300:], part)


def test_uniform_images_cost_eight_bits(evidence):
    class Uniform(Normalised):
        space = Image(3, 4, 4, levels=256)

        def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
            raise NotImplementedError

        def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
            return torch.full((len(x),), -48 * math.log(256), dtype=torch.float64)

    x = torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8)
    found = likelihood(Uniform(), Rows(x, None, torch.arange(30)))
    assert found.unit == "bits per dimension" and class_prior(Uniform()) is None
    evidence(
        id="EV-03", system="Bits per dimension", claim="uniform 8-bit model costs 8 bits", reference="closed form",
        reached=abs(found.figure.value - 8), tolerance=1e-12, unit="bits",
    )  # fmt: skip


def test_samplers_have_no_likelihood(rows):
    class Sampler(Model):
        space = Vector(("x",))

        def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
            return rng.normal(1)

    assert likelihood(Sampler(), rows) is None


def test_perplexity_of_a_token(evidence):
    """A network that says the same of every token has the perplexity of its vocabulary, and log2 of it in bits."""

    from protea.models.autoregressive.transformer import TransformerConfig, build
    from protea.spaces import Tokens

    model = build(Tokens(8, vocabulary=50, tokenizer="ids"), TransformerConfig(1, 16, 2, 2, 16, 8))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    rows = Rows(torch.randint(0, 50, (64, 8)), None, torch.arange(64))
    found = likelihood(model, rows)
    assert found is not None and found.perplexity is not None
    assert found.figure.value == pytest.approx(math.log2(50)) and found.to_json()["perplexity"]["value"] > 0
    evidence(id="AR-51", system="Perplexity", claim="of a uniform model over 50 tokens", reference="closed form",
             reached=abs(found.perplexity.value - 50), tolerance=1e-3, unit="abs")  # fmt: skip
