"""Decide how a job is run: device, workers, cuts, compiled or eager; within the memory budget."""

from __future__ import annotations

from dataclasses import replace

import torch

from paramsmith import kernels
from paramsmith.blocks import CUT
from paramsmith.device import pick_device, pick_threads, resident_memory
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.order import PACK
from paramsmith.plan import Plan, readable
from paramsmith.surveys import OrderStatistic, Sum

from .arrival import to_download
from .engine import total_bytes
from .job import Job
from .matrices import matrix_memory
from .options import RunOptions, memory_of
from .passes import Runner, Setup

# Blocks, in elements: what measured best; compiled and eager on the CPU, and on a GPU.
COMPILED, EAGER, GPU = 1 << 18, 1 << 15, 1 << 23
SMALLEST = 1 << 12
# Compiling pays from here on: bytes to read, over all passes. Not what the kernel cache happens to hold decides, lest
# the same command give bytes that differ by a rounding.
WORTHWHILE = 8_000_000_000
# What the interpreter, headers and the journal may still take after the plan is made.
SLACK = 8_000_000
# Seconds to compile one kernel, for the estimate of time only.
BUILDING = 8.0
# Bytes a second and thread, for the estimate of time only.
SPEED = {"compiled": 1.6e9, "eager": 0.6e9}


def prepare_setup(job: Job, options: RunOptions) -> tuple[Setup, str]:
    """How to run the job, and why so."""
    if job.merged:
        Runner(job, Setup(torch.device("cpu"), 1, CUT, CUT, False), lambda nbytes: None).shapes()  # surveys agree
    device = pick_device(options.device)
    threads = pick_threads(options.threads)
    budget = memory_of(options)
    compiled, why = _compiled(job, options, device, budget, threads)
    most = options.block or (GPU if device.type == "cuda" else COMPILED if compiled else EAGER)
    if options.block is not None and (options.block < CUT or options.block % CUT):
        raise InvalidInput(f"a block of {options.block} elements", f"a multiple of {CUT:,}")
    if device.type == "cuda":
        return Setup(device, threads, most, most, False), why
    while True:
        try:
            return _within(job, options, Setup(device, threads, most, EAGER, compiled), budget), why
        except Refused:
            if options.threads is not None or threads == 1:
                raise
            threads -= 1  # fewer hands need less room


def _within(job: Job, options: RunOptions, setup: Setup, budget: int) -> Setup:
    """The setup with blocks that fit the budget; Refused when none do."""
    room, threads = _left(budget), setup.threads
    drawn = min(1 << 22, max(CUT // 2, room // (40 * len(job.models))))
    room -= _surveying(job, drawn)
    whole = threads * matrix_memory(job)
    if whole > room:
        raise _too_small(budget, threads, whole - room)
    size = _fitting(job, budget, room, threads, setup.block, setup.compiled)
    eager = min(options.block or EAGER, _fitting(job, budget, room, threads, options.block or EAGER, False))
    return replace(setup, block=size, eager_block=eager, sample=drawn)


def with_kernels(job: Job, setup: Setup, options: RunOptions) -> tuple[Setup, list[str]]:
    """Compile what the job needs; where that fails and was not asked for, run eager and say so."""
    if not setup.compiled:
        return setup, []
    try:
        Runner(job, setup, lambda nbytes: None).prepare_kernels()
    except Failed as problem:
        if options.compile == "always":
            raise
        return replace(setup, compiled=False), [f"{problem.fact}: run without compiled kernels"]
    return setup, []


def _compiled(job: Job, options: RunOptions, device: torch.device, budget: int, threads: int) -> tuple[bool, str]:
    if options.compile == "never":
        return False, "as asked"
    if device.type != "cpu":
        return False, "kernels are compiled for the CPU only"
    if not job.merged:
        return False, "whole matrices" if job.matrices else "nothing to compute"
    lacking = kernels.compiler_missing()
    if lacking:
        if options.compile == "always":
            raise InvalidInput(f"--compile always: {lacking}", "install g++, or leave --compile at auto")
        return False, lacking
    if options.compile == "always":
        return True, "as asked"
    if total_bytes(job, 0) < WORTHWHILE:
        return False, "small job"
    if _left(budget) < threads * _per_element(job, True) * CUT:
        return False, "tight budget"
    return True, "large job"


def _left(budget: int) -> int:
    return budget - resident_memory() - SLACK


def _per_element(job: Job, compiled: bool) -> int:
    """Bytes of buffers and temporaries a worker needs for one element of a block."""
    task = job.merged[0] if job.merged else None
    if task is None:
        return 16
    wide = 8 if job.wide == "float64" else 4
    sources, rows = len(task.sources), len(task.sources) - job.deltas
    raw = max(sum(p.dtype.itemsize for p in t.sources) for t in job.merged) + 8
    survey = rows * (wide + 3) if any(isinstance(s, OrderStatistic) for s in job.method.surveys(job.options)) else 0
    temporaries = 0 if compiled else wide * (sources + 6 * rows + 4)
    return raw + survey + temporaries + (4 if job.method.random else 0)


def _surveying(job: Job, drawn: int) -> int:
    """Bytes that a survey of order statistics holds besides its blocks: a sample, then values waiting to be counted."""
    if not any(isinstance(s, OrderStatistic) for s in job.method.surveys(job.options)):
        return 0
    wide = 8 if job.wide == "float64" else 4
    sampled = wide * drawn * (2 * len(job.models) + 3)
    # what is freed of the sample is not all fit for what comes after it
    return sampled + 2 * max(PACK, drawn // 32) * len(job.models) * (wide + 24)


def _fitting(job: Job, budget: int, room: int, threads: int, most: int, compiled: bool) -> int:
    """The largest block that fits the room: whole canonical cuts, or a power of two below one."""
    each = threads * _per_element(job, compiled)
    # sums are made of whole cuts
    least = CUT if any(isinstance(s, Sum) for s in job.method.surveys(job.options)) else SMALLEST
    size = most
    while size > least and size * each > room:
        size = size // 2 // CUT * CUT if size > 2 * CUT else size // 2
    if max(size, least) * each > room:
        raise _too_small(budget, threads, least * each - room)
    return size


def _too_small(budget: int, threads: int, lacking: int) -> Refused:
    fact = f"a memory budget of {readable(budget)} is too small for {threads} threads"
    return Refused(fact, f"give --memory {(budget + lacking) * 1.02 / 1e6:.0f}MB or more, or fewer --threads")


def make_plan(job: Job, setup: Setup, why: str) -> Plan:
    """What the job will cost."""
    surveys = job.method.surveys(job.options)
    read, written = total_bytes(job, setup.sample), sum(task.spec.nbytes for task in job.tasks)
    path = "compiled" if setup.compiled else "eager"
    block = setup.block if setup.compiled else setup.eager_block
    working = setup.threads * max(
        _per_element(job, setup.compiled) * block,
        _per_element(job, False) * setup.eager_block if surveys else 0,
        matrix_memory(job),
    )
    building = 0.0
    if setup.compiled:
        missing = Runner(job, setup, lambda nbytes: None).kernels_missing()
        building = BUILDING * -(-missing // setup.threads)
    return Plan(
        tensors=len(job.tasks),
        parameters=sum(task.count for task in job.tasks),
        bytes_read=read,
        bytes_written=written,
        passes=1 + (len(surveys) if job.surveyed else 0),
        peak_memory=resident_memory() + SLACK + working + _surveying(job, setup.sample),
        disk_needed=written,
        bytes_downloaded=to_download(job),
        seconds=read / (SPEED[path] * setup.threads) + written / 1.5e9 + building,
        path=path,
        why=why,
        block=block,
        threads=setup.threads,
    )
