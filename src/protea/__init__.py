"""Protea: which generative model should I use, is the result any good, may I release it?

    import protea

    dataset = protea.open("digits")                       # a path, or the name of an embedded set
    run = protea.fit("flow-matching", dataset, budget="60s", out="runs/digits")
    run.sample(16)                                        # PIL images, a DataFrame, strings or an array
    protea.compare("digits", budget="30s", out="report")  # every family, one report

Everything is imported on first use, so that `import protea` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "MODELS",
    "Budget",
    "Hardware",
    "Run",
    "__version__",
    "compare",
    "fit",
    "from_pretrained",
    "generate",
    "load",
    "open",
    "save_pretrained",
]

if TYPE_CHECKING:
    from protea.api import Run, fit, load
    from protea.data import open_data as open
    from protea.evaluation.compare import compare
    from protea.interop.huggingface import from_pretrained, save_pretrained
    from protea.models import MODELS
    from protea.serving.generate import generate
    from protea.training import Budget
    from protea.training.hardware import Hardware

_LAZY = {  # public name -> (module, name there)
    "open": ("protea.data", "open_data"),
    "fit": ("protea.api", "fit"),
    "load": ("protea.api", "load"),
    "Run": ("protea.api", "Run"),
    "generate": ("protea.serving.generate", "generate"),
    "from_pretrained": ("protea.interop.huggingface", "from_pretrained"),
    "save_pretrained": ("protea.interop.huggingface", "save_pretrained"),
    "compare": ("protea.evaluation.compare", "compare"),
    "MODELS": ("protea.models", "MODELS"),
    "Budget": ("protea.training", "Budget"),
    "Hardware": ("protea.training.hardware", "Hardware"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'protea' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
