"""Loops that no tensor library has in one piece, in C++: each beside a PyTorch form that needs no compiler."""

from protea.kernels.build import compiled

__all__ = ["compiled"]
