"""scikit-learn's and hmmlearn's estimators, computed by Protea's models: change one import line.

    from sklearn.mixture import GaussianMixture        ->   from protea.sklearn import GaussianMixture
    from hmmlearn.hmm import GaussianHMM               ->   from protea.sklearn import GaussianHMM

Parameters, attributes, methods, warnings and random starts are those of scikit-learn 1.9 and hmmlearn 0.3.3; the
numbers come from the same families, mixtures, chains and machines as everything else in Protea. An adapter only
translates: `to_protea()` of a fitted one gives the model itself, with exact conditionals, missing values and the rest.

Pedregosa et al. 2011, "Scikit-learn: machine learning in Python"; hmmlearn: https://hmmlearn.readthedocs.io.
"""

from protea.sklearn.hmm import GMMHMM, CategoricalHMM, GaussianHMM, PoissonHMM
from protea.sklearn.mixture import GaussianMixture
from protea.sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB, MultinomialNB
from protea.sklearn.neural_network import BernoulliRBM

__all__ = [
    "BernoulliNB",
    "BernoulliRBM",
    "CategoricalHMM",
    "CategoricalNB",
    "GMMHMM",
    "GaussianHMM",
    "GaussianMixture",
    "GaussianNB",
    "MultinomialNB",
    "PoissonHMM",
]
