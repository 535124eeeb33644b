"""Language models as ONNX graphs, with free axes.

    whole texts    tokens (batch, time)  ->  logits (batch, time, V)
    with a memory  input_ids (batch, time), past_key_values.{layer}.{part}  ->  logits, present.{layer}.{part}

In the second form the tokens continue those remembered, of which there may be none (tensors of length 0): a text is
written one token a call. Attention remembers `key` and `value` (batch, heads, past, width), as Optimum names them;
latent attention `latent0`, recurrent layers `state0`, `state1` ...; the graph's metadata `protea.beginnings` tells the
shape of each for one text, and what it is before the first token. Recurrent layers become an ONNX Scan over the tokens
of their own step: one call of the layer a token, for any length. Experts answer for every token (`Experts.every`).
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protea.errors import MissingExtra, NotSupported
from protea.interop.onnx_memory import Past, Recurrence, Slot, slots_of
from protea.models.autoregressive.decoder import Decoder
from protea.models.autoregressive.language import LanguageModel
from protea.nn.mla import MLA, Materialised
from protea.training import files

BEGINNINGS = "protea.beginnings"  # of the graph's metadata: what every past tensor is before the first token


class _Whole(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class _Continued(nn.Module):
    def __init__(self, net: nn.Module, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.net, self.slots = net, slots

    def forward(self, tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        memory = Past(self.slots, past)
        return self.net(tokens, memory), *memory.present


@dataclass(frozen=True)
class _Names:
    """Of the graph's inputs and outputs."""

    inputs: list[str]
    outputs: list[str]


def write_onnx(path: Path, model: LanguageModel, *, memory: bool = False) -> Path:
    """Write one file, atomically.

    Args:
        path: of the file.
        model: a decoder of attention, recurrent layers, perceptrons and experts.
        memory: the second form.

    Raises:
        MissingExtra: `onnx` or `onnxscript` is not installed.
        NotSupported: the network cannot be traced with free axes.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except Exception as error:
        raise MissingExtra("onnxscript", "onnx", error) from None
    if not isinstance(model.net, Decoder):
        raise NotSupported(
            "The patches of a byte latent transformer fall where its own entropies say, so that their number, and with "
            "it the shape of every tensor between, depends on the bytes: a graph of fixed operations cannot hold it.",
            "Export with --to hf, or serve it here.",
        )
    net, slots = _prepared(model.net)
    names = _Names(["tokens"], ["logits"])
    graph: nn.Module = _Whole(net)
    # Sizes of 0 and 1 would be taken for constants; with others the graph holds for these, too.
    batch, time = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("time", min=2, max=max(3, model.context))
    example: tuple[Tensor, ...] = (torch.zeros(2, min(5, model.context), dtype=torch.int64),)
    shapes: Any = {"tokens": {0: batch, 1: time}}
    if memory:
        names = _Names(["input_ids", *(s.name("past_key_values") for s in slots)],
                       ["logits", *(s.name("present") for s in slots)])  # fmt: skip
        graph, past = _Continued(net, slots), torch.export.Dim("past", min=2, max=max(3, model.context))
        example = (torch.zeros(2, 3, dtype=torch.int64), *(s.example(2, 4) for s in slots))
        held = tuple({0: batch, 2: past} if s.grows else {0: batch} for s in slots)
        shapes = {"tokens": {0: batch, 1: time}, "past": held}
    program = _traced(graph.eval(), example, shapes, names)
    told = {s.name("past_key_values"): s.told() for s in slots} if memory else {}
    program.model.metadata_props[BEGINNINGS] = json.dumps(told)
    files.write(path, lambda partial: program.save(str(partial), external_data=False))
    return path


def _prepared(net: Decoder) -> tuple[Decoder, list[Slot]]:
    """A copy that shares the weights, with recurrent layers as loops and one form of latent attention for all lengths;
    and what its layers remember."""
    slots, recurrent = slots_of(net)
    own: dict[int, Any] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    again = copy.deepcopy(net, own)
    for name, beginning in recurrent.items():
        parent, _, last = name.rpartition(".")
        setattr(again.get_submodule(parent), last, Recurrence(again.get_submodule(name), beginning))
    for module in again.modules():
        if isinstance(module, MLA):
            module.form = Materialised()  # the absorbed one holds for one length at a time
    return again, slots


def _traced(graph: nn.Module, example: tuple[Tensor, ...], shapes: Any, names: _Names) -> Any:
    noise = logging.getLogger("torch.onnx")
    level = noise.level
    noise.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                exported, (), dynamo=True, verbose=False, input_names=names.inputs, output_names=names.outputs
            )
    except Exception as error:
        raise NotSupported(
            f"This network cannot be traced into an ONNX graph ({type(error).__name__}: {str(error)[:300]}).",
            "Export with --to hf instead.",
        ) from error
    finally:
        noise.setLevel(level)
    assert program is not None
    return program
