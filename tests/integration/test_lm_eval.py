"""lm-evaluation-harness runs our models: its own tasks, its own scores."""

from __future__ import annotations

import json
import math

import pytest
import torch

from protea.interop.lm_eval import continuation_nats, harness, windows
from protea.models.autoregressive.transformer import TransformerConfig, build
from protea.spaces import Tokens

WORDS = ("yes", "no", "maybe so")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(Tokens(64), TransformerConfig(2, 32, 4, 2, 48, 64)).eval()


def test_the_harness_scores_what_we_score(model, tmp_path, evidence):
    """A multiple-choice task and a perplexity task, run by the harness, against the chain rule by hand."""
    lm_eval = pytest.importorskip("lm_eval")
    docs = [{"text": f"Question {i}? Answer:", "gold": i % 3} for i in range(6)]
    (tmp_path / "docs.json").write_text("\n".join(map(json.dumps, docs)))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "docs.json")},
              "test_split": "train"}  # fmt: skip
    choose = {**common, "task": "choose", "output_type": "multiple_choice", "doc_to_text": "{{text}}",
              "doc_to_choice": list(WORDS), "doc_to_target": "gold", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    rolling = {**common, "task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "",
               "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]}  # fmt: skip
    found = lm_eval.simple_evaluate(model=harness(model), tasks=[choose, rolling], bootstrap_iters=0)
    assert found is not None

    def nats(text: str, after: str = "") -> float:
        x = torch.tensor([[model.begin, *(after + text).encode()]])
        p = model.logits(x[:, :-1]).double().log_softmax(-1).gather(2, x[:, 1:, None])[0, :, 0]
        return p[len(after) :].sum().item()

    best = [max(range(3), key=lambda j, d=d: nats(f" {WORDS[j]}", d["text"])) for d in docs]
    accuracy = sum(b == d["gold"] for b, d in zip(best, docs, strict=True)) / len(docs)
    assert found["results"]["choose"]["acc,none"] == pytest.approx(accuracy)
    bits = -sum(nats(d["text"]) for d in docs) / math.log(2) / sum(len(d["text"]) for d in docs)
    evidence(id="AR-04", system="lm-evaluation-harness adapter", claim="bits per byte of a rolling task",
             reference="chain rule", unit="bits", tolerance=1e-4,
             reached=abs(found["results"]["rolling"]["bits_per_byte,none"] - bits))  # fmt: skip


def test_windows_score_every_token_once():
    for n in range(1, 40):
        pairs = list(windows(range(n), -1, 8))
        assert [t for _, part in pairs for t in part] == list(range(n))
        assert all(len(a) + len(b) <= 8 or a == [-1] for a, b in pairs)


def test_a_long_prefix_loses_its_oldest_tokens(model):
    prefix, said = list(range(100)), [5, 6]
    assert continuation_nats(model, prefix, said) == continuation_nats(model, prefix[-63:], said)


def test_generation_stops_where_the_task_says(model):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    lm = harness(model)

    def ask(**options):
        return lm.generate_until([Instance("generate_until", {}, ("to be", options), 0)])[0]

    whole = ask(max_gen_toks=12)
    assert len(whole) > 3 and ask(max_gen_toks=12, until=[whole[2]]) == whole.partition(whole[2])[0]
