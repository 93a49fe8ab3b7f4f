"""What accelerators can do, from their makers' data sheets."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One device as jax counts them.

    Attributes:
      kind: as ``Device.device_kind`` begins.
      name: as topologies are named, ``"v5e:4x4"`` or ``"h100:8x8"`` (nodes by GPUs of a node).
      flops: bf16 products, FLOP/s.
      memory: bytes of HBM.
      memory_rate: of HBM, bytes/s.
      network_rate: of all links to its neighbours together, one way, bytes/s.
      far_rate: over the data-centre network, its share of its host's, bytes/s.
      clock: cycles/s of the matrix unit, for the compiler's estimates; 0 where not known.
    """

    kind: str
    name: str
    flops: float
    memory: float
    memory_rate: float
    network_rate: float
    far_rate: float
    clock: float = 0.0

    @property
    def is_gpu(self) -> bool:
        """Whether plans are made without its compiler."""
        return self.kind.startswith("NVIDIA")


_GIB = 2**30
# TPU: cloud.google.com/tpu/docs, system architecture pages (peak, HBM, interchip Gbit/s, of which
# half is one way); clock = peak / (2 * 128^2 * matrix units of a chip): v4 and v5p have 8, v5e 4.
# Host network: 100 Gbit/s a host of 4 (v5e), 200 Gbit/s (v4, v5p).
# GPU: NVIDIA data sheets (dense bf16, NVLink one way; 400 Gbit/s InfiniBand a GPU).
CHIPS = (
    Chip("TPU v4", "v4", 275e12, 32 * _GIB, 1.228e12, 150e9, 6.25e9, 1.05e9),
    Chip("TPU v5 lite", "v5e", 197e12, 16 * _GIB, 0.819e12, 100e9, 3.1e9, 1.5e9),
    Chip("TPU v5", "v5p", 459e12, 95 * _GIB, 2.765e12, 300e9, 6.25e9, 1.75e9),
    Chip("TPU v6 lite", "v6e", 918e12, 32 * _GIB, 1.64e12, 224e9, 6.25e9),
    Chip("NVIDIA A100", "a100", 312e12, 80e9, 2.039e12, 300e9, 25e9),
    Chip("NVIDIA H100", "h100", 989e12, 80e9, 3.35e12, 450e9, 50e9),
    Chip("NVIDIA H200", "h200", 989e12, 141e9, 4.8e12, 450e9, 50e9),
)


def count_of(topology: str) -> int:
    """Devices of a topology such as ``"v5e:4x4"``; 0 if it is not written like one."""
    sizes = topology.partition(":")[2].split("x")
    return math.prod(map(int, sizes)) if all(size.isdigit() for size in sizes) else 0


def gpu_of(topology: str) -> Chip | None:
    """The GPU that a topology names, or None."""
    name = topology.partition(":")[0]
    return next((chip for chip in CHIPS if chip.is_gpu and chip.name == name), None)


def chip_of(kind: str) -> Chip | None:
    """The chip of a device kind, or None for one that is not listed (a CPU, say)."""
    fitting = [chip for chip in CHIPS if kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind), default=None)
