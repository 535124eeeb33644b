"""Learning: `fit` runs a `Learner` (`Gradient`, `EM`) under a `Budget`; `load_model` opens what it saved."""

from protea.training.budget import Budget
from protea.training.checkpoint import Saving
from protea.training.defaults import default_learner
from protea.training.em import EM
from protea.training.fit import FitResult, fit
from protea.training.gradient import Gradient
from protea.training.online_em import OnlineEM
from protea.training.run import load_model
from protea.training.runs import fit_run, resume_run

__all__ = [
    "EM",
    "Budget",
    "FitResult",
    "Gradient",
    "OnlineEM",
    "Saving",
    "default_learner",
    "fit",
    "fit_run",
    "load_model",
    "resume_run",
]
