"""The `paramsmith` command: finds the subcommand, runs it, and turns whatever goes wrong into a sentence."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click
from click.exceptions import Exit, NoSuchCommand, NoSuchOption

from paramsmith import __version__
from paramsmith.errors import ParamsmithError, printable

from .output import json_option, show_error

COMMANDS = {  # name -> what `--help` says; each is `command` of the module of that name, imported when it is called
    "merge": "Merge checkpoints into one.",
    "measure": "Measure statistics of a model on data, to merge with.",
    "learn": "Learn the coefficients of a merge from data.",
    "rank": "Rank models by what they promise for a task.",
    "zoo": "Build, inspect, split and align zoos of trained networks.",
    "train": "Train a generator of weights.",
    "generate": "Generate the weights of a network.",
    "evaluate": "Compare generated starts with fresh ones and with trained networks.",
    "methods": "List the merge methods, or describe one.",
    "generators": "List the generators and their parts, or describe one.",
    "pull": "Fetch a model, or statistics, from the Hub.",
    "push": "Put a model, or statistics, on the Hub in one commit.",
    "card": "Write the model card and lineage of a merge.",
    "verify": "Hold the files of a merge against its lineage.",
    "reproduce": "Run a published merge again and compare the bytes.",
    "inspect": "Show what a checkpoint holds.",
    "diff": "Compare two checkpoints, tensor by tensor.",
    "demo": "Train small networks, merge them, and compare: a minute on a laptop.",
}
INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141
DEBUG = "PARAMSMITH_DEBUG"
_NO_MEMORY = ("can't allocate memory", "out of memory")  # as torch says it, of a processor and of a device


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like an interrupt, so that what is finished is kept, but for the exit code."""


class App(click.Group):
    """A group whose commands are imported when they are called, and the one place where exceptions end."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of that name and take its command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f".{cmd_name}", __package__).command
        if not isinstance(command, click.Command):
            raise TypeError(f"cli/{cmd_name}.py: `command` is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table: click's own would import them all."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(  # type: ignore[override]  # click's own returns Any and has overloads
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: object
    ) -> NoReturn:
        """Run and exit; never returns."""
        words = list(sys.argv[1:] if args is None else args)
        if os.environ.get("_PARAMSMITH_COMPLETE"):
            super().main(words, "paramsmith")
        with _sigterm():
            code = self._guarded(words)
        sys.exit(code)

    def _guarded(self, words: list[str]) -> int:
        as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
        try:
            return self._run(words, as_json)
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            if isinstance(error, BrokenPipeError):
                return _silence()
            return _report(error, as_json)
        except KeyboardInterrupt as interrupt:
            code = TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
            hint = "; ".join(getattr(interrupt, "__notes__", ()))
            show_error("terminated" if code == TERMINATED else "interrupted", hint, code, as_json)
            return code

    def _run(self, words: list[str], as_json: bool) -> int:
        try:
            with self.make_context("paramsmith", words, obj=as_json) as context:
                self.invoke(context)
        except Exit as done:
            code = done.exit_code
        else:
            code = 0
        sys.stdout.flush()  # a closed pipe shows here, while it can still be answered quietly
        return code


@click.group(cls=App, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="paramsmith", message="%(prog)s %(version)s")
@json_option
@click.pass_context
def cli(context: click.Context) -> None:
    """Merge model checkpoints into one, with what data says about them; and look at what they hold."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> NoReturn:
    """The console script."""
    cli.main()


def _report(error: Exception, as_json: bool) -> int:
    if isinstance(error, ParamsmithError):
        show_error(error.fact, error.hint, error.exit_code, as_json)
        return error.exit_code
    if isinstance(error, click.Abort):
        show_error("interrupted", "", INTERRUPTED, as_json)
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        fact, hint = _usage(error)
        show_error(fact, hint, error.exit_code, as_json)
        return error.exit_code
    told = printable(str(error).strip().partition("\n")[0], 300)
    if isinstance(error, MemoryError) or any(words in told.lower() for words in _NO_MEMORY):
        show_error("there is not enough memory", "ask for less: smaller batches, fewer samples or networks", 1, as_json)
        return 1
    show_error(f"{type(error).__name__}: {told}", f"set {DEBUG}=1 for the trace", 1, as_json)
    return 1


def _usage(error: click.ClickException) -> tuple[str, str]:
    """Fact and hint of click's complaint about the invocation."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "paramsmith"
    if isinstance(error, NoSuchOption):
        known = [o for p in context.command.get_params(context) for o in p.opts if o[:2] == "--"] if context else []
        near = difflib.get_close_matches(error.option_name, known, 1)
        return (
            f"unknown option {printable(error.option_name)}",
            f"did you mean {near[0]}?" if near else f"see: {path} --help",
        )
    if isinstance(error, NoSuchCommand) or "No such command" in error.message:
        name = getattr(error, "command_name", None) or error.message.split("'")[1]
        group = getattr(context, "command", None)
        names = group.list_commands(context) if isinstance(group, click.Group) and context else list(COMMANDS)
        near = difflib.get_close_matches(name, names, 1)
        known_ones = "the commands are " + ", ".join(names)
        return f'unknown command "{printable(name)}"', f'did you mean "{near[0]}"?' if near else known_ones
    text = printable(" ".join(error.format_message().split()), 300).rstrip(".")
    return text[:1].lower() + text[1:], f"see: {path} --help"


def _silence() -> int:
    """The reader of our output is gone: say nothing, and keep the interpreter from trying again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


@contextmanager
def _sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
