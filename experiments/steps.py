"""The fused step of a config, to be timed in turns with other systems'."""

import jax

from ldlm_jax.config import Experiment
from ldlm_jax.data.build import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.guide import load_guide, write_cache
from ldlm_jax.mesh import make_mesh
from ldlm_jax.optim import make_optimizer
from ldlm_jax.sharding import batch_sharding, in_force, put_batch
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import Frozen, compiled_step


class FusedSteps:
    """Steps of one phase, each with the next batch; what a config's teacher adds is in them.

    Every object has a state of its own: what a step was given is used up.
    """

    def __init__(self, experiment: Experiment, number: int):
        prepared, self._mesh = prepare(experiment.data), make_mesh(experiment.mesh)
        self._rules, self._phase = experiment.sharding, experiment.phases[number]
        self._sharding = batch_sharding(self._mesh, self._rules)
        if experiment.teacher.cached:
            write_cache(experiment, prepared, self._mesh)
        guide = load_guide(experiment, prepared, self._mesh)
        beside = {"add": guide.add, "cache": guide.cache} if guide else {}
        size, window = experiment.train.batch_size, experiment.data.window
        self._batches = train_batches(prepared, experiment.data, size, **beside)
        models = experiment.models(prepared.tokenizer.vocab_size, guide.width if guide else 0)
        optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
        recipe = experiment.recipe(models, guide.teacher if guide else None)
        self._frozen = Frozen(guide.params if guide else None, None)
        self._step = compiled_step(recipe, optimizer)
        self._state = init_state(models, optimizer, 0, window, self._mesh, self._rules)

    def step(self) -> None:
        """Take one, to its end."""
        with in_force(self._mesh, self._rules):
            batch = put_batch(next(self._batches), self._sharding)
            self._state, metrics = self._step(
                self._state, batch, jax.random.key(0), self._frozen, phase=self._phase
            )
            jax.block_until_ready(metrics)
