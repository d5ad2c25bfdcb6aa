"""Every method against reference values from its authors' own code (tests/oracles), through the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paramsmith.merge import merge_state_dicts
from paramsmith.merge.methods import pcb_equations, pcb_programs
from paramsmith.merge.methods.dare import dare, surveys
from paramsmith.merge.methods.pcb import cut_ranks
from paramsmith.merge.methods.pcb import surveys as pcb_surveys
from paramsmith.params import Resolved, validated
from paramsmith.registry import find_method
from paramsmith.surveys import Seen
from tests.merge.flavours import run

ORACLES = Path(__file__).resolve().parent.parent / "oracles"


def oracle(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ORACLES / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in oracle(name)["cases"]]


def tensors(case: Mapping[str, Any], rows: Sequence[object]) -> list[dict[str, Tensor]]:
    return [{"layers.0.w": torch.tensor(row, dtype=getattr(torch, case["dtype"]))} for row in rows]


def check(case: Mapping[str, Any], found: Tensor) -> None:
    """Within the file's tolerance, and free of NaN."""
    wanted = torch.tensor(case["output"], dtype=found.dtype)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=case["atol"], rtol=0)


def through_engine(case: Mapping[str, Any], method: str, parameters: Mapping[str, object]) -> None:
    """Models and, where the case has one, a base; each a dict of one tensor."""
    inputs = case["inputs"]
    rows = inputs["tensors"] if "tensors" in inputs else [inputs["v0"], inputs["v1"]]
    base = tensors(case, [inputs["base"]])[0] if "base" in inputs else None
    check(case, merge_state_dicts(tensors(case, rows), base=base, method=method, **parameters)["layers.0.w"])


@pytest.mark.parametrize("case", cases("linear"))
def test_linear(case: dict[str, Any]) -> None:
    through_engine(case, "linear", case["params"])


@pytest.mark.parametrize("case", cases("task_arithmetic"))
def test_task_arithmetic(case: dict[str, Any]) -> None:
    through_engine(case, "task_arithmetic", case["params"])


@pytest.mark.parametrize("case", cases("slerp"))
def test_slerp(case: dict[str, Any]) -> None:
    through_engine(case, "slerp", {"t": case["params"]["t"]})


@pytest.mark.parametrize("case", cases("karcher"))
def test_karcher(case: dict[str, Any]) -> None:
    params = case["params"]
    through_engine(case, "karcher", {"weight": params["alphas"], "max_iter": params["max_iter"], "tol": params["tol"]})


@pytest.mark.parametrize("case", cases("ties"))
def test_ties(case: dict[str, Any]) -> None:
    if case["source"] == "arcee-ai/mergekit":
        through_engine(case, "ties", {**case["params"], "flavour": "mergekit"})
    elif case["source"] == "huggingface/peft":
        params = case["params"]
        settings = {"weight": params["weights"], "density": params["density"], "flavour": "peft"}
        settings["majority_sign_method"] = params.get("majority_sign_method", "total")
        models = tensors(case, case["inputs"]["task_tensors"])
        base = {name: torch.zeros_like(t) for name, t in models[0].items()}
        check(case, merge_state_dicts(models, base=base, method="ties", **settings)["layers.0.w"])
    else:
        whole_model_ties(case)


def whole_model_ties(case: Mapping[str, Any]) -> None:
    """The authors' programs act on whole flattened models: here several tensors, one of them stored by itself."""
    params = case["params"]
    share = params.get("K", params.get("threshold"))
    how = params["merge_func"].removeprefix("dis-")
    settings = {
        "density": share / 100 if share > 1 else share,
        "normalize": how == "mean",
        "largest": how == "max",
        "lambda": params.get("scaling_factor", 1.0),
        "flavour": "paper",
    }
    models = [split(row) for row in case["inputs"]["task_vectors"]]
    base = {name: torch.zeros_like(t) for name, t in models[0].items()}
    check(case, joined(merge_state_dicts(models, base=base, method="ties", **settings)))


def split(vector: Sequence[float], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One vector as the tensors of a model: 1, 6 and the other elements."""
    whole = torch.tensor(vector, dtype=dtype)
    return {"bias": whole[:1].clone(), "layers.0.w": whole[1:7].view(2, 3).clone(), "layers.1.w": whole[7:].clone()}


def joined(model: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([model[name].view(-1) for name in ("bias", "layers.0.w", "layers.1.w")])


@pytest.mark.parametrize("case", cases("dare"))
def test_dare(case: dict[str, Any]) -> None:
    """With the masks that chance drew for the authors' code."""
    inputs, params = case["inputs"], case["params"]
    base = torch.tensor(inputs["base"]) if "base" in inputs else None
    rows = inputs.get("tensors") or inputs.get("task_tensors") or [inputs["delta"]]
    deltas = torch.stack([torch.tensor(r) - (base if base is not None else 0) for r in rows])
    masks = torch.tensor(inputs.get("keep_masks") or [inputs["keep_mask"]], dtype=torch.float32)
    found = masked_dare(deltas.flatten(1), masks.flatten(1), dare_settings(case, params)).view(deltas[0].shape)
    check(case, found if base is None else base + found)


def dare_settings(case: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, object]:
    if case["source"] == "arcee-ai/mergekit":
        return {
            "weight": params["weight"],
            "density": params["density"],
            "lambda": params.get("lambda", 1.0),
            "normalize": params["normalize"],
            "rescale": "l1" if params["rescale"] else "none",
            "elect": params["method"] == "dare_ties",
            "flavour": "mergekit",
        }
    if case["source"] == "huggingface/peft":
        election = params.get("majority_sign_method")
        return {
            "weight": params["weights"],
            "density": params["density"],
            "elect": election is not None,
            "normalize": election is not None,
            "majority_sign_method": election or "total",
            "flavour": "peft",
        }
    return {"density": 1 - params["mask_rate"], "rescale": "paper" if params.get("use_rescale", True) else "none"}


def masked_dare(deltas: Tensor, masks: Tensor, settings: Mapping[str, object]) -> Tensor:
    """The method's function on one block, its chance replaced by masks."""
    p = resolved("dare", settings, len(deltas))

    def drawn() -> Tensor:
        return torch.where(masks > 0, p.density * 0.5, 0.5 + 0.5 * p.density)  # below density, not below it

    seen: dict[str, Tensor] = {}
    for survey in surveys(p.options):
        terms = survey.of(deltas, Seen(seen, drawn), p)
        seen[survey.name] = survey.then(terms.double().sum(-1), p)  # type: ignore[union-attr]
    return dare(deltas, Seen(seen, drawn), p)


def resolved(method: str, settings: Mapping[str, object], models: int) -> Resolved[Any]:
    """Parameters that vary neither by layer nor by name."""
    params = find_method(method).params
    options = validated(params, settings, method)
    made, numbers = {}, {}
    for name, kind in params.settings().items():
        count = models if kind == "model" else 1
        numbers[name] = tuple(getattr(options, name).at(m, "w", None) for m in range(count))
        made[name] = torch.tensor(numbers[name])[:, None] if kind == "model" else torch.tensor(numbers[name])
    return Resolved(options, made, numbers)


PCB = oracle("pcb")
VARIANTS = {
    "root_PCB_merge": ("reference", 1.0),
    "nlp_task_para_att_merge": ("nlp", 1.0),
    "vision_pcb_py_lams_1.2": ("vision", 1.2),
    "vision_pcb_ES_lams_1.2": ("vision_es", 1.2),
    "paper_equations": ("paper", 1.0),
}
PCB_CASES = [pytest.param(case, key, id=f"{key}-{case['pcb_ratio']}") for case in PCB["cases"] for key in VARIANTS]


@pytest.mark.parametrize(("case", "key"), PCB_CASES)
def test_pcb(case: dict[str, Any], key: str) -> None:
    """In float64, as the reference was run, over the whole of a model of several tensors."""
    variant, scale = VARIANTS[key]
    models = [split(row, torch.float64) for row in PCB["task_vectors"]]
    base = {name: torch.zeros_like(t) for name, t in models[0].items()}
    parameters = {"ratio": case["pcb_ratio"], "variant": variant, "lambda": scale}
    found = joined(merge_state_dicts(models, base=base, method="pcb", **parameters))
    np.testing.assert_allclose(found, case[key]["merged_tv"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("case", "key"), PCB_CASES)
def test_pcb_weights(case: dict[str, Any], key: str) -> None:
    """The weights before the mean, from the pure functions."""
    variant, _ = VARIANTS[key]
    deltas = torch.tensor(PCB["task_vectors"], dtype=torch.float64)
    seen = pcb_seen(deltas, resolved("pcb", {"ratio": case["pcb_ratio"], "variant": variant}, 3))
    if variant == "paper":
        found = pcb_equations.weights(deltas, seen)
        wanted = case[key]["beta_hat"]
        p = resolved("pcb", {"variant": "paper"}, 3)
        np.testing.assert_allclose(pcb_equations.scores(deltas, seen, p), case[key]["beta"], rtol=1e-9)
    else:
        p = resolved("pcb", {"variant": variant}, 3)
        least, most = seen["cut"][:, :1], seen["cut"][:, 1:2]
        score = pcb_programs.competition(deltas, seen, p)
        found, wanted = (score.clamp(least, most) - least) / (most - least), case[key]["scale"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def pcb_seen(deltas: Tensor, p: Resolved[Any]) -> Seen:
    """What the surveys would find, by sorting."""
    seen: dict[str, Tensor] = {}
    for survey in pcb_surveys(p.options):
        block = survey.of(deltas, Seen(seen), p)
        if survey.name == "ends":
            seen["ends"] = torch.stack([block.amin(1), block.amax(1)], 1)
        elif survey.name == "totals":
            seen["totals"] = block.sum(1)[:, None]
        else:
            ranks = torch.tensor(survey.ranks(deltas.shape[1], p))  # type: ignore[union-attr]
            seen[survey.name] = block.sort(dim=1).values.gather(1, ranks)
            seen[survey.name] = survey.then(seen[survey.name]) if survey.then else seen[survey.name]
    return Seen(seen)


def test_pcb_index_rules() -> None:
    rules = PCB["index_rules"]
    count = rules["d"]
    wanted = {"reference": ("low_index", "high_index"), "nlp": ("low_index_v", "high_index_v")}
    for variant, keys in wanted.items():
        ranks = pcb_programs.clip_ranks(count, resolved("pcb", {"variant": variant}, 3))
        assert ranks == [[rules[k] for k in keys]] * 3
    for ratio, index in rules["threshold_index"].items():
        assert cut_ranks(count, resolved("pcb", {"ratio": float(ratio)}, 3)) == [[index, count - 1]] * 3


@pytest.mark.parametrize("variant", ["reference", "nlp", "vision", "vision_es", "paper"])
@pytest.mark.parametrize("dead", [0.0, 0.25])
def test_pcb_skips_a_task_vector_that_cannot_compete(variant: str, dead: float) -> None:
    """The authors' code gives NaN everywhere; skipping is merging without it, and is said."""
    rows = PCB["task_vectors"]
    models = [split(row, torch.float64) for row in (rows[0], [dead] * 20, rows[2])]
    base = {name: torch.zeros_like(t) for name, t in models[0].items()}
    found, warnings = run(models, base, "pcb", variant=variant, ratio=0.2)
    assert "model 2: its task vector is zero or constant: skipped" in warnings
    without, _ = run([models[0], models[2]], base, "pcb", variant=variant, ratio=0.2)
    torch.testing.assert_close(joined(found), joined(without), rtol=0, atol=1e-12)
    assert joined(found).count_nonzero() > 0


def test_pcb_of_identical_models() -> None:
    row = PCB["task_vectors"][0]
    models = [split(row, torch.float64) for _ in range(3)]
    base = {name: torch.zeros_like(t) for name, t in models[0].items()}
    found = joined(merge_state_dicts(models, base=base, method="pcb", ratio=0.2))
    kept = found != 0
    assert int(kept.sum()) == PCB["edge_cases"]["three_identical"]["kept"]
    clipped = torch.tensor(row, dtype=torch.float64).clamp(-1.03, 1.03)  # to the runner-up's magnitude
    torch.testing.assert_close(found[kept], clipped[kept])


def test_pcb_of_one_model() -> None:
    models = [split(PCB["task_vectors"][0], torch.float64)]
    base = {name: torch.zeros_like(t) for name, t in models[0].items()}
    found = joined(merge_state_dicts(models, base=base, method="pcb", ratio=0.2))
    np.testing.assert_allclose(found, PCB["edge_cases"]["single_model"]["merged_tv"], atol=1e-12)


@pytest.mark.parametrize("variant", ["reference", "nlp", "vision", "vision_es"])
def test_pcb_says_when_its_cut_leaves_nothing(variant: str) -> None:
    """At 1 of 20 entries the cut is the largest score itself (index rules, 0.05), where the authors divide 0 by 0."""
    models = [split(row, torch.float64) for row in PCB["task_vectors"]]
    base = {name: torch.ones_like(t) for name, t in models[0].items()}
    found, warnings = run(models, base, "pcb", variant=variant, ratio=0.05)
    assert warnings == [f"model {i}: none of its scores lies above the cut: skipped" for i in (1, 2, 3)]
    assert bool((joined(found) == 1).all())
