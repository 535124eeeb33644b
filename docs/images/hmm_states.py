"""Draw docs/images/hmm-weather.png: python docs/images/hmm_states.py daily_weather_seattle_newyork.csv

The most probable path of a six-state chain over two years of New York's weather.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

from protea.distributions.gaussian import Gaussian
from protea.models.markov.chain import Chain
from protea.models.markov.hmm import HiddenMarkov
from protea.models.markov.topology import ergodic
from protea.space import Rows


def main(path: str) -> None:
    frame = pd.read_csv(path, parse_dates=["date"])
    frame = frame[frame.location == "New York"].sort_values("date").reset_index(drop=True)
    columns = [np.log1p(frame.precipitation), frame.temp_max, frame.temp_min, np.log(frame.wind + 0.1)]
    x = torch.from_numpy(np.stack(columns, 1))[None]
    model = HiddenMarkov(Gaussian(6, (4,), "full", 1e-2), Chain(ergodic(6), 0.1), x.shape[1])
    model.initialise(Rows(x, None, torch.arange(1)))
    for _ in range(60):
        model.maximise(model.expect(x))
    state = model.decode(x)[0][0].numpy()
    table = frame.groupby(state).agg(high=("temp_max", "mean"), rain=("precipitation", "mean"))
    order = {k: i for i, k in enumerate(table.sort_values("high").index)}
    last = frame.index[frame.date < "2014-01-01"]
    colours = plt.get_cmap("turbo")(np.linspace(0.08, 0.92, 6))
    figure, axis = plt.subplots(figsize=(8, 3))
    for k, row in table.sort_values("high").iterrows():
        mine = last[state[last] == k]
        name = f"{row.high:.0f} °C, {row.rain:.0f} mm" if row.rain >= 0.5 else f"{row.high:.0f} °C, dry"
        axis.scatter(frame.date[mine], frame.temp_max[mine], s=7, color=colours[order[k]], label=name)
    axis.set_ylabel("highest temperature, °C")
    axis.legend(
        title="state: mean high, rain a day", fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig("docs/images/hmm-weather.png", dpi=90)


if __name__ == "__main__":
    main(sys.argv[1])
