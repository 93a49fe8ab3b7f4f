"""Where tensors live: one field per logical axis, and the shardings that follow from it."""

import contextlib
from dataclasses import dataclass, fields
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import AXES

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class AxisRules:
    """Mesh axes over which each logical axis is split; None keeps it whole.

    Attributes:
      batch: rows of a batch.
      sequence: positions of a row.
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

    batch: MeshAxes = ("slice", "data", "fsdp")
    sequence: MeshAxes = "sequence"
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

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            axes = [value] if isinstance(value, str) else value or []
            known = isinstance(axes, (list, tuple)) and all(axis in AXES for axis in axes)
            if not known or len(set(axes)) < len(axes):
                raise UserError(
                    f"sharding.{field.name} = {value!r}: give axes of the mesh, each once, of "
                    f"{', '.join(AXES)}; or None."
                )

    def pairs(self) -> list[tuple[str, MeshAxes]]:
        """The rules as Flax takes them."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [(name, tuple(v) if isinstance(v, list) else v) for name, v in values]

    def mesh_axes(self, axis: str | None) -> tuple[str, ...]:
        """Mesh axes over which a logical axis is split; none for None."""
        value = getattr(self, axis) if axis else None
        return (value,) if isinstance(value, str) else tuple(value or ())


class Placement(NamedTuple):
    """Where one parameter lives.

    Attributes:
      name: its path.
      shape: its dimensions.
      axes: the logical axis of each.
      spec: the mesh axes over which each is split.
      bytes_per_device: of the parameter alone.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    spec: PartitionSpec
    bytes_per_device: int


def path_names(path) -> tuple[str, ...]:
    """The names along a tree path."""
    return tuple(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def split_count(mesh: Mesh, rules: AxisRules, axis: str | None) -> int:
    """Number of parts into which a logical axis is split."""
    return int(np.prod([mesh.shape[name] for name in rules.mesh_axes(axis)]))


def placements(boxed_params, mesh: Mesh, rules: AxisRules) -> list[Placement]:
    """Where each parameter lives, of parameters boxed with their logical axis names.

    Raises:
      UserError: a dimension does not divide among the devices along its axes.
    """
    specs = jax.tree.leaves(
        param_shardings(boxed_params, mesh, rules), is_leaf=lambda x: isinstance(x, NamedSharding)
    )
    boxed = jax.tree.leaves_with_path(
        boxed_params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    placed = []
    for (path, leaf), sharding in zip(boxed, specs, strict=True):
        name = "/".join(path_names(path))
        value, axes = (leaf.value, leaf.names) if hasattr(leaf, "names") else (leaf, ())
        axes = tuple(axes) + (None,) * (len(value.shape) - len(axes))
        parts = 1
        for size, axis in zip(value.shape, axes, strict=True):
            count = split_count(mesh, rules, axis)
            parts *= count
            if size % count:
                raise UserError(
                    f"parameter {name} {value.shape}: its axis {axis!r} of size {size} does not "
                    f"divide among the {count} devices along mesh axes {rules.mesh_axes(axis)}; "
                    f"change that size, the mesh, or sharding.{axis}."
                )
        size = int(np.prod(value.shape)) * value.dtype.itemsize // parts
        placed.append(Placement(name, value.shape, axes, sharding.spec, size))
    return placed


def param_shardings(boxed_params, mesh: Mesh, rules: AxisRules):
    """Shardings of parameters created with logical axis names (boxed, possibly abstract)."""
    specs = nn.get_partition_spec(boxed_params)
    return nn.logical_to_mesh_sharding(specs, mesh, rules.pairs())


@contextlib.contextmanager
def use_sharding(mesh: Mesh, rules: AxisRules):
    """What is compiled inside is split over this mesh by these rules."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules.pairs()):
        yield


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """Sharding of every array of a batch: split by row."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(("batch",), rules.pairs()))


def row_multiple() -> int:
    """Rows must be a multiple of this to divide among the devices of the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    (axes,) = nn.logical_to_mesh_axes(("batch",))
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return int(np.prod([mesh.shape[name] for name in names if name in mesh.shape], dtype=int))


def own_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Which rows of a batch this process holds, ascending.

    Raises:
      ValueError: the rows do not divide among the devices.
    """
    held = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(x: jax.Array) -> jax.Array:
    """An array inside a jit that every process is to read: whole on every device of the mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def put_batch(batch: dict, sharding: NamedSharding) -> dict:
    """Make global arrays from the rows that this process holds, see ``own_rows``."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
