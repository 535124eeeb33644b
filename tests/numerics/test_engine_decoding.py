"""Ways of decoding: penalties, speculation, beams, contrastive search, streams and stops, votes, thoughts."""

from __future__ import annotations

import math

import pytest
import torch

from protea.errors import ConfigError
from protea.interop.huggingface import save_pretrained
from protea.models.autoregressive.architectures import ARCHITECTURES, language_model
from protea.models.autoregressive.thoughts import think, think_on
from protea.samplers.penalties import frequency, no_repeat, repetition
from protea.samplers.tokens import typical
from protea.serving.beam import beam_search
from protea.serving.consensus import best_of, self_consistency
from protea.serving.contrastive import contrastive_search
from protea.serving.drafters import DraftModel, Lookup, MultiTokenHeads
from protea.serving.engine import Engine
from protea.serving.requests import Request
from protea.serving.sampling import Sampling
from protea.serving.text import Writer
from protea.spaces import Tokens
from protea.spaces.tokenizers import Bytes

V = 12
LOGITS = torch.randn(32, 50, generator=torch.Generator().manual_seed(0)) * 3


def model(name: str = "llama", layers: int = 2, width: int = 32, vocabulary: int = V, noise: float = 0.1, **space):
    torch.manual_seed(0)
    tokens = Tokens(12, vocabulary=vocabulary, **({"tokenizer": "ids"} | space))
    made = language_model(name, tokens, ARCHITECTURES[name].scaled(layers, width, 64)).eval()
    for p in made.parameters():
        p.data += noise * torch.randn_like(p)
    return made.requires_grad_(False)


def warpers():
    return pytest.importorskip("transformers.generation.logits_process")


def test_penalties_equal_transformers(evidence):
    w = warpers()
    texts = torch.randint(0, 4, (32, 20), generator=torch.Generator().manual_seed(1))
    cases = [
        ("typical", lambda l, t, a: typical(l, a), w.TypicalLogitsWarper, (0.2, 0.8, 0.99)),
        ("repetition", repetition, w.RepetitionPenaltyLogitsProcessor, (1.3, 0.7)),
        ("no repeat", no_repeat, w.NoRepeatNGramLogitsProcessor, (1, 2, 3)),
    ]
    for name, ours, theirs, values in cases:
        different = 0
        for value in values:
            want = theirs(value)(texts, LOGITS.clone())
            got = torch.stack([ours(l, t.tolist(), value) for l, t in zip(LOGITS, texts, strict=True)])
            different += int((got != want).sum())
            assert (got != LOGITS).any()
        evidence(id="AR-10", system="Token samplers", claim=name, reference=f"transformers {theirs.__name__}",
                 reached=different, tolerance=0, unit="different logits")  # fmt: skip
    got = frequency(
        torch.zeros(4), [0, 0, 2, 99], 0.5, 0.25
    )  # OpenAI's formula; ids that cannot follow are passed over
    assert got.tolist() == [-1.25, 0.0, -0.75, 0.0]


def test_the_chain_runs_in_transformers_order():
    w = warpers()
    text = list(range(10)) * 2
    chain = Sampling(0.7, top_k=30, top_p=0.9, min_p=0.01, typical=0.95, repetition=1.2, no_repeat=3)
    for row in LOGITS:
        want, ids = row[None], torch.tensor([text])
        for step in (
            w.RepetitionPenaltyLogitsProcessor(1.2), w.NoRepeatNGramLogitsProcessor(3), w.TemperatureLogitsWarper(0.7),
            w.TopKLogitsWarper(30), w.TopPLogitsWarper(0.9), w.MinPLogitsWarper(0.01), w.TypicalLogitsWarper(0.95),
        ):  # fmt: skip
            want = step(ids, want)
        assert torch.equal(chain.logits(row, text, 5), want[0])


# ---------------------------------------------------------------- speculation


def drafters(net):
    small = model(layers=1, width=16, noise=0.3)
    return {"draft model": lambda: DraftModel(small, most=4, slots=4), "lookup": lambda: Lookup(most=5)}


@pytest.mark.parametrize("name", ["llama", "gemma2", "jamba"])
def test_greedy_speculation_is_greedy(name, evidence):
    net = model(name)
    prompts = [torch.randint(0, V, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 7, 20, 33)]

    def answers(drafter=None):
        engine = Engine(net, slots=4, drafter=drafter)
        handles = [engine.submit(Request(p, 24)) for p in prompts]
        engine.run()
        engine.prompts.clear()
        assert all(pool.used == 0 for pool in engine.blocks.pools.values())
        return [h.tokens for h in handles], sum(h.accepted for h in handles)

    want, _ = answers()
    for kind, make in drafters(net).items():
        got, accepted = answers(make())
        assert accepted > 0 or kind != "lookup"
        different = sum(a != b for a, b in zip(got, want, strict=True))
        evidence(id="AR-05", system="Speculative decoding", claim=f"{name}, greedy, {kind}: texts that differ of 4",
                 reference="plain greedy", reached=different, tolerance=0)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["draft model", "lookup"])
def test_sampled_speculation_keeps_the_distribution(kind, evidence):
    """Texts of three tokens: chi-squared of 2,000 speculative ones against the model's exact probabilities."""
    from scipy import stats

    net, n, chain = model(vocabulary=4), 2000, Sampling(0.8)
    small = model(layers=1, width=16, vocabulary=4, noise=0.3)
    drafter = DraftModel(small, most=2, slots=32) if kind == "draft model" else Lookup(most=2)
    prompt = [0, 1, 2, 0, 1]
    engine = Engine(net, slots=32, drafter=drafter)
    handles = [engine.submit(Request(prompt, 3, chain, seed=1, sample=i)) for i in range(n)]
    engine.run()
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    rows = torch.cat((torch.tensor([prompt]).expand(64, -1), every), 1)
    log_p = (net.logits(rows)[:, 4:-1].double() / 0.8).log_softmax(-1).gather(2, every[..., None])[..., 0].sum(1)
    seen = torch.bincount(torch.tensor([h.tokens for h in handles]) @ torch.tensor([16, 4, 1]), minlength=64)
    want = log_p.exp() * n
    big = want >= 5
    observed = [*seen[big].tolist(), int(seen[~big].sum())]
    expected = [*want[big].tolist(), float(want[~big].sum())]
    p = stats.chisquare(observed, [e * n / sum(expected) for e in expected]).pvalue
    assert 0 < sum(h.accepted for h in handles) < sum(h.drafted for h in handles)
    evidence(id="AR-05", system="Speculative decoding", claim=f"sampled, {kind}: chi-squared of 2,000 texts", unit="p",
             reference="the model's exact probabilities", reached=p, tolerance=0.01, at_least=True)  # fmt: skip


def test_heads_that_look_ahead_draft():
    name = next((a for a in ARCHITECTURES if a == "deepseek-v3"), None)
    if name is None:
        pytest.skip("no architecture has multi-token heads")
    torch.manual_seed(0)
    from dataclasses import fields, replace

    config = ARCHITECTURES[name].scaled(2, 32, 64)
    ahead = next((f.name for f in fields(config) if f.name in ("n_mtp", "mtp", "n_ahead", "ahead", "n_predict")), None)
    if ahead is None:
        pytest.skip(f"its config has no field for them: {[f.name for f in fields(config)]}")
    net = language_model(name, Tokens(12, vocabulary=V, tokenizer="ids"), replace(config, **{ahead: 2})).eval()
    net.requires_grad_(False)
    plain, fast = Engine(net), Engine(net, drafter=MultiTokenHeads(net))
    got = []
    for engine in (plain, fast):
        handles = [engine.submit(Request(list(range(1, n)), 16)) for n in (4, 9)]
        engine.run()
        got.append([h.tokens for h in handles])
    assert got[0] == got[1] and handles[0].drafted > 0


def test_a_model_without_heads_cannot_use_them():
    with pytest.raises(ConfigError, match="look ahead"):
        MultiTokenHeads(model())


# ---------------------------------------------------------------- beams and contrast


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("patience", ["usual", "first", "never"])
def test_beams_equal_transformers(penalty, patience, tmp_path, evidence):
    transformers = pytest.importorskip("transformers")
    net = model(vocabulary=30, noise=0.15, begin=0)
    save_pretrained(net, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    early = {"usual": False, "first": True, "never": "never"}[patience]
    worst = 0.0
    for seed in range(4):
        prompt = torch.randint(0, 30, (1, 4), generator=torch.Generator().manual_seed(seed))
        want = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), num_beams=4, num_return_sequences=4, max_new_tokens=9,
            eos_token_id=[3, 7], pad_token_id=29, length_penalty=penalty, early_stopping=early, do_sample=False,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        got = beam_search(
            Engine(net), prompt[0].tolist(), 9, 4, length_penalty=penalty, patience=patience, stop_ids=[3, 7]
        )
        for beam, row, score in zip(got, want.sequences[:, 4:].tolist(), want.sequences_scores.tolist(), strict=True):
            end = next((i + 1 for i, t in enumerate(row) if t in (3, 7)), len(row))
            assert beam.tokens == row[:end]
            worst = max(worst, abs(beam.score - score))
    evidence(id="AR-05", system="Beam search", claim=f"length penalty {penalty}, patience {patience}: scores",
             reference="transformers.generate, same texts", reached=worst, tolerance=1e-4, unit="max abs")  # fmt: skip


def test_a_beam_of_every_text_finds_the_best():
    """With as many beams as there are beginnings nothing is lost: the best of all 4^3 texts, by enumeration."""
    net = model(vocabulary=4)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    rows = torch.cat((torch.tensor([[1, 2]]).expand(64, -1), every), 1)
    log_p = net.logits(rows)[:, 1:-1].log_softmax(-1).gather(2, every[..., None])[..., 0].sum(1)
    (best, *_) = beam_search(Engine(net), [1, 2], 3, beams=16, length_penalty=0.0, stop_ids=[])
    assert best.tokens == every[log_p.argmax()].tolist() and abs(best.score - float(log_p.max())) < 1e-5
    engine = Engine(net)
    engine.submit(Request([1], 2))
    with pytest.raises(ConfigError, match="requests to answer"):
        beam_search(engine, [1], 2)


def test_contrastive_search_follows_its_formula():
    """Against the formula with every pass over the whole text, and no memory."""
    net, k, alpha = model("gemma2"), 3, 0.6
    text = [1, 5, 2]
    from protea.nn.context import plain_context

    for _ in range(10):
        p, ids = net.logits(torch.tensor([text]))[0, -1].softmax(-1).topk(k)
        scores = []
        for v in ids.tolist():
            h = net.net.hidden(torch.tensor([[*text, v]]), plain_context(len(text) + 1))[0]
            near = torch.cosine_similarity(h[-1:], h[:-1]).max()
            scores.append((1 - alpha) * p[len(scores)] - alpha * near)
        text.append(int(ids[torch.stack(scores).argmax()]))
    engine = Engine(net)
    assert contrastive_search(engine, text[:3], 10, k, alpha, stop_ids=[]) == text[3:]
    greedy = engine.submit(Request(text[:3], 10))
    engine.run()
    assert contrastive_search(engine, text[:3], 10, k, alpha=0.0, stop_ids=[]) == greedy.tokens


# ---------------------------------------------------------------- text


def test_streams_are_utf8_and_hold_stop_strings_back():
    text = "naïve 🙂 text\n###END### and more"
    pieces, writer = [], Writer(Bytes(), stops=["##END", "###EN"])
    for byte in text.encode():
        pieces.append(writer.push(byte))
        assert "\ufffd" not in pieces[-1] and "#" not in "".join(pieces)
    assert "".join(pieces) == writer.text == "naïve 🙂 text\n" and writer.stopped == "###EN"
    broken = Writer(Bytes())
    assert "".join(broken.push(b) for b in b"a\xf0\x9f") + broken.close() == "a\ufffd"
    kept = Writer(Bytes(), stops=["END"])
    assert "".join(kept.push(b) for b in b"the EN") + kept.close() == "the EN"


def test_a_tokenizer_that_needs_neighbours_streams_the_text_it_decodes():
    tokenizers = pytest.importorskip("tokenizers")
    from protea.spaces.tokenizers import Subword

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    corpus = ["to be or not to be that is the question", "whether it is nobler öäü"]
    backend.train_from_iterator(corpus, tokenizers.trainers.BpeTrainer(vocab_size=60, show_progress=False))
    codec = Subword(backend.to_str())
    ids = codec.encode("to be or not to be")
    writer = Writer(codec)
    pieces = [writer.push(i) for i in ids]
    assert "".join(pieces) + writer.close() == codec.decode(ids)


def test_the_engine_streams_what_it_says():
    net = model(vocabulary=256, tokenizer="bytes", noise=0.2)
    engine = Engine(net)
    whole = engine.submit(Request([256, 65], 30, Sampling(1.0), seed=3))
    engine.run()
    again = engine.submit(Request([256, 65], 30, Sampling(1.0), seed=3))
    pieces = list(engine.stream(again))
    assert len(pieces) > 1 and "".join(pieces) == whole.text == bytes(whole.tokens).decode("utf-8", "replace")
    stop = whole.text[4:6]
    cut = engine.submit(Request([256, 65], 30, Sampling(1.0), seed=3, stop=stop))
    assert "".join(engine.stream(cut)) == whole.text[: whole.text.index(stop)] and cut.finish == "stop"


# ---------------------------------------------------------------- more than one answer, and thoughts


def test_votes_and_the_best_of_n():
    net = model(vocabulary=256, tokenizer="bytes", noise=0.05)
    engine = Engine(net)
    request = Request([256, 65], 3, Sampling(1.0), seed=2)
    best, handles = best_of(engine, request, 6)
    assert len({tuple(h.tokens) for h in handles}) > 1
    assert best.mean_log_prob == max(h.mean_log_prob for h in handles) > -math.inf
    short, _ = best_of(engine, request, 6, score=lambda h: -float(h.tokens[0]))
    assert short.tokens[0] == min(h.tokens[0] for h in handles)
    vote = self_consistency(engine, request, 9, extract=lambda text: len(text) and ord(text[0]) % 2 == 0)
    said = [len(h.text) and ord(h.text[0]) % 2 == 0 for h in vote.handles]
    assert vote.share == said.count(vote.answer) / 9 >= 0.5
    with pytest.raises(ConfigError, match="temperature"):
        best_of(engine, Request([256], 3), 2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_thoughts_with_a_memory_equal_those_without(name):
    net = model(name)
    x = torch.randint(0, V, (2, 6))
    want = think(net.net, x, 5)
    memory = net.new_cache(2, 20)
    h = net.net.hidden(x, memory.context(6))
    memory.advance(6)
    got = think_on(net.net, memory, h[:, -1:], 5)
    assert torch.allclose(got, want[:, 6:], atol=1e-4)
    assert think(net.net, x, 0).shape == (2, 6, 32)
    for p in net.parameters():
        p.requires_grad_(True)
    think(net.net, x, 2)[:, -1].square().sum().backward()
    assert net.net.embed.weight.grad.abs().sum() > 0
