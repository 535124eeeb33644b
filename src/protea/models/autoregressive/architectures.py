"""Every architecture of a language model, by name: `ARCHITECTURES` is the one visible registry.

To add one: a file with an `ARCHITECTURE`, a line here, and a parity test. A line makes it trainable
(`protea fit NAME corpus.txt`), readable and writable as a Hugging Face folder, and tried by the laws.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from protea.models.autoregressive.architecture import Architecture
from protea.models.autoregressive.blt import ARCHITECTURE as BLT
from protea.models.autoregressive.cohere import ARCHITECTURE as COHERE2
from protea.models.autoregressive.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from protea.models.autoregressive.gemma import GEMMA2, GEMMA3
from protea.models.autoregressive.gpt1 import ARCHITECTURE as GPT1
from protea.models.autoregressive.gpt2 import GPT2_ARCHITECTURE as GPT2
from protea.models.autoregressive.gpt2 import GPT3_ARCHITECTURE as GPT3
from protea.models.autoregressive.jamba import ARCHITECTURE as JAMBA
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.llama import ARCHITECTURE as LLAMA
from protea.models.autoregressive.mamba import ARCHITECTURE as MAMBA
from protea.models.autoregressive.mamba2 import ARCHITECTURE as MAMBA2
from protea.models.autoregressive.mistral import ARCHITECTURE as MISTRAL
from protea.models.autoregressive.mixtral import ARCHITECTURE as MIXTRAL
from protea.models.autoregressive.mobilellm import ARCHITECTURE as MOBILELLM
from protea.models.autoregressive.mpt import ARCHITECTURE as MPT
from protea.models.autoregressive.qwen import QWEN2, QWEN3
from protea.models.autoregressive.qwen_moe import QWEN2_MOE, QWEN3_MOE
from protea.models.autoregressive.rnn import ARCHITECTURE as RNN
from protea.models.autoregressive.xlstm import ARCHITECTURE as XLSTM
from protea.models.entry import Entry
from protea.space import Rows, Space
from protea.spaces import Tokens

ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        GPT1,
        GPT2,
        GPT3,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA2,
        GEMMA3,
        COHERE2,
        MPT,
        MOBILELLM,
        MIXTRAL,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        QWEN2_MOE,
        QWEN3_MOE,
        MAMBA,
        MAMBA2,
        JAMBA,
        XLSTM,
        BLT,
        RNN,
    )
}


def language_model(name: str, space: Tokens, config: Any) -> LanguageModel:
    """An untrained model of texts: reads the tokens and a begin-of-text for each class, predicts the tokens.

    >>> language_model("llama", Tokens(8), ARCHITECTURES["llama"].scaled(1, 16, 8)).begin
    256
    """
    v, context = space.vocabulary, max(config.context, space.length)
    config = replace(config, context=context)
    own = 0 if space.begin is not None else max(1, len(space.classes))
    model = LanguageModel(space, ARCHITECTURES[name].build(config, v + own, v), context, space.begin)
    model.architecture, model.config = name, config
    return model


def size(space: Space, train: Rows, seconds: float) -> tuple[int, int, int]:
    """(n_layers, d_model, context): as large as the budget can train, and as the data can feed.

    6 N D operations train N parameters on D tokens (Kaplan et al. 2020), and compute is best spent with D proportional
    to N (Hoffmann et al. 2022): so N ~ sqrt(seconds), here 30,000 sqrt(seconds) for two cores, and at most one
    parameter for each token of the data. Width d and depth d / 32 + 2 have N of about 12 (d / 32 + 2) d^2.
    """
    assert isinstance(space, Tokens)
    most = min(3e4 * math.sqrt(max(seconds, 1.0)), train.x.numel())
    width = 32
    for d in (64, 96, 128, 192, 256, 384, 512):
        if 12 * (d // 32 + 2) * d**2 <= 1.2 * most:
            width = d
    return width // 32 + 2, width, space.length


def entry(architecture: Architecture) -> Entry:
    """A family of models to train, of the architecture's own proportions; `compare` takes it when it is named."""

    def build(space: Space, config: Any) -> LanguageModel:
        assert isinstance(space, Tokens)
        return language_model(architecture.name, space, config)

    def suggest(space: Space, train: Rows, seconds: float) -> Any:
        return architecture.scaled(*size(space, train, seconds))

    return Entry(
        name=architecture.name, family="autoregressive", title=architecture.title, source=architecture.source,
        suits=frozenset({"tokens"}), config=architecture.config, build=build, suggest=suggest, usual=False,
    )  # fmt: skip


ENTRIES: tuple[Entry, ...] = tuple(entry(a) for a in ARCHITECTURES.values())
