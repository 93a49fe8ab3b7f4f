"""``ldlm export``: a run's averaged model as a folder in the Hub's format (see ``hub``)."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax import version_of
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.weights import write_safetensors
from ldlm_jax.serving.card import model_card
from ldlm_jax.serving.hub import CONFIG, FORMAT, MODEL_TYPE, TOKENIZER, tensor_name
from ldlm_jax.workdir import LoadedRun

SHARD_BYTES = 5 * 10**9


def export(run: LoadedRun, out: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
    """Write a model's folder, whole or not at all.

    Args:
      run: the run.
      out: the folder, new or empty.
      dtype: of the parameters in the file; statistics of the latents stay fp32.

    Raises:
      UserError: the folder holds something, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another folder, or remove it.")
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_safetensors(partial, _tensors(run, dtype), SHARD_BYTES)
        config = _config(run, dtype)
        (partial / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        run.tokenizer.save(partial / TOKENIZER)
        (partial / "README.md").write_text(model_card(run), encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot write {out}: {error.strerror}.") from error


def _tensors(run: LoadedRun, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    for path, array in jax.tree.leaves_with_path(run.average.ema):
        yield tensor_name(path), np.asarray(jax.device_get(array)).astype(jnp.dtype(dtype))
    for name in ("mean_D", "var_D"):
        yield f"latents.{name}", np.asarray(jax.device_get(getattr(run.average.latents, name)))


def _config(run: LoadedRun, dtype: str) -> dict:
    return {
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "ldlm_jax": version_of("ldlm_jax"),
        "torch_dtype": dtype,
        "experiment": _values(run),
        "tokenizer": run.tokenizer.fingerprint,
        "lengths": list(map(int, run.facts["lengths"])),
        "backbone": run.assembly.backbone.checksum,
        "step": int(run.average.step),
        "updates": int(run.average.latents.updates),
    }


def _values(run: LoadedRun) -> dict:
    """The config by section; paths do not tell whose computer it was."""
    values = dataclasses.asdict(run.experiment)
    for key in ("source", "root"):
        values["data"][key] = values["data"][key].replace(os.path.expanduser("~"), "~")
    return values
