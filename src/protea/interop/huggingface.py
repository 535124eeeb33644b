"""Language models as Hugging Face folders: config.json, safetensors in one or several parts, the tokenizer's files.

`from_pretrained` reads one, `save_pretrained` writes one that `transformers` opens and that gives the same
logits. What such a folder cannot say of a model of ours stands in config.json under "protea", which others ignore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protea.errors import ConfigError, DataError, NotSupported, nearest
from protea.interop.tensors import Tensors, write_tensors
from protea.models.autoregressive.architecture import Architecture, HuggingFace, Weight
from protea.models.autoregressive.architectures import ARCHITECTURES
from protea.models.autoregressive.blt_config import BLTConfig
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.language import LanguageModel
from protea.spaces import Tokens, space_from_json
from protea.spaces.chat import Chat
from protea.spaces.tokenizers import Subword
from protea.spaces.tokenizers.folder import holds_tokenizer, read_folder, write_folder
from protea.training import files

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
NOT_WEIGHTS = (
    "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
    ".shared_head.head.weight", ".embed_tokens.weight",  # DeepSeek-V3 repeats head and embedding in its last layer
)  # fmt: skip
FOLDER = "tokenizer.json"  # where the tokenizer is told
TEXT = 1024  # tokens of a text that is sampled from an imported model, at most


def read_config(folder: Path) -> dict[str, Any]:
    """config.json.

    Raises:
        DataError: no folder, no config.json, or not JSON.
    """
    path = folder / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.", "Give the folder of a model, with config.json in it.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}).", "Copy the folder again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is no JSON object.", "Copy the folder again.")
    return value


def architecture_of(config: Mapping[str, Any]) -> tuple[Architecture, HuggingFace]:
    """Which of our architectures config.json means.

    Raises:
        DataError: none of them (the nearest are named).
    """
    known = {a.hf.model_type: (a, a.hf) for a in ARCHITECTURES.values() if a.hf is not None}
    kind = str(config.get("model_type"))
    if kind not in known:
        raise DataError(f"config.json is of a model type {kind!r}, which Protea does not have.", nearest(kind, known))
    return known[kind]


def from_pretrained(folder: str | Path, *, dtype: str | torch.dtype | None = None) -> LanguageModel:
    """The language model in a Hugging Face folder; its tensors are read from disk when they are used.

    Args:
        folder: with config.json and safetensors.
        dtype: "float32", "bfloat16" or "float16" to convert the weights; None keeps each as it is stored.

    Raises:
        DataError: an unknown architecture or option; weights missing, unexpected, of other shapes, or pickled.
        ConfigError: an unknown dtype.
    """
    folder = Path(folder)
    config = read_config(folder)
    architecture, hf = architecture_of(config)
    theirs = Tensors(folder)
    c = hf.settle(hf.read(config), set(theirs))
    inputs = config.get("vocab_size")
    if not isinstance(inputs, int) or inputs < 1:
        raise DataError(f"config.json says vocab_size = {inputs!r}.", "Copy the folder again.")
    own = config.get("protea") or {}
    outputs = int(own.get("outputs", inputs))
    with torch.device("meta"):
        net = architecture.build(c, inputs, outputs)
    state = _state(net, hf.weights(c), theirs, outputs, as_dtype(dtype))
    net.load_state_dict(state, strict=True, assign=True)
    begin = _begin(own, config, inputs)
    space = _space(folder, config, c.context, outputs, begin)
    model = LanguageModel(space, net, c.context, begin)
    model.architecture, model.config = architecture.name, c
    if len(model.class_prior) and "class_prior" in own:
        model.class_prior = torch.tensor(own["class_prior"], dtype=torch.float64)
    return model.eval()


def save_pretrained(
    model: LanguageModel, folder: str | Path, *, dtype: str | torch.dtype | None = None,
    part_size: int | str = "5GB",
) -> Path:  # fmt: skip
    """Write a language model as a Hugging Face folder.

    Args:
        model: of an architecture that Hugging Face has.
        folder: made where it does not exist; files of the same names are replaced, each whole or not at all.
        dtype: "float32", "bfloat16" or "float16" to convert the weights; None keeps each as it is.
        part_size: bytes, or "200MB", "5GB": weights that are larger are written in parts with an index.

    Raises:
        NotSupported: an architecture that Hugging Face does not have. CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    config, tensors = spell(model)
    wanted = as_dtype(dtype)
    if wanted is not None:
        tensors = {name: t.to(wanted) if t.is_floating_point() else t for name, t in tensors.items()}
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config |= {"dtype": kind, "torch_dtype": kind}
    write_tensors(folder, tensors, part_size)
    files.write_json(folder / "config.json", config)
    extra = list(range(config["protea"]["outputs"], config["vocab_size"]))
    values = {name: config[name] for name in ("bos_token_id", "eos_token_id") if name in config}
    files.write_json(folder / "generation_config.json", values | ({"suppress_tokens": extra} if extra else {}))
    if model.space.tokenizer != "ids":
        write_folder(folder, model.space.codec, model.space.chat)
    return folder


def spell(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a model, as Hugging Face names them.

    A model that reads ids which cannot follow (begin-of-text) gets rows of zeros for them in the head.

    Raises:
        NotSupported: an architecture that Hugging Face does not have.
    """
    architecture = ARCHITECTURES.get(getattr(model, "architecture", ""))
    if architecture is None or architecture.hf is None:
        known = [a.name for a in ARCHITECTURES.values() if a.hf is not None]
        raise NotSupported(
            f"A model of architecture {getattr(model, 'architecture', type(model).__name__)!r} has no counterpart "
            "at Hugging Face.",
            f"Those that have: {', '.join(known)}.",
        )
    hf, c = architecture.hf, _settled(model)
    state = {name: t.detach() for name, t in model.net.state_dict().items()}
    inputs, outputs = model.net.embed.weight.shape[0], model.net.outputs
    if "head.weight" in state and outputs < inputs:
        head = state["head.weight"]
        state["head.weight"] = torch.cat((head, head.new_zeros(inputs - outputs, head.shape[1])))
    tensors: dict[str, Tensor] = {}
    for weight in hf.weights(c):
        made = weight.save([state[name] for name in weight.ours])
        tensors |= dict(zip(weight.theirs, made, strict=True))
    config: dict[str, Any] = {"architectures": [hf.model_class], "model_type": hf.model_type, **hf.write(c, inputs)}
    stop = [] if model.space.chat is None else list(model.space.chat.stop)
    config |= {"bos_token_id": model.begin} | ({"eos_token_id": stop[0] if len(stop) == 1 else stop} if stop else {})
    space = model.space.to_json()
    if isinstance(model.space.tokenizer, Subword):
        space = {**space, "tokenizer": FOLDER}
    own = {"version": 1, "outputs": outputs, "begin": model.begin, "space": space}
    if len(model.class_prior):
        own["class_prior"] = model.class_prior.tolist()
    return {**config, "protea": own}, tensors


def _settled(model: LanguageModel) -> Any:
    """The config; that of a byte latent transformer with the threshold it has learnt, as its folder must say it."""
    c = model.config
    if isinstance(c, BLTConfig) and c.threshold is None and c.rule == "global":
        return replace(c, threshold=float(model.net.patcher.theta))  # type: ignore[arg-type]
    return c


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name.

    Raises:
        ConfigError: an unknown one.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(f"There is no dtype {dtype!r} for weights.", nearest(dtype, DTYPES))
        return DTYPES[dtype]
    return dtype


def _state(
    net: Decoder, groups: list[Weight] | Any, theirs: Tensors, outputs: int, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Our state dict of their tensors."""
    shapes = {name: t.shape for name, t in net.state_dict().items()}
    wanted = {name for weight in groups for name in weight.theirs}
    names = _names(set(theirs), wanted)
    missing = sorted(wanted - set(names))
    if missing:
        raise DataError(
            f"{theirs.folder} lacks {len(missing)} of {len(wanted)} tensors: {_some(missing)}.",
            "Is config.json of this model, and are all of its parts here?",
        )
    tied = {"lm_head.weight"} if net.head is None else set()
    extra = sorted(n for n in set(names) - wanted - tied if not n.endswith(NOT_WEIGHTS))
    if extra:
        raise DataError(
            f"{theirs.folder} holds {len(extra)} tensors that the architecture does not have: {_some(extra)}.",
            "Does config.json say all that the model is made of?",
        )
    state: dict[str, Tensor] = {}
    for weight in groups:
        read = [theirs[names[name]] for name in weight.theirs]
        try:
            made = weight.load(read)
        except (RuntimeError, IndexError, ValueError) as error:
            shown = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(weight.theirs, read, strict=True))
            raise DataError(
                f"{theirs.folder}: {shown} do not fit together ({error}).", "Is config.json right?"
            ) from None
        for name, tensor in zip(weight.ours, made, strict=True):
            if name == "head.weight" and len(tensor) > outputs:
                tensor = tensor[:outputs]
            if tensor.shape != shapes[name]:
                raise DataError(
                    f"{theirs.folder}: {', '.join(weight.theirs)} is {tuple(tensor.shape)} where config.json says "
                    f"{tuple(shapes[name])}.",
                    "Is config.json of this model?",
                )
            state[name] = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
    return state


def _names(held: set[str], wanted: set[str]) -> dict[str, str]:
    """Wanted names to those of the files, which may lack the base model's prefix (as GPT-2's own do) or add one."""
    direct = {name: name for name in held}
    if held & wanted:
        return direct
    for prefix in ("transformer.", "model.", "backbone."):
        if {prefix + name for name in held} & wanted:
            return {prefix + name if prefix + name in wanted else name: name for name in held}
        if {name.removeprefix(prefix) for name in held} & wanted:
            return {name.removeprefix(prefix): name for name in held}
    return direct


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _space(folder: Path, config: Mapping[str, Any], context: int, outputs: int, begin: int) -> Tokens:
    """The space of our own making, else tokens of the folder's tokenizer, else plain ids."""
    own = (config.get("protea") or {}).get("space")
    if own is not None and own["tokenizer"] != FOLDER:
        space = space_from_json(own)
        assert isinstance(space, Tokens)
        return space
    found = read_folder(folder) if holds_tokenizer(folder) else None
    tokenizer = "ids" if found is None else found.tokenizer
    if own is not None:
        space = space_from_json({**own, "tokenizer": "ids"})
        assert isinstance(space, Tokens)
        return replace(space, tokenizer=tokenizer)
    chat = None if found is None else found.chat
    ends = config.get("eos_token_id")
    if chat is None and ends is not None:
        chat = Chat(None, tuple(ends) if isinstance(ends, list) else (ends,))
    return Tokens(min(context, TEXT), outputs, tokenizer, chat=chat, begin=begin)


def _begin(own: Mapping[str, Any], config: Mapping[str, Any], inputs: int) -> int:
    """Begin-of-text: as config.json says, else what ends a text (GPT-2, Qwen), else 0."""
    ends = config.get("eos_token_id")
    for value in (own.get("begin"), config.get("bos_token_id"), ends[0] if isinstance(ends, list) and ends else ends):
        if isinstance(value, int) and 0 <= value < inputs:
            return value
    return 0
