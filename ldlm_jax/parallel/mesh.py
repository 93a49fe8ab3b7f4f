"""Processes and device meshes."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils

from ldlm_jax.errors import UserError

AXES = ("slice", "data", "fsdp", "sequence", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, for all that are left.

    Attributes:
      slice: copies of the model that talk over the slow network between pod slices or nodes.
      data: copies of the model within a slice, each with its share of the batch.
      fsdp: parameters and batch are both split along this axis.
      sequence: positions of a row are split along this axis.
      tensor: heads, feed-forward width and vocabulary are split along this axis.
    """

    slice: int = 1
    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def shape(self, devices: int) -> tuple[int, ...]:
        """Devices along each of ``AXES``.

        Raises:
          UserError: the axes do not multiply to the number of devices.
        """
        shape = [getattr(self, axis) for axis in AXES]
        known = int(np.prod([n for n in shape if n != -1]))
        if shape.count(-1) == 1 and known > 0 and devices % known == 0:
            shape[shape.index(-1)] = devices // known
        if min(shape) < 1 or int(np.prod(shape)) != devices:
            axes = ", ".join(f"mesh.{axis} = {getattr(self, axis)}" for axis in AXES)
            raise UserError(
                f"{axes} do not multiply to the {devices} devices present; "
                "set one of them to -1 to take what is left."
            )
        return tuple(shape)


def make_mesh(config: MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh of a config over all devices (or those given, which need not be present).

    Neighbours along an axis are neighbours in the network as far as the topology allows; the axis
    ``slice`` runs over slices (TPU) or over processes (elsewhere).

    Raises:
      UserError: the axes do not multiply to the number of devices, or ``slice`` to that of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = config.shape(len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"mesh.slice = {shape[0]}: there are {slices} slices, and only that axis may run over "
            f"the slow network between them; set mesh.slice={slices}."
        )
    if shape[0] == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        placed = _over_slices(shape, devices)
    # Auto axes: the compiler propagates shardings from the annotated parameters and batch.
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(placed, AXES, axis_types=kinds)


def _over_slices(shape: tuple[int, ...], devices: list) -> np.ndarray:
    slices = {getattr(device, "slice_index", None) for device in devices}
    by_process = None in slices or len(slices) == 1
    groups = {device.process_index for device in devices} if by_process else slices
    if len(groups) == 1 and devices[0].platform == "cpu":  # simulated devices: no network at all
        return np.array(devices).reshape(shape)
    if len(groups) % shape[0]:
        raise UserError(
            f"mesh.slice = {shape[0]} does not divide the {len(groups)} "
            f"{'processes' if by_process else 'slices'} present."
        )
    outer = (len(groups), *[1] * (len(shape) - 1))
    inner = (1, *shape[1:])
    if len(groups) != shape[0]:  # several processes make one slice
        groups_each = len(groups) // shape[0]
        outer, inner = _share(shape, groups_each)
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, process_is_granule=by_process, allow_split_physical_axes=True
    )


def _share(shape: tuple[int, ...], groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Outer and inner shapes in which ``groups`` processes of a slice lie along its first axes."""
    outer, inner = [shape[0]], [1]
    for size in shape[1:]:
        of_groups = int(np.gcd(size, groups))
        outer.append(of_groups)
        inner.append(size // of_groups)
        groups //= of_groups
    return tuple(outer), tuple(inner)
