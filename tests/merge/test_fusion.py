"""Fusing live models: the two oracles, and tiny Llamas that generate through transformers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.fusion import GRID, BtmEnsemble, DynamicFusion, choose_alpha, fuse_logits, mix
from paramsmith.merge.learn.btm import domain_posterior, keep_largest

ORACLES = Path(__file__).resolve().parent.parent / "oracles"
DYNAMIC, BTM = (json.loads((ORACLES / f"{name}.json").read_text()) for name in ("dynamic_logits_fusion", "btm"))
WORDS, PAD = 23, 0
PROMPTS = torch.tensor([[PAD, PAD, 5, 7, 3], [2, 9, 4, 11, 8], [PAD, 6, 6, 1, 2]])
MASK = (PROMPTS != PAD).long()


def wide(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LARGE, SMALL = wide(DYNAMIC["logits_large"]), wide(DYNAMIC["logits_small_base"])
EXPERTS = wide(DYNAMIC["logits_small_experts"])


def llama(seed: int, width: int = 16, words: int = WORDS, **more: Any) -> LlamaForCausalLM:
    """Weights large enough that the models disagree, and say something."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        **more,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def experts() -> list[LlamaForCausalLM]:
    return [llama(seed) for seed in range(3)]


def generated(model: Any, *processors: Any, prompts: Tensor = PROMPTS, **more: Any) -> Tensor:
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": (prompts != PAD).long(), **more}
    found: Tensor = model.generate(prompts, logits_processor=list(processors), **options)
    return found


@torch.no_grad()
def next_logits(model: nn.Module, row: Tensor) -> Tensor:
    """Of one text without padding, from the start: (tokens, vocabulary) float64."""
    return model(input_ids=row[None]).logits[0].double()


def unpadded(row: Tensor) -> Tensor:
    return row[int((row != PAD).int().argmax()) :]


# ---- dynamic fusion, as functions


@pytest.mark.parametrize("grid", [GRID, (0.3,)])
def test_one_expert_is_the_oracle(grid: tuple[float, ...]) -> None:
    """An independent transcription of the paper's objective; 1e-12."""
    rows = {row["alpha"]: row["objective"] for row in DYNAMIC["single_expert0"]["objectives"]}
    for alpha in grid:
        found, objective = choose_alpha(LARGE, SMALL, EXPERTS[:1], (alpha,))
        assert found.tolist() == [alpha]
        assert float(objective) == pytest.approx(rows[alpha], abs=1e-12)


def test_the_best_of_one_expert_is_the_oracle() -> None:
    best = DYNAMIC["single_expert0"]["best"]
    alpha, objective = choose_alpha(LARGE, SMALL, EXPERTS[:1], DYNAMIC["grid"])
    assert DYNAMIC["grid"] == list(GRID)
    assert alpha.tolist() == [best["alpha"]]
    assert float(objective) == pytest.approx(best["objective"], abs=1e-12)
    fused = fuse_logits(LARGE, SMALL, EXPERTS[:1], alpha).softmax(-1)
    torch.testing.assert_close(fused, wide(DYNAMIC["single_expert0"]["fused_distribution"]), rtol=0, atol=1e-12)


def test_the_best_of_two_experts_is_the_oracle() -> None:
    rows = DYNAMIC["multi_expert_one_hot"]["objectives"]
    best = DYNAMIC["multi_expert_one_hot"]["best"]
    alpha, objective = choose_alpha(LARGE, SMALL, EXPERTS)
    assert alpha.tolist() == [0.0, best["alpha"]]
    assert best["expert"] == 1
    assert float(objective) == pytest.approx(best["objective"], abs=1e-12) == min(row["objective"] for row in rows)
    mirrored, same = choose_alpha(LARGE, SMALL, EXPERTS.flip(0))
    assert mirrored.tolist() == [best["alpha"], 0.0]
    assert float(same) == pytest.approx(float(objective), abs=1e-12)


def test_rows_choose_for_themselves() -> None:
    generator = torch.Generator().manual_seed(1)
    large, small, moved = (torch.randn(shape, generator=generator) for shape in ((4, 3, 9), (4, 3, 9), (2, 4, 3, 9)))
    alpha, objective = choose_alpha(large, small, small + 0.7 * moved)
    assert alpha.shape == (2, 4, 3)
    assert int((alpha > 0).sum(0).max()) == 1
    assert len(alpha.unique()) > 3
    for place in itertools.product(range(4), range(3)):
        one, cost = choose_alpha(large[place], small[place], (small + 0.7 * moved)[:, *place])
        assert torch.equal(one, alpha[:, *place])
        assert float(cost) == pytest.approx(float(objective[place]), abs=1e-12)


def test_an_expert_that_did_not_move_moves_nothing() -> None:
    alpha, objective = choose_alpha(LARGE, SMALL, SMALL[None])
    assert alpha.tolist() == [0.0]
    assert float(objective) == pytest.approx(0, abs=1e-20)


def test_what_is_forbidden_stays_forbidden() -> None:
    large, small, expert = LARGE.clone(), SMALL.clone(), EXPERTS[:1].clone()
    for logits in (large, small, expert):
        logits[..., 3] = -math.inf
    alpha, objective = choose_alpha(large, small, expert)
    kept = [0, 1, 2, 4]
    wanted, cost = choose_alpha(LARGE[kept], SMALL[kept], EXPERTS[:1, kept])
    assert torch.equal(alpha, wanted)
    assert float(objective) == pytest.approx(float(cost), abs=1e-12)


# ---- BTM, as functions


def test_the_mixture_is_the_oracle() -> None:
    """Transcriptions of the public scorer (previous token) and of the paper's rule (full prefix); 1e-12."""
    observed = wide(BTM["observed_token_probs"])[:, 0].log()  # (experts, tokens)
    cached, prefix = BTM["cached_prior_block0"], BTM["paper_prefix_block0_cached_prior"]
    prior = wide(cached["prior"])
    for told, mode in ((cached, "previous_token"), (prefix, "full_prefix")):
        weights = domain_posterior(observed, prior, mode)  # type: ignore[arg-type]
        found = mix(observed[..., None], weights)[:, 0].exp()
        np.testing.assert_allclose(found, told["mixture_prob"], rtol=0, atol=1e-12)


@given(st.integers(0, 10_000))
def test_a_mixture_is_a_distribution_between_its_parts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(3, 2, 5, generator=generator).log_softmax(-1)
    weights = torch.rand(3, 2, generator=generator).softmax(0)
    found = mix(parts, weights)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert bool((found <= parts.amax(0) + 1e-6).all() and (found >= parts.amin(0) - 1e-6).all())


def test_a_mixture_without_an_expert() -> None:
    parts = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    torch.testing.assert_close(mix(parts, torch.tensor([0.0, 1.0])), parts[1].double())


# ---- BTM, generating


@pytest.mark.parametrize("mode", ["full_prefix", "previous_token"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_one_expert_generates_what_it_would(experts: list[LlamaForCausalLM], mode: Any, use_cache: bool) -> None:
    wanted = generated(experts[0])
    assert len(wanted[:, PROMPTS.shape[1] :].unique()) > 3
    assert torch.equal(generated(experts[0], BtmEnsemble([experts[0]], mode=mode), use_cache=use_cache), wanted)
    # whichever model's generate is called
    assert torch.equal(generated(experts[1], BtmEnsemble([experts[0]], mode=mode)), wanted)


def test_an_expert_of_prior_one_is_the_only_one(experts: list[LlamaForCausalLM]) -> None:
    wanted = generated(experts[1])
    assert not torch.equal(wanted, generated(experts[0]))
    assert torch.equal(generated(experts[0], BtmEnsemble(experts, [0.0, 1.0, 0.0])), wanted)
    assert torch.equal(generated(experts[0], BtmEnsemble(experts, [0.3, 0.4, 0.3], top_k=1)), wanted)


def reference(experts: list[LlamaForCausalLM], row: Tensor, prior: Tensor, mode: str) -> Tensor:
    """The mixture after a text without padding, by probabilities of everything at once."""
    logits = torch.stack([next_logits(expert, row) for expert in experts]).log_softmax(-1)
    observed = logits[:, :-1].gather(-1, row[1:].expand(len(experts), -1)[..., None])[..., 0].exp()  # (experts, tokens)
    if mode == "full_prefix":
        weights = prior * observed.prod(1)
    else:
        weights = prior * observed[:, -1] if observed.shape[1] else torch.ones_like(prior)
    return ((weights / weights.sum())[:, None] * logits[:, -1].exp()).sum(0).log()


@pytest.mark.parametrize("mode", ["full_prefix", "previous_token"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_every_step_is_the_mixture_by_hand(experts: list[LlamaForCausalLM], mode: Any, width: int) -> None:
    """Prompts of one token too, where nothing was predicted yet, beside longer ones."""
    prompts = PROMPTS[:, -width:].clone()
    prompts[0, :-1] = PAD
    prior = wide([0.5, 0.2, 0.3])
    fused = BtmEnsemble(experts, prior, mode)
    out = generated(experts[2], fused, prompts=prompts, output_scores=True, return_dict_in_generate=True)
    texts = out.sequences  # type: ignore[attr-defined]
    for step, scores in enumerate(out.scores):  # type: ignore[attr-defined]
        for row, found in zip(texts[:, : width + step], scores, strict=True):
            wanted = reference(experts, unpadded(row), prior, mode)
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-4)
    assert fused.weights.shape == (3, 3)
    torch.testing.assert_close(fused.weights.sum(0), torch.ones(3, dtype=torch.float64))


def test_padding_changes_nothing(experts: list[LlamaForCausalLM]) -> None:
    together = generated(experts[0], BtmEnsemble(experts))
    for row, wanted in zip(PROMPTS, together, strict=True):
        alone = generated(experts[0], BtmEnsemble(experts), prompts=unpadded(row)[None])
        assert torch.equal(alone[0], unpadded(wanted))


def test_positions_that_are_learned_are_padded_right() -> None:
    """GPT-2 has a table of positions, so that padding without position_ids would show."""
    config = GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
    config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    model.transformer.wpe.weight.data *= 100
    wanted = generated(model, pad_token_id=PAD)
    assert torch.equal(generated(model, BtmEnsemble([model], pad_token_id=PAD), pad_token_id=PAD), wanted)
    masked = BtmEnsemble([model], attention_mask=MASK)
    assert torch.equal(generated(model, masked, pad_token_id=PAD), wanted)
    wrong = BtmEnsemble([model], attention_mask=torch.ones_like(MASK))
    assert not torch.equal(generated(model, wrong, pad_token_id=PAD), wanted)


def test_a_processor_serves_one_text_after_another(experts: list[LlamaForCausalLM]) -> None:
    fused = BtmEnsemble(experts, [0.2, 0.5, 0.3])
    first = generated(experts[0], fused)
    other = generated(experts[0], fused, prompts=PROMPTS[1:2])
    assert torch.equal(generated(experts[0], fused), first)
    assert torch.equal(other[0], first[1])


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_and_copies_of_prompts(experts: list[LlamaForCausalLM], beams: int) -> None:
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": beams}
    wanted = generated(experts[0], **options)
    for fused in (BtmEnsemble([experts[0]]), BtmEnsemble([experts[0]], attention_mask=MASK)):
        assert torch.equal(generated(experts[1], fused, **options), wanted)


def test_sampling_draws_from_the_mixture(experts: list[LlamaForCausalLM]) -> None:
    torch.manual_seed(1)
    wanted = generated(experts[0], do_sample=True)
    torch.manual_seed(1)
    assert torch.equal(generated(experts[1], BtmEnsemble([experts[0]]), do_sample=True), wanted)


def test_what_earlier_processors_forbid_is_not_generated(experts: list[LlamaForCausalLM]) -> None:
    usual = generated(experts[0], BtmEnsemble(experts))
    banned = int(usual[0, PROMPTS.shape[1]])

    def forbid(ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, banned] = -math.inf
        return scores

    for fused in (BtmEnsemble(experts), DynamicFusion(experts[1], [experts[2]])):
        found = generated(experts[0], forbid, fused)
        assert banned in usual
        assert banned not in found[:, PROMPTS.shape[1] :]


# ---- dynamic fusion, generating


def test_alpha_zero_is_the_large_model(experts: list[LlamaForCausalLM]) -> None:
    large = llama(7, width=24)
    wanted = generated(large)
    assert torch.equal(generated(large, DynamicFusion(experts[0], experts[1:], grid=(0.0,))), wanted)
    assert torch.equal(generated(large, DynamicFusion(experts[0], [experts[0]])), wanted)


def test_a_base_that_is_the_large_model_gives_the_expert(experts: list[LlamaForCausalLM]) -> None:
    """M_L + 1 (M_t - M_L) = M_t, which is also where the objective is 0."""
    fused = DynamicFusion(experts[0], [experts[1]])
    assert torch.equal(generated(experts[0], fused), generated(experts[1]))
    assert bool((fused.alpha == 1).all())


@pytest.mark.parametrize("use_cache", [True, False])
def test_every_step_is_the_fusion_by_hand(experts: list[LlamaForCausalLM], use_cache: bool) -> None:
    large = llama(7, width=24)
    fused = DynamicFusion(experts[0], experts[1:])
    out = generated(large, fused, use_cache=use_cache, output_scores=True, return_dict_in_generate=True)
    texts, chosen = out.sequences, set()  # type: ignore[attr-defined]
    for step, scores in enumerate(out.scores):  # type: ignore[attr-defined]
        for row, found in zip(texts[:, : PROMPTS.shape[1] + step], scores, strict=True):
            logits = [next_logits(model, unpadded(row))[-1] for model in (large, *experts)]
            small = torch.stack(logits[2:])
            alpha, _ = choose_alpha(logits[0], logits[1], small)
            wanted = fuse_logits(logits[0], logits[1], small, alpha).log_softmax(-1)
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-3)
            chosen.add(tuple(alpha.tolist()))
    assert len(chosen) > 3
    assert fused.alpha.shape == (2, 3)


# ---- what cannot be fused


class Broken(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, input_ids: Tensor) -> Any:
        logits = self.value.expand(*input_ids.shape, WORDS)
        return type("Output", (), {"logits": logits})()


def test_a_model_without_cache_or_mask_reads_from_the_start(experts: list[LlamaForCausalLM]) -> None:
    found = BtmEnsemble([Broken(1.0)])(PROMPTS, torch.zeros(3, WORDS))
    torch.testing.assert_close(found, torch.full((3, WORDS), -math.log(WORDS)))


def test_models_that_do_not_fit(experts: list[LlamaForCausalLM]) -> None:
    with pytest.raises(InvalidInput, match=r"expert 2 has a vocabulary of 31, the generating model 23"):
        generated(experts[0], BtmEnsemble([experts[0], llama(1, words=31)]))
    with pytest.raises(InvalidInput, match="the small base has a vocabulary of 31"):
        generated(experts[0], DynamicFusion(llama(1, words=31), [llama(2, words=31)]))
    with pytest.raises(Failed, match="expert 2 gives logits that are not finite"):
        generated(experts[0], BtmEnsemble([experts[0], Broken(math.nan)]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prior": [0.5]}, "2 experts and a prior of shape"),
        ({"prior": [0.5, -0.5]}, "is no distribution"),
        ({"prior": [0.0, 0.0]}, "is no distribution"),
        ({"prior": [math.nan, 1.0]}, "is no distribution"),
        ({"mode": "prefix"}, "there is no mode 'prefix'"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_ensembles_that_make_no_sense(experts: list[LlamaForCausalLM], options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        BtmEnsemble(experts[:2], **options)


def test_fusions_that_make_no_sense(experts: list[LlamaForCausalLM]) -> None:
    with pytest.raises(InvalidInput, match="0 experts"):
        BtmEnsemble([])
    with pytest.raises(InvalidInput, match="there are no experts"):
        DynamicFusion(experts[0], [])
    for grid in ((), (0.0, math.inf)):
        with pytest.raises(InvalidInput, match="the grid"):
            DynamicFusion(experts[0], experts, grid=grid)
    with pytest.raises(InvalidInput, match="padded behind"):
        BtmEnsemble(experts, attention_mask=MASK.flip(1))(PROMPTS, torch.zeros(3, WORDS))
    with pytest.raises(InvalidInput, match="does not fit the prompts"):
        BtmEnsemble(experts, attention_mask=MASK[:2])(PROMPTS, torch.zeros(3, WORDS))


def test_a_prior_need_not_sum_to_one(experts: list[LlamaForCausalLM]) -> None:
    fused = BtmEnsemble(experts, [2.0, 1.0, 1.0], top_k=2)
    torch.testing.assert_close(fused.prior, keep_largest(wide([0.5, 0.25, 0.25]), 2)[:2])
