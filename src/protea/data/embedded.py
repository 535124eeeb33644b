"""Data sets that need no download: scikit-learn's small ones, Python's own source, and the toys."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from protea.data.dataset import Documents, Loaded
from protea.data.toys import TOYS, load_toy
from protea.errors import DataError
from protea.spaces import Image, Table

CORPUS_BYTES = 2_000_000  # of the standard library's source
FILE_BYTES = 200_000  # longer files are tables and parsers


def digits() -> Loaded:
    """1,797 handwritten digits, 8 x 8 pixels of 17 levels, ten classes (UCI, Alpaydin and Kaynak)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    space = Image(1, 8, 8, levels=17, classes=tuple(map(str, range(10))))
    x = space.encode(bunch.images.astype(np.uint8))
    return Loaded("digits", "scikit-learn digits (UCI)", space, x, torch.from_numpy(bunch.target.astype(np.int64)))


def _classic(name: str, target: str) -> Callable[[], Loaded]:
    def load() -> Loaded:
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
        frame = pd.DataFrame(bunch.data, columns=list(bunch.feature_names))
        names = getattr(bunch, "target_names", None)
        frame[target] = bunch.target if names is None else np.asarray(names, dtype=object)[bunch.target]
        space = Table.infer(frame, target)
        return Loaded(name, f"scikit-learn {name}", space, space.encode(frame), target=target)

    load.__doc__ = f"The table {name} of scikit-learn, with the target column {target!r}."
    return load


def stdlib() -> Documents:
    """Python files of the standard library, sorted by path, tests left out, up to 2 MB: one document each.

    The text depends on the version of Python, and its fingerprint says so.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "turtledemo"}
    documents, total = [], 0
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        if skip & set(path.relative_to(root).parts) or path.stat().st_size > FILE_BYTES:
            continue
        text = path.read_bytes()
        if total + len(text) > CORPUS_BYTES:
            break
        documents.append(text)
        total += len(text)
    if not documents:
        raise DataError(f"This Python has no source files at {root}.", "Give a text file of your own.")
    version = sysconfig.get_python_version()
    return Documents(
        "python",
        f"the source of Python {version}'s standard library",
        documents,
        b"\n",
        (f"{len(documents)} files of Python {version}",),
    )


EMBEDDED: dict[str, Callable[..., Loaded | Documents]] = {
    "digits": digits,
    "wine": _classic("wine", "cultivar"),
    "breast-cancer": _classic("breast_cancer", "diagnosis"),
    "iris": _classic("iris", "species"),
    "diabetes": _classic("diabetes", "progression"),
    "python": stdlib,
    **{name: (lambda name=name, **options: load_toy(name, **options)) for name in TOYS},
}
ALIASES = {"stdlib": "python", "8gaussians": "eight-gaussians", "moons": "two-moons"}


def embedded_name(name: str) -> str | None:
    """The name of an embedded set, with _ for - and aliases understood; None if there is none.

    >>> embedded_name("breast_cancer"), embedded_name("stdlib"), embedded_name("data.csv")
    ('breast-cancer', 'python', None)
    """
    plain = name.lower().replace("_", "-")
    plain = ALIASES.get(plain, plain)
    return plain if plain in EMBEDDED else None
