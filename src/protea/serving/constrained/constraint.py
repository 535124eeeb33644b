"""The contract of a constraint: which tokens may follow, and whether the text may end."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from protea.spaces.tokenizers import Tokenizer


class Matcher(ABC):
    """One text on its way through a constraint."""

    @abstractmethod
    def allowed(self, size: int) -> Tensor:
        """(size,) booleans: tokens that may follow. Stop tokens are the engine's affair."""

    @abstractmethod
    def consume(self, token: int) -> None:
        """The token follows."""

    @property
    @abstractmethod
    def accepting(self) -> bool:
        """Whether the text may end here."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing may follow."""


class Constraint(ABC):
    """What a text must be. Made once, it may serve many requests."""

    @abstractmethod
    def start(self, codec: Tokenizer, stop_ids: frozenset[int]) -> Matcher:
        """A matcher for a text of this tokenizer's tokens.

        Raises:
            ConfigError: the constraint is not well formed, or nothing can meet it.
        """
