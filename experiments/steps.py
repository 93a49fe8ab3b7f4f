"""The fused step of a config, to be timed in turns with other systems'."""

import jax

from ldlm_jax.config import Experiment
from ldlm_jax.data.dataset import prepare
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import in_force
from ldlm_jax.teachers.loader import write_cache
from ldlm_jax.train import Setup
from ldlm_jax.train_step import compiled_step


class FusedSteps:
    """Steps of one phase, each with the next batch; what a config's teacher adds is in them.

    Every object has a state of its own: what a step was given is used up.
    """

    def __init__(self, experiment: Experiment, number: int):
        if experiment.teacher.cached:
            write_cache(experiment, prepare(experiment.data), make_mesh(experiment.mesh))
        self._setup = setup = Setup.of(experiment)
        self._phase, self._frozen = experiment.phases[number], setup.frozen
        self._step = compiled_step(setup.recipe, setup.optimizer)
        self._batches, self._state = setup.batches(), setup.first_state()

    def step(self) -> None:
        """Take one, to its end."""
        with in_force(self._setup.mesh, self._setup.experiment.sharding):
            self._state, metrics = self._step(
                self._state, next(self._batches), jax.random.key(0), self._frozen,
                phase=self._phase,
            )  # fmt: skip
            jax.block_until_ready(metrics)
