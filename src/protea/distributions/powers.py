r"""Exponentials in base two, which processors compute by shifting the exponent: exp(x) = 2^(x log2 e).

On the machines tried this takes a half to a third of the time of `torch.exp` where nothing underflows, and a twentieth
where much does. The rounding of x log2 e is that of x itself, a relative error of |x| eps of the result.
"""

from __future__ import annotations

import math

from torch import Tensor

LOG2E = math.log2(math.e)  # bits in a nat


def exp_(x: Tensor) -> Tensor:
    """exp(x) in place.

    >>> import torch
    >>> exp_(torch.tensor([0.0, -float("inf"), 1.0], dtype=torch.float64)).tolist()
    [1.0, 0.0, 2.718281828459045]
    """
    return x.mul_(LOG2E).exp2_()


def softmax_(bits: Tensor, axis: int) -> Tensor:
    """Turn logarithms in base two into shares that sum to one along an axis, in place.

    Returns the sum over all else of the natural logarithm of what they were divided by; rows of probability zero get
    shares of zero and count as a large negative number.

    >>> import torch
    >>> shares = torch.tensor([[0.0, 1.0, 0.0]]).double()
    >>> round(float(softmax_(shares, 1)), 4), shares.tolist()  # log(1 + 2 + 1)
    (1.3863, [[0.25, 0.5, 0.25]])
    """
    top = bits.amax(axis, keepdim=True).clamp_(min=-1e300)  # a finite shift
    bits.sub_(top).exp2_()
    mass = bits.sum(axis, keepdim=True)
    bits.mul_(mass.clamp(min=1e-300).reciprocal_())
    return (top + mass.log2_()).sum() / LOG2E
