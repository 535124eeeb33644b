r"""The restricted Boltzmann machine: visible units v, one layer of binary hidden units h.

    E(v, h) = -log m(v) - s(v) . (b + W h) + 1/2 lambda v^2 - c . h,        p(v) = exp(-F(v)) / Z
    F(v) = -log m(v) - b . s(v) + 1/2 lambda v^2 - sum_j log(1 + exp(c_j + (s(v) W)_j))      (the free energy)

with s, m, lambda those of the visible units: binary or binomial (s(v) = v), Gaussian (s(v) = v / sigma^2); see
`units.py`. Labels, where the space has classes, are one more visible layer of one-hot units y with weights U
(Hinton, Osindero & Teh 2006; Larochelle & Bengio 2008):

    F(v, y) as above with c + U_y and -d_y added,    F(v) = -log sum_y exp(-F(v, y)),    p(y | v) = softmax(-F(v, .)).

Smolensky 1986, "Information processing in dynamical systems"; Hinton 2002, "Training products of experts by minimizing
contrastive divergence"; Cho, Ilin & Raiko 2011 (Gaussian units with learnt variances).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protea.core import Energy, Normalised
from protea.errors import NotSupported
from protea.models.boltzmann.boltzmann import Boltzmann
from protea.models.boltzmann.enumeration import MOST, log_sum
from protea.models.boltzmann.machine import Bipartite, State
from protea.models.boltzmann.units import Binomial, Softmax, Units, softplus
from protea.models.estimated import Partition
from protea.rng import Streams

EXACT = 16  # hidden units up to which log Z is summed without being asked


class RBM(Boltzmann, Energy):
    """A restricted Boltzmann machine.

    Args:
        event: shape of one sample, of as many entries as there are visible units.
        visible: `Binomial` or `Gaussian` units, whose centre is the hidden layer.
        classes: labels; 0 for none.
        sweeps: Gibbs sweeps of a draw.
        dtype: of samples.

    >>> model = RBM((6,), Binomial(6, 3))
    >>> model.energy(torch.zeros(2, 6)).shape, model.sample(4).shape, model.log_partition().exact
    (torch.Size([2]), torch.Size([4, 6]), True)
    """

    def __init__(
        self, event: tuple[int, ...], visible: Units, classes: int = 0, *, sweeps: int = 200,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        hidden = visible.weight.shape[1]
        outer = {"visible": visible} | ({"label": Softmax(classes, hidden)} if classes else {})
        super().__init__(event, dtype, outer, sweeps)
        self.bias = nn.Parameter(torch.zeros(hidden))

    @property
    def machine(self) -> Bipartite:
        return Bipartite(self.bias, self.outer, prefix="outer.")  # type: ignore[arg-type]

    def hidden(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """p(h_j = 1 | x, cond), (B, H): the features. Without labels, of a machine that has them, y is summed out."""
        label = self.one_hot(cond, len(x))
        field = self.visible.push(self.flat(x)) + self.bias
        if self.label is None or label is None:
            return torch.sigmoid(field)
        if cond is not None and bool((cond >= 0).all()):
            return torch.sigmoid(field + self.label.push(label))
        q = self.posterior(x)
        return torch.einsum("bc,bch->bh", q, torch.sigmoid(field[:, None] + self.label.weight))

    def infer(self, v: Tensor, label: Tensor | None, rng: Streams) -> State:
        state = {"visible": v}
        if self.label is not None and label is not None:
            unknown = label.sum(1) == 0
            if bool(unknown.any()):
                drawn = F.one_hot(rng.categorical(self._joint(v)), self.label.size).to(label)
                label = torch.where(unknown[:, None], drawn, label)
            state["label"] = label
        return {**state, "mean": torch.sigmoid(self.machine.field(state))}

    # ---- energies and likelihoods

    def _joint(self, v: Tensor) -> Tensor:
        """-F(v, y) of every label, (B, classes); (B, 1) without labels."""
        field, own = self.visible.push(v) + self.bias, self.visible.own(v)
        if self.label is None:
            return (own + softplus(field).sum(1))[:, None]
        parts = [own + self.label.bias[c] + softplus(field + w).sum(1) for c, w in enumerate(self.label.weight)]
        return torch.stack(parts, 1)

    def energy(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The free energy F(x, cond), or F(x) with labels summed out, (B,).

        Raises:
            DataError: values outside the support of the visible units.
        """
        v = self.flat(x)
        self.visible.check(v)
        label = self.one_hot(cond, len(x))
        joint = self._joint(v)
        if cond is None or label is None:
            return -torch.logsumexp(joint, 1)
        return -(joint * label).sum(1)

    def posterior(self, x: Tensor) -> Tensor:
        """p(y | x), (B, classes); of a machine without labels, ones (B, 1)."""
        return self._joint(self.flat(x)).softmax(1)

    def unnormalised(self, x: Tensor, cond: Tensor | None = None, *, rng: Streams | None = None, k: int = 1) -> Tensor:
        return -self.energy(x, cond)

    def log_partition(self, seed: int = 0, *, steps: int = 2000) -> Partition:
        if self.bias.numel() <= EXACT:
            with torch.no_grad():
                return Partition(float(self.exact_log_partition()))
        return self.machine.estimate(seed, steps=steps, particles=self.particles)

    def exact_log_partition(self) -> Tensor:
        """log Z by summing over the hidden states, or the visible ones where they are fewer; differentiable.

        Raises:
            NotSupported: more than 20 units (2^20 states) on both sides.
        """
        hidden, visible, machine = self.bias.numel(), self.visible, self.machine
        if hidden <= MOST:
            return log_sum(hidden, 2, machine.log_centre, like=self.bias)
        if isinstance(visible, Binomial) and (visible.trials + 1) ** visible.size <= 2**MOST:
            levels = visible.trials + 1
            return log_sum(visible.size, levels, lambda v: torch.logsumexp(self._joint(v), 1), like=self.bias)
        raise NotSupported(
            f"A machine of {visible.size} visible and {hidden} hidden units has too many states to sum over.",
            "Use log_partition(), which estimates.",
        )

    def normalised(self) -> Summed:
        """The same model with its exact likelihood; see `exact_log_partition` for when."""
        return Summed(self)

    def pseudo_log_likelihood(self, x: Tensor, rng: Streams) -> Tensor:
        """D log p(v_i | v_-i) of one entry i a row, drawn from its stream, (B,): the proxy of Besag (1975) that
        scikit-learn's `score_samples` computes. Of binary units only."""
        visible = self.visible
        if not isinstance(visible, Binomial) or visible.trials != 1:
            raise NotSupported("The pseudo-likelihood is that of binary units.", "Use log_partition().")
        v = self.flat(x)
        place = (rng.uniform(1)[:, 0] * visible.size).long().clamp(max=visible.size - 1)
        row = torch.arange(len(v), device=v.device)
        other = v.clone()
        other[row, place] = 1 - other[row, place]
        gap = torch.logsumexp(self._joint(other), 1) - torch.logsumexp(self._joint(v), 1)
        return -visible.size * softplus(gap)


class Summed(Normalised):
    """A small restricted Boltzmann machine with its exact density, log p(x) = -F(x) - log Z."""

    def __init__(self, model: RBM) -> None:
        super().__init__()
        self.model, self.block = model, model.block
        if hasattr(model, "space"):
            self.space = model.space

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Exact log p(x), or log p(x | cond), (B,)."""
        model = self.model
        log_f = -model.energy(x, cond).double()
        if cond is None or model.label is None:
            return log_f - model.exact_log_partition()
        bias, label, visible = model.bias, model.label, {"visible": model.visible}
        each = [log_sum(len(bias), 2, Bipartite(bias + w, visible).log_centre, like=bias) for w in label.weight]
        return log_f - (torch.stack(each) + label.bias)[cond]

    def draw(self, rng: Streams, cond: Tensor | None = None) -> Tensor:
        return self.model.draw(rng, cond)
