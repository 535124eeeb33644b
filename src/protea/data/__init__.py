"""Data: a path or a name to a split data set in a space."""

from protea.data.dataset import Dataset
from protea.data.embedded import EMBEDDED
from protea.data.open import OPTIONS, open_data
from protea.data.preflight import Preflight
from protea.data.toys import TOYS, Toy

__all__ = ["Dataset", "EMBEDDED", "OPTIONS", "Preflight", "TOYS", "Toy", "open_data"]
