"""Exceptions that name the cause and the remedy.

Every error a user can cause is a `ProteaError`: the command line prints its message without a
traceback, and the message says what was wrong (with the offending value) and what to do about it.
"""

from __future__ import annotations


class ProteaError(Exception):
    """An error a user can act on.

    Args:
        cause: what went wrong, with the offending value.
        remedy: what to do about it.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause} {remedy}".strip())


class DataError(ProteaError):
    """The data cannot be read or do not fit what was asked of them."""


class ConfigError(ProteaError):
    """An option, a name or a combination of them is not valid."""


class ConstraintError(ProteaError):
    """Declared constraints are contradictory or cannot be met by sampling."""


class CheckpointError(ProteaError):
    """A run folder or checkpoint is missing, damaged, or of an unknown format."""


class Diverged(ProteaError):
    """Training met a non-finite loss or gradient; the last good checkpoint is kept."""


class ProtocolMismatch(ProteaError):
    """Two numbers were measured under different protocols and cannot be compared."""


class NotSupported(ProteaError):
    """The model does not have the capability that was asked of it."""


class MissingExtra(ProteaError):
    """An optional dependency is absent or broken.

    Args:
        package: the package that failed to import.
        extra: the extra of Protea that brings it.
        reason: the exception met while importing it.
    """

    def __init__(self, package: str, extra: str, reason: object = "not installed") -> None:
        super().__init__(
            f"The optional package {package!r} cannot be imported ({reason}).",
            f"Install it with: pip install 'protea[{extra}]'",
        )


def nearest(name: str, known: object) -> str:
    """A 'did you mean' clause naming the known names nearest to `name`."""
    from difflib import get_close_matches

    names = [str(k) for k in known]  # type: ignore[attr-defined]
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(names))}."


class ParityError(ProteaError):
    """An exported model does not say what the original says."""
