"""Survey passes: the numbers a method needs about whole tensors or the whole model, found by streaming."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramsmith.blocks import CUT, Block, cut, sample
from paramsmith.order import PACK, Digits, Floats, Tally, bracket, sample_size
from paramsmith.stream import Scratch
from paramsmith.surveys import Extremes, OrderStatistic, Sum, Survey

from .job import MergeTask
from .passes import Pass, Runner, scores

Sets = Mapping[str, Sequence[MergeTask]]  # the tensors a value is about: all of them under "", or one under its name


def sets_of(survey: Survey, tasks: Sequence[MergeTask]) -> Sets:
    """The whole model, or tensor by tensor."""
    return {"": tasks} if survey.scope == "model" else {task.spec.name: [task] for task in tasks}


def run_survey(survey: Survey, tasks: Sequence[MergeTask], runner: Runner) -> dict[str, Tensor]:
    """The survey's value for every set of tensors."""
    sets = sets_of(survey, tasks)
    if isinstance(survey, Sum):
        return _sums(survey, sets, runner)
    if isinstance(survey, Extremes):
        return _extremes(survey, sets, runner)
    return _order_statistics(survey, sets, runner)


def _blocks(sets: Sets, runner: Runner, size: int, align: int = 1) -> Iterator[tuple[str, Block[MergeTask]]]:
    group = runner.group if align == 1 and runner.packable else None
    for key, tasks in sets.items():
        yield from ((key, block) for block in cut(tasks, size, group, align))


def _sums(survey: Sum, sets: Sets, runner: Runner) -> dict[str, Tensor]:
    totals: dict[str, NDArray[np.float64]] = {}
    offsets: dict[tuple[str, str], int] = {}
    terms = runner.terms(survey)
    for key, tasks in sets.items():
        cuts = 0
        for task in tasks:
            offsets[key, task.spec.name] = cuts
            cuts += -(-task.count // CUT)
        totals[key] = np.zeros((terms, cuts))

    def work(item: tuple[str, Block[MergeTask]], run: Pass, scratch: Scratch) -> None:
        key, block = item
        (sums,) = run(block, scratch)
        first = offsets[key, block.task.spec.name] + block.spans[0].start // CUT
        totals[key][:, first : first + sums.shape[1]] = sums.cpu().numpy()

    runner.over(_blocks(sets, runner, max(runner.block, CUT), CUT), survey, "sum", work, terms=terms)
    values = {}
    for key, tasks in sets.items():
        # one fixed order of addition, whatever the blocks were
        total = torch.from_numpy(totals[key].sum(axis=1))
        values[key] = survey.then(total, runner.resolved(survey, tasks))
    return values


def _extremes(survey: Extremes, sets: Sets, runner: Runner) -> dict[str, Tensor]:
    terms = runner.terms(survey)
    ends = {key: torch.tensor([[math.inf, -math.inf]] * terms, dtype=runner.wide) for key in sets}
    lock = threading.Lock()

    def work(item: tuple[str, Block[MergeTask]], run: Pass, scratch: Scratch) -> None:
        key, block = item
        (seen,) = run(block, scratch)
        seen = seen.cpu()
        with lock:
            mine = ends[key]
            mine[:, 0], mine[:, 1] = torch.fmin(mine[:, 0], seen[:, 0]), torch.fmax(mine[:, 1], seen[:, 1])

    runner.over(_blocks(sets, runner, runner.block), survey, "extremes", work, terms=terms)
    return ends


def _order_statistics(survey: OrderStatistic, sets: Sets, runner: Runner) -> dict[str, Tensor]:
    counts = {key: sum(task.count for task in tasks) for key, tasks in sets.items()}
    ranks = {key: survey.ranks(counts[key], runner.resolved(survey, tasks)) for key, tasks in sets.items()}
    tallies = _brackets(survey, sets, counts, ranks, runner)
    found: dict[str, Floats | None] = {}

    def work(item: tuple[str, Block[MergeTask]], run: Pass, scratch: Scratch) -> None:
        key, block = item
        tally = tallies[key]
        made = run(block, scratch, torch.from_numpy(tally.low), torch.from_numpy(tally.high))
        lines, *marked = (each.cpu().numpy() for each in made)
        marks, *reached = (each.view(np.bool_) for each in marked)  # (rows, n) each
        inside = [line[np.flatnonzero(mark)] for line, mark in zip(lines, marks, strict=True)]
        above = [[np.count_nonzero(line) for line in rank] for rank in reached]  # (ranks, rows)
        if tally.add(block.count, block.count - np.array(above, dtype=np.int64).T, inside) == counts[key]:
            found[key] = tally.find(ranks[key])
            del tallies[key]

    runner.over(_blocks(sets, runner, runner.block), survey, "order", work)
    escaped = {key: tasks for key, tasks in sets.items() if found[key] is None}
    found.update(_by_digits(survey, escaped, ranks, runner))
    return {key: torch.from_numpy(found[key]).to(runner.wide) for key in sets}


def _brackets(
    survey: OrderStatistic,
    sets: Sets,
    counts: Mapping[str, int],
    ranks: Mapping[str, Sequence[Sequence[int]]],
    runner: Runner,
) -> dict[str, Tally]:
    """Brackets for the wanted ranks, from a sample of every large set; a sample is let go when it has served."""
    waiting: dict[str, int] = {}
    samples: dict[str, list[Floats]] = {key: [] for key in sets}
    tallies = {}
    lock = threading.Lock()

    def tally(key: str) -> Tally:
        drawn = np.concatenate(samples.pop(key) or [np.empty((len(ranks[key]), 0), runner.numpy_wide)], axis=1)
        ends = [
            [bracket(line, rank, counts[key]) for rank in wanted]
            for line, wanted in zip(drawn, ranks[key], strict=True)
        ]
        both = np.array(ends, dtype=runner.numpy_wide)  # (rows, ranks, 2)
        pack = max(PACK, runner.setup.sample // 32)  # as much as the budget lets be sampled
        return Tally(np.ascontiguousarray(both[..., 0]), np.ascontiguousarray(both[..., 1]), pack)

    def blocks() -> Iterator[tuple[str, Block[MergeTask]]]:
        for key, tasks in sets.items():
            size = sample_size(counts[key], runner.setup.sample)
            drawn = list(_drawn(tasks, size, runner)) if size < counts[key] else []
            waiting[key] = len(drawn)
            if not drawn:
                tallies[key] = tally(key)
            yield from ((key, block) for block in drawn)

    def work(item: tuple[str, Block[MergeTask]], run: Pass, scratch: Scratch) -> None:
        key, block = item
        line = scores(runner, survey, block, scratch)
        with lock:
            samples[key].append(line)
            complete = len(samples[key]) == waiting[key]
        if complete:
            tallies[key] = tally(key)

    runner.over(blocks(), survey, None, work)
    return tallies


def _drawn(tasks: Sequence[MergeTask], size: int, runner: Runner) -> Iterator[Block[MergeTask]]:
    """A sample of about `size` elements, each group of tensors in its share."""
    groups: dict[object, list[MergeTask]] = {}
    for task in tasks:
        groups.setdefault(runner.group(task), []).append(task)
    total = sum(task.count for task in tasks)
    for group in groups.values():
        yield from sample(group, size * sum(task.count for task in group) // total, runner.eager_block)


def _by_digits(
    survey: OrderStatistic, sets: Sets, ranks: Mapping[str, Sequence[Sequence[int]]], runner: Runner
) -> dict[str, Floats]:
    """The exact values where a bracket missed: two more passes for float32, four for float64."""
    found: dict[str, Floats] = {}
    for key, tasks in sets.items():
        digits = Digits(ranks[key], np.dtype(runner.numpy_wide))

        def work(item: tuple[str, Block[MergeTask]], run: Pass, scratch: Scratch, digits: Digits = digits) -> None:
            digits.add(scores(runner, survey, item[1], scratch))

        value: Floats | None = None
        while value is None:
            runner.over(_blocks({key: tasks}, runner, runner.eager_block), survey, None, work)
            value = digits.step()
        found[key] = value
    return found
