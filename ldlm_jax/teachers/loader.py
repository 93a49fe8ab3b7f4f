"""The teacher of a run: loaded onto the mesh, or its features read from a cache made beforehand."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.data.dataset import Prepared
from ldlm_jax.data.progress import watched
from ldlm_jax.data.rows import Rows, write_rows
from ldlm_jax.data.stamped import read_json, write_json
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.load import abstract_pretrained, load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import checksum, find_model
from ldlm_jax.teachers.teacher import PretrainedTeacher
from ldlm_jax.teachers.token_alignment import AddTeacherTokens

# Rows of which features are computed at once when a cache is written.
_ROWS = 16


class LoadedTeacher(NamedTuple):
    """What the step needs of a teacher.

    Attributes:
      width: of its features.
      teacher: the teacher, or None where its features come with the batch.
      params: its parameters on the mesh.
      cache: folder whose row i holds the features of training row i (``rows.Rows``).
      add: maps a row of the data to what the step is given.
    """

    width: int
    teacher: PretrainedTeacher | None = None
    params: dict | None = None
    cache: Path | None = None
    add: Callable[[dict], dict] | None = None


def load_teacher(experiment, prepared: Prepared, mesh) -> LoadedTeacher | None:
    """The teacher of an experiment; None if no phase aligns with one.

    Raises:
      UserError: it cannot be had, or does not fit this run.
    """
    config = experiment.teacher
    if not experiment.aligned:
        return None
    if config.cached:
        return _from_cache(experiment, prepared)
    return _pretrained(experiment, prepared, mesh)


def _pretrained(experiment, prepared: Prepared, mesh) -> LoadedTeacher:
    config, path = experiment.teacher, find_model(experiment.teacher.model)
    model = load_pretrained(path, **_placed(experiment, mesh))
    tokenizer = PretrainedTokenizer.load(path)
    tokenizer.check_table(model.config.vocab_size, config.model)
    add = AddTeacherTokens(prepared.tokenizer, tokenizer, config.tokens(experiment.data.window))
    teacher = PretrainedTeacher.of(config, model, experiment.text_vae["tokens_per_latent"])
    return LoadedTeacher(teacher.width, teacher, model.params, add=add)


def abstract_teacher(experiment, mesh) -> LoadedTeacher | None:
    """What ``load_teacher`` would return, parameters as shapes: for plans."""
    if not experiment.aligned:
        return None
    config = experiment.teacher
    model = abstract_pretrained(find_model(config.model), **_placed(experiment, mesh))
    teacher = PretrainedTeacher.of(config, model, experiment.text_vae["tokens_per_latent"])
    return LoadedTeacher(teacher.width, teacher, model.params)


def _placed(experiment, mesh) -> dict:
    config = experiment.teacher
    return {"mesh": mesh, "rules": experiment.sharding, "dtype": jnp.dtype(config.dtype),
            "layers": config.layers}  # fmt: skip


# ---------------------------------------------------------------------------- cache


def _stamp(experiment) -> dict:
    """All that the features of a row depend on but the row itself."""
    config = experiment.teacher
    return {
        "teacher": config.model,
        "files": checksum(find_model(config.model)),
        "layer": config.layer,
        "dtype": config.dtype,
        "tokens": config.tokens(experiment.data.window),
        "tokens_per_latent": experiment.text_vae["tokens_per_latent"],
    }


def _cache_folder(stamp: dict, prepared: Prepared) -> Path:
    digest = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:10]
    return prepared.packed.with_name(f"{prepared.packed.name}-features-{digest}")


def _from_cache(experiment, prepared: Prepared) -> LoadedTeacher:
    stamp = _stamp(experiment)
    folder = _cache_folder(stamp, prepared)
    file = folder / "stamp.json"
    if not file.is_file():
        raise UserError(
            f"teacher.cached: {prepared.packed.parent} holds no features of layer {stamp['layer']} "
            f"of {stamp['teacher']} for this data; write them with `ldlm data --teacher` and the "
            "same config, or set teacher.cached=False."
        )
    return LoadedTeacher(read_json(file, ("width",))["width"], cache=folder)


def write_cache(experiment, prepared: Prepared, mesh) -> Path:
    """Write the features of every training row, bf16; with all there, just find them.

    Raises:
      UserError: the config names no open model.
    """
    if not experiment.teacher.model:
        raise UserError("ldlm data --teacher needs teacher.model, the open model to be read.")
    stamp = _stamp(experiment)
    folder = _cache_folder(stamp, prepared)
    if (folder / "stamp.json").is_file():
        return folder
    loaded = _pretrained(experiment, prepared, mesh)
    print(f"writing {folder}", flush=True)
    rows = Rows(prepared.packed, "train")
    batches = _features(loaded, rows)
    write_rows(folder, watched(batches, folder.name, f"times {_ROWS} rows", -(-len(rows) // _ROWS)))
    write_json(folder / "stamp.json", stamp | {"width": loaded.width})
    return folder


def _features(loaded: LoadedTeacher, source: Rows) -> Iterator[dict]:
    run = jax.jit(loaded.teacher.features)
    for first in range(0, len(source), _ROWS):
        rows = [loaded.add(source[i]) for i in range(first, min(first + _ROWS, len(source)))]
        rows += [rows[-1]] * (_ROWS - len(rows))
        batch = jax.tree.map(lambda *x: np.stack(x), *rows)
        features = np.asarray(run(loaded.params, batch).astype(jnp.bfloat16))
        yield {"teacher": features[: len(source) - first]}
