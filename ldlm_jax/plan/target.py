"""Compile a config for devices that are not there, and say what it needs and how fast it should be.

The programs are the very ones that ``train`` runs: the fused step of each phase, the evaluation of
the denoiser, and the sampler. For TPUs their own compiler is asked. That for GPUs needs one to be
there: instead the program is split over as many simulated CPU devices, which tells what lies where
and what is sent; temporary memory is then only an estimate, and of speed only bounds are known.
"""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.config import Experiment
from ldlm_jax.data.dataset import vocab_size
from ldlm_jax.errors import UserError
from ldlm_jax.evals.denoising import errors_at
from ldlm_jax.models.lowering import COMPILER_OPTIONS, planning_for
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import Placement, batch_sharding, in_force, placements, replicated
from ldlm_jax.phases import Phase
from ldlm_jax.plan.hardware import CHIPS, Chip, chip_of, count_of, gpu_of
from ldlm_jax.pretrained.load import abstract_pretrained
from ldlm_jax.pretrained.zoo import find_model
from ldlm_jax.sampling.blockwise import write_tokens
from ldlm_jax.sampling.spec import Dials, Page, Plan
from ldlm_jax.teachers.backbone import abstract_foundation
from ldlm_jax.teachers.teacher import PretrainedTeacher
from ldlm_jax.train_state import abstract_state, with_foundation
from ldlm_jax.train_step import Frozen, Recipe, train_step
from ldlm_jax.validate import check_mesh


def devices_of(topology: str, num_slices: int = 1) -> list:
    """Devices of a TPU topology such as ``"v5e:16x16"``, none of them present.

    Raises:
      UserError: there is no such topology, or libtpu is not installed.
    """
    from jax.experimental import topologies

    try:
        # Without it the two cores of a v4 chip would be devices of their own.
        how = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=num_slices, **how
        )
    except Exception as error:  # whatever libtpu raises
        reason = str(error).splitlines()[0]
        if "not installed" in reason:
            raise UserError(
                f"plans need the compiler for TPUs: pip install 'ldlm_jax[tpu]' ({reason})."
            ) from error
        kinds = ", ".join(chip.name for chip in CHIPS)
        raise UserError(
            f"no topology {topology!r} ({reason}). Write KIND:AxB or KIND:AxBxC, chips along each "
            f"axis of the network, or nodes by GPUs; kinds: {kinds}; such as v5e:4x4, v5e:16x16, "
            "v5p:4x4x4, v6e:8x8, h100:8x8."
        ) from error
    return list(described.devices)


def _simulated(topology: str) -> list:
    """CPU devices, as many as the topology has; ``ldlm plan`` asks jax for them beforehand."""
    count, devices = count_of(topology), jax.devices("cpu")
    if not 0 < count <= len(devices):
        raise UserError(f"{topology}: write nodes by GPUs of a node, such as h100:8x8.")
    return devices[:count]


@dataclass(frozen=True)
class Target:
    """What a config is planned for.

    Attributes:
      experiment: the config.
      mesh: of the devices, present or not.
      vocab_size: tokens; no corpus is read.
      chip: what each device can do.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    vocab_size: int
    chip: Chip

    @classmethod
    def of(cls, experiment: Experiment, topology: str, num_slices: int = 1) -> "Target":
        """The config on a TPU topology.

        Raises:
          UserError: no such topology, or mesh and config do not fit it.
        """
        chip = gpu_of(topology)
        if chip:
            devices = _simulated(topology)
        else:
            devices = devices_of(topology, num_slices)
            chip = chip_of(devices[0].device_kind)
        if chip is None:
            raise UserError(f"{topology}: nothing is known of {devices[0].device_kind} chips.")
        mesh = make_mesh(experiment.mesh, devices)
        check_mesh(experiment, mesh)
        return cls(experiment, mesh, vocab_size(experiment.data), chip)

    def recipe(self) -> tuple[Recipe, Frozen]:
        """The recipe, and what never learns, as shapes."""
        experiment, rules = self.experiment, self.experiment.sharding
        said = experiment.teacher
        founded = abstract_foundation(experiment.foundation, self.mesh, rules)
        if not experiment.aligned:
            models = experiment.models(self.vocab_size, foundation=founded.foundation)
            return experiment.recipe(models), Frozen(None, founded.weights)
        model = abstract_pretrained(
            find_model(said.model), mesh=self.mesh, rules=rules, dtype=jnp.dtype(said.dtype),
            layers=said.layers,
        )  # fmt: skip
        teacher = PretrainedTeacher.of(said, model, experiment.text_vae["tokens_per_latent"])
        models = experiment.models(self.vocab_size, teacher.width, founded.foundation)
        return experiment.recipe(models, teacher), Frozen(model.params, founded.weights)

    def placements(self) -> list[Placement]:
        """Where each parameter lives."""
        boxed = self.recipe()[0].models.abstract(self.experiment.data.window)
        return placements(boxed, self.mesh, self.experiment.sharding)

    def batch(self) -> dict:
        """A batch as shapes."""
        experiment, sharding = self.experiment, batch_sharding(self.mesh, self.experiment.sharding)
        rows, window = experiment.train.batch_size, experiment.data.window

        def ints(*shape):
            return jax.ShapeDtypeStruct((rows, *shape), jnp.int32, sharding=sharding)

        batch = {"tokens": ints(window), "segments": ints(window)}
        if not experiment.aligned:
            return batch
        tokens = experiment.teacher.tokens(window)
        of_teacher = {"teacher_tokens": (tokens,), "teacher_segments": (tokens,),
                      "teacher_spans": (tokens, 2), "spans": (window, 2)}  # fmt: skip
        return batch | {name: ints(*shape) for name, shape in of_teacher.items()}

    def state(self, recipe: Recipe):
        """The training state as shapes."""
        optimizer = make_optimizer(self.experiment.optim, self.experiment.train.num_steps)
        return optimizer, abstract_state(
            recipe.models, optimizer, self.experiment.data.window, self.mesh,
            self.experiment.sharding,
        )  # fmt: skip

    def key(self) -> jax.ShapeDtypeStruct:
        """A random key as shape."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.ShapeDtypeStruct((), key.dtype, sharding=replicated(self.mesh))

    def compile_step(self, phase: Phase):
        """The fused step."""
        recipe, frozen = self.recipe()
        optimizer, state = self.state(recipe)
        step = jax.jit(
            partial(train_step, phase=phase, recipe=recipe, optimizer=optimizer), donate_argnums=0
        )
        return self._compile(step, state, self.batch(), self.key(), frozen)

    def compile_evaluation(self):
        """The denoiser's error on held-out text."""
        recipe, frozen = self.recipe()
        _, state = self.state(recipe)
        params = with_foundation(state.ema, frozen.foundation)
        batch = {name: self.batch()[name] for name in ("tokens", "segments")}
        run = partial(errors_at, models=recipe.models, diffusion=recipe.diffusion)
        t = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(self.mesh))
        return self._compile(jax.jit(run), params, state.latents, batch, self.key(), t)

    def compile_sampler(self):
        """Writing one batch of texts."""
        recipe, frozen = self.recipe()
        _, state = self.state(recipe)
        params = with_foundation(state.ema, frozen.foundation)
        config, models = self.experiment.sample, recipe.models
        rows, window = config.batch_size, self.experiment.data.window
        everywhere = replicated(self.mesh)

        def array(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

        keys = array((rows,), self.key().dtype)
        dials = Dials(keys, *[array((rows,), jnp.float32)] * (len(Dials._fields) - 1))
        plan = Plan.of(models, recipe.diffusion, config, window)
        page = Page.blank(rows, window, models.vae.tokens_per_latent)
        page = jax.tree.map(lambda x: array(x.shape, x.dtype), page)
        run = partial(write_tokens, plan=plan)
        return self._compile(run, params, state.latents, page, dials)

    def _compile(self, function, *arguments):
        platform = "gpu" if self.chip.is_gpu else "tpu"
        with planning_for(platform), in_force(self.mesh, self.experiment.sharding):
            lowered = (function if hasattr(function, "lower") else jax.jit(function)).lower(
                *arguments
            )
            try:
                return lowered.compile(compiler_options=COMPILER_OPTIONS.get(platform))
            except jax.errors.JaxRuntimeError as error:
                raise _too_large(str(error)) from error


_UNITS = {"": 2**-30, "K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
# How compilers say so: what is needed, and what is there.
_NEEDED = (
    r"required for HLO temporaries \(([\d.]+)(\w?)\) exceeds available HBM \(([\d.]+)(\w?)\)",
    r"Used ([\d.]+)(\w?) of ([\d.]+)(\w?) hbm",
)


def _too_large(message: str) -> UserError:
    """What to do about a program that the compiler refuses."""
    found = next((match for p in _NEEDED if (match := re.search(p, message))), None)
    if found is None:
        return UserError(f"the compiler refuses this program: {message.splitlines()[0]}")
    needed, there = (float(found.group(i)) * _UNITS[found.group(i + 1)] for i in (1, 3))
    return OutOfMemory(
        f"out of memory at compile time: {needed:.2f} GiB needed on each chip, which has "
        f"{there:.2f}: {needed - there:.2f} GiB too much. What helps: a larger mesh.fsdp or "
        "mesh.tensor, train.microbatches, train.logit_parts, dit.remat=full and "
        "text_vae.remat=full, a smaller train.batch_size."
    )


class OutOfMemory(UserError):
    """A program needs more than a chip has."""
