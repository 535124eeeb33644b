"""Tensor, expert and data parallelism of a language model, with AdamW and Muon: several processes equal one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protea.core import Phase
from protea.models.autoregressive.decoder import Decoder, init_decoder
from protea.models.autoregressive.language import LanguageModel
from protea.nn.attention import GQA, QKNorm
from protea.nn.block import Block, Branch
from protea.nn.mla import MLA, LowRank
from protea.nn.mlp_gated import SwiGLU
from protea.nn.moe import Experts, MoE
from protea.nn.norm import RMSNorm
from protea.nn.position import RoPE, rope_frequencies
from protea.nn.router import LearnedRouter
from protea.nn.router_choices import Affinity, TopK
from protea.nn.router_losses import SequenceBalance, SwitchBalance, ZLoss
from protea.nn.tokens import TokenEmbedding
from protea.objectives.likelihood import token_nll
from protea.space import Rows
from protea.spaces import Tokens
from protea.training import Budget, Gradient, Saving, fit, parallel
from protea.training.checkpoint import Keeper
from protea.training.expert_parallel import expert_parallel
from protea.training.experts import BalanceExperts
from protea.training.muon import muon
from protea.training.optim import adamw
from protea.training.parallel import fsdp
from protea.training.tensor_parallel import tensor_parallel

V, T, D, STEPS = 13, 12, 16, 12
BALANCE = (SwitchBalance(0.1), ZLoss(0.01), SequenceBalance(0.1))
# name to (processes, prepare, optimizer, experts, tolerance of weights and averages); "mla" in it: latent attention
KINDS = {
    "muon": (2, (), muon(0.02), 0, 1e-6),
    "muon-fsdp": (2, (fsdp(Block),), muon(0.02), 0, 1e-6),
    "tp": (2, (tensor_parallel(2),), adamw(3e-3), 0, 1e-5),
    "tp-muon": (2, (tensor_parallel(2),), muon(0.02), 0, 1e-5),
    "tp-data": (4, (tensor_parallel(2),), adamw(3e-3), 0, 1e-5),
    "tp-fsdp": (4, (tensor_parallel(2), fsdp(Block)), adamw(3e-3), 0, 1e-5),
    "tp-mla": (2, (tensor_parallel(2),), adamw(3e-3), 0, 1e-5),
    "tp-data-mla-compressed": (4, (tensor_parallel(2),), adamw(3e-3), 0, 1e-5),
    "tp-fsdp-mla-experts": (4, (tensor_parallel(2), fsdp(Block)), muon(0.02), 4, 1e-5),
    "experts": (2, (), adamw(3e-3), 4, 1e-9),
    "experts-uneven": (2, (), adamw(3e-3), 4, 1e-9),  # five passes of one row, and four
    "experts-fsdp": (2, (fsdp(Block),), adamw(3e-3), 4, 1e-9),
    "ep": (2, (expert_parallel(),), adamw(3e-3), 4, 1e-5),
    "ep-fsdp-muon": (2, (expert_parallel(), fsdp(Block)), muon(0.02), 4, 1e-5),
}


def network(kind: str) -> Decoder:
    rope, experts = RoPE(rope_frequencies(D // 4)), KINDS[kind][3]

    def attention() -> nn.Module:
        if "mla" in kind:
            q = LowRank(D, 6, 4 * 10) if "compressed" in kind else None
            return MLA(D, 4, d_c=8, d_nope=6, d_rope=4, d_v=6, position=rope, q=q)
        return GQA(D, 4, 2, position=rope, qk_norm=QKNorm(RMSNorm(D // 4), RMSNorm(D // 4)))

    def block() -> Block:
        mixer = dense = SwiGLU(D, 24)
        if experts:
            choice = Affinity(experts, 2) if "uneven" in kind else TopK(2)
            mixer = MoE(LearnedRouter(D, experts, choice, BALANCE), Experts(experts, D, 16), dense)
        return Block([Branch(RMSNorm(D), attention()), Branch(RMSNorm(D), mixer)])

    return init_decoder(Decoder(TokenEmbedding(V + 1, D), [block(), block()], RMSNorm(D), V))


def train(kind: str, folder: Path, steps: int = STEPS, resume: bool = False) -> dict[str, Tensor]:
    """The first rank's checkpoint: weights, averages and moments."""
    torch.manual_seed(0)
    _, prepare, optimizer, *_ = KINDS[kind]
    model = LanguageModel(Tokens(T, vocabulary=V, tokenizer="ids"), network(kind).double(), T)
    with torch.no_grad():
        for p in model.parameters():  # gains too must differ from one
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randint(V, (40, T), generator=torch.Generator().manual_seed(1)).cumsum(1) % V
    rows = Rows(x, None, torch.arange(40))
    phase = Phase("nll", list(model.parameters()), token_nll(model))
    size, microbatch = (9, 1) if "uneven" in kind else (10, 3)
    learner = Gradient(model, [phase], optimizer=optimizer, microbatch=microbatch, clip=0.5, prepare=prepare,
                       after=[BalanceExperts(0.1)])  # fmt: skip
    if parallel.active():
        split = [parallel.sharded(p) for p in model.parameters()]
        assert any(split) == bool(prepare), f"{kind}: {sum(split)} of {len(split)} parameters are sharded"
        assert parallel.data_world() * parallel.tensor_world() == KINDS[kind][0]
    fit(model, rows, rows[:8], learner=learner, budget=Budget(steps=steps), batch_size=size, run=Saving(folder, resume),
        progress=None, patience=None)  # fmt: skip
    return Keeper(folder).newest()[0] if parallel.rank() == 0 else {}


def launch(kind: str, folder: Path, steps: int = STEPS, resume: bool = False) -> dict[str, Tensor]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={KINDS[kind][0]}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run([sys.executable, *torchrun, __file__, kind, str(folder), str(steps), str(int(resume))],
                          env=environment, capture_output=True, text=True, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Keeper(folder).newest()[0]


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a if a[name].numel())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_equal_one(kind: str, tmp_path: Path, evidence) -> None:
    one = train(kind, tmp_path / "one")
    start = train(kind, tmp_path / "start", 1)
    moved = max(float((one[n] - start[n]).abs().max()) for n in one if n.startswith("model/") and one[n].numel())
    assert moved > 1e-2, "weights that hardly moved would prove nothing"
    many = launch(kind, tmp_path / "many")
    n, *_, tolerance = KINDS[kind]
    evidence(id="TS-07", system="Distributed training", claim=f"language model, {kind}: {n} processes equal 1",
             reference="1-process run", tolerance=tolerance, unit="max abs of weights, averages, moments",
             reached=gap(one, many))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tp-fsdp", "ep"])
def test_checkpoints_move_between_layouts(kind: str, tmp_path: Path) -> None:
    """Saved by several processes, continued by one, and by several again."""
    launch(kind, tmp_path / "mixed", 4)
    train(kind, tmp_path / "mixed", 8, resume=True)
    mixed = launch(kind, tmp_path / "mixed", STEPS, resume=True)
    train(kind, tmp_path / "plain", 4)
    train(kind, tmp_path / "plain", 8, resume=True)
    plain = train(kind, tmp_path / "plain", STEPS, resume=True)
    assert gap(plain, mixed) < 1e-5


def test_one_process_shares_with_none() -> None:
    net = nn.ModuleList([network("ep"), network("tp-mla")])
    before = dict(net.named_parameters())
    for act in (tensor_parallel(2), expert_parallel(), fsdp(Block)):
        act(net)
    assert all(p is before[name] for name, p in net.named_parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
    torch.distributed.destroy_process_group()
