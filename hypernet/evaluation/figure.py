"""The picture of an evaluation: score against steps, one line a start, as PNG or SVG."""

from __future__ import annotations

import io
from pathlib import Path

from paramsmith.errors import InvalidInput, printable

from .results import Evaluation

FORMATS = (".png", ".svg")


def figure(evaluation: Evaluation, suffix: str) -> bytes:
    """The document, `.png` or `.svg`: generated starts in full lines, others dashed, one standard deviation shaded.

    The same numbers give the same bytes. InvalidInput where matplotlib is not installed, or for another suffix.
    """
    check_format(suffix)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "paramsmith", "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawn = Figure(figsize=(8, 5), layout="constrained")
        axes = drawn.add_subplot()
        for row in evaluation.rows:
            steps = [step for step, _, _ in row.curve]
            low, mean, high = ([m + side * s for _, m, s in row.curve] for side in (-1, 0, 1))
            style = ":" if row.of is not None else "-" if row.generated else "--"
            (line,) = axes.plot(steps, mean, style, label=printable(row.name, 40).replace("$", r"\$"))
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axes.axhline(evaluation.threshold, color="grey", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        axes.set_xlabel("steps of training")
        axes.set_ylabel("score on unseen data")
        axes.legend(fontsize="small")
        written = io.BytesIO()
        drawn.savefig(written, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else {"Software": None})
    return written.getvalue()


def check_format(suffix: str) -> None:
    """InvalidInput for a picture that cannot be drawn: another suffix, or no matplotlib."""
    if suffix not in FORMATS:
        raise InvalidInput(f"a picture is no {printable(Path(suffix).name)} file", f"name it {' or '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError:
        raise InvalidInput("a picture needs matplotlib", "install it: pip install 'paramsmith[plot]'") from None
