"""Settings of a model from JSON values, checked against the fields of its config dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from protea.errors import ConfigError, nearest


def from_json(cls: type, values: Mapping[str, Any], base: Any = None) -> Any:
    """A config of class `cls`: `base` (or the defaults) with `values` on top.

    Raises:
        ConfigError: a name is unknown (the nearest are named) or a value has the wrong type.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     width: int = 8
    ...     depths: tuple[int, ...] = (1,)
    >>> from_json(Config, {"depths": [1, 2]})
    Config(width=8, depths=(1, 2))
    """
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    clean = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"{cls.__name__} has no setting {name!r}.", nearest(name, fields))
        clean[name] = _check(f"{cls.__name__}.{name}", value, hints[name])
    try:
        return dataclasses.replace(base, **clean) if base is not None else cls(**clean)
    except TypeError as error:
        raise ConfigError(f"The settings of {cls.__name__} are incomplete ({error}).") from None


def to_json(config: Any) -> dict[str, Any]:
    """Every field of a config, as plain JSON values."""
    return dataclasses.asdict(config)


def _check(where: str, value: Any, kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        for option in sorted(inner, key=lambda k: k is not type(None)):
            try:
                return _check(where, value, option)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in inner:
            return value
        raise ConfigError(f"{where} is {value!r}.", nearest(str(value), inner))
    elif origin in (tuple, list) or kind in (tuple, list):
        if isinstance(value, (list, tuple)):
            item = inner[0] if inner else Any
            kinds = inner if inner and Ellipsis not in inner and origin is tuple else [item] * len(value)
            if len(kinds) == len(value):
                made = [_check(f"{where}[{i}]", v, k) for i, (v, k) in enumerate(zip(value, kinds))]
                return tuple(made) if tuple in (origin, kind) else made
    elif origin is dict or kind is dict:
        if isinstance(value, dict):
            return value
    elif kind is Any or kind is type(None):
        if kind is Any or value is None:
            return value
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{where} must be {name}, not {value!r}.", "See the settings with `protea models NAME`.")
