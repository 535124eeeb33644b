"""Auxiliary losses reach the learner's gradient, and biases follow the load; both resume exactly."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from protea.core import Batch, Phase
from protea.models.autoregressive.architectures import language_model
from protea.models.autoregressive.deepseek import DeepSeekConfig
from protea.models.autoregressive.mixtral import MixtralConfig
from protea.nn.auxiliary import auxiliary_losses
from protea.objectives.language import packed_nll
from protea.rng import Streams
from protea.spaces import Tokens
from protea.training.defaults import default_learner
from protea.training.experts import BalanceExperts, load_figures, routers
from protea.training.gradient import Gradient
from protea.training.optim import adamw

T, V = 12, 20
SPACE = Tokens(T, V, "ids")
V3 = DeepSeekConfig(
    n_layers=2, d_model=16, n_heads=2, d_ff=24, context=T + 1, d_c=8, d_nope=8, d_rope=4, d_v=8, n_experts=8, top_k=2,
    d_expert=8, n_groups=4, top_groups=2, n_ahead=1,
)  # fmt: skip


def model(seed: int = 0):
    torch.manual_seed(seed)
    return language_model("deepseek-v3", SPACE, V3)


def batch(step: int, rows: int = 6) -> Batch:
    x = torch.randint(0, V, (rows, T), generator=torch.Generator().manual_seed(step))
    return Batch(x, None, Streams(step, rows))


@pytest.mark.parametrize("microbatch", [None, 1, 4])
def test_learner_adds_what_layers_ask_for_of_the_whole_batch(microbatch, evidence):
    torch.manual_seed(0)
    ours = language_model("mixtral", SPACE, MixtralConfig(2, 16, 2, 1, 8, 4, 2, T + 1, aux=0.5)).double()
    twin = copy.deepcopy(ours).train()
    learner = default_learner(ours, optimizer=adamw(0.0), clip=None, microbatch=microbatch)
    shown = learner.step(batch(0))
    with auxiliary_losses() as terms:
        mean = -twin.log_prob(batch(0).x).sum() / batch(0).x.numel()
    total = mean + sum(term for _, term in terms)
    total.backward()
    assert len(terms) == 2 and all(0.5 <= term.item() < 2 for _, term in terms)  # 2 at perfect balance of top-2, halved
    assert shown["loss"] == pytest.approx(total.item(), abs=1e-12)
    gap = max(float((a.grad - b.grad).abs().max()) for a, b in zip(ours.parameters(), twin.parameters(), strict=True))
    evidence(id="TS-02", system="Balance loss", claim=f"gradient with microbatches of {microbatch or 'all'} of 6 rows",
             reference="one pass by hand", reached=gap, tolerance=1e-12, unit="max abs")  # fmt: skip
    assert {"expert_load_cv", "expert_max_violation", "expert_entropy", "dead_experts", "dropped_tokens"} <= set(shown)


@pytest.mark.parametrize("microbatch", [None, 1, 3])
def test_losses_of_layers_are_means_over_their_own_items(microbatch, evidence):
    """Rows predict unlike numbers of tokens, but each is a text, and each of its tokens is routed."""
    torch.manual_seed(0)
    config = replace(V3, aux=0.5, n_ahead=2)
    ours = language_model("deepseek-v3", Tokens(T, V, "ids", begin=0), config).double()
    twin = copy.deepcopy(ours).train()
    x = torch.cat((torch.zeros(6, 1, dtype=torch.int64), batch(0).x), 1)
    x[torch.arange(6), torch.tensor([3, 13, 5, 7, 13, 2]).clamp_max(T)] = 0  # a second text begins there
    x[1, 6:] = -1  # padding
    given = Batch(x, None, Streams(0, 6))
    phase = Phase("nll", list(ours.parameters()), packed_nll(ours, begin=0))
    shown = Gradient(ours, [phase], optimizer=adamw(0.0), clip=None, ema=None, microbatch=microbatch).step(given)
    with auxiliary_losses() as terms:
        loss = packed_nll(twin, begin=0)(given)
    total = loss.total / loss.count + sum(term for _, term in terms)
    total.backward()
    assert {name for name, _ in terms} == {"SequenceBalance", "MultiToken"}
    assert shown["loss"] == pytest.approx(total.item(), abs=1e-12)
    gap = max(float((a.grad - b.grad).abs().max()) for a, b in zip(ours.parameters(), twin.parameters(), strict=True))
    evidence(id="TS-02", system="Losses of layers", claim=f"gradient, microbatches of {microbatch or 'all'}, packed",
             reference="one pass by hand", reached=gap, tolerance=1e-12, unit="max abs")  # fmt: skip


def test_biases_move_against_the_load():
    ours = model().train()
    router = next(r for r in routers(ours) if hasattr(r.choice, "bias"))
    with torch.no_grad():
        ours.log_prob(batch(0).x)
    load = router.load.clone()
    assert load.sum() == 6 * T * 2
    BalanceExperts(0.01)(ours)
    assert torch.equal(router.choice.bias, 0.01 * (load.mean() - load).sign())
    assert router.load.sum() == 0


def test_microbatches_count_as_one_step():
    whole, parts = model(), model()
    for ours, size in ((whole, None), (parts, 2)):
        default_learner(ours, microbatch=size, optimizer=adamw(0.0)).step(batch(0))
    for a, b in zip(routers(whole), routers(parts), strict=True):
        assert torch.equal(a.choice.bias, b.choice.bias) and a.choice.bias.abs().max() > 0


def test_a_resumed_run_goes_on_exactly():
    straight = default_learner(model())
    for step in range(6):
        straight.step(batch(step))
    first = default_learner(model())
    for step in range(3):
        first.step(batch(step))
    tensors, values = first.state()
    again = default_learner(model(seed=1))
    again.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    again.load_state(tensors, values)
    for step in range(3, 6):
        again.step(batch(step))
    for (name, a), b in zip(straight.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert any("choice.bias" in name for name in straight.model.state_dict())


def test_figures_of_known_loads():
    even = load_figures(torch.full((3, 4), 7.0))
    assert even == {"expert_load_cv": 0.0, "expert_max_violation": 0.0, "expert_entropy": pytest.approx(1.0),
                    "dead_experts": 0.0}  # fmt: skip
    one = load_figures(torch.tensor([[8.0, 0.0, 0.0, 0.0]]))
    assert one["expert_max_violation"] == 3 and one["dead_experts"] == 3 and one["expert_entropy"] == 0
    assert one["expert_load_cv"] == pytest.approx(3**0.5)
