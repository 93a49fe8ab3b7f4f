"""The folder of a run: config, tokenizer, facts about the data, metrics and checkpoints.

``ldlm sample`` and ``ldlm eval`` need nothing else.
"""

import contextlib
import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from ldlm_jax import version_of
from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import Assembly, Experiment, build, load_config, resolve, save_config
from ldlm_jax.data.stamped import check_version
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.models.networks import with_backbone
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import batch_sharding, replicated, use_sharding
from ldlm_jax.phases import first_difference
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.train_state import AveragedModel, abstract_average
from ldlm_jax.validate import local_path

# What may differ when a run is resumed: none of it changes what was learned so far.
_RESUMABLE = {
    "sample": None,
    "mesh": None,
    "sharding": None,
    "train": {"num_steps", "microbatches", "logit_chunks", "log_every", "eval_every",
              "eval_batches", "eval_samples", "eval_steps", "evals", "checkpoint_every",
              "keep_last", "keep_every", "best_metric", "profile_step", "profile_steps",
              "profile_slow", "stall_timeout"},
    "data": {"root"},
}  # fmt: skip

# Of what lies in a run's folder; a folder without a number is of the first.
FORMAT = 1

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
class Workdir:
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

    @contextlib.contextmanager
    def exclusive(self):
        """Hold the folder for a training; the hold ends with the process, however that ends.

        Raises:
          UserError: another process holds it; names that.
        """
        with (self.path / "lock").open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise UserError(
                    f"{self.path}: {lock.read().strip()} is training there; wait for it, or use "
                    "another --workdir."
                ) from error
            except OSError:  # a file system without locks
                yield
                return
            lock.truncate(0)
            lock.write(f"process {os.getpid()} of {socket.gethostname()}\n")
            lock.flush()
            yield

    def start(self, config: ConfigDict, tokenizer: Tokenizer, facts: dict) -> None:
        """Write what lies beside the checkpoints, or check that it is what lies there.

        Raises:
          UserError: the folder holds another run, or cannot be written.
        """
        if self.config.exists():
            self._check_same(config, tokenizer, facts)
            return
        facts = {
            "format": FORMAT,
            "tokenizer": tokenizer.fingerprint,
            **facts,
            "versions": {name: version_of(name) for name in _PACKAGES},
        }
        with self._written():
            self.path.mkdir(parents=True, exist_ok=True)
            tokenizer.save(self.tokenizer)
            self.facts.write_text(json.dumps(facts) + "\n")
            save_config(config, self.config)

    def record(self, config: ConfigDict) -> None:
        """Write down what the run goes on with, once ``start`` has allowed it and it is ours."""
        new = self.config.with_suffix(".json.new")
        with self._written():
            save_config(config, new)
            new.replace(self.config)

    @contextlib.contextmanager
    def _written(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.path}: {error.strerror}."
            ) from error

    def _check_same(self, config: ConfigDict, tokenizer: Tokenizer, facts: dict) -> None:
        recorded = load_config(str(self.config))
        was, now = (json.loads(json.dumps(of.to_dict())) for of in (recorded, config))
        for section, values in now.items():
            free = _RESUMABLE.get(section, set())
            if free is None or values == was.get(section):
                continue
            if section == "phases":
                self._check_phases(recorded, config)
                continue
            for key, value in values.items():
                if key not in free and value != was[section].get(key):
                    raise self._other(
                        f"{section}.{key} was {was[section].get(key)!r}, is {value!r}"
                    )
        known = self._read_facts()
        if known["tokenizer"] != tokenizer.fingerprint:
            raise self._other("it was trained with another tokenizer")
        if _backbone_of(known) != facts["backbone"]:
            raise self._other("the files of its backbone.model were others")

    def _check_phases(self, recorded: ConfigDict, config: ConfigDict) -> None:
        """What is still to come may change; what was learned so far stays as it was learned."""
        was, now = (resolve(of).phases for of in (recorded, config))
        steps = [int(p.name) for p in self.checkpoints.glob("[0-9]*") if p.name.isdigit()]
        step = first_difference(was, now)
        if steps and step is not None and step < max(steps):
            raise self._other(
                f"phases differ at step {step}, and step {max(steps)} is trained already; those of "
                "later steps may differ"
            )

    def _read_facts(self) -> dict:
        """What ``start`` wrote.

        Raises:
          UserError: it is damaged, or of a newer version.
        """
        try:
            facts = json.loads(self.facts.read_text(encoding="utf-8"))
            found, _ = facts.get("format", 1), facts["tokenizer"]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{self.facts} cannot be read: the folder is damaged.") from error
        check_version(self.path, found, FORMAT)
        return facts

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
        facts, tokenizer = self._read_facts(), Tokenizer.load(self.tokenizer)
        experiment = resolve(load_config(str(self.config)))
        if tokenizer.fingerprint != facts["tokenizer"]:
            raise UserError(
                f"{self.tokenizer} is not the tokenizer this run was trained with; put the "
                "original back."
            )
        return experiment, tokenizer, facts


def _backbone_of(facts: dict) -> str:
    # "foundation" in runs of the release before.
    return facts.get("backbone", facts.get("foundation", ""))


@dataclass(frozen=True)
class LoadedRun:
    """A run, or an exported model, read back: all that sampling and evaluation need.

    Attributes:
      path: its folder.
      assembly: what its config names, on the mesh of this process.
      average: averaged parameters and latent statistics.
      tokenizer: of the run.
      facts: what lies beside the checkpoints.
    """

    path: Path
    assembly: Assembly
    average: AveragedModel
    tokenizer: Tokenizer
    facts: dict

    @property
    def experiment(self) -> Experiment:
        """The run's config."""
        return self.assembly.experiment

    @property
    def generator(self) -> Generator:
        """The averaged model, ready to generate."""
        params = with_backbone(self.average.ema, self.assembly.frozen.backbone)
        return Generator(
            self.assembly.networks, self.experiment.diffusion, params, self.average.latents,
            self.tokenizer, tuple(self.facts["lengths"]),
        )  # fmt: skip

    def use_sharding(self):
        """What is compiled inside is split over the mesh of this process."""
        return use_sharding(self.assembly.mesh, self.experiment.sharding)

    def batch_rows(self, rows: int) -> tuple[int, NamedSharding]:
        """At most so many rows, as divide among the devices, and how they are split; whole on each
        device where they are fewer than the devices."""
        sharding = batch_sharding(self.assembly.mesh, self.experiment.sharding)
        parts = sharding.num_devices
        if rows % parts:
            return rows, replicated(self.assembly.mesh)
        return rows, sharding


def experiment_of(values: dict) -> Experiment:
    """The experiment of a config's values by section."""
    return resolve(load_config(values))


def assemble(
    experiment: Experiment, tokenizer: Tokenizer, facts: dict, where: Path, mesh: Mesh
) -> tuple[Assembly, AveragedModel]:
    """What a run's config names, on a mesh, and its averaged model as shapes with shardings.

    Args:
      experiment: its config.
      tokenizer: its tokenizer.
      facts: what lies beside its weights.
      where: its folder, for messages.
      mesh: where to.

    Raises:
      UserError: its backbone is gone, or another one.
    """
    assembly = build(experiment, mesh, tokenizer.vocab_size)
    if assembly.backbone.checksum != _backbone_of(facts):
        raise UserError(
            f"{where} was trained with other files of backbone.model = "
            f"{experiment.backbone.model!r}; put the original back."
        )
    window = experiment.data.window
    return assembly, abstract_average(assembly.networks, window, mesh, experiment.sharding)


def mesh_for(experiment: Experiment, vocab_size: int, devices: list | None = None) -> Mesh:
    """A mesh to sample on: each device holds a share of the parameters, or all where they do not
    divide.

    Args:
      experiment: the config.
      vocab_size: tokens of the tokenizer.
      devices: which to use; all of this process by default.
    """
    devices = jax.local_devices() if devices is None else devices
    split = make_mesh(MeshConfig(data=1, fsdp=-1), devices)
    networks = experiment.networks(vocab_size)
    try:
        abstract_average(networks, experiment.data.window, split, experiment.sharding)
    except UserError:
        return make_mesh(MeshConfig(), devices)
    return split


def load_run(
    path: str | Path,
    step: int | None = None,
    devices: list | None = None,
    mesh: Mesh | None = None,
) -> LoadedRun:
    """Read a run: its newest readable checkpoint, or the one of a step.

    Of the checkpoint the averaged parameters alone are read, onto the devices of this process: the
    run may have been trained on any others.

    Args:
      path: the run's folder.
      step: a certain step instead of the newest.
      devices: which to use; all by default.
      mesh: where to, instead of one over the devices.

    Raises:
      UserError: no run folder, no checkpoint, or none that can be read; or its backbone is gone.
    """
    workdir = Workdir(local_path(str(path)))
    experiment, tokenizer, facts = workdir.open()
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{workdir.path} has no checkpoint yet; train it first.")
    if mesh is None:
        mesh = mesh_for(experiment, tokenizer.vocab_size, devices)
    assembly, abstract = assemble(experiment, tokenizer, facts, workdir.path, mesh)
    checkpoints = Checkpoints(workdir.checkpoints)
    average = checkpoints.restore(abstract, step)
    checkpoints.close()
    if average is None:
        raise UserError(f"{workdir.path} has no checkpoint yet; train it first.")
    return LoadedRun(workdir.path, assembly, average, tokenizer, facts)
