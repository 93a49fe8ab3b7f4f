"""The fused step of a config, to be timed in turns with those of other systems."""

import jax

from ldlm_jax.config import Experiment
from ldlm_jax.data.dataset import prepare
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import use_sharding
from ldlm_jax.teachers.loader import write_cache
from ldlm_jax.train import TrainingRun
from ldlm_jax.train_step import compiled_step


class FusedSteps:
    """Steps of one phase, each with the next batch, and with the config's teacher if it has one.

    Every object has a state of its own, because a step uses up the state that it is given.
    """

    def __init__(self, experiment: Experiment, number: int):
        if experiment.teacher.cached:
            write_cache(experiment, prepare(experiment.data), make_mesh(experiment.mesh))
        run = TrainingRun.create(experiment)
        self._assembly, self._phase = run.assembly, experiment.phases[number]
        self._step = compiled_step(run.assembly.recipe, run.assembly.optimizer)
        self._batches, self._state = run.batches(), run.first_state()

    def step(self) -> None:
        """Take one, to its end."""
        assembly = self._assembly
        with use_sharding(assembly.mesh, assembly.experiment.sharding):
            self._state, metrics = self._step(
                self._state, next(self._batches), jax.random.key(0), assembly.frozen,
                phase=self._phase,
            )  # fmt: skip
            jax.block_until_ready(metrics)
