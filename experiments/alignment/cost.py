"""What a step costs with each teacher, run in the step or read from a cache, in turns.

Command: PYTHONPATH=. python experiments/alignment/cost.py experiments/alignment/cost.json
Features are cached for a part of the corpus: a step costs the same, and writing them takes less.
"""

import json
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import jax

from experiments.alignment.arms import ARMS
from experiments.compare import config_of
from ldlm_jax.config import resolve
from ldlm_jax.data.build import prepare, read_texts
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.guide import load_guide, write_cache
from ldlm_jax.mesh import make_mesh
from ldlm_jax.optim import make_optimizer
from ldlm_jax.sharding import batch_sharding, in_force, put_batch
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import Frozen, compiled_step

ROUNDS, STEPS, DOCUMENTS = 3, 5, 3000


class Timed:
    """A variant's train step, compiled, and the seconds of its steps."""

    def __init__(self, arm: str, *overrides: str):
        experiment = resolve(config_of("alignment", arm, *overrides))
        self.mesh, self.rules = make_mesh(experiment.mesh), experiment.sharding
        self._sharding = batch_sharding(self.mesh, self.rules)
        prepared = prepare(experiment.data)
        if experiment.teacher.cached:
            write_cache(experiment, prepared, self.mesh)
        guide = load_guide(experiment, prepared, self.mesh)
        beside = {"add": guide.add, "cache": guide.cache} if guide else {}
        size = experiment.train.batch_size
        self._batches = train_batches(prepared, experiment.data, size, **beside)
        models = experiment.models(prepared.tokenizer.vocab_size, guide.width if guide else 0)
        recipe = experiment.recipe(models, guide.teacher if guide else None)
        optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
        window = experiment.data.window
        self._state = init_state(models, optimizer, 0, window, self.mesh, self.rules)
        self._frozen = Frozen(guide.params if guide else None, None)
        self._step = partial(compiled_step(recipe, optimizer), phase=experiment.phases[-1])

    def seconds(self) -> float:
        """Mean seconds of a few steps, the next batch's reading included."""
        with in_force(self.mesh, self.rules):
            start = time.perf_counter()
            for _ in range(STEPS):
                batch = put_batch(next(self._batches), self._sharding)
                self._state, metrics = self._step(
                    self._state, batch, jax.random.key(0), self._frozen
                )
            jax.block_until_ready(metrics)
            return (time.perf_counter() - start) / STEPS


def main(out: str) -> None:
    """Measure, print and write."""
    whole = prepare(resolve(config_of("alignment", "none")).data)
    part = Path("runs/alignment/part.txt")
    part.write_text("\n\n".join(islice(read_texts(whole.text, "train"), DOCUMENTS)))
    timed = {}
    for arm, overrides in ARMS.items():
        timed[arm] = Timed(arm)
        if any("teacher.model" in override for override in overrides):
            cached = (
                "teacher.cached=True",
                f"data.source={part}",
                "data.root=runs/alignment/corpora",
            )
            timed[f"{arm}, cached"] = Timed(arm, *cached)
    best: dict[str, float] = {}
    for turn in range(ROUNDS + 1):  # the first compiles
        for name, variant in timed.items():
            seconds = variant.seconds()
            if turn:
                best[name] = min(best.get(name, seconds), seconds)
    print("| teacher | seconds a step | of that without |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds:.3f} | {seconds / best['none']:.2f} |")
    facts = {"rounds": ROUNDS, "steps": STEPS, "seconds": best}
    Path(out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
