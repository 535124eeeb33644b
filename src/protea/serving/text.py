"""Tokens to text as they come: valid UTF-8 only, and nothing that may turn out to be part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from protea.errors import ConfigError
from protea.spaces.tokenizers import Tokenizer

PATIENCE = 8  # tokens for which an unfinished character is waited for


class Writer:
    """The text of one answer.

    Bytes of a character that is not complete are held back, and so is the longest end that begins a stop string.

    Args:
        codec: ids to bytes.
        stops: strings at which the text ends; they are not part of it.

    >>> from protea.spaces.tokenizers import Bytes
    >>> writer = Writer(Bytes(), stops=["END"])
    >>> [writer.push(b) for b in "aÖE.END!".encode()], writer.text, writer.stopped
    (['a', '', 'Ö', '', 'E.', '', '', '', ''], 'aÖE.', 'END')
    """

    def __init__(self, codec: Tokenizer, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise ConfigError("A stop string is empty.", "Leave it out.")
        self.codec, self.stops = codec, tuple(stops)
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.text, self.held, self.stopped = "", "", None
        self.ids: list[int] = []
        self.shown = self.read = 0  # of a tokenizer whose bytes depend on neighbours: what was decoded already

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        if self.stopped is not None or not 0 <= token < self.codec.vocabulary:
            return ""
        return self._release(self._decode(token), last=False)

    def close(self) -> str:
        """What was held back, at the end of the answer; an unfinished character becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        rest = self._piece(force=True) if not self.codec.lossless else ""
        return self._release(rest + self.utf8.decode(b"", True), last=True)

    def _decode(self, token: int) -> str:
        if self.codec.lossless:
            return self.utf8.decode(self.codec.decode_bytes([token]))
        self.ids.append(token)
        return self._piece(force=len(self.ids) - self.read >= PATIENCE)

    def _piece(self, force: bool) -> str:
        """The new end of a text that is decoded anew from the last piece on, for spaces depend on it."""
        before = self.codec.decode_bytes(self.ids[self.shown : self.read]).decode("utf-8", "replace")
        now = self.codec.decode_bytes(self.ids[self.shown :]).decode("utf-8", "replace")
        if now.endswith("\ufffd") and not force:
            return ""
        self.shown, self.read = self.read, len(self.ids)
        return now[len(before) :]

    def _release(self, piece: str, last: bool) -> str:
        self.held += piece
        found = [(at, -len(stop), stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            at, _, self.stopped = min(found)
            out, self.held = self.held[:at], ""
        else:
            keep = 0 if last else max((overlap(self.held, stop) for stop in self.stops), default=0)
            out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self.text += out
        return out


def overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that begin a stop string, and are not all of it.

    >>> overlap("there is an E", "END"), overlap("EN", "NE")
    (1, 1)
    """
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
