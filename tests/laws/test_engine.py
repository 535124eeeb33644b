"""Laws of the engine: a text depends on its request alone, pages equal straight memories, errors are clear."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from protea.errors import ConfigError, DataError
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.decoder import Decoder
from protea.rng import Streams
from protea.samplers.tokens import generate as plain_generate
from protea.serving.blocks import Blocks
from protea.serving.compute import Apart, Fused, Job, Together, choose
from protea.serving.engine import Engine
from protea.serving.generate import generate
from protea.serving.library import library
from protea.serving.requests import Request
from protea.serving.sampling import Sampling
from protea.spaces import Tokens

V = 60
LENGTHS = (3, 70, 20, 1, 33, 32, 17, 9)  # of prompts: within a block, over blocks, over chunks
needs_compiler = pytest.mark.skipif(library() is None, reason="no C++ compiler")
FUSED = (
    "gpt1", "gpt2", "gpt3", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "cohere2", "mixtral", "qwen2-moe",
    "qwen3-moe", "mpt", "mobilellm", "deepseek-v2", "deepseek-v3",
    "mamba", "mamba2", "jamba",
)  # fmt: skip
KINDS = [
    ("llama", choose),
    ("llama", Apart),
    ("gemma2", choose),
    ("gemma2", Apart),
    ("mixtral", choose),
    ("qwen2-moe", choose),
    ("deepseek-v3", choose),
    ("jamba", choose),
    ("mamba", choose),
    ("mamba", Apart),
    ("mamba2", choose),
]


def model(name: str, layers: int = 3, width: int = 32, vocabulary: int = V):
    torch.manual_seed(0)
    space = Tokens(12, vocabulary=vocabulary, tokenizer="ids")
    made = language_model(name, space, ARCHITECTURES[name].scaled(layers, width, 96)).eval()
    for p in made.parameters():  # far from ties and from uniform logits
        p.data += 0.15 * torch.randn_like(p)
    return made


def prompt(i: int) -> list[int]:
    return torch.randint(0, V, (LENGTHS[i],), generator=torch.Generator().manual_seed(i)).tolist()


def request(i: int, temperature: float, seed: int) -> Request:
    return Request(prompt(i), 6, Sampling(temperature, top_p=0.95 if temperature else None), seed)


@pytest.mark.parametrize(("name", "compute"), KINDS)
def test_company_changes_no_token(name, compute, evidence):
    """Alone, among seven others, joining late, and with a warm prompt cache: equal ids at all temperatures."""
    net = model(name, layers=2, width=16)

    def engine(**options) -> Engine:
        return Engine(net, chunk=32, compute=compute, **options)

    different = asked = 0
    for temperature, seed in ((0.0, 0), (0.7, 1), (1.5, 2)):
        alone = []
        for i in range(8):
            one = engine()
            alone.append(one.submit(request(i, temperature, seed)))
            one.run()
        together, late, narrow = engine(), engine(), engine(slots=3)
        runs = [[together.submit(request(i, temperature, seed)) for i in range(8)]]
        together.run()
        runs.append([together.submit(request(i, temperature, seed)) for i in range(8)])  # prompts are known now
        together.run()
        assert sum(h.cached for h in runs[1]) > 0
        runs.append([narrow.submit(request(i, temperature, seed)) for i in range(8)])
        narrow.run()
        runs.append([])
        for i in reversed(range(8)):
            runs[-1].insert(0, late.submit(request(i, temperature, seed)))
            late.step()
            late.step()
        late.run()
        for handles in runs:
            asked += len(handles)
            different += sum(a.tokens != b.tokens for a, b in zip(alone, handles, strict=True))
    kind = "fused" if together.fused else "apart"
    evidence(id="AR-05", system="Decoding engine", claim=f"{name}, {kind}: texts that company changes, of {asked}",
             reference="the request alone, bit for bit", reached=different, tolerance=0, unit="texts")  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", FUSED)
@torch.inference_mode()
def test_fused_logits_equal_the_models(name, evidence):
    """Ragged texts in uneven pieces through the compiled kernels against one pass of PyTorch in float64."""
    net = model(name, layers=1 if name == "mamba" else 3)  # noise in A_log makes deep ones ill-conditioned
    blocks = Blocks(1024, 96, block=4)
    fused = Fused(net, blocks, rows=16)
    x = torch.randint(0, V, (3, 60))
    want = deepcopy(net).double().logits(x)
    texts, got = [blocks.new() for _ in x], [[], [], []]
    for cuts in ((0, 7, 1), (7, 8, 30), (8, 13, 2), (13, 60, 60)):
        jobs = [Job(t, x[i, cuts[0] : cuts[1]].tolist(), cuts[1] - cuts[0]) for i, t in enumerate(texts)]
        for parts, said in zip(got, fused(jobs), strict=True):
            parts.append(said.logits)
    worst = (torch.stack([torch.cat(p) for p in got]) - want).abs().max() / want.abs().max()
    evidence(id="AR-05", system="Decoding engine", claim=f"fused kernels, {name}: logits",
             reference="the model in float64",
             reached=worst, tolerance=1e-5, unit="relative")  # fmt: skip
    alone = blocks.new()
    one_by_one = torch.cat([fused([Job(alone, [i], 1)])[0].logits for i in x[0].tolist()])
    assert torch.equal(one_by_one, torch.cat(got[0]))  # bit for bit, however a text is cut


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@torch.inference_mode()
def test_pages_equal_a_straight_memory(name, evidence):
    """Ragged texts of every kind of layer on the paged memory, one batch, against each text's own pass."""
    net = model(name)
    blocks = Blocks(1024, 96, block=4)
    together = (Together if isinstance(net.net, Decoder) else Apart)(net, blocks)
    x = torch.randint(0, V, (3, 40))
    texts, worst = [blocks.new() for _ in x], 0.0
    starts = (1, 6, 19)
    for text, row, start in zip(texts, x, starts, strict=True):
        together([Job(text, row[:start].tolist(), 1)])
    for step in range(20):
        said = together([Job(t, [int(r[s + step])], 1) for t, r, s in zip(texts, x, starts, strict=True)])
        if step % 5 == 4:
            for row, start, one in zip(x, starts, said, strict=True):
                want = net.logits(row[None, : start + step + 1])[0, -1]
                worst = max(worst, float((one.logits[0] - want).abs().max() / want.abs().max()))
    evidence(id="AR-05", system="Decoding engine", claim=f"paged memory, {name}: ragged batch of three",
             reference="each text without a memory", reached=worst, tolerance=1e-4, unit="relative")  # fmt: skip
    for text in texts:
        blocks.release(text)
    assert all(pool.used == 0 for pool in blocks.pools.values())


def test_text_equals_the_plain_loops():
    net = model("llama")
    rows = torch.randint(0, V, (3, 9))
    for temperature in (0.0, 1.0):
        want = plain_generate(net, rows, 10, temperature=temperature, rng=Streams(5, 3))
        assert torch.equal(generate(net, rows, 10, temperature, seed=5), want)


def test_windows_hold_no_more_than_they_see():
    net = model("mistral")
    window = next(m.window for m in net.modules() if getattr(m, "window", None))
    engine = Engine(net, slots=1, block=4, chunk=8)
    handle = engine.submit(Request(prompt(1), 20))
    most = 0
    while engine.busy:
        engine.step()
        engine.prompts.clear()
        most = max(most, engine.blocks.pools[window].used)
    assert len(handle.tokens) == 20 and most * 4 <= window + 8 + 2 * 4


def test_shared_beginnings_are_computed_and_held_once():
    net = model("llama")
    engine = Engine(net, slots=4)
    first = engine.submit(Request(prompt(1), 4))
    engine.run()
    used = engine.blocks.pools[None].used
    more = [engine.submit(Request([*prompt(1), i], 4)) for i in range(4)]
    engine.run()
    assert first.cached == 0 and [h.cached for h in more] == [64] * 4
    assert (engine.prompts.looked_up, engine.prompts.found) == (70 + 4 * 71, 4 * 64)
    assert engine.blocks.pools[None].used <= used + 4 * 1  # the 64 shared tokens are held once
    tight = Engine(net, slots=2, memory=96)  # the cache gives way
    handles = [tight.submit(Request(prompt(i), 8)) for i in (1, 5, 4, 1)]
    tight.run()
    want = Engine(net)
    again = [want.submit(Request(prompt(i), 8)) for i in (1, 5, 4, 1)]
    want.run()
    assert [h.tokens for h in handles] == [h.tokens for h in again]


def test_copies_are_written_apart():
    blocks = Blocks(64, 32, block=4)
    (k,) = blocks.layer(0, None, torch.zeros(1, 1, 1, 1))
    text = blocks.new()
    blocks.prepare(text, 6)
    for slot in range(6):
        k[text.tables[None].ids[slot // 4], 0, slot % 4] = slot
    blocks.advance(text, 6)
    twin = blocks.fork(text)
    assert blocks.pools[None].used == 2
    blocks.prepare(twin, 1)  # the half-full block is copied, the full one shared
    assert blocks.pools[None].used == 3
    k[twin.tables[None].ids[1], 0, 2] = 9
    assert k[twin.tables[None].ids[1], 0, :3, 0].tolist() == [4, 5, 9]
    assert k[text.tables[None].ids[1], 0, :2, 0].tolist() == [4, 5]
    blocks.release(text)
    blocks.release(twin)
    assert blocks.pools[None].used == 0


def test_requests_may_stop_wait_and_be_cancelled():
    net = model("llama")
    engine = Engine(net, slots=2)
    plain = engine.submit(Request(prompt(2), 10, log_probs=3))
    engine.run()
    stop = engine.submit(Request(prompt(2), 10, stop_ids=(plain.tokens[4],)))
    nothing = engine.submit(Request(prompt(2), 0))
    gone = engine.submit(Request(prompt(1), 20))
    queued = engine.submit(Request(prompt(1), 20))
    engine.step()
    gone.cancel()
    queued.cancel()
    engine.run()
    assert stop.tokens == plain.tokens[: plain.tokens.index(stop.tokens[-1]) + 1] and stop.finish == "stop"
    assert (nothing.tokens, nothing.finish) == ([], "length")
    assert (gone.finish, queued.finish, engine.busy) == ("cancelled", "cancelled", False)
    log_p = net.logits(torch.tensor([plain.ids])).detach()[0, len(prompt(2)) - 1 : -1].log_softmax(-1)
    for place, (chosen, top) in enumerate(plain.log_probs):
        assert abs(chosen - float(log_p[place, plain.tokens[place]])) < 1e-4
        assert [t for t, _ in top] == log_p[place].topk(3).indices.tolist() and top[0][0] == plain.tokens[place]


def test_bad_requests_name_the_remedy_and_leave_the_engine_up():
    net = model("llama")
    engine = Engine(net)
    with pytest.raises(DataError, match="prompt is empty"):
        Request([])
    with pytest.raises(DataError, match="no token 77: ids run from 0 to 60"):
        engine.submit(Request([77], 1))
    with pytest.raises(DataError, match="context of 96"):
        engine.submit(Request([1] * 97, 1))
    with pytest.raises(DataError, match="fewer new tokens"):
        engine.submit(Request([1] * 90, 20))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        Request([1], -1)
    with pytest.raises(ConfigError, match="temperature"):
        Sampling(-0.5)
    with pytest.raises(ConfigError, match="stop strings"):
        engine.submit(Request([1], 1, stop="x"))
    for wrong in ({"temperature": -1}, {"max_new_tokens": -1}, {"top_k": 0}, {"nonsense": 1}):
        with pytest.raises(ConfigError):
            generate(net, torch.tensor([[1]]), **({"max_new_tokens": 2} | wrong))
    with pytest.raises(DataError):
        generate(net, torch.zeros(1, 0, dtype=torch.int64), 2)
    assert generate(net, torch.tensor([[1]]), 0).shape == (1, 0)
    with torch.no_grad():
        net.net.norm.g.fill_(torch.nan)
    sick = Engine(net)
    broken = sick.submit(Request([1, 2], 4))
    sick.run()
    assert broken.finish == "error" and "not numbers" in str(broken.error)


def test_any_next_token_model_is_served():
    from protea.models import MODELS

    space = Tokens(8, vocabulary=5, tokenizer="ids")
    gram = MODELS["ngram"].build(space, MODELS["ngram"].config())
    gram.maximise(gram.expect(torch.randint(0, 5, (50, 8))))
    engine = Engine(gram, longest=20)
    handles = [engine.submit(Request([5, i], 6, Sampling(1.0), seed=i)) for i in range(3)]
    engine.run()
    assert [len(h.tokens) for h in handles] == [6, 6, 6]
