"""How far new rows are from train, as one HTML page that asks no network for anything."""

from __future__ import annotations

from recbole_escm2.evaluator.summary import metric_rows
from recbole_escm2.report.figures import png, support
from recbole_escm2.report.page import embedded, render
from recbole_escm2.serve.predict import Prediction


def new_rows_page(done: Prediction) -> str:
    """The page of rows that were scored and reported."""
    shares = done.validity.support
    description = "How the support of these rows is spread"
    return render(
        "new_rows.html",
        title=f"New rows of {done.new.name}",
        counts=done.counts(),
        of_support=done.validity.of_support(),
        picture=None if shares is None else (description, *embedded(png(support(shares)))),
        features=done.validity.grid(),
        note=done.validity.note(),
        metrics=None if done.result is None else metric_rows(done.result, 4),
        undefined=[] if done.result is None else list(done.result.undefined.items()),
    )
