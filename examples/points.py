"""Points in the plane (a vector space): which model fits, what its samples look like, what a new point is worth.

Run as a script, or cell by cell in an editor that knows `# %%`.
"""

# %% Open a toy of known density. Any .npy / .npz array of numbers opens the same way.
import numpy as np

import protea

data = protea.open("two-moons", n=2000)
print(data.space, len(data.train), "training rows")

# %% Train a spline flow: an exact likelihood.
run = protea.fit("flow", data, budget="200steps", out="runs/example-points", progress="none")

# %% Samples are arrays; the same seed gives the same samples, and sample i does not depend on how many are drawn.
points = run.sample(500)
assert np.array_equal(points[:8], run.sample(8))

# %% Likelihoods are in the units of the data: a point of the data against one far away from them.
scores = run.score(np.array([[0.0, 1.0], [4.0, 4.0]]))
print(scores.unit, scores.exactness, scores.values.tolist())
assert scores.nats[0] > scores.nats[1]

# %% A picture.
import matplotlib.pyplot as plt

plt.scatter(*points.T, s=4)
plt.savefig("runs/example-points/samples.png", dpi=80)
print("runs/example-points/samples.png")
