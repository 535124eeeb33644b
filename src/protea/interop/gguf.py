"""Models as one GGUF file, which llama.cpp and what is built on it open.

A GGUF file holds the architecture's name, its sizes, the tokenizer and the tensors under names of its
own (blk.0.attn_q.weight ...). We go through the Hugging Face spelling, for which the `gguf` package
knows those names; what differs beside names is told in `gguf_kinds.py` and `gguf_sizes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protea.errors import MissingExtra, NotSupported
from protea.interop.gguf_kinds import KINDS, stacked
from protea.interop.gguf_tokens import Vocabulary
from protea.training import files

Config = Mapping[str, Any]
# kept in float32: llama.cpp's kernels for routers, taps and decays read nothing else
WHOLE = ("gate.weight", "router.weight", "conv1d.weight", "A_log", ".D", "norm.weight")


def _package() -> Any:
    try:
        import gguf
    except Exception as error:
        raise MissingExtra("gguf", "gguf", error) from None
    return gguf


def write_gguf(
    path: Path, config: Config, tensors: Mapping[str, Tensor], vocabulary: Vocabulary, name: str = "protea"
) -> Path:
    """Write one GGUF file, atomically.

    Args:
        path: of the file.
        config: config.json of the Hugging Face folder.
        tensors: those of the folder; matrices and embeddings keep their precision, norms are float32.
        vocabulary: the tokens, see `gguf_tokens`.
        name: of the model, for people.

    Raises:
        NotSupported: an architecture that llama.cpp does not have, or that this writer does not know.
        MissingExtra: the package `gguf` is not installed.
    """
    kind = KINDS.get(config["model_type"])
    if kind is None:
        raise NotSupported(
            f"llama.cpp has no {config['model_type']!r} models, so that no GGUF file of one is written (those that "
            f"can: {', '.join(KINDS)}).",
            "Export with --to hf or --to onnx instead.",
        )
    gguf = _package()
    arch = getattr(gguf.MODEL_ARCH, kind.arch)
    layers = next(config[name] for name in ("num_hidden_layers", "n_layer", "n_layers") if name in config)
    names = gguf.get_tensor_name_map(arch, layers)
    converted = kind.convert({n: t.detach().cpu() for n, t in stacked(tensors).items()}, config)

    def fill(partial: Path) -> None:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[arch])
        writer.add_name(name)
        kind.sizes(writer, config, gguf)
        _tokens(writer, vocabulary, gguf)
        writer.add_vocab_size(len(vocabulary.tokens))
        for theirs, tensor in converted.items():
            stem, suffix = next(
                ((theirs[: -len(s)], s) for s in (".weight", ".bias") if theirs.endswith(s)), (theirs, "")
            )
            ours = names.get_name(stem)
            if ours is None:
                raise NotSupported(f"GGUF has no place for the tensor {theirs}.", "Export with --to hf instead.")
            whole = tensor.ndim == 1 or tensor.dtype == torch.bfloat16 or theirs.endswith(WHOLE)
            t = tensor.float() if whole else tensor
            writer.add_tensor(ours + suffix, t.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    files.write(path, fill)
    return path


def _tokens(writer: Any, v: Vocabulary, gguf: Any) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(v.pre)
    writer.add_token_list(v.tokens)
    writer.add_token_types([int(getattr(gguf.TokenType, kind)) for kind in v.kinds])
    writer.add_token_merges(v.merges)
    for number, add in ((v.bos, writer.add_bos_token_id), (v.eos, writer.add_eos_token_id)):
        if number is not None:
            add(number)
    writer.add_add_bos_token(v.add_bos)
    writer.add_add_space_prefix(False)
    if v.template:
        writer.add_chat_template(v.template)
