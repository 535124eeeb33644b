"""Models as one GGUF file, which llama.cpp and what is built on it open.

A GGUF file holds the architecture's name, its sizes, the tokenizer and the tensors under names of its
own (blk.0.attn_q.weight ...). We go through the Hugging Face spelling, for which the `gguf` package
knows those names; what differs beside names is told here. Llama's query and key rows are in the
interleaved order of the rotary pairs, GPT-2's matrices are transposed, Gemma's gains have 1 added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protea.errors import MissingExtra, NotSupported
from protea.interop.gguf_tokens import Vocabulary
from protea.training import files

Config = Mapping[str, Any]


def _package() -> Any:
    try:
        import gguf
    except Exception as error:
        raise MissingExtra("gguf", "gguf", error) from None
    return gguf


def interleave_rows(weight: Tensor, heads: int) -> Tensor:
    """Rows (or entries) of each head from half-split rotary pairs to interleaved ones.

    >>> interleave_rows(torch.arange(8.0), 2).tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _llama(name: str, t: Tensor, c: Config) -> Tensor:
    if "q_proj" in name:
        return interleave_rows(t, c["num_attention_heads"])
    if "k_proj" in name:
        return interleave_rows(t, c.get("num_key_value_heads") or c["num_attention_heads"])
    return t


def _gpt2(name: str, t: Tensor, c: Config) -> Tensor:
    return t.T if t.ndim == 2 and name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") else t


def _gemma(name: str, t: Tensor, c: Config) -> Tensor:
    return t + 1 if name.endswith("norm.weight") else t


def _same(name: str, t: Tensor, c: Config) -> Tensor:
    return t


@dataclass(frozen=True)
class _Kind:
    arch: str  # of gguf.MODEL_ARCH
    convert: Callable[[str, Tensor, Config], Tensor] = _same


KINDS: dict[str, _Kind] = {
    "llama": _Kind("LLAMA", _llama),
    "mistral": _Kind("LLAMA", _llama),
    "mixtral": _Kind("LLAMA", _llama),
    "qwen2": _Kind("QWEN2"),
    "qwen3": _Kind("QWEN3"),
    "gpt2": _Kind("GPT2", _gpt2),
    "gemma2": _Kind("GEMMA2", _gemma),
    "gemma3_text": _Kind("GEMMA3", _gemma),
}


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
            f"GGUF files of {config['model_type']!r} models are not written (known: {', '.join(KINDS)}).",
            "Export with --to hf, and convert that folder with llama.cpp's own script.",
        )
    gguf = _package()
    arch = getattr(gguf.MODEL_ARCH, kind.arch)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(arch, layers)

    def fill(partial: Path) -> None:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[arch])
        writer.add_name(name)
        _sizes(writer, config, gguf)
        _tokens(writer, vocabulary, gguf)
        writer.add_vocab_size(len(vocabulary.tokens))
        for theirs, tensor in _stacked(tensors).items():
            stem, _, suffix = theirs.rpartition(".")
            ours = names.get_name(stem)
            if ours is None:
                raise NotSupported(f"GGUF has no place for the tensor {theirs}.", "Export with --to hf instead.")
            t = kind.convert(theirs, tensor.detach().cpu(), config)
            t = t.float() if t.ndim == 1 or t.dtype == torch.bfloat16 else t
            writer.add_tensor(f"{ours}.{suffix}", t.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    files.write(path, fill)
    return path


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts of a layer as one tensor each of gates, ups and downs, as llama.cpp keeps them."""
    out: dict[str, Tensor] = {}
    experts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        head, found, tail = name.partition(".experts.")
        if not found:
            out[name] = tensor
            continue
        number, _, part = tail.partition(".")
        experts.setdefault(f"{head}.experts.{part}", []).append((int(number), tensor))
    for name, members in experts.items():
        out[name] = torch.stack([t for _, t in sorted(members, key=lambda m: m[0])])
    return out


def _sizes(writer: Any, c: Config, gguf: Any) -> None:
    """The sizes every reader asks for, where the architecture has them."""
    heads = c.get("num_attention_heads") or c["n_head"]
    width = c.get("hidden_size") or c["n_embd"]
    writer.add_context_length(c.get("max_position_embeddings") or c["n_positions"])
    writer.add_embedding_length(width)
    writer.add_block_count(c.get("num_hidden_layers") or c["n_layer"])
    writer.add_feed_forward_length(c.get("intermediate_size") or c.get("n_inner") or 4 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(c.get("num_key_value_heads") or heads)
    if head := c.get("head_dim"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if (eps := c.get("rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(eps)
    if (eps := c.get("layer_norm_epsilon")) is not None:
        writer.add_layer_norm_eps(eps)
    rope = c.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)  # Gemma 3 has one set for each kind of layer
    theta = rope.get("rope_theta", c.get("rope_theta"))
    if theta is not None and c["model_type"] != "gpt2":
        writer.add_rope_freq_base(float(theta))
        writer.add_rope_dimension_count(c.get("head_dim") or width // heads)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind != "default":
        raise NotSupported(f"GGUF export of RoPE scaling {kind!r} is not written.", "Export with --to hf instead.")
    if window := c.get("sliding_window"):
        writer.add_sliding_window(window)
        if c["model_type"] == "gemma3_text":
            _pattern(writer, c)
    if (cap := c.get("attn_logit_softcapping")) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := c.get("final_logit_softcapping")) is not None:
        writer.add_final_logit_softcapping(cap)
    if experts := c.get("num_local_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(c["num_experts_per_tok"])


def _pattern(writer: Any, c: Config) -> None:
    """Every k-th layer sees all; the others have a window, and rotary positions of their own base."""
    everywhere = [i for i, kind in enumerate(c["layer_types"]) if kind == "full_attention"]
    period = everywhere[0] + 1 if everywhere else len(c["layer_types"]) + 1
    if everywhere != list(range(period - 1, len(c["layer_types"]), period)):
        raise NotSupported(
            f"llama.cpp wants every k-th layer of Gemma 3 to see all, not layers {everywhere}.", "Export with --to hf."
        )
    writer.add_sliding_window_pattern(period)
    writer.add_rope_freq_base_swa(float(c["rope_parameters"]["sliding_attention"]["rope_theta"]))


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
