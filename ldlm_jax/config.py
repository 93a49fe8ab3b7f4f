"""A config is data: a Python file whose ``get_config()`` returns sections of plain values.

Every section is splatted into the dataclass or module that uses it, so an unknown key is an error
that names the section and the known keys, and a value is checked where it is used.
"""

import ast
import dataclasses
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from ldlm_jax.data.dataset import DataConfig
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError, did_you_mean, fits_type
from ldlm_jax.losses.alignment import IN_DIT, AlignmentConfig, Projection
from ldlm_jax.losses.autoencoder import AutoencodingConfig
from ldlm_jax.models.dit import DiT
from ldlm_jax.models.text_vae import TextVAE
from ldlm_jax.optimizer import OptimConfig
from ldlm_jax.parallel.mesh import MeshConfig
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.phases import Phase, check_phases
from ldlm_jax.sampling.request import SampleConfig
from ldlm_jax.teachers.backbone import Foundation, FoundationConfig
from ldlm_jax.teachers.teacher import PretrainedTeacher, TeacherConfig
from ldlm_jax.train_state import Models
from ldlm_jax.train_step import Recipe
from ldlm_jax.validate import check_shapes


@dataclass(frozen=True)
class TrainConfig:
    """The run.

    Attributes:
      num_steps: steps of training.
      batch_size: rows a step, over all devices.
      microbatches: parts into which a batch is cut inside the step, to save memory.
      logit_parts: parts of a row whose tokens are scored one after the other, so that logits of a
        whole row never exist at once; for large vocabularies.
      seed: the one seed of the run (initialisation, noise, masks, times).
      log_every: steps between metric lines.
      eval_every: steps between evaluations; the last step always evaluates.
      eval_batches: batches of the validation split in an evaluation.
      evals: evaluators by name, see ``evals.REGISTRY``.
      checkpoint_every: steps between checkpoints; the last step always saves.
      keep_last: checkpoints kept.
      keep_every: additionally keep every checkpoint at a multiple of this; 0 keeps none.
      best_metric: evaluation metric (lower is better) whose best checkpoint is also kept;
        empty for none.
      profile_step: capture a profile into the run's folder from this step on; -1 for none. The
        signal SIGUSR1 does so at any time.
      profile_steps: steps in a profile.
      profile_slow: capture one, once, after a step that took this many times the usual; 0 never.
    """

    num_steps: int = 1000
    batch_size: int = 64
    microbatches: int = 1
    logit_parts: int = 1
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    eval_batches: int = 4
    evals: tuple[str, ...] = ("reconstruction", "denoising", "samples")
    checkpoint_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    best_metric: str = ""
    profile_step: int = -1
    profile_steps: int = 3
    profile_slow: float = 0.0

    def __post_init__(self):
        positive = ("num_steps", "batch_size", "microbatches", "logit_parts", "log_every",
                    "eval_every", "eval_batches", "checkpoint_every", "keep_last",
                    "profile_steps")  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} = {getattr(self, name)}: must be at least 1.")
        if self.batch_size % self.microbatches:
            raise UserError(
                f"train.microbatches = {self.microbatches} must divide "
                f"train.batch_size = {self.batch_size}."
            )


SECTIONS = {
    "data": DataConfig,
    "text_vae": TextVAE,
    "dit": DiT,
    "autoencoding": AutoencodingConfig,
    "diffusion": DiffusionConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
    "mesh": MeshConfig,
    "sharding": AxisRules,
    "teacher": TeacherConfig,
    "alignment": AlignmentConfig,
    "foundation": FoundationConfig,
}
# Set from elsewhere, so not keys of their section.
_DERIVED = {
    "text_vae": {"vocab_size", "foundation"},
    "dit": {"latent_channels", "tap", "foresight"},
}
_FLAX_FIELDS = {"name", "parent"}


def known_keys(section: str) -> set[str]:
    """The keys a section may have."""
    fields = {f.name for f in dataclasses.fields(SECTIONS[section]) if f.init}
    flax_fields = _FLAX_FIELDS if section in _DERIVED else set()
    return fields - _DERIVED.get(section, set()) - flax_fields


def default_config() -> ConfigDict:
    """All sections with their defaults, and one phase."""
    config = ConfigDict()
    for section, cls in SECTIONS.items():
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.init}
        # Types are checked by resolve(), which knows that a number may be None or whole.
        config[section] = ConfigDict(
            {k: defaults[k] for k in sorted(known_keys(section))}, type_safe=False
        )
    config.phases = ({},)
    return config


def load_config(path: str | None, overrides: list[str] = ()) -> ConfigDict:
    """Read a config file (``.py``, or the ``.json`` beside a run) and apply overrides.

    Args:
      path: the file, or None for the defaults.
      overrides: ``section.key=value`` strings, or ``phases.N.key=value`` of the phase of that
        number (-1 is the last); values are Python literals or bare words.

    Raises:
      UserError: no such file, or an unknown section, key or phase.
    """
    config = default_config()
    given = _read(Path(path)) if path is not None else {}
    for section, values in dict(given).items():
        _merge(config, section, values)
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not equals or (not dot and key != "phases"):
            raise UserError(f"override {override!r}: write section.key=value.")
        value = literal(value)
        if dot:
            of_phases = section == "phases"
            value = _change_phase(config.phases, name, value) if of_phases else {name: value}
        _merge(config, section, value)
    return config.lock()


def _change_phase(phases, place: str, value) -> list[dict]:
    """The phases with one value changed, at ``place`` (``N.key``)."""
    changed = [dict(phase) for phase in phases]
    number, _, key = place.partition(".")
    try:
        changed[int(number)][key] = value
    except (ValueError, IndexError):
        raise UserError(
            f"phases.{place}: write phases.N.key=value, with N from 0 to {len(changed) - 1}, or -1 "
            "for the last phase."
        ) from None
    return changed


def _read(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"no config file {file}; see configs/ for examples.")
    if file.suffix == ".json":
        return json.loads(file.read_text())
    spec = importlib.util.spec_from_file_location("ldlm_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file}: a config file defines get_config().")
    return module.get_config()


def _merge(config: ConfigDict, section: str, values) -> None:
    if section == "phases":
        config.phases = tuple(dict(phase) for phase in values)
        return
    if section not in SECTIONS:
        raise UserError(
            f"unknown config section {section!r}: {did_you_mean(section, [*SECTIONS, 'phases'])}"
        )
    for key, value in dict(values).items():
        if key not in known_keys(section):
            raise UserError(
                f"unknown config key {section}.{key}: {did_you_mean(key, known_keys(section))}"
            )
        config[section][key] = value


def literal(text: str):
    """A value as an override spells it; words need no quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True)
class Experiment:
    """A config whose every value has been checked, as the objects that use them."""

    data: DataConfig
    text_vae: dict
    dit: dict
    autoencoding: AutoencodingConfig
    diffusion: DiffusionConfig
    optim: OptimConfig
    train: TrainConfig
    sample: SampleConfig
    mesh: MeshConfig
    sharding: AxisRules
    teacher: TeacherConfig
    alignment: AlignmentConfig
    foundation: FoundationConfig
    phases: tuple[Phase, ...]

    @property
    def aligned(self) -> bool:
        """Whether any phase aligns latents with a teacher."""
        return any(phase.has("alignment") for phase in self.phases)

    def models(
        self, vocab_size: int, teacher_width: int = 0, foundation: Foundation | None = None
    ) -> Models:
        """The networks."""
        vae = TextVAE(vocab_size=vocab_size, foundation=foundation, **self.text_vae)
        site = self.alignment.site if self.aligned else ""
        tap = self.alignment.block if site in IN_DIT else 0
        foresight = self.diffusion.foresight > 0
        dit = DiT(vae.latent_channels, tap=tap, foresight=foresight, **self.dit)
        if not self.aligned:
            return Models(vae, dit)
        widths = {"encoder": vae.width, "latents": vae.latent_channels}
        aligned = Projection(teacher_width, self.alignment.projection)
        return Models(vae, dit, aligned, widths.get(site, dit.width))

    def recipe(self, models: Models, teacher: PretrainedTeacher | None = None) -> Recipe:
        """What the train step depends on."""
        return Recipe(
            models, self.autoencoding, self.diffusion, self.optim, self.alignment, teacher,
            self.train.microbatches, self.train.logit_parts,
        )  # fmt: skip


_TYPES = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}


def _check_types(section: str, cls, values: dict) -> None:
    for field in dataclasses.fields(cls):
        want, value = field.type, values.get(field.name)
        if field.name not in values or want not in _TYPES:
            continue
        if not fits_type(value, want):
            raise UserError(f"{section}.{field.name} = {value!r}: must be {_TYPES[want]}.")


def resolve(config: ConfigDict) -> Experiment:
    """Build and check every part of a config.

    Raises:
      UserError: a value has the wrong type or is impossible; the message names key and fix.
    """
    built = {}
    for section, cls in SECTIONS.items():
        values = {
            k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config[section].items()
        }
        _check_types(section, cls, values)
        built[section] = values if section in _DERIVED else cls(**values)
    phases = []
    for number, phase in enumerate(config.phases):
        values = dict(phase)
        known = {f.name for f in dataclasses.fields(Phase)}
        for key in values:
            if key not in known:
                raise UserError(
                    f"unknown config key phases[{number}].{key}: {did_you_mean(key, known)}"
                )
        phases.append(Phase(**values))
    check_phases(tuple(phases))
    experiment = Experiment(**built, phases=tuple(phases))
    check_shapes(experiment)
    return experiment


def save_config(config: ConfigDict, path: Path) -> None:
    """Write the resolved config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
