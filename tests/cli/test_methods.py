"""`paramsmith methods`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from paramsmith.cli.app import cli
from paramsmith.registry import methods


def test_the_table_has_every_method() -> None:
    lines = CliRunner().invoke(cli, ["methods"]).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(methods())


@pytest.mark.parametrize("name", list(methods()))
def test_each_method_is_described(name: str) -> None:
    text = CliRunner().invoke(cli, ["methods", name]).stdout
    told = json.loads(CliRunner().invoke(cli, ["methods", name, "--json"]).stdout)
    for field in told["parameters"]:
        assert field["type"]
        assert field["description"] in text
    assert told["summary"] in text


def test_ranges_and_types() -> None:
    told = json.loads(CliRunner().invoke(cli, ["methods", "ties", "--json"]).stdout)
    density = next(field for field in told["parameters"] if field["name"] == "density")
    assert (density["type"], density["range"], density["varies"]) == ("number", "> 0, <= 1", "by model, layer, tensor")
    assert "lambda" in [field["name"] for field in told["parameters"]]


def test_a_misspelt_name() -> None:
    done = CliRunner().invoke(cli, ["methods", "tise"])
    assert done.exit_code == 2
    assert "ties" in done.stderr
