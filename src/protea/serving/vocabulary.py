"""What a model's token ids are: those it can read, those that stand for text, those at which it stops."""

from __future__ import annotations

from collections.abc import Sequence

from protea.core import NextToken
from protea.errors import DataError
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.language import LanguageModel
from protea.spaces import Tokens
from protea.spaces.tokenizers import Ids, Tokenizer


def readable(model: NextToken) -> int:
    """How many ids the model can read: 0 .. n - 1."""
    net = getattr(model, "net", None)
    if isinstance(net, Decoder):
        return len(net.embed.weight)
    return model.space.vocabulary + 1 if isinstance(model.space, Tokens) else 2**31


def codec_of(model: NextToken) -> Tokenizer | None:
    """The model's tokenizer; None where its tokens stand for no text."""
    codec = model.space.codec if isinstance(model.space, Tokens) else None
    return None if codec is None or isinstance(codec, Ids) else codec


def stop_ids_of(model: NextToken) -> frozenset[int]:
    """Those of its chat, or the end-of-text of its tokenizer."""
    if not isinstance(model.space, Tokens):
        return frozenset()
    if model.space.chat is not None and model.space.chat.stop:
        return frozenset(model.space.chat.stop)
    codec = codec_of(model)
    end = None if codec is None else codec.role("eos")
    return frozenset() if end is None else frozenset({end})


def encode_prompt(model: LanguageModel, text: str) -> list[int]:
    """A text as a prompt: begin-of-text, then its tokens.

    Raises:
        DataError: the model's tokens stand for no text.
    """
    codec = codec_of(model)
    if codec is None:
        raise DataError("The model's tokens stand for no text.", "Give ids.")
    return [model.begin, *codec.encode(text)]


def token_bytes(codec: Tokenizer, ids: Sequence[int]) -> list[bytes]:
    """The bytes of each id inside a text; none of special tokens.

    A tokenizer whose bytes depend on neighbours (a space before words, say) is asked behind a letter.
    """
    if codec.lossless:
        return [codec.decode_bytes([i]) for i in ids]
    before = next((i for i in codec.encode("a") if codec.decode_bytes([i])), None)
    if before is None:
        return [codec.decode_bytes([i]) for i in ids]
    lead = codec.decode_bytes([before])
    whole = [codec.decode_bytes([before, i]) for i in ids]
    return [w[len(lead) :] if w.startswith(lead) else codec.decode_bytes([i]) for i, w in zip(ids, whole, strict=True)]
