"""What a classifier can do besides classify: the same questions to a generative and a discriminative one.

A generative model has p(x): it scores rows, draws them, fills their holes and learns from rows without labels. A
discriminative one has p(y | x) only; asked for the rest it raises `NotSupported`, and the table says "no".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from protea.core import Normalised
from protea.errors import NotSupported
from protea.evaluation.likelihood import log_likelihood
from protea.inference.contenders import Contender, Trained, sample_of
from protea.inference.imputation_error import by_model, imputation_error
from protea.inference.learning_curve import Draws
from protea.space import Space

QUESTIONS = ("accuracy", "log_prob", "samples", "imputation", "gain from unlabelled rows")


def ask(question: str, draws: Draws, contender: Contender, trained: Trained, labels: int, space: Space) -> float:
    """One answer, as a number.

    accuracy on held-out rows; mean log p of them in nats; number of rows drawn; root mean square error of filling 20 %
    of their cells, in deviations (share of wrong categories where there are no numbers); accuracy gained by also
    learning from rows without labels.

    Raises:
        NotSupported: the classifier has no answer.
    """
    if question == "accuracy":
        return float(draws.judge(trained.log_posterior(draws.test.x))[0].mean())
    if question == "gain from unlabelled rows":
        rows = draws.labelled(0, labels)
        more = contender.learn(space, rows, draws.unlabelled(0, labels), draws.seed)
        fewer = contender.learn(space, rows, None, draws.seed)
        found = [float(draws.judge(t.log_posterior(draws.test.x))[0].mean()) for t in (more, fewer)]
        return found[0] - found[1]
    model = trained.density()
    if question == "log_prob":
        found = log_likelihood(model, draws.test)
        if found is None or not isinstance(model, Normalised):
            raise NotSupported(f"{contender.name} has no exact likelihood.", "Use a model that is exact on these data.")
        return float(found[0].mean())
    if question == "samples":
        return float(len(sample_of(trained, 100, draws.seed)))
    figures = imputation_error(by_model(model), draws.test[:500], draws.pool.x, space.fields, seed=draws.seed)
    return figures["rmse"].value if "rmse" in figures else 1 - figures["accuracy"].value


def capability_table(
    draws: Draws, contenders: Sequence[Contender], labels: int, tell: Callable[[str], None] | None = None
) -> dict[str, dict[str, float | str]]:
    """For each contender, each question's answer, or "no: why not" where it raises `NotSupported`.

    Args:
        draws: the rows; each contender learns from the whole pool.
        labels: labelled rows of the question about unlabelled ones.
        tell: is told progress.
    """
    table: dict[str, dict[str, float | str]] = {}
    for contender in contenders:
        trained = contender.learn(draws.space, draws.pool, None, draws.seed)
        row: dict[str, Any] = {}
        for question in QUESTIONS:
            try:
                row[question] = ask(question, draws, contender, trained, labels, draws.space)
            except NotSupported as error:
                row[question] = f"no: {error.cause}"
            if tell is not None:
                tell(f"{contender.name}: {question}: {row[question]}")
        table[contender.name] = row
    return table
