"""`protea version`."""

from __future__ import annotations

from protea.cli.options import Json


def version(json: Json = False) -> None:
    """Print versions.

    Of Protea and of what it stands on.
    """
    import platform
    from importlib import metadata

    import protea
    from protea.cli.console import print_json, stdout

    facts = {"protea": protea.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "scipy", "scikit-learn", "pandas"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    if json:
        print_json(facts)
    else:
        out = stdout()
        out.print(f"protea {facts.pop('protea')}")
        out.print(", ".join(f"{name} {value}" for name, value in facts.items()), style="dim")
