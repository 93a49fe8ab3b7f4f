"""Where tensors live: one field per logical axis, and the shardings that follow from it."""

from dataclasses import dataclass, fields

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class AxisRules:
    """Mesh axes over which each logical axis is split; None keeps it whole.

    Attributes:
      batch: rows of a batch.
      embed: model width.
      heads: heads times head width.
      head_dim: width of one head.
      mlp: feed-forward width and other projections' outputs.
      vocab: vocabulary.
      layers: the stacking axis of scanned blocks.
      latent: latent channels.
      cond: condition width of adaLN.
      time: sinusoids of time.
      feature: teacher feature width.
    """

    batch: MeshAxes = ("data", "fsdp")
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    layers: MeshAxes = None
    latent: MeshAxes = None
    cond: MeshAxes = None
    time: MeshAxes = None
    feature: MeshAxes = None

    def pairs(self) -> list[tuple[str, MeshAxes]]:
        """The rules as Flax takes them."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [(name, tuple(v) if isinstance(v, list) else v) for name, v in values]


def param_shardings(boxed_params, mesh: Mesh, rules: AxisRules):
    """Shardings of parameters created with logical axis names (boxed, possibly abstract)."""
    specs = nn.get_partition_spec(boxed_params)
    return nn.logical_to_mesh_sharding(specs, mesh, rules.pairs())


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """Sharding of every array of a batch: split by row."""
    axes = rules.batch
    return NamedSharding(mesh, PartitionSpec(tuple(axes) if isinstance(axes, list) else axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict, sharding: NamedSharding) -> dict:
    """Make global arrays from this host's rows."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
