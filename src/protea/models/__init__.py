"""Every model Protea knows, by name: `MODELS` is the one visible registry."""

from protea.models.entry import Entry

ENTRIES: tuple[Entry, ...] = ()

MODELS: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
