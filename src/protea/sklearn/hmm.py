"""hmmlearn's module of models: `from hmmlearn import hmm` becomes `from protea.sklearn import hmm`."""

from protea.sklearn.hmm_base import DECODER_ALGORITHMS, BaseHMM, ConvergenceMonitor
from protea.sklearn.hmm_emissions import CategoricalHMM, GaussianHMM, PoissonHMM
from protea.sklearn.hmm_gmm import GMMHMM

__all__ = [
    "DECODER_ALGORITHMS", "BaseHMM", "CategoricalHMM", "ConvergenceMonitor", "GMMHMM", "GaussianHMM", "PoissonHMM",
]  # fmt: skip
