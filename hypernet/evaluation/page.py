"""The report of an evaluation: one HTML page that needs nothing else, with no script in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from paramsmith import __version__
from paramsmith.errors import InvalidInput, printable

from .copying import Copying
from .figure import check_format, figure
from .results import Evaluation, Row

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
tr.generated td { font-weight: 600 }
.chart svg { width: 100%; height: auto }
p.note { color: #555; max-width: 46rem }
"""


def page(evaluation: Evaluation) -> bytes:
    """Verdicts, then the table of all starts, the curves, the controls, copies, and how it was done.

    The same evaluation gives the same bytes. The curves are left out where matplotlib is not installed.
    """
    rivals = [row for row in evaluation.rows if row.of is None]
    parts = [
        "<h1>Are the generated weights worth having?</h1>",
        _list(evaluation.verdicts() or ("no generator was judged",)),
        "<h2>Scores after steps of training</h2>",
        _starts(evaluation, rivals),
        _note(
            "Mean and standard deviation over targets and draws, on unseen data, each start with the learning rate "
            "that suits it best on rows that are not shown here. To "
            f"{_number(evaluation.threshold)}: median of the steps to that score. Cost: seconds to make the start, "
            "without the training of a zoo's networks; a draw: seconds for the weights of one target."
        ),
        _chart(evaluation),
        *_controls(evaluation),
        *_copies(evaluation),
        "<h2>How it was done</h2>",
        _list(_done(evaluation)),
    ]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><title>Generated weights</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'.encode()


def _starts(found: Evaluation, rows: Sequence[Row]) -> str:
    marks = found.budget.marks
    head = (
        "start",
        *(f"{mark:,}" for mark in marks),
        "best",
        f"to {_number(found.threshold)}",
        "rate",
        "cost",
        "a draw",
    )
    cells = []
    for row in rows:
        scores = (f"{_number(row.at(mark))} ± {_number(row.spread(mark))}" for mark in marks)
        steps = "never" if row.steps is None else f"{row.steps:.0f}"
        cost = "?" if row.seconds is None else f"{row.seconds:.1f} s"
        rest = (_number(row.best), steps, f"{row.rate:g}", cost, f"{1000 * row.drawing:.1f} ms")
        cells.append((row.name, *scores, *rest))
    return _table(head, cells, [row.generated for row in rows])


def _controls(found: Evaluation) -> list[str]:
    cells = []
    for row in found.generated:
        right = row.at(0)
        cells.append((row.name, _number(right), ""))
        for control in found.controls(row.name):
            score = control.at(0)
            cells.append((control.name, _number(score), f"{right - score:+.3f}"))
    if not any(gap for _, _, gap in cells):
        return []
    told = "Without any training: what a generator makes when it is asked for something else should do no good."
    return ["<h2>Controls</h2>", _table(("asked", "score", "the right one has more"), cells), _note(told)]


def _copies(found: Evaluation) -> list[str]:
    if not found.copying:
        return []
    head = ("generator", "samples", "d1 / d2", "copies", "distance", "held out", "mistakes in common", "ensemble gains")
    told = (
        "d1, d2: distances to the nearest and second nearest network of the zoo, as the generator's codec sees them; a "
        "copy is three times nearer to one than to any other. Distance: d1 over the mean distance of the zoo's "
        "networks to their nearest; beside it the same of networks held out, which is the yardstick. Mistakes in "
        "common: the largest overlap of a sample's mistakes with those of one network of the zoo; copies come near "
        "to 1. Ensemble: accuracy of the mean of the samples' logits, less that of one; copies gain nothing."
    )
    return ["<h2>Copies?</h2>", _table(head, [_copied(*pair) for pair in found.copying.items()]), _note(told)]


def _copied(name: str, copied: Copying) -> tuple[str, ...]:
    new = copied.novelty
    numbers = (new.distance, new.held_out, copied.overlap, copied.gain)
    shown = ("" if number is None else _number(number) for number in numbers)
    return name, f"{copied.samples:,}", _number(new.ratio), f"{new.copies:.0%}", *shown


def _done(found: Evaluation) -> list[str]:
    budget = found.budget
    told = [
        f"{budget.seeds:,} draws of each start, data in another order for each; {budget.batch_size or 'all'} rows a "
        f"step of Adam; learning rates tried: {', '.join(f'{rate:g}' for rate in budget.rates)}; seed {budget.seed}",
        f"paramsmith {__version__}",
    ]
    if found.zoo is not None:
        counts = "; ".join(f"{name}: {count:,}" for name, count in found.zoo.items())
        told.insert(0, f"zoo: {counts}. No task is both trained on and judged by, and no network is on both sides")
    else:
        told.insert(0, f"up to {budget.targets:,} unseen targets or conditions of the task")
    told += [f"{name} is left out: {why}" for name, why in (found.left_out or {}).items()]
    return told


def _chart(found: Evaluation) -> str:
    try:
        check_format(".svg")
    except InvalidInput as problem:
        return _note(f"No curves are drawn: {problem.fact}.")
    drawn = figure(found, ".svg").decode()
    return f'<div class="chart">{drawn[drawn.index("<svg") :]}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], strong: Sequence[bool] = ()) -> str:
    lines = [_cells("th", head, "")]
    for place, row in enumerate(rows):
        lines.append(_cells("td", row, ' class="generated"' if place < len(strong) and strong[place] else ""))
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cells(tag: str, texts: Iterable[str], attribute: str) -> str:
    cells = "".join(f"<{tag}>{_text(text)}</{tag}>" for text in texts)
    return f"<tr{attribute}>{cells}</tr>"


def _list(texts: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_text(text)}</li>" for text in texts) + "\n</ul>"


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _text(text: str) -> str:
    return escape(printable(text, 1000))


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "?"
