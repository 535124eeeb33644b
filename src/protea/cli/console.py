"""What verbs print: people's words on the terminal, one JSON document on standard output, errors in red."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from protea.errors import ProteaError


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def stderr() -> Console:
    """The console for progress and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_error(error: ProteaError) -> None:
    """The cause in red, the remedy below it; user's text is never read as markup."""
    from rich.text import Text

    message = Text.assemble(("Error: ", "bold red"), (error.cause, "red"))
    if error.remedy:
        message.append(f"\n{error.remedy}")
    stderr().print(message, soft_wrap=True)


def finite(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinities become null, paths and tuples plain values."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, Iterable):
        return [finite(v) for v in value]
    return str(value)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()
