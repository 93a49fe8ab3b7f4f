"""The folder of a run: config, tokenizer, facts about the data, metrics and checkpoints.

``ldlm sample`` and ``ldlm eval`` need nothing else.
"""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import Experiment, load_config, resolve, save_config
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.sampling.generate import Writer
from ldlm_jax.teachers.backbone import load_foundation
from ldlm_jax.train_state import Models, TrainState, abstract_state

# What may differ when a run is resumed: none of it changes what was learned so far.
_RESUMABLE = {
    "sample": None,
    "mesh": None,
    "sharding": None,
    "train": {"num_steps", "microbatches", "logit_parts", "log_every", "eval_every",
              "eval_batches", "evals", "checkpoint_every", "keep_last", "keep_every",
              "best_metric", "profile_step", "profile_steps", "profile_slow"},
    "data": {"root"},
}  # fmt: skip

_PACKAGES = (
    "ldlm_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths within a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, as JSON."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer."""
        return self.path / "tokenizer.json"

    @property
    def facts(self) -> Path:
        """Tokenizer fingerprint, document lengths, teacher and versions, as JSON."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints by step."""
        return self.path / "checkpoints"

    def start(self, config: ConfigDict, tokenizer: Tokenizer, facts: dict) -> None:
        """Write what lies beside the checkpoints, or check that it is what lies there.

        Raises:
          UserError: the folder holds another run, or cannot be written.
        """
        if self.config.exists():
            self._check_same(config, tokenizer, facts)
            return
        facts = {
            "tokenizer": tokenizer.fingerprint,
            **facts,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tokenizer.save(self.tokenizer)
            self.facts.write_text(json.dumps(facts) + "\n")
            save_config(config, self.config)
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path}: {error.strerror}."
            ) from error

    def _check_same(self, config: ConfigDict, tokenizer: Tokenizer, facts: dict) -> None:
        was = json.loads(self.config.read_text())
        now = json.loads(json.dumps(config.to_dict()))
        for section, values in now.items():
            free = _RESUMABLE.get(section, set())
            if free is None or values == was.get(section):
                continue
            if section == "phases":
                raise self._other("phases differ")
            for key, value in values.items():
                if key not in free and value != was[section].get(key):
                    raise self._other(
                        f"{section}.{key} was {was[section].get(key)!r}, is {value!r}"
                    )
        known = json.loads(self.facts.read_text())
        if known["tokenizer"] != tokenizer.fingerprint:
            raise self._other("it was trained with another tokenizer")
        if known.get("foundation", "") != facts["foundation"]:
            raise self._other("the files of its foundation.model were others")

    def _other(self, why: str) -> UserError:
        return UserError(
            f"{self.path} holds another run ({why}); choose another --workdir, or restore that "
            "value to resume."
        )

    def open(self) -> tuple[Experiment, Tokenizer, dict]:
        """Config, tokenizer and facts of a run.

        Raises:
          UserError: this is no run folder, or its parts do not belong together.
        """
        for file in (self.config, self.tokenizer, self.facts):
            if not file.is_file():
                raise UserError(f"{self.path} is no run folder: {file.name} is missing.")
        try:
            facts = json.loads(self.facts.read_text())
            tokenizer = Tokenizer.load(self.tokenizer)
            experiment = resolve(load_config(str(self.config)))
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(
                f"{self.path}: {error} in its JSON files; the folder is damaged."
            ) from error
        if tokenizer.fingerprint != facts["tokenizer"]:
            raise UserError(
                f"{self.tokenizer} is not the tokenizer this run was trained with; put the "
                "original back."
            )
        return experiment, tokenizer, facts


@dataclass(frozen=True)
class LoadedRun:
    """A run read back: everything that sampling and evaluation need."""

    experiment: Experiment
    models: Models
    state: TrainState
    tokenizer: Tokenizer
    facts: dict
    foundation: dict | None = None

    @property
    def writer(self) -> Writer:
        """The averaged model, ready to write."""
        return Writer.of(
            self.models, self.experiment.diffusion, self.state,
            self.tokenizer, self.facts["lengths"], self.foundation,
        )  # fmt: skip


def load_run(path: str | Path, step: int | None = None) -> LoadedRun:
    """Read a run folder; its newest readable checkpoint, or the one of a step.

    Raises:
      UserError: no run folder, no checkpoint, or none that can be read; or its foundation is gone.
    """
    folder = RunFolder(Path(path))
    experiment, tokenizer, facts = folder.open()
    optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
    # Sampling is done on one device; training may have used any number.
    mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    founded = load_foundation(experiment.foundation, mesh, experiment.sharding)
    if founded.fingerprint != facts.get("foundation", ""):
        raise UserError(
            f"{folder.path} was trained with other files of foundation.model = "
            f"{experiment.foundation.model!r}; put the original back."
        )
    models = experiment.models(tokenizer.vocab_size, facts["teacher_width"], founded.foundation)
    window = experiment.data.window
    abstract = abstract_state(models, optimizer, window, mesh, experiment.sharding)
    if not folder.checkpoints.is_dir():
        raise UserError(f"{folder.path} has no checkpoint yet; train it first.")
    checkpoints = Checkpoints(folder.checkpoints)
    state = checkpoints.restore(abstract, step)
    checkpoints.close()
    if state is None:
        raise UserError(f"{folder.path} has no checkpoint yet; train it first.")
    return LoadedRun(experiment, models, state, tokenizer, facts, founded.weights)
