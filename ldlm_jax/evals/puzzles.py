"""Puzzles of a held-out split: how many are solved, by the number of denoising steps."""

from dataclasses import replace
from functools import lru_cache
from itertools import groupby

import numpy as np

from ldlm_jax.data.texts import read_texts
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.puzzles.base import OPEN, Puzzle
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import Generator, Sample, generate_requests
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Pieces, Span


def pieces_of(puzzle: Puzzle) -> Pieces:
    """What is given, and spans to fill."""
    pieces: list[str | Span] = [
        Span(len(list(symbols))) if is_open else "".join(symbols)
        for is_open, symbols in groupby(puzzle.given, lambda symbol: symbol == OPEN)
    ]
    return tuple([*pieces, Span(open_end=True)] if puzzle.open_end else pieces)


def solve(
    generator: Generator, puzzles: list[Puzzle], config: SampleConfig, seed: int, **options
) -> list[Sample]:
    """One generated text for each puzzle."""
    requests = [
        Request(seed=seed, number=number, config=config, revise=pieces_of(puzzle))
        for number, puzzle in enumerate(puzzles)
    ]
    return list(generate_requests(generator, requests, **options))


@lru_cache(maxsize=8)
def _puzzles(name: str, texts: tuple[str, ...], level: str, count: int, seed: int) -> list[Puzzle]:
    return TASKS[name].puzzles(list(texts), level, count, seed)


def held_out_puzzles(context: EvalContext, level: str) -> list[Puzzle]:
    """``num_samples`` puzzles of the context's split; the same for every number of steps.

    Raises:
      UserError: the corpus is no puzzle, or the level is unknown.
    """
    name = context.prepared.source
    if name not in TASKS:
        raise UserError(
            f"{name!r} holds no puzzles, which the evaluator solves; data.source must be one of "
            f"{', '.join(TASKS)}."
        )
    if level not in TASKS[name].levels:
        raise UserError(f"no level {level!r} of {name}: {did_you_mean(level, TASKS[name].levels)}")
    texts = tuple(read_texts(context.prepared.text, context.split))
    return _puzzles(name, texts, level, context.num_samples, context.seed)


def evaluate(context: EvalContext) -> Results:
    """Share of puzzles solved at each number of steps, and denoiser evaluations where they vary."""
    task = TASKS.get(context.prepared.source)
    results: Results = {}
    for level in context.levels or (task.levels[:1] if task else ("",)):
        puzzles = held_out_puzzles(context, level)
        suffix = level.replace(" ", "_")
        for steps in context.step_counts:
            config = replace(context.sample, steps=steps)
            samples = solve(context.generator, puzzles, config, context.seed)
            right = [task.solved(p, s.text) for p, s in zip(puzzles, samples, strict=True)]
            results[f"puzzles/solved_{suffix}_steps_{steps}"] = float(np.mean(right))
            kept = [p.kept(s.text) for p, s in zip(puzzles, samples, strict=True)]
            results[f"puzzles/kept_{suffix}_steps_{steps}"] = float(np.mean(kept))
            if config.stable_steps:
                evaluations = float(np.mean([s.evaluations for s in samples]))
                results[f"puzzles/evaluations_{suffix}_steps_{steps}"] = evaluations
            context.report(f"{level}, {steps} steps: {np.mean(right):.3f} of {len(right)} solved")
    return results
