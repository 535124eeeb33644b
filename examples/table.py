"""A table of mixed columns: types, missing values and constraints come back as they went in.

Run as a script, or cell by cell in an editor that knows `# %%`.
"""

# %% A DataFrame with a date, categories and missing values, as a file.
from pathlib import Path

import pandas as pd
from sklearn.datasets import load_wine

import protea

frame = load_wine(as_frame=True).frame.rename(columns={"target": "cultivar"})
frame["cultivar"] = frame["cultivar"].map({0: "Barolo", 1: "Grignolino", 2: "Barbera"})
frame["bottled"] = pd.Timestamp("1978-01-01") + pd.to_timedelta(7 * frame.index, unit="D")
frame.loc[frame.index % 9 == 0, "magnesium"] = None
Path("runs").mkdir(exist_ok=True)
frame.to_csv("runs/wine.csv", index=False)

# %% What is in it? Types are inferred, the split is by content.
data = protea.open("runs/wine.csv", target="cultivar", constraints=[{"kind": "range", "column": "alcohol", "low": 11}])
for column in data.space.columns[-3:]:
    print(column.name, column.kind)

# %% Train a Gaussian mixture and draw as many rows as are asked for: same columns, same types, constraints kept.
run = protea.fit("gmm", data, budget="5s", out="runs/example-table", progress="none")
synthetic = run.sample(1000)
print(synthetic.head())
assert len(synthetic) == 1000 and list(synthetic.columns) == list(frame.columns)
assert (synthetic["alcohol"] >= 11).all() and synthetic["magnesium"].isna().any()

# %% How likely are rows one has? A bound here, and marked as such.
scores = run.score(frame.head())
print(scores.unit, scores.exactness, scores.values.tolist())
