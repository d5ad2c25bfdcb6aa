"""Networks with running statistics: read, inspected, aligned, learned, generated and measured anew, none of it lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from paramsmith.cli.app import cli
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.finishing.chain import finish, floored
from paramsmith.hypernet.finishing.recalibration import recalibrate
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.targets.specfile import spec_from_json, spec_to_json
from paramsmith.hypernet.targets.statistics import with_statistics
from paramsmith.hypernet.tokens.tokenizer import Tokenizer
from paramsmith.hypernet.training.tasks import FunctionTask
from paramsmith.hypernet.zoos.align import align
from paramsmith.hypernet.zoos.build import build
from paramsmith.hypernet.zoos.inspection import inspect
from paramsmith.hypernet.zoos.targetfile import TARGETS
from paramsmith.hypernet.zoos.zoo import Zoo
from paramsmith.matching import apply_permutation
from paramsmith.permutations import permutation_spec

pytestmark = pytest.mark.usefixtures("one_thread")
INPUTS = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(9)) * 2 + 1


def cnn(affine: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def trained(seed: int, noise: float = 0.2) -> dict[str, Tensor]:
    """A state dict near one that all have in common, with statistics that were counted over batches."""
    torch.manual_seed(0)
    net = cnn()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=rng))
        for start in range(0, 40, 8):
            net(INPUTS[start : start + 8] + 0.1 * seed)
    return net.state_dict()


def folder_of(path: Path, nets: list[dict[str, Tensor]]) -> Path:
    """As `torch.save(model.state_dict())` has it, in safetensors: what norms count too."""
    path.mkdir(exist_ok=True)
    lines = []
    for i, held in enumerate(nets):
        save_file(held, path / f"net{i}.safetensors")
        split = "test" if i == len(nets) - 1 else "train"
        lines.append({"path": f"net{i}.safetensors", "condition": [float(i)], "task": f"t{i}", "split": split})
    (path / "zoo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def nets() -> list[dict[str, Tensor]]:
    return [trained(seed) for seed in range(6)]


@pytest.fixture
def folder(tmp_path: Path, nets: list[dict[str, Tensor]]) -> Path:
    return folder_of(tmp_path / "zoo", nets)


def outputs(held: Mapping[str, Tensor]) -> Tensor:
    """In inference, of a network that takes every tensor that it has."""
    net = cnn()
    net.load_state_dict(dict(held), strict=True)
    assert net[1].num_batches_tracked.dtype is torch.int64
    with torch.no_grad():
        found: Tensor = net.eval()(INPUTS)
    return found


def test_statistics_are_tensors_of_a_network(folder: Path, nets: list[dict[str, Tensor]]) -> None:
    zoo = Zoo.open(folder)
    spec = zoo.members[0].spec
    names = [slot.name for slot in spec.slots]
    assert names[2:6] == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert [slot.role for slot in spec.slots][2:6] == ["norm_scale", "norm_shift", "norm_shift", "norm_scale"]
    assert [buffer.name for buffer in spec.buffers] == ["1.num_batches_tracked", "4.num_batches_tracked"]
    held = zoo.batch(zoo.members)
    assert all(torch.equal(held[name][i], nets[i][name]) for name in names for i in range(6))
    found = inspect(zoo)
    assert found.architectures[0].numbers == sum(t.numel() for t in nets[0].values()) - 2
    assert found.order is not None
    assert found.order > 0.3
    assert not found.not_finite


@pytest.mark.parametrize("affine", [True, False])
def test_a_target_keeps_its_graph(folder: Path, affine: bool) -> None:
    """Statistics are at the node of their norm, or, where it has no weights, at one of their own."""
    plain = Target.of(cnn(affine).eval(), INPUTS[:2]).spec
    spec = with_statistics(plain)
    assert with_statistics(spec) is spec
    assert spec.graph is not None
    assert spec.graph.sound
    assert len(spec.graph.node_of) == len(spec.slots) == len(plain.slots) + 4
    node = dict(zip((slot.name for slot in spec.slots), spec.graph.node_of, strict=True))
    assert plain.graph is not None
    assert [node[slot.name] for slot in plain.slots] == list(plain.graph.node_of)
    assert node["4.running_mean"] == node["4.running_var"] == node["4.weight"]
    if not affine:
        assert spec.graph.nodes[node["1.running_mean"]].op == "unused"
        assert [slot.name for slot in spec.slots][-2:] == ["1.running_mean", "1.running_var"]
        return
    again = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert again == spec
    zoo = Zoo.open(folder, plain)
    assert zoo.members[0].spec.graph is not None
    assert zoo.members[0].spec == spec


def test_alignment_moves_statistics_with_their_units(tmp_path: Path) -> None:
    nets = [trained(seed, noise=0.03) for seed in range(6)]
    rng = torch.Generator().manual_seed(3)
    mixed = []
    for held in nets:
        spec = permutation_spec({name: tuple(t.shape) for name, t in held.items()}, group_norms=False)
        sizes = spec.sizes({name: tuple(t.shape) for name, t in held.items()})
        order = {name: torch.randperm(size, generator=rng)[None] for name, size in sizes.items()}
        moved = apply_permutation(spec, order, {name: t[None] for name, t in held.items()})
        mixed.append({name: t[0].contiguous() for name, t in moved.items()})
    zoo = Zoo.open(folder_of(tmp_path / "mixed", mixed))
    made = align(zoo, tmp_path / "aligned")
    assert not made.shared
    assert made.after < made.before / 2
    aligned = Zoo.open(tmp_path / "aligned")
    assert [buffer.name for buffer in aligned.members[0].spec.buffers] == [
        "1.num_batches_tracked",
        "4.num_batches_tracked",
    ]
    first = cnn().state_dict()
    for i, member in enumerate(aligned.members):
        whole = {**first, **aligned.load(member)}
        torch.testing.assert_close(outputs(whole), outputs(nets[i]), rtol=1e-3, atol=1e-4)
    spread = aligned.batch(aligned.members)["1.running_var"].std(0).mean()
    assert spread < 0.5 * zoo.batch(zoo.members)["1.running_var"].std(0).mean()


def test_a_network_comes_back_from_its_neighbour(folder: Path, nets: list[dict[str, Tensor]]) -> None:
    """With the statistics it had, and with every tensor that the module wants."""
    zoo = Zoo.open(folder)
    made = Generator.build("nearest", zoo.site, gauge=False)
    made.fit(zoo)
    for i in (0, 3):
        found = made.sample({"vector": torch.tensor([float(i)])})[0]
        torch.testing.assert_close(outputs(found), outputs(nets[i]), rtol=1e-3, atol=1e-3)
    template = Generator.build("nearest", zoo.site, gauge=False, statistics="template")
    template.fit(zoo)
    found = template.sample({"vector": torch.tensor([3.0])})[0]
    assert torch.equal(found["1.running_mean"], nets[0]["1.running_mean"])
    assert torch.allclose(found["3.weight"], nets[3]["3.weight"], atol=1e-5)


@pytest.mark.parametrize("policy", ["generate", "template", "recalibrate"])
def test_each_policy_gives_every_tensor(folder: Path, nets: list[dict[str, Tensor]], policy: str) -> None:
    zoo = Zoo.open(folder)
    rules = [{"policy": policy, "name": "running_"}]
    tokenizer = Tokenizer.of({"policies": rules, "views": ["log_var"], "template": "mean"}, zoo.members[0].spec)
    tokenizer.fit(lambda: ((tensors, members[0].spec) for members, tensors in zoo.batches("train")))
    held = zoo.batch(zoo.members)
    back = tokenizer.tensors(tokenizer.tokens(held, zoo.members[0].spec), zoo.members[0].spec)
    for name in ("1.running_mean", "4.running_var"):
        wanted = held[name] if policy == "generate" else held[name][:5].double().mean(0).float().expand(6, -1)
        torch.testing.assert_close(back[name], wanted)


@pytest.mark.parametrize("preset", ["ridge", "flow"])
def test_a_generated_network_works(folder: Path, tmp_path: Path, preset: str) -> None:
    """Loaded with strict=True, from memory and from what the command wrote; measured anew it changes."""
    zoo = Zoo.open(folder)
    made = Generator.build(preset, zoo.site, **({"codec": "pca", "rank": 4} if preset == "flow" else {}))
    made.fit(zoo, {"steps": 3} if preset == "flow" else None)
    found = made.sample({"vector": torch.tensor([2.5])})[0]
    assert bool((found["1.running_var"] > 0).all())
    assert outputs(found).isfinite().all()
    assert found["1.num_batches_tracked"].item() == 0
    again, told = finish(found, floored(), recalibrate(cnn(), [INPUTS]))
    assert {change.name for change in told} >= {"1.running_mean", "4.running_var"}
    assert not torch.equal(again["1.running_mean"], found["1.running_mean"])
    net = cnn()
    net.load_state_dict(again, strict=True)
    made.save(tmp_path / "gen")
    words = ["generate", str(tmp_path / "gen"), "-o", str(tmp_path / "out"), "--task", "vector=2.5"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.stderr
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == found.keys()
    assert all(torch.equal(written[name], found[name]) for name in found)


@pytest.mark.parametrize("training", [True, False])
def test_a_target_runs_with_them(nets: list[dict[str, Tensor]], training: bool) -> None:
    """In inference they are used; in training a batch has its own."""
    module = cnn().train(training)
    target = Target.of(module, capture=False)
    held = {name: tensor for name, tensor in nets[1].items() if "num_batches" not in name}
    bare = {name: tensor for name, tensor in held.items() if "running" not in name}
    found = target.call(held, INPUTS)
    expected = functional_call(cnn().train(training), dict(nets[1]), INPUTS)
    torch.testing.assert_close(found, expected)
    many = target.call_many({name: torch.stack([t, t]) for name, t in held.items()}, INPUTS, shared=True)
    torch.testing.assert_close(many[1], found)
    assert torch.equal(target.call(bare, INPUTS), found) == training
    with pytest.raises(InvalidInput, match="which it has not"):
        target.call({**held, "2.running_mean": torch.zeros(6)}, INPUTS)


def test_a_generator_of_a_zoo_makes_them_for_a_module(folder: Path) -> None:
    """A module has them as buffers, and a task is for modules."""
    zoo = Zoo.open(folder)
    made = Generator.build("mean", zoo.site)
    made.fit(zoo)
    like = Target.of(cnn(), capture=False).spec
    found = made.sample({"vector": torch.zeros(1)}, like=like)[0]
    assert "4.running_mean" in found
    other = Target.of(nn.Sequential(nn.Linear(2, 2)), capture=False).spec
    with pytest.raises(InvalidInput, match="made for another target"):
        made.sample({"vector": torch.zeros(1)}, like=other)


def test_a_zoo_that_is_built_measures_them(tmp_path: Path) -> None:
    """In training norms keep none: those of a network are measured on what it was trained on."""
    target = Target.of(cnn(), capture=False)

    def draw(rng: torch.Generator, split: str) -> Episode:
        x = torch.randn(50, 1, 6, 6, generator=rng) * 2 + 3
        y = torch.randint(0, 3, (50,), generator=rng)
        return Episode(target, {"vector": torch.rand(1, generator=rng)}, {"x": x, "y": y}, {"x": x, "y": y})

    task = FunctionTask(
        draw,
        lambda run, batch: nn.functional.cross_entropy(run(batch["x"]), batch["y"]),
        lambda run, batch: (run(batch["x"]).argmax(-1) == batch["y"]).float().mean(),
    )
    build(task, 3, tmp_path / "zoo", steps=5)
    zoo = Zoo.open(tmp_path / "zoo")
    held = zoo.load(zoo.members[1])
    assert abs(float(held["1.running_mean"].abs().mean())) > 0.1
    assert zoo.members[1].entry.episode is not None
    x = draw(torch.Generator().manual_seed(zoo.members[1].entry.episode), "zoo").support["x"]
    bare = {name: tensor for name, tensor in held.items() if "running" not in name}
    whole = {**cnn().state_dict(), **held}
    inference = functional_call(cnn().eval(), whole, x)
    torch.testing.assert_close(inference, target.call(bare, x), rtol=0.1, atol=0.1)
    assert '"1.running_var"' in (tmp_path / "zoo" / TARGETS).read_text()
    again = Zoo.open(tmp_path / "zoo", target.spec)
    assert again.members[0].spec == zoo.members[0].spec
    frozen = Target.of(cnn().eval(), capture=False)
    fixed = FunctionTask(lambda rng, split: Episode(frozen, *_rest(draw(rng, split))), task.loss, task.score)
    build(fixed, 2, tmp_path / "fixed", steps=2)
    assert "1.running_mean" not in Zoo.open(tmp_path / "fixed").load(Zoo.open(tmp_path / "fixed").members[0])


def _rest(episode: Episode) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]:
    return episode.condition, episode.query, episode.support


def test_options_of_a_preset_from_the_command_line(folder: Path, tmp_path: Path, nets: list[dict[str, Tensor]]) -> None:
    """Statistics of the template, matrices by components; what is none of these is refused before anything is made."""
    words = ["train", "nearest", "--zoo", str(folder), "-o", str(tmp_path / "gen")]
    for wrong in ("statistics=none", "components=0", "components=x"):
        done = CliRunner().invoke(cli, [*words, "-p", wrong])
        assert done.exit_code == 2, done.stderr
        assert wrong.partition("=")[0] in done.stderr
        assert not (tmp_path / "gen").exists()
    done = CliRunner().invoke(cli, [*words, "-p", "statistics=template", "-p", "components=6"])
    assert done.exit_code == 0, done.stderr
    found = Generator.from_pretrained(tmp_path / "gen").sample({"vector": torch.tensor([2.0])})[0]
    assert torch.equal(found["4.running_var"], nets[0]["4.running_var"])
    torch.testing.assert_close(found["3.weight"], nets[2]["3.weight"], rtol=1e-3, atol=1e-4)
