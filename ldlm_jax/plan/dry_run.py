"""``ldlm train --dry-run``: everything that a training would do before its first step."""

from functools import partial

import jax

from ldlm_jax.config import Experiment
from ldlm_jax.models.lowering import compiler_options
from ldlm_jax.parallel.sharding import use_sharding
from ldlm_jax.plan.target import Target
from ldlm_jax.train_step import train_step

_MB = 1e6


def dry_run(experiment: Experiment) -> str:
    """Shapes and memory of a training on the devices of this process; no corpus is read.

    The step of every phase is compiled and not run. Frozen models are only shapes.

    Raises:
      UserError: parts of the config do not fit each other or the devices, or a model is missing.
    """
    target = Target.here(experiment)
    state, batch, made = target.state(), target.batch(), target.assembly
    count = sum(x.size for x in jax.tree.leaves(state.params))
    shards = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(state)]
    size = sum(
        jax.numpy.dtype(x.dtype).itemsize * int(jax.numpy.prod(jax.numpy.array(shape)))
        for x, shape in zip(jax.tree.leaves(state), shards, strict=True)
    )
    devices = target.mesh.devices.size
    lines = [f"{count / 1e6:.2f}M parameters on {devices} x {jax.default_backend()}"]
    for name, group in state.params.items():
        part = sum(x.size for x in jax.tree.leaves(group))
        lines.append(f"  {name:10} {part / 1e6:10.2f}M")
    lines += [f"batch: {name} {x.shape} {x.dtype}" for name, x in batch.items()]
    lines.append(f"state: {size / _MB:.1f} MB on each device (parameters, average, optimizer)")
    for number, phase in enumerate(experiment.phases):
        step = partial(train_step, phase=phase, recipe=made.recipe, optimizer=made.optimizer)
        with use_sharding(target.mesh, experiment.sharding):
            lowered = jax.jit(step, donate_argnums=0).lower(state, batch, target.key, made.frozen)
            compiled = lowered.compile(compiler_options=compiler_options())
        memory = compiled.memory_analysis()
        lines.append(
            f"phase {number}: {memory.temp_size_in_bytes / _MB:.1f} MB of temporary memory on each "
            f"device, {target.flops(phase) / 1e9:.2f} GFLOP a step"
        )
    return "\n".join(lines)
