"""The n-gram learns by counting, through the one loop: batches, ranks, files and resume change nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protea.core import Batch
from protea.models.autoregressive.ngram import NGram, NGramConfig
from protea.rng import Streams
from protea.space import Rows
from protea.spaces import Tokens
from protea.training import Budget, fit
from protea.training.em import EM

SPACE = Tokens(10, vocabulary=4, tokenizer="ids")


def texts(n: int = 60) -> torch.Tensor:
    return (torch.rand(n, 10, generator=torch.Generator().manual_seed(1)) ** 2 * 4).long()


def counted() -> NGram:
    model = NGram(SPACE, NGramConfig(3))
    model.maximise(model.expect(texts()))
    return model


def test_fit_counts_every_row_once():
    model, x = NGram(SPACE, NGramConfig(3)), texts()
    result = fit(model, Rows(x, None, torch.arange(60)), budget=Budget(seconds=20), batch_size=17, progress="none")
    assert result.stopped_because == "converged"
    assert torch.equal(model.log_prob(x), counted().log_prob(x))
    assert model.log_prob(x).mean() > -10 * math.log(4)


def test_a_saved_run_loads_with_the_counts_it_found(tmp_path: Path):
    from protea.training.run import create_run, load_model, save_model

    run = create_run(tmp_path / "run", model_name="ngram", config=NGramConfig(3), space=SPACE, data={"fingerprint": ""})
    save_model(run, counted())
    again = load_model(run)
    assert isinstance(again, NGram)
    assert torch.equal(again.log_prob(texts()), counted().log_prob(texts()))
    assert torch.equal(again.sample(3), counted().sample(3))


def test_statistics_of_half_an_epoch_survive_a_file(tmp_path: Path):
    from protea.training.checkpoint import read_tensors, write_tensors

    x, first, second = texts(), EM(NGram(SPACE, NGramConfig(3))), EM(NGram(SPACE, NGramConfig(3)))
    first.step(Batch(x[:25], None, Streams(0, 25)))
    write_tensors(tmp_path / "half.safetensors", *first.state())
    second.load_state(*read_tensors(tmp_path / "half.safetensors"))
    second.step(Batch(x[25:], None, Streams(0, 35)))
    second.end_epoch()
    assert isinstance(second.model, NGram)
    assert torch.equal(second.model.log_prob(x), counted().log_prob(x))


@pytest.mark.slow
def test_two_processes_count_as_one(tmp_path: Path):
    program = tmp_path / "count.py"
    program.write_text(f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ngram_learning import *
from protea.training import parallel
parallel.setup(torch.device("cpu"))
learner, x = EM(NGram(SPACE, NGramConfig(3))), texts()
mine = x[parallel.rank()::2]
learner.step(Batch(mine, None, Streams(0, len(mine))))
learner.end_epoch()
assert torch.equal(learner.model.log_prob(x), counted().log_prob(x))
print("equal")
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("equal") == 2, done.stderr[-2000:]
