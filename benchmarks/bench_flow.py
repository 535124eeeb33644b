"""A training step of the neural spline flow against zuko's, same sizes: 2-D and 16-D, batch 512.

What limits us (torch.profiler, 16-D, two threads): no single operation. Matrix products of the conditioner take 19 %,
the softmaxes that make knots 13 %, logarithms 10 %, gathering the knots of each entry's bin 8 %.
"""

from __future__ import annotations

import torch
import zuko
from harness import compare, save

from protea.models.flow.spline_coupling import FlowConfig, spline_flow


def main() -> None:
    rows = []
    for dim in (2, 16):
        x = torch.randn(512, dim)
        ours = spline_flow((dim,), 0, FlowConfig(transforms=4, width=128, depth=1, bins=8, mixing="permutation"))
        peer = zuko.flows.NSF(dim, transforms=4, bins=8, hidden_features=(128, 128, 128), passes=2)
        steps = []
        losses = (lambda m=ours, x=x: -m.log_prob(x).mean(), lambda m=peer, x=x: -m().log_prob(x).mean())
        for model, loss in zip((ours, peer), losses):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

            def step(loss=loss, optimizer=optimizer) -> None:
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()

            steps.append(step)
        rows.append(compare(f"spline flow step, {dim}-D", *steps, rounds=9))
    save("flow", rows)


if __name__ == "__main__":
    main()
