"""Other people's models as run folders, so that every verb works on them."""

from __future__ import annotations

from pathlib import Path

from protea.errors import ConfigError
from protea.interop.huggingface import from_pretrained
from protea.training.run import create_run, save_model


def import_model(source: str, out: Path | None = None) -> Path:
    """A model of elsewhere as a run folder.

    Args:
        source: "hf:FOLDER", a Hugging Face folder on this machine.
        out: the run folder; None: runs/NAME of the folder.

    Raises:
        ConfigError: an unknown kind of source, or the run folder is taken.
        DataError: the folder is not what it should be.
    """
    kind, colon, place = source.partition(":")
    if not colon or kind != "hf" or not place:
        raise ConfigError(f"{source!r} does not say what is imported.", "Give hf:FOLDER, a Hugging Face folder.")
    folder = Path(place).expanduser()
    model = from_pretrained(folder)
    path = out or Path("runs") / folder.resolve().name
    facts = {"source": str(folder.resolve()), "name": folder.resolve().name, "imported": "hf"}
    create_run(path, model_name=model.architecture, config=model.config, space=model.space, data=facts)
    save_model(path, model)
    return path
