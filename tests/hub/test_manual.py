"""What the manual of the Hub shows is what happens, on a Hub of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.hubstub import HubStub
from tests.hub.repositories import publish
from tests.test_docs import ROOT, blocks, run_command, save_model

MANUAL = ROOT / "merge" / "HUB.md"


def test_the_blocks_run(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one folder, with three models of alice on the Hub."""
    for seed, name in enumerate(("base", "math", "code")):
        save_model(tmp_path / "made" / name, seed)
        publish(hub, f"alice/{name}", tmp_path / "made" / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    commands = [(line, code.line) for code in blocks(MANUAL) if code.kind == "sh" for line in code.text.splitlines()]
    assert len(commands) > 10
    for line, number in commands:
        assert line.startswith("paramsmith "), line
        run_command(line, f"{MANUAL.name}:{number}")


def test_every_option_of_the_hub_is_in_a_manual() -> None:
    from paramsmith.cli.app import cli

    text = MANUAL.read_text(encoding="utf-8") + (ROOT / "merge" / "README.md").read_text(encoding="utf-8")
    for name in ("pull", "push", "card", "verify", "reproduce"):
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        for word in (o for p in command.params if p.param_type_name == "option" for o in p.opts if o[:2] == "--"):
            assert f"`{word}" in text or f" {word}" in text, f"{name} {word}"
