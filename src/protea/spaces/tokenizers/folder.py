"""Tokenizers as files of the Hugging Face layout, read and written.

tokenizer.json            the tokenizer itself; or, in older folders,
vocab.json, merges.txt    GPT-2's files (see `merges`)
tokenizer.model           SentencePiece's (see `sentencepiece`)
added_tokens.json         {token: id} of tokens that these two do not hold
tokenizer_config.json     special tokens by role (and, in older folders, the chat template)
special_tokens_map.json   the same roles, where the config leaves them out
chat_template.jinja       the chat template
generation_config.json    the ids that stop an answer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from protea.errors import DataError
from protea.spaces.chat import Chat
from protea.spaces.tokenizers.base import Specials, Tokenizer
from protea.spaces.tokenizers.definitions import added
from protea.spaces.tokenizers.merges import END, read_merges
from protea.spaces.tokenizers.sentencepiece import read_model
from protea.spaces.tokenizers.subword import Subword, canonical

MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
ROLES = ("bos", "eos", "pad", "unk")


class Found(NamedTuple):
    """What a folder holds: `chat` is None where it has neither template nor stop ids."""

    tokenizer: Subword
    chat: Chat | None


def read_folder(path: str | Path) -> Found:
    """The tokenizer of a folder, or of one of the files above, with its chat.

    Raises:
        DataError: no such file, or one that cannot be read; a special token that is not in it.
    """
    folder = Path(path).expanduser()
    file = source(folder)
    folder = file.parent
    config, roles = _read(folder / "tokenizer_config.json"), _read(folder / "special_tokens_map.json")
    if file.suffix == ".model":
        definition, own = read_model(file)
        roles = {**{f"{role}_token": name for role, name in own.items()}, **roles}
        definition = _more(folder, config, definition)
    elif file.name == "vocab.json":
        definition = _more(folder, config, read_merges(folder, config))
        ends = [t["content"] for t in definition["added_tokens"] if t["content"] == END]
        roles = {**{f"{role}_token": END for role in ("bos", "eos", "unk") if ends}, **roles}
    else:
        definition = _read(file)
    if not isinstance(definition.get("model"), dict):
        raise DataError(f"{file} is no tokenizer.json: it has no model.", "Save it with the tokenizers library.")
    named = {r: _content(config.get(f"{r}_token", roles.get(f"{r}_token"))) for r in ROLES}
    marked = [t["content"] for t in definition.get("added_tokens", ()) if t.get("special")]
    vocab = definition["model"].get("vocab")
    known = {t["content"] for t in definition.get("added_tokens", ())}
    known |= set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab or ()}
    named = {r: n for r, n in named.items() if n in known}  # a role may name a token that was never made
    others = tuple(n for n in marked if n not in named.values())
    tokenizer = Subword(canonical(definition), Specials(**named, others=others))
    return Found(tokenizer, _chat(folder, config, tokenizer))


def source(path: Path) -> Path:
    """The file that holds the tokenizer of a folder (or is given).

    Raises:
        DataError: none that is read.
    """
    if path.is_file():
        return path
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    for name in MODELS:
        if (path / name).is_file():
            return path / name
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return path / "vocab.json"
    other = next((n for n in ("vocab.json", "merges.txt", "vocab.txt") if (path / n).is_file()), None)
    raise DataError(
        f"{path} has no tokenizer.json{f', only {other}' if other else ''}.",
        "Save it with transformers as a fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
    )


def holds_tokenizer(folder: Path) -> bool:
    """Whether `read_folder` would find files to read."""
    try:
        return source(folder).is_file()
    except DataError:
        return False


def _more(folder: Path, config: Mapping[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """Tokens that are told beside the vocabulary, which the library finds in text as a whole."""
    told = {int(id): dict(t) for id, t in (config.get("added_tokens_decoder") or {}).items()}
    for name, id in _read(folder / "added_tokens.json").items():
        told.setdefault(int(id), {**added(int(id), name), "special": False})
    known = {t["id"]: t for t in definition["added_tokens"]}
    for id, token in told.items():
        known[id] = {**added(id, token["content"]), **{k: v for k, v in token.items() if k in added(0, "")}, "id": id}
    return {**definition, "added_tokens": [known[id] for id in sorted(known)]}


def read_tokenizer(path: str | Path) -> Subword:
    """The tokenizer of `read_folder` alone."""
    return read_folder(path).tokenizer


def write_folder(path: str | Path, tokenizer: Tokenizer, chat: Chat | None = None) -> list[Path]:
    """Write the files of a tokenizer into a folder; returns them.

    A `generation_config.json` that is there keeps its other entries.

    Raises:
        DataError: a tokenizer without text ("ids").
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    roles = {f"{role}_token": name for role, name in tokenizer.specials.roles.items()}
    extra = list(tokenizer.specials.others)
    more = {"additional_special_tokens": extra} if extra else {}
    config = {
        **roles, **more, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }  # fmt: skip
    files = {"tokenizer.json": tokenizer.definition(), "tokenizer_config.json": config}
    files["special_tokens_map.json"] = {**roles, **more}
    stop = list(chat.stop) if chat is not None else []
    ids = {f"{role}_token_id": tokenizer.role(role) for role in ("bos", "eos", "pad")}
    ids |= {"eos_token_id": stop if len(stop) > 1 else stop[0]} if stop else {}
    files["generation_config.json"] = _read(folder / "generation_config.json") | {
        name: id for name, id in ids.items() if id is not None
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    written = [folder / name for name in files]
    if chat is not None and chat.template is not None:
        (folder / "chat_template.jinja").write_text(chat.template, encoding="utf-8", newline="")
        written.append(folder / "chat_template.jinja")
    return written


def _chat(folder: Path, config: Mapping[str, Any], tokenizer: Subword) -> Chat | None:
    file = folder / "chat_template.jinja"
    template = file.read_bytes().decode("utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t["name"]: t["template"] for t in template}
        template = named.get("default", next(iter(named.values()), None))
    said = _read(folder / "generation_config.json").get("eos_token_id")
    eos = tokenizer.role("eos")
    stop = said if isinstance(said, list) else [i for i in (eos if said is None else said,) if i is not None]
    if template is None and not stop:
        return None
    variables = {f"{role}_token": name for role, name in tokenizer.specials.roles.items()}
    return Chat(template, tuple(stop), tuple(variables.items()))


def _content(value: Any) -> str | None:
    """A special token is a string, or an object with its content."""
    return value.get("content") if isinstance(value, dict) else value


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}).", "Save the tokenizer again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{file} holds no JSON object.", "Save the tokenizer again.")
    return value
