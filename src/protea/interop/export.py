"""A language model in the form others open, and the proof that it still says the same.

    hf  a Hugging Face folder, opened by transformers
    gguf  one file, opened by llama.cpp
    onnx  a graph of ids to logits, opened by onnxruntime
    onnx-past  the same with a memory as inputs and outputs, for one token a call

The export is written beside its place, opened by the program it is for, and moved there only if its
logits and greedy text are the model's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from protea.errors import ConfigError, MissingExtra, nearest
from protea.interop.gguf import write_gguf
from protea.interop.gguf_tokens import vocabulary_of
from protea.interop.huggingface import as_dtype, save_pretrained, spell
from protea.interop.onnx import write_onnx
from protea.interop.parity import Agreement, Twin, agreement, trial_prompts
from protea.interop.readers import open_with_llama_cpp, open_with_onnxruntime, open_with_transformers
from protea.models.autoregressive.language import LanguageModel


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: of the folder or file.
        form: hf, gguf, onnx or onnx-past.
        agreement: with the original, or None where its reader is not installed.
        unchecked: why it was not compared, or "".
    """

    path: Path
    form: str
    agreement: Agreement | None
    unchecked: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = None if self.agreement is None else self.agreement.to_json()
        return {"path": str(self.path), "to": self.form, "parity": found, "unchecked": self.unchecked}


@dataclass(frozen=True)
class _Form:
    write: Callable[[Path, LanguageModel, torch.dtype | None], Any]
    reader: str
    open: Callable[[Path], Twin]
    suffix: str


def _gguf(path: Path, model: LanguageModel, dtype: torch.dtype | None) -> None:
    config, tensors = spell(model)
    if dtype is not None:
        tensors = {name: t.to(dtype) for name, t in tensors.items()}
    chat = model.space.chat
    stops = chat.stop if chat is not None else ()
    vocabulary = vocabulary_of(
        model.space.codec.definition(), config["vocab_size"], bos=model.begin,
        eos=stops[0] if stops else model.space.codec.role("eos"), template=chat.template if chat else None,
    )  # fmt: skip
    write_gguf(path, config, tensors, vocabulary, config["model_type"])


def _onnx(path: Path, model: LanguageModel, dtype: torch.dtype | None, memory: bool = False) -> None:
    if dtype not in (None, torch.float32):
        raise ConfigError(f"ONNX graphs are written in float32, not {dtype}.", "Leave --dtype out.")
    write_onnx(path, model, memory=memory)


FORMS: dict[str, _Form] = {
    "hf": _Form(lambda p, m, d: save_pretrained(m, p, dtype=d), "transformers", open_with_transformers, ""),
    "gguf": _Form(_gguf, "llama.cpp", open_with_llama_cpp, ".gguf"),
    "onnx": _Form(_onnx, "onnxruntime", open_with_onnxruntime, ".onnx"),
    "onnx-past": _Form(lambda p, m, d: _onnx(p, m, d, memory=True), "onnxruntime", open_with_onnxruntime, ".onnx"),
}


def export(
    model: LanguageModel, to: str, out: Path, *, dtype: str | None = None, tolerance: float | None = None
) -> Exported:
    """Write a language model in another program's form, and compare what that program makes of it.

    Args:
        model: of an architecture that the form has.
        to: hf, gguf, onnx or onnx-past.
        out: folder (hf) or file; it must not exist.
        dtype: of the weights; None keeps them.
        tolerance: of logits, relative to the largest; None for 1e-3, and 5e-2 in half precision.

    Raises:
        ConfigError: an unknown form, or `out` is taken.
        ParityError: the export says something else; nothing is left.
        NotSupported: the form does not have the architecture or the tokenizer.
    """
    if to not in FORMS:
        raise ConfigError(f"There is no form {to!r} to export to.", nearest(to, FORMS))
    form = FORMS[to]
    if out.exists():
        raise ConfigError(f"{out} exists already.", "Choose another place with --out, or remove it.")
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"A {type(model).__name__} is no language model; only those are exported.", "")
    half = as_dtype(dtype) in (torch.float16, torch.bfloat16)
    beside = out.with_name(f".{out.stem}.{os.getpid()}.part{form.suffix}")
    model.eval()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        form.write(beside, model, as_dtype(dtype))
        found, why = None, ""
        try:
            prompts = trial_prompts(model.space.vocabulary, model.begin, model.context)
            found = agreement(
                model, form.open(beside), prompts, reader=form.reader, tolerance=tolerance or (5e-2 if half else 1e-3)
            )
        except MissingExtra as error:
            why = str(error)
        os.replace(beside, out)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
    return Exported(out, to, found, why)
