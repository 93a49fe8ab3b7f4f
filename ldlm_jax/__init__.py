"""Continuous latent diffusion language models in JAX and Flax."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jax.sharding import Mesh

    from ldlm_jax.serving.model import Model

__all__ = ["load"]


def version_of(package: str) -> str:
    """Its installed version; "not installed" for a tree that is only on Python's path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def load(source: str | Path, *, step: int | None = None, mesh: Mesh | None = None) -> Model:
    """A trained model, ready to use.

    Args:
      source: the folder of a run, an exported folder, or a name on the Hub (``owner/name``).
      step: checkpoint of a run instead of its newest.
      mesh: of devices, with the axes of ``parallel.mesh``; by default all devices of this process.

    Raises:
      UserError: there is no such model, or its files are damaged.
    """
    # Only here: `import ldlm_jax` starts no device.
    from ldlm_jax.serving.hub import open_model
    from ldlm_jax.serving.model import Model

    return Model(open_model(source, step, mesh))
