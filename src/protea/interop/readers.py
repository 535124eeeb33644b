"""Other programs that open what we export: each gives the last logits (V,) of the token ids of one text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from protea.errors import MissingExtra, ParityError
from protea.interop.parity import Twin


def open_with_transformers(folder: Path) -> Twin:
    """A Hugging Face folder, in float32.

    Raises:
        MissingExtra: `transformers` is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except Exception as error:
        raise MissingExtra("transformers", "parity", error) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    return lambda ids: model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def open_with_llama_cpp(path: Path) -> Twin:
    """A GGUF file, with keys and values remembered in float32.

    Raises:
        MissingExtra: `llama-cpp-python` is not installed. ParityError: llama.cpp does not open the file.
    """
    try:
        import llama_cpp
    except Exception as error:
        raise MissingExtra("llama-cpp-python", "llama-cpp", error) from None
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=0, n_threads=torch.get_num_threads(), logits_all=True, verbose=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        )  # fmt: skip
    except ValueError as error:
        raise ParityError(
            f"The installed llama.cpp ({llama_cpp.__version__}) cannot open the export ({error}).",
            "The file was not kept. Try a newer llama-cpp-python, or export with --to hf or --to onnx.",
        ) from None

    def last(ids: list[int]) -> torch.Tensor:
        model.reset()
        model.eval(ids)
        return torch.from_numpy(model.scores[len(ids) - 1].copy())

    return last


def open_with_onnxruntime(path: Path) -> Twin:
    """An ONNX graph: of whole texts, or one with a memory, which reads a text that goes on token by token.

    Raises:
        MissingExtra: `onnxruntime` is not installed.
    """
    try:
        import onnxruntime
    except Exception as error:
        raise MissingExtra("onnxruntime", "onnx", error) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    first, *rest = (node.name for node in session.get_inputs())
    if not rest:
        return lambda ids: torch.as_tensor(session.run(None, {first: torch.tensor([ids]).numpy()})[0])[0, -1]
    told = json.loads(session.get_modelmeta().custom_metadata_map["protea.beginnings"])
    read: list[int] = []
    held: dict[str, Any] = {}

    def last(ids: list[int]) -> torch.Tensor:
        nonlocal read, held
        if ids[:-1] != read or not held:
            read = []
            held = {name: torch.full([1, *shape], float(value)).numpy() for name, (shape, value) in told.items()}
        logits, *present = session.run(None, {first: torch.tensor([ids[len(read) :]]).numpy(), **held})
        read, held = list(ids), dict(zip(told, present, strict=True))
        return torch.as_tensor(logits)[0, -1]

    return last
