"""The options of `merge` that come from the registry: one for each parameter of any method, and their values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import click

from paramsmith.errors import InvalidInput, printable

PREFIX = "parameter_"
VALUES = "VALUE: 0.5, or 0.3,0.5 model by model, or 0..0.5..1 over the layers, or mlp=0.5 for matching tensors only."


class ParameterOption(click.Option):
    """An option that is a parameter of some merge methods; its help says of which."""

    def __init__(self, parameter: str, switch: bool, told: str) -> None:
        word = parameter.replace("_", "-")
        if switch:
            super().__init__([f"--{word}/--no-{word}", PREFIX + parameter], default=None, help=told)
        else:
            super().__init__([f"--{word}", PREFIX + parameter], multiple=True, metavar="VALUE", help=told)


class MergeCommand(click.Command):
    """A command that also takes every parameter of every registered merge method."""

    _from_methods: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own options, then those of the methods, which are looked up once."""
        own = super().get_params(ctx)
        if self._from_methods is None:
            taken = {word for option in own for word in option.opts}
            self._from_methods = [o for o in method_options() if not taken & set(o.opts)]
        return [*own, *self._from_methods]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let a switch be written `--normalize true` or `--normalize=false` too, as recipes and reports write it."""
        switches = {o.opts[0] for o in self.get_params(ctx) if isinstance(o, ParameterOption) and o.is_flag}
        return super().parse_args(ctx, _plain_switches(args, switches))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The two kinds of options under two headings."""
        options = [(o, o.get_help_record(ctx)) for o in self.get_params(ctx) if isinstance(o, click.Option)]
        with formatter.section("Options"):
            formatter.write_dl([r for o, r in options if r and not isinstance(o, ParameterOption)])
        with formatter.section("Parameters of the methods"):
            formatter.write_text(VALUES)
            formatter.write_paragraph()
            formatter.write_dl([r for o, r in options if r and isinstance(o, ParameterOption)])


def method_options() -> list[ParameterOption]:
    """One option for each parameter name of any registered method; a switch where all want true or false."""
    from paramsmith.registry import methods

    takers: dict[str, dict[str, list[str]]] = {}  # parameter -> description -> methods
    switch: dict[str, bool] = {}
    for method in methods().values():
        for name, field in method.params.model_fields.items():
            word = field.alias or name
            takers.setdefault(word, {}).setdefault(field.description or "", []).append(method.name)
            switch[word] = switch.get(word, True) and field.annotation is bool
    told = {w: "; ".join(f"{text} [{', '.join(names)}]" for text, names in t.items()) for w, t in takers.items()}
    return [ParameterOption(word, switch[word], told[word]) for word in takers]


def given_parameters(method: str, values: Mapping[str, object]) -> dict[str, object]:
    """The parameters that were given, as plain data; InvalidInput for one the method does not have."""
    from paramsmith.registry import find_method

    given = {key.removeprefix(PREFIX): value for key, value in values.items() if value not in (None, ())}
    known = [field.alias or name for name, field in find_method(method).params.model_fields.items()]
    for name in given:
        if name not in known:
            raise InvalidInput(f'method "{method}" has no parameter "{name}"', _hint(name, known))
    return {name: _combined(name, value) for name, value in given.items()}


def _hint(name: str, known: Sequence[str]) -> str:
    options = ", ".join(f"--{word.replace('_', '-')}" for word in known)
    near = difflib.get_close_matches(name, known, 1)
    question = f"did you mean --{near[0].replace('_', '-')}? " if near else ""
    return question + (f"its parameters: {options}" if options else "it has none")


def _combined(name: str, value: object) -> object:
    """The values of one option: rules with a filter in the order given, the one without as the last, the default."""
    from paramsmith.params import parse_option

    if isinstance(value, bool):
        return value
    texts = [str(text) for text in value] if isinstance(value, list | tuple) else [str(value)]
    parsed = [parse_option(text) for text in texts]
    if len(parsed) == 1:
        return parsed[0]
    filtered = [p for p in parsed if isinstance(p, dict) and "filter" in p]
    defaults = [p for p in parsed if not (isinstance(p, dict) and "filter" in p)]
    if len(defaults) > 1:
        told = " and ".join(printable(t, 40) for t in texts)
        raise InvalidInput(f"--{name.replace('_', '-')} is given twice: {told}", "values a model: 0.3,0.5,0.2")
    return [*filtered, *({"value": p} for p in defaults)]


def _plain_switches(args: Iterable[str], switches: set[str]) -> list[str]:
    words: list[str] = []
    for word in args:
        name, equals, value = word.partition("=")
        if name in switches and equals and value.lower() in ("true", "false"):
            words.append(name if value.lower() == "true" else f"--no-{name[2:]}")
        elif words and words[-1] in switches and word.lower() in ("true", "false"):
            words[-1] = words[-1] if word.lower() == "true" else f"--no-{words[-1][2:]}"
        else:
            words.append(word)
    return words
