"""Device meshes."""

from dataclasses import dataclass

import jax
import numpy as np

from ldlm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, for all that are left.

    Attributes:
      data: copies of the model, each with its share of the batch.
      fsdp: parameters and batch are both split along this axis.
      tensor: heads, feed-forward width and vocabulary are split along this axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh of a config over all devices (or those given).

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [getattr(config, axis) for axis in AXES]
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if min(shape) < 1 or int(np.prod(shape)) != len(devices):
        axes = ", ".join(f"mesh.{axis} = {getattr(config, axis)}" for axis in AXES)
        raise UserError(
            f"{axes} do not multiply to the {len(devices)} devices present; "
            "set one of them to -1 to take what is left."
        )
    # Auto axes: the compiler propagates shardings from the annotated parameters and batch.
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape), AXES, axis_types=kinds, devices=devices)
