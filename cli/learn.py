"""`paramsmith learn atlas|adamerging|soup|search|btm MODELS...`: coefficients of a merge, learned from data."""

from __future__ import annotations

import click

from .learn_gradient import adamerging, atlas
from .learn_scored import btm, search, soup


@click.group("learn", invoke_without_command=True, short_help="Learn the coefficients of a merge from data.")
@click.pass_context
def command(context: click.Context) -> None:
    """Learn what to multiply each of several models by, and write a small file that goes with them.

    \b
    paramsmith learn search A B --base BASE --data reviews.jsonl -o c.json
    paramsmith merge A B --base BASE --coefficients c.json -o OUT
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _learner in (atlas, adamerging, soup, search, btm):
    command.add_command(_learner)
