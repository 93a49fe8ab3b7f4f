"""The teacher of a run: loaded onto the mesh, or its features read from a cache made beforehand."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.config import Experiment
from ldlm_jax.data.dataset import Prepared, read_split, write_features
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.load import load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import find_model, fingerprint
from ldlm_jax.teachers.teacher import PretrainedTeacher
from ldlm_jax.teachers.token_alignment import TeacherRows

# Rows of which features are computed at once when a cache is written.
_ROWS = 16


class Guide(NamedTuple):
    """What the step needs of a teacher.

    Attributes:
      width: of its features.
      teacher: the teacher, or None where its features come with the batch.
      params: its parameters on the mesh.
      cache: dataset whose row i holds the features of training row i.
      add: maps a row of the data (and of the cache) to what the step is given.
    """

    width: int
    teacher: PretrainedTeacher | None = None
    params: dict | None = None
    cache: Path | None = None
    add: Callable[[dict], dict] | None = None


def load_guide(experiment: Experiment, prepared: Prepared, mesh) -> Guide | None:
    """The teacher of an experiment; None if no phase aligns with one.

    Raises:
      UserError: it cannot be had, or does not fit this run.
    """
    said = experiment.teacher
    if not experiment.aligned:
        return None
    if said.cached:
        return _from_cache(experiment, prepared)
    return _pretrained(experiment, prepared, mesh)


def _pretrained(experiment: Experiment, prepared: Prepared, mesh) -> Guide:
    said, path = experiment.teacher, find_model(experiment.teacher.model)
    model = load_pretrained(
        path, mesh=mesh, rules=experiment.sharding, dtype=jnp.dtype(said.dtype), layers=said.layers
    )
    tokenizer = PretrainedTokenizer.load(path)
    add = TeacherRows(prepared.tokenizer, tokenizer, said.tokens(experiment.data.window))
    teacher = PretrainedTeacher.of(said, model, experiment.text_vae["tokens_per_latent"])
    return Guide(teacher.width, teacher, model.params, add=add)


# ---------------------------------------------------------------------------- cache


def _stamp(experiment: Experiment) -> dict:
    """All that the features of a row depend on but the row itself."""
    said = experiment.teacher
    return {
        "teacher": said.model,
        "files": fingerprint(find_model(said.model)),
        "layer": said.layer,
        "dtype": said.dtype,
        "tokens": said.tokens(experiment.data.window),
        "tokens_per_latent": experiment.text_vae["tokens_per_latent"],
    }


def _cache_folder(stamp: dict, prepared: Prepared) -> Path:
    digest = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:10]
    return prepared.packed.with_name(f"{prepared.packed.name}-features-{digest}")


def _from_cache(experiment: Experiment, prepared: Prepared) -> Guide:
    stamp = _stamp(experiment)
    folder = _cache_folder(stamp, prepared)
    file = folder / "stamp.json"
    if not file.is_file():
        raise UserError(
            f"teacher.cached: {prepared.packed.parent} holds no features of layer {stamp['layer']} "
            f"of {stamp['teacher']} for this data; write them with `ldlm data --teacher` and the "
            "same config, or set teacher.cached=False."
        )

    def add(row: dict) -> dict:
        return row | {"teacher": row.pop("features").view(jnp.bfloat16)}

    return Guide(json.loads(file.read_text())["width"], cache=folder, add=add)


def write_cache(experiment: Experiment, prepared: Prepared, mesh) -> Path:
    """Write the features of every training row, bf16; with all in place, just find them.

    Raises:
      UserError: the config names no open model.
    """
    if not experiment.teacher.model:
        raise UserError("ldlm data --teacher needs teacher.model, the open model to be read.")
    stamp = _stamp(experiment)
    folder = _cache_folder(stamp, prepared)
    if (folder / "stamp.json").is_file():
        return folder
    guide = _pretrained(experiment, prepared, mesh)
    places = experiment.data.window // experiment.text_vae["tokens_per_latent"]
    write_features(folder, (places, guide.width), _features(guide, prepared))
    (folder / "stamp.json").write_text(json.dumps(stamp | {"width": guide.width}) + "\n")
    return folder


def _features(guide: Guide, prepared: Prepared) -> Iterator[dict]:
    run = jax.jit(guide.teacher.features)
    source = read_split(prepared.packed, "train")
    for first in range(0, len(source), _ROWS):
        rows = [guide.add(source[i]) for i in range(first, min(first + _ROWS, len(source)))]
        rows += [rows[-1]] * (_ROWS - len(rows))
        batch = jax.tree.map(lambda *x: np.stack(x), *rows)
        features = np.asarray(run(guide.params, batch).astype(jnp.bfloat16)).view(np.uint16)
        for row in features[: len(source) - first]:
            yield {"features": row}
