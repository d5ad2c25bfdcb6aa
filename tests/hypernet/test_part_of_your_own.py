"""The part that the manual adds: what it shows works, in a package that is found by its entry point."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "hypernet" / "README.md"
PROGRAM = """
import torch
from paramsmith.hypernet import Generator, Target, train
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.training.tasks import FunctionTask

target = Target.of(torch.nn.Linear(1, 2))
held = {"x": torch.ones(4, 1)}
task = FunctionTask(
    lambda rng, split: Episode(target, {"vector": torch.rand(1, generator=rng)}, held),
    lambda run, batch: (run(batch["x"]) - 1).square().mean(),
)
losses = train("linear", task, "gen", options={"width": 4}, course={"steps": 30, "lr": 0.1}).fit.losses
assert losses[-1] < losses[0] / 2, losses
one, other = Generator.from_pretrained("gen").sample({"vector": torch.tensor([[0.0], [1.0]])})
assert not torch.equal(one["weight"], other["weight"])
print({name: tuple(tensor.shape) for name, tensor in one.items()})
"""


def test_the_part_of_the_manual(tmp_path: Path) -> None:
    found = re.search(r"^```py\n# linear\.py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    (tmp_path / "linear.py").write_text(found[1], encoding="utf-8")
    about = tmp_path / "my_parts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text("[paramsmith.generators]\nmine = linear\n", encoding="utf-8")
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "{'weight': (2, 1), 'bias': (2,)}"
