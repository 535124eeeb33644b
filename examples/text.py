"""Text: a transformer over bytes beside an n-gram, compared in bits per byte.

Run as a script, or cell by cell in an editor that knows `# %%`.
"""

# %% A text file. Passages of `block` bytes are split by content, so no passage is in training and held-out data.
from pathlib import Path

import protea

Path("runs").mkdir(exist_ok=True)
lines = [f"The {a} {b} the {c}.\n" for a in ("cat", "dog", "fox") for b in ("sees", "likes") for c in ("hen", "cow")]
Path("runs/story.txt").write_text("".join(lines[(7 * i * i + i) % len(lines)] for i in range(4000)))
data = protea.open("runs/story.txt", block=64)

# %% Both are exact, so their bits per byte can be ranked.
ngram = protea.fit("ngram", data, budget="5s", out="runs/example-ngram", progress="none")
transformer = protea.fit("transformer", data, budget="120steps", out="runs/example-transformer", progress="none")
held_out = data.space.decode(data.holdout.x[:50])
for name, run in (("ngram", ngram), ("transformer", transformer)):
    scores = run.score(held_out)
    print(f"{name}: {float(scores.values.mean()):.3f} {scores.unit} ({scores.exactness})")

# %% Samples are strings.
print(transformer.sample(2)[0])
