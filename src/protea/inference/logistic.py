r"""Softmax regression: the discriminative classifier that generative ones are compared with.

    p(y = k | x) = exp(w_k^T x + b_k) / sum_j exp(w_j^T x + b_j)

    minimise  sum_i -log p(y_i | x_i) + (l2 / 2) sum_k |w_k|^2                 (intercepts are not penalised)

Of two classes only w = w_1 - w_0 matters and is penalised (so the objective is that of scikit-learn with C = 1 / l2 in
both cases). The objective is convex; with l2 > 0 its minimiser is unique up to a constant added to all intercepts. With
l2 = 0 and separable classes there is none: the weights grow until the tolerance of the gradient is met.

It models p(y | x) only. There is no p(x), so no density, no samples, no imputation, and nothing to learn from rows
without labels: those questions raise `NotSupported`.

Minimised by Newton's method with a backtracking line search while the Hessian is small, by L-BFGS (Liu & Nocedal 1989)
beyond. Source: Cox 1958, "The regression analysis of binary sequences"; Bishop 2006, section 4.3.4.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from protea.errors import ConfigError, DataError

NEWTON = 400  # weights up to which the Hessian is formed
TOLERANCE = 1e-9  # of the gradient's largest entry, for each row


class SoftmaxRegression:
    """p(y | x) = softmax(W x + b).

    Args:
        classes: K >= 2.
        l2: strength of the penalty on W; 0 for none.
        max_iterations: of Newton or L-BFGS.

    Raises:
        ConfigError: fewer than two classes, or a negative penalty.

    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)
    >>> model = SoftmaxRegression(2, l2=1.0).fit(x, torch.tensor([0, 0, 1, 1]))
    >>> model.log_posterior(x).argmax(1).tolist(), round(float(model.weight[1, 0]), 4)
    ([0, 0, 1, 1], 1.0066)
    """

    def __init__(self, classes: int, l2: float = 1.0, max_iterations: int = 1000) -> None:
        if classes < 2 or not l2 >= 0:
            raise ConfigError(f"{classes} classes with l2={l2} make no sense.", "Two classes or more, and l2 >= 0.")
        self.classes, self.l2, self.max_iterations = classes, float(l2), max_iterations
        self.weight = torch.zeros(classes, 0, dtype=torch.float64)  # (K, D)
        self.intercept = torch.zeros(classes, dtype=torch.float64)
        self.iterations = 0

    def fit(self, x: Tensor, labels: Tensor) -> SoftmaxRegression:
        """Minimise the penalised negative log-likelihood of inputs x (N, D) and labels (N,) in 0 .. K-1.

        Raises:
            DataError: shapes that do not fit, inputs that are not finite, labels that are not whole, or one class only.
        """
        if x.ndim != 2 or labels.shape != x.shape[:1]:
            raise DataError(
                f"Inputs {tuple(x.shape)} do not fit labels {tuple(labels.shape)}.", "Give (N, D) and (N,)."
            )
        if labels.is_floating_point():
            raise DataError(f"Labels are {labels.dtype}, not whole numbers.", "Give class codes as int64.")
        if not torch.isfinite(x).all():
            raise DataError("An input is NaN or infinite.", "Fill missing values first.")
        seen = labels.unique()
        if len(seen) < 2:
            raise DataError(f"The labels hold one class only ({seen.tolist()}).", "Give rows of two classes or more.")
        if int(seen[0]) < 0 or int(seen[-1]) >= self.classes:
            raise DataError(
                f"Labels run from {int(seen[0])} to {int(seen[-1])}.", f"They must lie in 0 .. {self.classes - 1}."
            )
        x1 = torch.cat((x.double(), torch.ones(len(x), 1, dtype=torch.float64)), 1).numpy()
        y = np.eye(self.classes)[labels.numpy()]
        y = y[:, 1:] if self.classes == 2 else y  # of two classes, one column: the other is 0
        penalty = np.full((y.shape[1], x1.shape[1]), self.l2)
        penalty[:, -1] = 0.0
        solve = _newton if penalty.size <= NEWTON and self.l2 > 0 else _lbfgs
        w, self.iterations = solve(x1, y, penalty, self.max_iterations, TOLERANCE * len(x))
        w = np.concatenate((np.zeros_like(w), w)) if self.classes == 2 else w
        self.weight, self.intercept = torch.from_numpy(w[:, :-1].copy()), torch.from_numpy(w[:, -1].copy())
        return self

    def log_posterior(self, x: Tensor) -> Tensor:
        """log p(y | x), (B, K)."""
        return torch.log_softmax(x.double() @ self.weight.T + self.intercept, 1)


def _value(w: np.ndarray, x: np.ndarray, y: np.ndarray, penalty: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The objective, its gradient (K', D), and the probabilities (N, K'); one column stands for two classes."""
    logits = x @ w.T
    full = np.concatenate((np.zeros_like(logits), logits), 1) if w.shape[0] == 1 else logits
    top = full.max(1, keepdims=True)
    log_z = top + np.log(np.exp(full - top).sum(1, keepdims=True))
    p = np.exp(logits - log_z)
    loss = float(log_z.sum() - (y * logits).sum() + 0.5 * (penalty * w * w).sum())
    return loss, (p - y).T @ x + penalty * w, p


def _newton(x: np.ndarray, y: np.ndarray, penalty: np.ndarray, limit: int, tolerance: float) -> tuple[np.ndarray, int]:
    """w <- w - t H^-1 g with t halved until the objective falls enough (Armijo)."""
    k, d = penalty.shape
    w = np.zeros((k, d))
    loss, g, p = _value(w, x, y, penalty)
    for step in range(limit):
        if np.abs(g).max() <= tolerance:
            return w, step
        h = np.empty((k, d, k, d))
        for a in range(k):  # a block for each pair of classes
            for b in range(a, k):
                weight = p[:, a] * ((a == b) - p[:, b])
                h[a, :, b] = (x * weight[:, None]).T @ x
                h[b, :, a] = h[a, :, b].T
        h = h.reshape(k * d, k * d)
        h[np.diag_indices(k * d)] += penalty.ravel()
        # The intercepts' shared constant has no curvature: lstsq takes the step of least length.
        direction = np.linalg.lstsq(h, g.ravel(), rcond=1e-12)[0].reshape(k, d)
        slope, t = float((g * direction).sum()), 1.0
        while t > 1e-8:
            new, g_new, p_new = _value(w - t * direction, x, y, penalty)
            if new <= loss - 1e-4 * t * slope:
                break
            t /= 2
        else:
            return w, step
        w, loss, g, p = w - t * direction, new, g_new, p_new
    return w, limit


def _lbfgs(x: np.ndarray, y: np.ndarray, penalty: np.ndarray, limit: int, tolerance: float) -> tuple[np.ndarray, int]:
    from scipy.optimize import minimize

    n = len(x)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, g, _ = _value(flat.reshape(penalty.shape), x, y, penalty)
        return loss / n, g.ravel() / n

    options = {"maxiter": limit, "maxfun": 4 * limit, "gtol": tolerance / n, "ftol": 1e-15, "maxcor": 20}
    found = minimize(objective, np.zeros(penalty.size), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(penalty.shape), int(found.nit)
