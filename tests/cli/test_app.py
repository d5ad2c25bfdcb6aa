"""The frame of the command line: help, errors, exit codes, signals, and what is not imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from paramsmith.cli import app
from paramsmith.errors import Failed, InvalidInput, Refused

START = "from paramsmith.cli.app import main; main()"


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app.cli, list(words))


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command("inspect")
    def command() -> None:
        raise error

    monkeypatch.setattr(app.App, "get_command", lambda *_: command)


def test_help_lists_every_command_and_imports_little() -> None:
    code = f"import sys\ntry:\n    {START}\nfinally:\n    print(sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in app.COMMANDS)
    loaded = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    assert not {"torch", "pydantic", "rich", "ruamel", "numpy", "safetensors"} & set(loaded)


def test_every_command_of_the_table_exists() -> None:
    for name in app.COMMANDS:
        assert invoke(name, "--help").exit_code == 0


def test_version_and_no_arguments() -> None:
    assert invoke("--version").stdout == f"paramsmith {app.__version__}\n"
    assert "Commands:" in invoke().stdout


@pytest.mark.parametrize(
    ("words", "fact", "hint"),
    [
        (["mrge"], 'unknown command "mrge"', 'did you mean "merge"?'),
        (["xyzzy"], 'unknown command "xyzzy"', "the commands are merge"),
        (["--halp"], "unknown option --halp", "did you mean --help?"),
        (["inspect", "x", "--xyzzy"], "unknown option --xyzzy", "see: paramsmith inspect --help"),
        (["inspect"], "missing argument 'MODEL'", "see: paramsmith inspect --help"),
        (["x\x1b[31m"], 'unknown command "x\\x1b[31m"', "the commands are"),
    ],
)
def test_usage_errors(words: list[str], fact: str, hint: str) -> None:
    done = invoke(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {fact}")
    assert f"\nhint: {hint}" in done.stderr


@pytest.mark.parametrize("words", [["--json", "mrge"], ["mrge", "--json"]])
def test_errors_as_json(words: list[str]) -> None:
    done = invoke(*words)
    assert done.exit_code == 2
    assert done.stderr == ""
    expected = {"fact": 'unknown command "mrge"', "hint": 'did you mean "merge"?', "exit_code": 2}
    assert json.loads(done.stdout) == {"error": expected}


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidInput("a\nb", "c"), 2), (Refused("a\nb", "c"), 3), (Failed("a\nb", "c"), 1)]
)
def test_our_errors(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    failing(monkeypatch, error)
    done = invoke("inspect")
    assert (done.exit_code, done.stderr) == (code, "error: a\nerror: b\nhint: c\n")


def test_other_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RuntimeError("boom\nmore"))
    monkeypatch.delenv(app.DEBUG, raising=False)
    done = invoke("inspect")
    assert (done.exit_code, done.stderr) == (
        1,
        "error: RuntimeError: boom\nhint: set PARAMSMITH_DEBUG=1 for the trace\n",
    )
    monkeypatch.setenv(app.DEBUG, "1")
    assert isinstance(invoke("inspect").exception, RuntimeError)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (app.Terminated(), 143)])
def test_interrupts(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    failing(monkeypatch, error)
    done = invoke("inspect")
    assert done.exit_code == code
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_unwind(number: signal.Signals, code: int) -> None:
    program = (
        "import click, time\nfrom paramsmith.cli import app\n"
        "@click.command()\ndef command():\n    try:\n        print('up', flush=True); time.sleep(20)\n"
        "    finally:\n        print('unwound', flush=True)\n"
        "app.App.get_command = lambda *_: command\napp.cli.main(['inspect'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (code, "unwound\n")
    assert len(err.splitlines()) == 1


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", START, "--help"], stdout=write, stderr=-1, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (app.BROKEN_PIPE, b"")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    ],
)
def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    done = invoke("inspect")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there is not enough memory\nhint: ask for less")
