"""Alignment of a baseline with the teacher of a latent model's config.

Shape letters: B rows, N tokens, M width, H feature width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.config import Experiment
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.rows import Rows
from ldlm_jax.data.special_ids import PAD
from ldlm_jax.errors import UserError
from ldlm_jax.losses.alignment import AlignmentConfig, alignment_loss
from ldlm_jax.models.networks import Projection
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.phases import Weight, weight_at
from ldlm_jax.teachers.loader import LoadedTeacher, load_teacher


class CachedFeatures:
    """Adds a teacher's features to a row of a baseline.

    The cache holds them for the rows of the latent model. A baseline's rows are not padded: they
    hold the same pieces of text at other positions.
    """

    def __init__(self, packed: Path, teacher: LoadedTeacher):
        """Note where each piece of text stands in the rows ``packed`` of the latent model."""
        self._teacher, self._cache, self._at = teacher, Rows(teacher.cache, "train"), {}
        for i, row in enumerate(Rows(packed, "train")):
            for key, positions in self._pieces(row):
                self._at[key] = i, positions[0]

    @staticmethod
    def _pieces(row: dict) -> Iterator[tuple[bytes, np.ndarray]]:
        tokens, segments = row["tokens"], row["segments"]
        for number in range(1, segments.max() + 1):
            positions = np.flatnonzero((segments == number) & (tokens != PAD))
            yield tokens[positions].tobytes(), positions

    def __call__(self, row: dict) -> dict:
        """The row with ``teacher`` (N, H), bf16."""
        features = np.zeros((len(row["tokens"]), self._teacher.width), jnp.bfloat16)
        for key, positions in self._pieces(row):
            i, start = self._at[key]
            cached = self._cache[i]["teacher"]
            features[positions] = cached[start : start + len(positions)]
        return row | {"teacher": features}


class Alignment(NamedTuple):
    """How a baseline is aligned with a frozen teacher.

    Attributes:
      add: adds the teacher's features to a row.
      config: after which block of the baseline.
      weight: of the loss.
      projection: from the baseline's width to the teacher's.
    """

    add: CachedFeatures
    config: AlignmentConfig
    weight: Weight
    projection: Projection

    @classmethod
    def of(cls, experiment: Experiment) -> "Alignment | None":
        """That of the config of a latent model; None if no phase aligns.

        Raises:
          UserError: the teacher's features are not cached.
        """
        if not experiment.aligned:
            return None
        if not experiment.teacher.cached:
            raise UserError("a baseline reads its teacher from a cache: set teacher.cached=True.")
        config, prepared = experiment.alignment, prepare(experiment.data)
        teacher = load_teacher(experiment, prepared, make_mesh(experiment.mesh))
        features = CachedFeatures(prepared.packed, teacher)
        projection = Projection(teacher.width, config.projection)
        return cls(features, config, experiment.phases[0].alignment, projection)

    def loss(self, params, hidden_BxNxM, teacher_BxNxH, segments_BxN, step) -> jax.Array:
        """Weighted distance of the baseline's features from the teacher's."""
        mapped_BxNxH = self.projection.apply({"params": params}, hidden_BxNxM)
        distance = alignment_loss(mapped_BxNxH, teacher_BxNxH, segments_BxN)
        return weight_at(self.weight, step) * distance
