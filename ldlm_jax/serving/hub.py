"""Models as folders in the Hub's format: weights, config, tokenizer and card; read without pickle.

``config.json`` holds::

    model_type, format    "ldlm_jax" and the number of this layout
    ldlm_jax              version that wrote it
    experiment            the run's config by section, sampling defaults among them
    tokenizer             its fingerprint
    lengths               training documents by length in tokens, from 0 to the window
    backbone              checksum of the frozen model around the latents, or empty
    step, updates         of training; of the latent statistics

and ``model.safetensors`` the averaged parameters by path, and ``latents.mean_D`` and ``.var_D``.
"""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.parallel.sharding import path_names
from ldlm_jax.pretrained.weights import Safetensors
from ldlm_jax.train_state import AveragedModel, TrainState
from ldlm_jax.validate import local_path
from ldlm_jax.workdir import LoadedRun, assemble, experiment_of, load_run, mesh_for

MODEL_TYPE, FORMAT = "ldlm_jax", 1
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "README.md"]
_FIELDS = {
    "experiment": dict, "tokenizer": str, "lengths": list, "backbone": str, "step": int,
    "updates": int,
}  # fmt: skip


def open_model(source: str | Path, step: int | None = None, mesh: Mesh | None = None) -> LoadedRun:
    """A model from the folder of a run, an exported folder, or a name on the Hub.

    Args:
      source: path or name.
      step: checkpoint of a run instead of its newest.
      mesh: where to; by default all devices of this process.

    Raises:
      UserError: there is no such model, or its files are damaged.
    """
    path = Path(os.path.expanduser(source))
    if not os.path.exists(path) and _HUB_NAME.fullmatch(str(source)):
        path = _download(str(source))
    if not os.path.isdir(path):  # false for names that no folder can have, too
        raise UserError(f"no model {source}: give a run's folder, an exported one, or owner/name.")
    if (path / "run.json").exists() or (path / "checkpoints").exists():
        return load_run(path, step, mesh=mesh)
    if step is not None:
        raise UserError(f"step = {step}: {path} is an exported model, which has one step only.")
    return read_model(path, mesh)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"no folder {name}; to fetch it from the Hub, pip install huggingface_hub."
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no folder {name}, and the Hub does not give it: {reason}") from error


def read_config(folder: Path) -> dict:
    """What ``config.json`` of an exported model holds, its kinds of values checked.

    Raises:
      UserError: it is missing, damaged, or of something else.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} is no exported model: {CONFIG} is missing; write one with `ldlm export`."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}); fetch or export it again.") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != MODEL_TYPE:
        raise UserError(
            f"{file}: model_type is {kind!r}, not {MODEL_TYPE!r}; this is a model of another "
            "program. Only folders written by `ldlm export` can be read."
        )
    if config.get("format") != FORMAT:
        raise UserError(
            f"{file}: format {config.get('format')!r} is not {FORMAT}; use the ldlm_jax of "
            f"version {config.get('ldlm_jax')}."
        )
    for name, kind in _FIELDS.items():
        if not isinstance(config.get(name), kind):
            raise UserError(f"{file}: {name} is missing or damaged; fetch or export it again.")
    counts = config["lengths"]
    if not all(isinstance(n, int) and n >= 0 for n in counts):
        raise UserError(f"{file}: lengths must be counts; fetch or export it again.")
    return config


def _read_tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    file = folder / TOKENIZER
    if not file.is_file():
        raise UserError(f"{folder} lacks {TOKENIZER}; fetch or export it again.")
    try:
        tokenizer = Tokenizer.load(file)
    except UserError as error:  # whose advice is for a corpus
        raise UserError(
            f"{file} is damaged ({error.__cause__}); fetch or export it again."
        ) from error
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{file} is not the tokenizer that {CONFIG} names; fetch or export it again."
        )
    return tokenizer


def read_model(folder: Path, mesh: Mesh | None = None) -> LoadedRun:
    """An exported model, its parameters fp32 and on a mesh.

    Raises:
      UserError: a file is missing, damaged or of something else; names it.
    """
    facts = read_config(folder)
    tokenizer = _read_tokenizer(folder, facts["tokenizer"])
    try:
        experiment = experiment_of(facts["experiment"])
    except (UserError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG}: experiment: {error}") from error
    if len(facts["lengths"]) != experiment.data.window + 1:
        raise UserError(
            f"{folder / CONFIG}: lengths has {len(facts['lengths'])} counts where data.window asks "
            f"for {experiment.data.window + 1}; fetch or export it again."
        )
    weights = Safetensors(folder)
    if mesh is None:
        mesh = mesh_for(experiment, tokenizer.vocab_size)
    assembly, abstract = assemble(experiment, tokenizer, facts, folder, mesh)
    wanted = _of_model(abstract.ema, abstract.latents)
    check_tree(weights, wanted, "Fetch or export it again.")
    params = read_tree(weights, wanted)
    stats = params.pop("latents")
    average = AveragedModel(
        step=np.int32(facts["step"]),
        ema=params,
        latents=LatentStats(**stats, updates=np.int32(facts["updates"])),
    )
    return LoadedRun(folder, assembly, average, tokenizer, facts)


def tensor_name(path) -> str:
    """What the tensor at a tree path is called in the files."""
    return ".".join(path_names(path))


def check_tree(weights: Safetensors, abstract: dict, cure: str) -> None:
    """Raise UserError unless the files hold these parameters in these shapes, and no others.

    Args:
      weights: the files.
      abstract: tree of shapes.
      cure: what to do about it, for the message.
    """
    expected = {tensor_name(path): x.shape for path, x in jax.tree.leaves_with_path(abstract)}
    present = weights.names()
    wrong = [f"{name} is missing" for name in sorted(set(expected) - present)]
    wrong += [f"{name} is not known" for name in sorted(present - set(expected))]
    wrong += [
        f"{name} is {weights.shape(name)} where {shape} is expected"
        for name, shape in expected.items()
        if name in present and weights.shape(name) != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{weights.where}: the weights do not fit the config: {'; '.join(wrong[:3])}{more}. "
            + cure
        )


def read_tree(weights: Safetensors, abstract: dict) -> dict:
    """Parameters of these shapes and shardings; each shard of each is read by itself."""

    def read(path, x):
        name = tensor_name(path)
        return jax.make_array_from_callback(
            x.shape, x.sharding, lambda part: weights.read(name, part).astype(x.dtype)
        )

    return jax.tree.map_with_path(read, abstract)


class WarmStart:
    """The weights of an exported model, with which a training begins."""

    def __init__(self, source: str, tokenizer: Tokenizer, params: dict):
        """Check that they fit.

        Args:
          source: the exported model's folder.
          tokenizer: of the training's data.
          params: of the training, as shapes; a projection to a teacher is not of the model.

        Raises:
          UserError: the model has another tokenizer, or parameters of other shapes.
        """
        folder = local_path(str(source))
        facts = read_config(folder)
        if facts["tokenizer"] != tokenizer.fingerprint:
            raise UserError(
                f"--init {source}: the data has another tokenizer; set data.tokenizer={source}."
            )
        self._updates, self._weights = facts["updates"], Safetensors(folder)
        channels = facts["experiment"].get("text_vae", {}).get("latent_channels")
        shape = jax.ShapeDtypeStruct((channels,), jnp.float32)
        wanted = _of_model(params, LatentStats(shape, shape, None))
        cure = "Train with the sections text_vae, dit and diffusion of its config.json."
        check_tree(self._weights, wanted, cure)

    def apply(self, state: TrainState) -> TrainState:
        """A fresh state with these weights; the optimizer, and a projection, stay as they are."""
        params = read_tree(self._weights, _of_model(state.params, state.latents))
        latents = state.latents.replace(**params.pop("latents"))
        latents = latents.replace(updates=latents.updates + self._updates)
        params = state.params | params
        # The averaged parameters are arrays of their own: a step uses up what it is given.
        return state.replace(params=params, ema=jax.tree.map(jnp.copy, params), latents=latents)


def _of_model(params: dict, stats: LatentStats) -> dict:
    """The tensors that an exported model holds, as a tree."""
    own = {name: tree for name, tree in params.items() if name != "align"}
    return own | {"latents": {"mean_D": stats.mean_D, "var_D": stats.var_D}}
