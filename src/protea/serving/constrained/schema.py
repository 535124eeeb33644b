"""Whether a JSON schema that refers to itself can come to an end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def finite(schema: Any, root: Mapping[str, Any], open_: frozenset[str] = frozenset()) -> bool:
    """Whether some finite text may meet a schema, as far as required parts and references tell.

    A reference within itself cannot be what ends it: its shortest text would hold itself.

    >>> node = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    >>> finite(node, node), finite(node | {"required": ["next"]}, node | {"required": ["next"]})
    (True, False)
    """
    if not isinstance(schema, Mapping):
        return schema is not False
    if isinstance(ref := schema.get("$ref"), str):
        if ref in open_:
            return False
        target = resolve(ref, root)
        if target is not None and not finite(target, root, open_ | {ref}):
            return False
    for kind in ("anyOf", "oneOf"):
        if kind in schema and not any(finite(part, root, open_) for part in schema[kind]):
            return False
    if not all(finite(part, root, open_) for part in schema.get("allOf", ())):
        return False
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types
    could = {"object": _object(schema, root, open_), "array": _array(schema, root, open_)}
    if types is None:
        return True  # a number, say
    return any(could.get(kind, True) for kind in types)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], open_: frozenset[str]) -> bool:
    parts = schema.get("properties", {})
    other = schema.get("additionalProperties", True)
    return all(finite(parts.get(name, other), root, open_) for name in schema.get("required", ()))


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], open_: frozenset[str]) -> bool:
    least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
    rest = schema.get("items", True)
    needed = [*first[:least], *([rest] if least > len(first) else [])]
    return all(finite(part, root, open_) for part in needed)


def resolve(ref: str, root: Mapping[str, Any]) -> Any:
    """What a reference within the schema points at; None for any other."""
    if not ref.startswith("#"):
        return None
    here: Any = root
    for part in ref[1:].strip("/").split("/") if ref != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, Mapping) and name in here:
            here = here[name]
        elif isinstance(here, list) and name.isdecimal() and int(name) < len(here):
            here = here[int(name)]
        else:
            return None
    return here
