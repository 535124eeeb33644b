"""Greedy decoding of a 12-layer, 512-wide Llama in float32 against transformers and llama.cpp, and the memory's speed.

    python benchmarks/bench_decode.py            # all; --short for a few rounds only

Every new token reads all weights of the blocks and the head once: the bound is the time of one product of a vector with
a matrix of as many bytes (torch.mv), measured in turn with the decoding. What limits us (perf, one thread): the same
reading of weights, above 90 % of a step at batch 1; at batch 8 the products beside it, and reading keys and values.
Other kinds of layer are timed against the same engine without kernels, each request by itself.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import compare, save, timed

from protea.interop.gguf import write_gguf
from protea.interop.gguf_tokens import Vocabulary
from protea.interop.huggingface import save_pretrained, spell
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.language import LanguageModel
from protea.models.autoregressive.llama import LlamaConfig
from protea.serving.compute import Apart
from protea.serving.drafters import Lookup
from protea.serving.engine import Engine
from protea.serving.requests import Request
from protea.spaces import Tokens

VOCABULARY, CONTEXT, PROMPT, NEW = 4096, 512, 32, 96
CONFIG = LlamaConfig(n_layers=12, d_model=512, n_heads=8, n_kv_heads=8, d_ff=1376, context=CONTEXT)
RAGGED = [(8, 96), (64, 24), (20, 48), (40, 80), (12, 16), (32, 64), (56, 32), (24, 96)]  # prompt, new tokens


def made() -> LanguageModel:
    torch.manual_seed(0)
    space = Tokens(CONTEXT, vocabulary=VOCABULARY, tokenizer="ids", begin=0)
    model = language_model("llama", space, CONFIG).eval().requires_grad_(False)
    model.net.head.weight.mul_(10)  # logits far apart, as in a model that has learnt something
    return model


def prompt(n: int, seed: int = 0) -> list[int]:
    return torch.randint(1, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def answers(engine: Engine, asked: list[tuple[int, int]]) -> list[list[int]]:
    handles = [engine.submit(Request(prompt(p, i), n, stop_ids=())) for i, (p, n) in enumerate(asked)]
    engine.run()
    engine.prompts.clear()  # every round computes its prompts
    return [h.tokens for h in handles]


@torch.inference_mode()
def transformers_answers(peer: Any, asked: list[tuple[int, int]]) -> list[list[int]]:
    """One left-padded batch, run to the longest answer."""
    longest, most = max(p for p, _ in asked), max(n for _, n in asked)
    ids = torch.tensor([[0] * (longest - p) + prompt(p, i) for i, (p, _) in enumerate(asked)])
    mask = torch.tensor([[0] * (longest - p) + [1] * p for p, _ in asked])
    out = peer.generate(ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False,
                        pad_token_id=0, eos_token_id=None)  # fmt: skip
    return [row[longest : longest + n] for row, (_, n) in zip(out.tolist(), asked, strict=True)]


def llama_cpp_answers(peer: Any, asked: list[tuple[int, int]]) -> list[list[int]]:
    import llama_cpp

    out = []
    for i, (p, n) in enumerate(asked):
        peer.reset()
        peer.eval(prompt(p, i))
        tokens: list[int] = []
        while True:
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(peer.ctx, -1), shape=(VOCABULARY,))
            tokens.append(int(logits.argmax()))
            if len(tokens) == n:
                break
            peer.eval(tokens[-1:])
        out.append(tokens)
    return out


def agreement(a: list[list[int]], b: list[list[int]]) -> str:
    same = sum(x == y for x, y in zip(a, b, strict=True))
    return f"{same} of {len(a)} texts equal"


def share_of_bound(engine: Engine, weights: int, rounds: int) -> dict:
    """Seconds of one product of a vector with as many bytes, over those of one token at batch 1; the two in turn."""
    big, v = torch.randn(weights // 4 // 2048, 2048), torch.randn(2048)
    out = torch.empty(len(big))
    engine.submit(Request(prompt(PROMPT), 4 * rounds + 8, stop_ids=()))
    for _ in range(4):
        engine.step()
    pairs = []
    with torch.inference_mode():
        for _ in range(rounds):
            pairs.append((min(timed(lambda: torch.mv(big, v, out=out)) for _ in range(3)),
                          min(timed(engine.step) for _ in range(3))))  # fmt: skip
    engine.run()
    shares = sorted(a / b for a, b in pairs)
    token = sorted(b for _, b in pairs)[rounds // 2]
    row = {
        "name": "share of the memory's bandwidth, batch 1", "bytes": weights, "token_s": token,
        "bound_s": sorted(a for a, _ in pairs)[rounds // 2], "share": shares[rounds // 2],
        "share_range": [shares[0], shares[-1]], "gb_per_s": weights / token / 1e9,
    }  # fmt: skip
    print(f"{row['name']}: {row['share']:.0%} [{shares[0]:.0%}, {shares[-1]:.0%}], {token * 1e3:.2f} ms a token, "
          f"{row['gb_per_s']:.1f} GB/s")  # fmt: skip
    return row


OTHERS = {"mixtral": 8, "qwen3-moe": 8, "deepseek-v3": 8, "mamba": 8, "mamba2": 8, "jamba": 8}  # layers


def against_apart(rounds: int) -> list[dict]:
    """Greedy tokens of each kind of layer, 256 wide, with the kernels and without, at batch 1 and 8."""
    rows = []
    for name, layers in OTHERS.items():
        torch.manual_seed(0)
        space = Tokens(CONTEXT, vocabulary=VOCABULARY, tokenizer="ids", begin=0)
        net = language_model(name, space, ARCHITECTURES[name].scaled(layers, 256, CONTEXT)).eval().requires_grad_(False)
        for n in (1, 8):
            asked = [(PROMPT, 32)] * n
            ours = Engine(net, slots=n, longest=CONTEXT)
            peer = Engine(net, slots=n, longest=CONTEXT, compute=Apart)
            note = agreement(answers(ours, asked), answers(peer, asked)) + ("" if ours.fused else ", NOT FUSED")
            row = compare(f"greedy, {name}, batch {n}, against the engine without kernels",
                          lambda e=ours, a=asked: answers(e, a), lambda e=peer, a=asked: answers(e, a),
                          rounds=rounds, note=note)  # fmt: skip
            rows.append(row | {"ours_tokens_per_s": 32 * n / row["ours_s"]})
    return rows


def growth() -> list[dict]:
    """Seconds of n tokens with a memory and without: the exponent of n from a least-squares line of the logarithms."""
    torch.manual_seed(0)
    space = Tokens(CONTEXT, vocabulary=256, tokenizer="ids", begin=0)
    model = language_model("llama", space, LlamaConfig(4, 128, 4, 4, 344, CONTEXT)).eval().requires_grad_(False)
    engine, lengths, rows = Engine(model, slots=1), (64, 128, 256, 448), []

    @torch.inference_mode()
    def anew(n: int) -> None:
        text = torch.tensor([[1]])
        for _ in range(n):
            text = torch.cat((text, model.logits(text)[:, -1:].argmax(-1)), 1)

    def kept(n: int) -> None:
        engine.submit(Request([1], n, stop_ids=()))
        engine.run()
        engine.prompts.clear()

    for name, work in (("with a memory", kept), ("every token anew", anew)):
        work(lengths[0])
        times = [min(timed(lambda n=n, w=work: w(n)) for _ in range(3)) for n in lengths]
        exponent = float(np.polyfit(np.log(lengths), np.log(times), 1)[0])
        rows.append({"name": f"seconds of n tokens, {name}", "n": lengths, "seconds": times, "exponent": exponent})
        print(f"seconds of {lengths} tokens, {name}: {[round(t, 3) for t in times]}, ~ n^{exponent:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    rounds = 3 if parser.parse_args().short else 9
    from transformers import AutoModelForCausalLM

    model = made()
    weights = sum(p.nbytes for name, p in model.net.named_parameters() if not name.startswith("embed"))
    with tempfile.TemporaryDirectory() as place:
        save_pretrained(model, Path(place) / "hf")
        hf = AutoModelForCausalLM.from_pretrained(Path(place) / "hf", dtype=torch.float32).eval()
        names = [f"<|{i}|>" for i in range(VOCABULARY)]
        file = Path(place) / "model.gguf"
        write_gguf(file, *spell(model), Vocabulary(names, ["NORMAL"] * VOCABULARY, merges=["Ā Ā"], bos=0, eos=0))
        one, eight = Engine(model, slots=1, longest=CONTEXT), Engine(model, slots=8, longest=CONTEXT)
        print(f"fused kernels: {one.fused}; weights read for a token: {weights / 1e6:.0f} MB; "
              f"{torch.get_num_threads()} threads")  # fmt: skip
        rows: list[dict] = [share_of_bound(one, weights, 5 * rounds)]
        alone, ragged = [(PROMPT, NEW)], RAGGED
        for name, engine, asked in (("batch 1", one, alone), ("batch 8, ragged", eight, ragged)):
            note = agreement(answers(engine, asked), transformers_answers(hf, asked))
            row = compare(f"greedy, {name}, against transformers", lambda e=engine, a=asked: answers(e, a),
                          lambda a=asked: transformers_answers(hf, a), rounds=rounds, note=note)  # fmt: skip
            rows.append(row | {"ours_tokens_per_s": sum(n for _, n in asked) / row["ours_s"]})
        try:
            import llama_cpp

            peer = llama_cpp.Llama(
                str(file), n_ctx=CONTEXT, n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
                verbose=False, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
            )  # fmt: skip
        except ImportError:
            print("llama-cpp-python is not installed: left out")
        else:
            note = agreement(answers(one, alone), llama_cpp_answers(peer, alone))
            rows.append(compare("greedy, batch 1, against llama.cpp (F32)", lambda: answers(one, alone),
                                lambda: llama_cpp_answers(peer, alone), rounds=rounds, note=note))  # fmt: skip
        drafted = Engine(model, slots=1, longest=CONTEXT, drafter=Lookup(most=7))
        assert answers(drafted, alone) == answers(one, alone)
        rows.append(compare("greedy with n-gram lookup, against plain", lambda: answers(drafted, alone),
                            lambda: answers(one, alone), rounds=rounds, note="equal texts"))  # fmt: skip
    save("decode", rows + against_apart(max(3, rounds // 3)) + growth())


if __name__ == "__main__":
    main()
