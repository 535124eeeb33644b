"""What an exact `given` returns: imputation, prediction and evidence in one object."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from protea.core import Normalised


class Conditional(Normalised):
    """p(x_u | x_o) for one row, or for B rows each with its own pattern of observed entries o.

    Draw i completes row i mod B, so `sample(B)` completes every row once and `sample(m * B)` m times: multiple
    imputation. `log_prob(x)` is log p(x_u | x_o) of row i of x under row i of the conditions; observed entries of x are
    not read.
    """

    @property
    @abstractmethod
    def evidence(self) -> Tensor:
        """log p(x_o) of each row in nats, (B,): the likelihood of what was observed."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x | x_o], (B, *event), observed entries unchanged: single imputation of least squared error.

        Of a category it is the most probable code, which has no mean.
        """
