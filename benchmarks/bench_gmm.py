"""One EM iteration of a Gaussian mixture against scikit-learn, n = 200k, d = 16, k = 32, float64, same start.

What limits us (torch.profiler, n = 100k, two threads): with full covariances 52 % of the time is matrix products (the
whitening by stacked precision factors and the weighted second moments) and 19 % the squares of whitened rows and their
sum; with diagonal ones 35 % matrix products, 16 % copies, 8 % exp.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from harness import compare, save
from sklearn.mixture import GaussianMixture as Peer

from protea.models.classical.gmm import GaussianMixture
from protea.space import Rows

N, D, K = 200_000, 16, 32


def main() -> None:
    warnings.filterwarnings("ignore")  # one iteration does not converge
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, D)) + 4 * rng.normal(size=(K, D))[rng.integers(K, size=N)]).astype(np.float64)
    rows = torch.from_numpy(x)
    rows_of = []
    for covariance in ("full", "diag"):
        peer = Peer(K, covariance_type=covariance, max_iter=1, init_params="random_from_data", random_state=0)
        peer.fit(x[:20_000])  # a start for both
        ours = GaussianMixture((D,), k=K, covariance=covariance)
        ours.initialise(Rows(rows[:20_000], None, torch.arange(20_000)))

        def peer_iteration(peer=peer) -> None:
            _, log_r = peer._e_step(x)
            peer._m_step(x, log_r)

        def our_iteration(ours=ours) -> None:
            with torch.no_grad():
                ours.maximise(ours.expect(rows))

        rows_of.append(compare(f"EM iteration, {covariance}", our_iteration, peer_iteration, rounds=5))
    save("gmm", rows_of)


if __name__ == "__main__":
    main()
