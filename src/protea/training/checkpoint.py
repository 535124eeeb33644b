"""Checkpoints: safetensors whose header holds JSON values, a format version and a hash of everything.

    checkpoint/step-00000120.safetensors    weights, learner's state, position (the last two are kept)
    checkpoint/best-00000100.safetensors    the weights that judged best

Randomness and the data's order are functions of (seed, step), so the step number stands for both.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from protea.errors import CheckpointError
from protea.training import files
from protea.training.parallel import full, like

VERSION = 1  # of the format; later versions of Protea open earlier ones


def digest(tensors: Mapping[str, Tensor], values: str) -> str:
    """SHA-256 of names, dtypes, shapes, contents and values."""
    h = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{t.dtype}|{tuple(t.shape)}|".encode())
        h.update(memoryview(t.reshape(-1).view(torch.uint8).numpy()) if t.numel() else b"")  # type: ignore[arg-type]
    return h.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and JSON values to one safetensors file, atomically."""
    whole, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        whole[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor  # tied weights
        seen.add(tensor.untyped_storage().data_ptr())
    text = json.dumps(values, sort_keys=True)
    header = {"format": "protea", "version": VERSION, "sha256": digest(whole, text), "values": text}
    # One entry only: safetensors does not promise an order among several.
    metadata = {"protea": json.dumps(header, sort_keys=True)}
    files.write(path, lambda partial: save_file(whole, partial, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, changed since it was written, or of a newer format.
    """
    remedy = "Restore it from a copy, or fit again."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.", "Is this a finished run of Protea?") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}).", remedy) from None
    if "protea" not in metadata:
        raise CheckpointError(f"{path} was not written by Protea.", "Use a file from a run folder.")
    try:
        header = json.loads(metadata["protea"])
        version, text = int(header["version"]), header["values"]
        sha256 = header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}).", remedy) from None
    if version > VERSION:
        raise CheckpointError(
            f"{path} has format {version}; this Protea knows {VERSION}.", "Upgrade: pip install -U protea"
        )
    if digest(tensors, text) != sha256:
        raise CheckpointError(f"{path} was changed after it was written (hash mismatch).", remedy)
    return tensors, json.loads(text)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole state of a model on the CPU (gathered where it is sharded); copies."""
    return {name: full(tensor).clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: object = "the file") -> None:
    """Put a whole state into a model; buffers take the file's shape (counts, knots, components found in data).

    Raises:
        CheckpointError: names or parameters' shapes do not fit the model.
    """
    targets = dict(model.named_parameters(remove_duplicate=False))
    places = {
        f"{prefix}.{name}" if prefix else name: (module, name)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    held = set(model.state_dict())
    missing = sorted(held - set(tensors))
    extra = sorted(name for name in tensors if name not in targets and name not in places)
    if missing or extra:
        raise CheckpointError(
            f"{source} does not fit the model (missing: {missing[:3] or 'none'}, unknown: {extra[:3] or 'none'}).",
            "Was config.json changed after the run?",
        )
    for name, tensor in tensors.items():
        if name in targets:
            if targets[name].shape != tensor.shape:
                wanted, got = tuple(targets[name].shape), tuple(tensor.shape)
                raise CheckpointError(
                    f"{source}: {name} has shape {got}, but the model needs {wanted}.",
                    "Was config.json changed after the run?",
                )
            targets[name].copy_(like(tensor, targets[name]))
        else:
            module, buffer = places[name]
            present = module._buffers[buffer]
            if present is not None and present.shape == tensor.shape and present.dtype == tensor.dtype:
                present.copy_(tensor)
            else:
                device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
                module._buffers[buffer] = tensor.to(device).clone()


@dataclass(frozen=True)
class Saving:
    """Where a fit is kept, and how often.

    Args:
        folder: of weights, checkpoints and metrics.
        resume: continue from the newest checkpoint there, if there is one.
        seconds, steps: between checkpoints; None for steps: by the clock alone.
    """

    folder: Path | str
    resume: bool = False
    seconds: float = 30.0
    steps: int | None = None


class Keeper:
    """The checkpoints of one run: the last two states, and the best weights they refer to."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoint"
        if self.folder.is_dir():
            files.sweep(self.folder)

    def _found(self, kind: str) -> list[tuple[int, Path]]:
        paths = self.folder.glob(f"{kind}-*.safetensors") if self.folder.is_dir() else ()
        matches = [(re.fullmatch(rf"{kind}-(\d+)\.safetensors", p.name), p) for p in paths]
        return sorted((int(m[1]), p) for m, p in matches if m)

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the state after `step` steps, then drop what is no longer needed."""
        write_tensors(self.folder / f"step-{step:08d}.safetensors", tensors, values)
        for _, path in self._found("step")[:-2]:
            path.unlink(missing_ok=True)

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the best weights; those that the kept states refer to stay beside them."""
        write_tensors(self.folder / f"best-{step:08d}.safetensors", tensors, {"step": step})
        for _, path in self._found("best")[:-3]:
            path.unlink(missing_ok=True)

    def best(self, step: int) -> dict[str, Tensor]:
        return read_tensors(self.folder / f"best-{step:08d}.safetensors")[0]

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole; None where there is none yet.

        Raises:
            CheckpointError: there are states, but all are damaged.
        """
        found = self._found("step")
        for _, path in reversed(found):
            try:
                return read_tensors(path)
            except CheckpointError as error:
                warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
        if found:
            raise CheckpointError(f"Every checkpoint in {self.folder} is damaged.", "Fit again with --no-resume.")
        return None

    def clear(self) -> None:
        """Remove all checkpoints (a run begun afresh)."""
        for kind in ("step", "best"):
            for _, path in self._found(kind):
                path.unlink(missing_ok=True)
