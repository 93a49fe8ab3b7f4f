"""Compile a config for devices that are not there.

The programs are the very ones that ``train``, ``eval`` and ``sample`` run, with the same compiler
options: the fused step of each phase, the evaluation of the denoiser, and the sampler. For TPUs
their own compiler is asked. That for GPUs needs one to be there: instead the program is split over
as many simulated CPU devices, which tells what lies where and what is sent; temporary memory is
then only an estimate, and of speed only bounds are known.
"""

import re
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp

from ldlm_jax.config import Assembly, Experiment, build
from ldlm_jax.data.dataset import vocab_size
from ldlm_jax.errors import UserError
from ldlm_jax.evals.denoising import errors_at
from ldlm_jax.models.lowering import compile_for, compiler_options
from ldlm_jax.models.networks import with_backbone
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import (
    Placement,
    batch_sharding,
    placements,
    replicated,
    use_sharding,
)
from ldlm_jax.phases import Phase
from ldlm_jax.plan.flops import step_flops
from ldlm_jax.plan.hardware import CHIPS, Chip, chip_of, count_of, gpu_of
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import ROW, knobs
from ldlm_jax.sampling.spec import ConditioningBatch, Spec
from ldlm_jax.teachers.loader import abstract_teacher
from ldlm_jax.train_state import abstract_average, abstract_state
from ldlm_jax.train_step import train_step
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
                f"plans need the compiler for TPUs: pip install '.[tpu]' ({reason})."
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
      chip: what each device can do; None for the devices that are there.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    vocab_size: int
    chip: Chip | None

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

    @classmethod
    def here(cls, experiment: Experiment) -> "Target":
        """The config on the devices of this process.

        Raises:
          UserError: mesh and config do not fit them.
        """
        mesh = make_mesh(experiment.mesh)
        check_mesh(experiment, mesh)
        return cls(experiment, mesh, vocab_size(experiment.data), None)

    @cached_property
    def assembly(self) -> Assembly:
        """What the config names, weights as shapes."""
        teacher = abstract_teacher(self.experiment, self.mesh)
        return build(self.experiment, self.mesh, self.vocab_size, teacher, abstract=True)

    @property
    def _placing(self) -> tuple:
        return self.experiment.data.window, self.mesh, self.experiment.sharding

    def placements(self) -> list[Placement]:
        """Where each parameter lives."""
        boxed = self.assembly.networks.abstract(self.experiment.data.window)
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

    def state(self):
        """The training state as shapes."""
        return abstract_state(self.assembly.networks, self.assembly.optimizer, *self._placing)

    def average(self):
        """Averaged parameters, with a backbone's, and latent statistics, as shapes."""
        average = abstract_average(self.assembly.networks, *self._placing)
        return with_backbone(average.ema, self.assembly.frozen.backbone), average.latents

    def flops(self, phase: Phase) -> float:
        """FLOPs of the fused step, on all devices together."""
        return step_flops(self.assembly.recipe, self.assembly.frozen, self.batch(), phase)

    def array(self, shape, dtype) -> jax.ShapeDtypeStruct:
        """An array that is whole on every device, as shape."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))

    @property
    def key(self) -> jax.ShapeDtypeStruct:
        """A random key as shape."""
        return self.array((), jax.eval_shape(lambda: jax.random.key(0)).dtype)

    def compile_step(self, phase: Phase):
        """The fused step."""
        made = self.assembly
        step = partial(train_step, phase=phase, recipe=made.recipe, optimizer=made.optimizer)
        arguments = self.state(), self.batch(), self.key, made.frozen
        return self._compile(jax.jit(step, donate_argnums=0), *arguments)

    def compile_evaluation(self):
        """The denoiser's error on held-out text."""
        made = self.assembly
        batch = {name: self.batch()[name] for name in ("tokens", "segments")}
        run = partial(
            errors_at.__wrapped__, networks=made.networks, diffusion=made.recipe.diffusion
        )
        arguments = *self.average(), batch, self.key, self.array((), jnp.float32)
        return self._compile(jax.jit(run), *arguments)

    def compile_sampler(self):
        """Generating one batch of texts."""
        config, networks = self.experiment.sample, self.assembly.networks
        rows, window = config.batch_size, self.experiment.data.window
        options = {name: self.array((rows,), jnp.float32) for name in knobs(ROW)}
        options["keys"] = self.array((rows,), self.key.dtype)
        spec = Spec.of(networks, self.experiment.diffusion, [config], window)
        given = ConditioningBatch.blank(rows, window, networks.vae.tokens_per_latent)
        given = jax.tree.map(lambda x: self.array(x.shape, x.dtype), given)
        run = jax.jit(partial(generate_tokens.__wrapped__, spec=spec))
        return self._compile(run, *self.average(), given, options)

    def _compile(self, function, *arguments):
        platform = "gpu" if self.chip.is_gpu else "tpu"
        with compile_for(platform), use_sharding(self.mesh, self.experiment.sharding):
            lowered = function.lower(*arguments)
            try:
                return lowered.compile(compiler_options=compiler_options(platform))
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
        "mesh.tensor, train.microbatches, train.logit_chunks, dit.remat=full and "
        "text_vae.remat=full, a smaller train.batch_size."
    )


class OutOfMemory(UserError):
    """A program needs more than a chip has."""
