"""What paramsmith costs on this machine, beside what bounds it: ratios measured side by side, best of several.

Printed part by part, each row with the load average: a row measured on a busy machine tells little.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.bench import models, runs
from tests.bench.fisher import atlas, fisher
from tests.bench.generating import generating
from tests.bench.learning_child import PACKAGE
from tests.bench.parts import Bench, cold, gpu, memory, speed, tiny
from tests.bench.processes import mergekit, startup
from tests.bench.report import Row, Table, machine, show_machine
from tests.bench.sampling import sampling
from tests.bench.tokens import tokens

PARTS: dict[str, Callable[[Bench], Table]] = {
    "speed": speed,
    "memory": memory,
    "cold": cold,
    "tiny": tiny,
    "startup": startup,
    "mergekit": mergekit,
    "gpu": gpu,
    "fisher": fisher,
    "atlas": atlas,
    "generating": generating,
    "tokens": tokens,
    "sampling": sampling,
}
LLAMAS = {"speed", "memory", "cold", "mergekit", "gpu"}  # the parts that need the large models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; 1 when a run failed, whatever it took."""
    asked = parser().parse_args(arguments)
    folder = (asked.folder / "quick" if asked.quick else asked.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    facts = runs.machine_facts()
    about = machine(facts.torch, facts.gpu)
    show_machine(about)
    if asked.quick:
        print("quick: small models; the targets, which are for the full size, are left out")
    parts = asked.only or list(PARTS)
    for part, missing in (
        ("mergekit", not asked.mergekit and "no --mergekit PYTHON"),
        ("gpu", not facts.gpu and "torch finds no CUDA device"),
        *((part, not packaged() and f"no package {PACKAGE} or no transformers") for part in ("fisher", "atlas")),
    ):
        if part in parts and missing:
            parts = [p for p in parts if p != part]
            print(f"{part}: left out, {missing}")
    tables: list[Table] = []
    try:
        made = models.llamas(folder, models.QUICK if asked.quick else models.FULL) if LLAMAS & {*parts} else {}
        with tempfile.TemporaryDirectory(dir=folder, prefix="results-") as scratch:
            bench = Bench(folder, made, Path(scratch), facts, asked.runs, asked.quick, asked.mergekit)
            for part in parts:
                tables.append(PARTS[part](bench))
                save(asked.json, about, tables)
    except models.Unusable as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return int(any(table.failed for table in tables))


def packaged() -> bool:
    """Whether the published model is here, and what runs it."""
    return all(find_spec(name) for name in (PACKAGE, "transformers"))


def save(path: Path | None, about: Row, tables: Sequence[Table]) -> None:
    """Write what was measured so far, where that was asked for."""
    if path:
        told = {"machine": about, "parts": {table.part: table.to_json() for table in tables}}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    made.add_argument("--quick", action="store_true", help="small models: a look at the form, not at the speed")
    made.add_argument("--folder", type=Path, default=default_folder(), help="where the models are, 9 GB (%(default)s)")
    made.add_argument("--mergekit", type=Path, metavar="PYTHON", help="a Python that has mergekit 0.1.5")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    made.add_argument("--only", type=_parts, metavar="PART,PART", help=", ".join(PARTS))
    made.add_argument("--runs", type=int, default=3, metavar="N", help="best of how many (%(default)s)")
    return made


def default_folder() -> Path:
    """A place on a real disk that survives: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paramsmith" / "bench"


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"no part is called {part!r}; the parts are {', '.join(PARTS)}")
    return [part for part in PARTS if part in parts]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was written is removed then too
    sys.exit(main())
