"""`paramsmith generators`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from paramsmith.cli.app import cli
from paramsmith.parts import Parts, bases, codecs, decoders, encoders, families, generators, objectives, priors, scales
from tests.hypernet.conftest import stub_parts  # noqa: F401 - a fixture

KINDS = {
    "generators": generators,
    "condition_encoders": encoders,
    "decoders": decoders,
    "codecs": codecs,
    "priors": priors,
    "bases": bases,
    "scales": scales,
    "objectives": objectives,
    "families_of_architectures": families,
}


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, ["generators", *words])


@pytest.mark.usefixtures("stub_parts")
def test_the_table_has_every_generator_and_every_part() -> None:
    lines = invoke().stdout.splitlines()
    told = json.loads(invoke("--json").stdout)
    assert list(told) == list(KINDS)
    for kind, registry in KINDS.items():
        names = list(registry.all())
        assert [part["name"] for part in told[kind]] == names
        if names:
            start = lines.index(kind.replace("_", " ")) + 2  # a title, and the names of the columns
            assert [line.split()[0] for line in lines[start : start + len(names)]] == names
    row = next(line for line in lines if line.startswith("stub "))
    assert "Low rank on top of drawn numbers, to be trained." in row
    assert row.endswith("arXiv:2405.16287")


@pytest.mark.usefixtures("stub_parts")
def test_one_is_described() -> None:
    text = invoke("stub").stdout
    assert text.startswith("stub (generator)\n\nLow rank on top of drawn numbers")
    assert "A second paragraph." in text
    assert "paper: arXiv:2405.16287" in text
    told = json.loads(invoke("stub", "--json").stdout)
    rank = next(field for field in told["parameters"] if field["name"] == "rank")
    assert rank == {
        "name": "rank",
        "type": "whole number",
        "default": 2,
        "range": ">= 1, <= 4096",
        "description": "rank of what is added",
    }
    assert json.loads(invoke("stub_factors", "--json").stdout)["kind"] == "decoder"
    assert "no parameters" in invoke("stub_code").stdout


def test_a_name_of_several_parts(stub_parts: None) -> None:  # noqa: F811
    for registry in (encoders, scales):
        registry("twice")(object)
    assert [part["kind"] for part in json.loads(invoke("twice", "--json").stdout)["parts"]] == [
        "condition encoder",
        "scale",
    ]
    assert invoke("twice").stdout.count("twice (") == 2


@pytest.mark.parametrize("registry", KINDS.values(), ids=KINDS)
def test_what_comes_with_paramsmith_is_documented(registry: Parts) -> None:
    for name, part in registry.all().items():
        done = invoke(name)
        assert done.exit_code == 0
        assert part.doc.partition("\n")[0].rstrip().endswith("."), f"{name} is not described by a sentence"
        for field in part.params.model_fields.values():
            assert field.description
            assert field.description in done.stdout


def test_a_misspelt_name(stub_parts: None) -> None:  # noqa: F811
    done = invoke("stubb")
    assert done.exit_code == 2
    assert "'stub'" in done.stderr
