"""Defaults of the verbs' options from a file: what is typed wins, then the file, then what is built in.

    # protea.toml
    [fit]
    budget = "10m"
    device = "cuda"
    set = ["width=256"]

    [compare]
    target = "income"

The file is `--config FILE`, or `protea.toml` in the working directory. Names are those of the options, with - or _.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protea.errors import ConfigError, nearest

NAME = "protea.toml"


def read_defaults(path: Path | None, verbs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by verb, as a context's `default_map`.

    Raises:
        ConfigError: the file is absent or no TOML; an unknown verb or option, with the nearest names.
    """
    if path is None:
        if not Path(NAME).is_file():
            return {}
        path = Path(NAME)
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as TOML ({error}).", 'For instance: [fit] and budget = "5m".'
        ) from None
    found: dict[str, dict[str, Any]] = {}
    for verb, values in sections.items():
        if verb not in verbs or not isinstance(values, dict):
            raise ConfigError(f"{path}: there is no verb [{verb}].", nearest(verb, verbs))
        options = {
            opt.lstrip("-").replace("-", "_"): str(p.name)
            for p in verbs[verb].params
            if p.param_type_name == "option"
            for opt in (*p.opts, *p.secondary_opts)
        }
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in options:
                raise ConfigError(f"{path}: [{verb}] has no option {key!r}.", nearest(name, options))
            found.setdefault(verb, {})[options[name]] = value
    return found
