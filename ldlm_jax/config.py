"""A config is data: a Python file whose ``get_config()`` returns sections of plain values.

Every section is splatted into the dataclass or module that uses it, so an unknown key is an error
that names the section and the known keys. What a value may be is declared by its field's type and
checked by ``validate``.
"""

import ast
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldlm_jax.data.dataset import DataConfig
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.losses.alignment import IN_DIT, AlignmentConfig
from ldlm_jax.losses.autoencoder import AutoencodingConfig
from ldlm_jax.models.dit import DiT
from ldlm_jax.models.networks import Networks, Projection
from ldlm_jax.models.text_vae import TextVAE
from ldlm_jax.optimizer import OptimizerConfig, make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.phases import Phase, check_phases
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.settings.config_file import read_values
from ldlm_jax.settings.old_names import modern, token_weights
from ldlm_jax.teachers.backbone import Backbone, BackboneConfig, LoadedBackbone, load_backbone
from ldlm_jax.teachers.loader import LoadedTeacher
from ldlm_jax.teachers.teacher import TeacherConfig
from ldlm_jax.train_step import Frozen, Recipe
from ldlm_jax.validate import (
    Count,
    Natural,
    NotNegative,
    check_sections,
    check_settings,
    is_tuple,
)


@dataclass(frozen=True)
class TrainConfig:
    """The run.

    Attributes:
      num_steps: steps of training.
      batch_size: rows a step, over all devices.
      microbatches: parts into which a batch is cut inside the step, to save memory.
      logit_chunks: parts of a row whose tokens are scored one after the other, so that logits of a
        whole row never exist at once; for large vocabularies.
      seed: the one seed of the run (initialisation, noise, masks, times).
      log_every: steps between metric lines.
      eval_every: steps between evaluations; the last step always evaluates.
      eval_batches: batches of the validation split in an evaluation.
      evals: evaluators by name, see ``evals.REGISTRY``.
      eval_samples: texts that an evaluation within training generates at each number of steps.
      eval_steps: numbers of denoising steps at which it generates them.
      checkpoint_every: steps between checkpoints; the last step always saves.
      keep_last: checkpoints kept.
      keep_every: additionally keep every checkpoint at a multiple of this; 0 keeps none.
      best_metric: evaluation metric (lower is better) whose best checkpoint is also kept;
        empty for none.
      profile_step: capture a profile into the run's folder from this step on; -1 for none. The
        signal SIGUSR1 does so at any time.
      profile_steps: steps in a profile.
      profile_slow: capture one, once, after a step that took this many times the usual; 0 never.
      stall_timeout: seconds without a finished step, evaluation or checkpoint after which the run
        ends with the stacks of all threads; 0 waits for ever.
    """

    num_steps: Count = 1000
    batch_size: Annotated[int, "[1, 16777216]"] = 64
    microbatches: Count = 1
    logit_chunks: Count = 1
    seed: Annotated[int, "[-2147483648, 4294967295]"] = 0  # jax takes 32 bits of it, in silence
    log_every: Count = 50
    eval_every: Count = 500
    eval_batches: Count = 4
    evals: tuple[str, ...] = ("reconstruction", "denoising", "samples")
    eval_samples: Annotated[int, "[1, 1000000]"] = 16
    eval_steps: Annotated[tuple[int, ...], "[1, 10000]"] = (5, 20)
    checkpoint_every: Count = 500
    keep_last: Count = 2
    keep_every: Natural = 0
    best_metric: str = ""
    profile_step: int = -1
    profile_steps: Count = 3
    profile_slow: NotNegative = 0.0
    stall_timeout: NotNegative = 3600.0


SECTIONS = {
    "data": DataConfig,
    "text_vae": TextVAE,
    "dit": DiT,
    "autoencoding": AutoencodingConfig,
    "diffusion": DiffusionConfig,
    "optim": OptimizerConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
    "mesh": MeshConfig,
    "sharding": AxisRules,
    "teacher": TeacherConfig,
    "alignment": AlignmentConfig,
    "backbone": BackboneConfig,
}
# Set from elsewhere, so not keys of their section.
_DERIVED = {
    "text_vae": {"vocab_size", "backbone"},
    "dit": {"latent_channels", "hidden_layer"},
}
_FLAX_FIELDS = {"name", "parent"}

# ---------------------------------------------------------------------------- reading


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


def load_config(path: str | dict | None, overrides: list[str] = ()) -> ConfigDict:
    """Read a config file (``.py``, or the ``.json`` beside a run) and apply overrides.

    Args:
      path: the file, its values by section, or None for the defaults.
      overrides: ``section.key=value`` strings, or ``phases.N.key=value`` of the phase of that
        number (-1 is the last); values are Python literals or bare words.

    Raises:
      UserError: no such file, or an unknown section, key or phase.
    """
    config = default_config()
    given = read_values(Path(path)) if isinstance(path, (str, Path)) else path or {}
    # An old key of the section diffusion is one of the phases now, which must be there first.
    for section in sorted(given, key=lambda section: section == "diffusion"):
        _merge(config, section, given[section])
    for override in sorted(overrides, key=lambda text: text.startswith("diffusion.token_loss=")):
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not equals or (not dot and key != "phases"):
            raise UserError(f"override {override!r}: write section.key=value.")
        text, value = value, literal(value)
        if _is_text(section, name) and not isinstance(value, str):
            value = text
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


def _merge(config: ConfigDict, section: str, values) -> None:
    if section == "phases":
        if not isinstance(values, (list, tuple)) or not all(map(_is_section, values)):
            raise UserError(f"phases = {values!r}: give a list of phases, each {{'key': value}}.")
        phases = (modern("phases", dict(phase)) for phase in values)
        config.phases = tuple(phase["phases"] for phase in phases)
        return
    if not _is_section(values):
        raise UserError(f"config section {section!r} is {values!r}: give {{'key': value}}.")
    for section, values in modern(section, dict(values)).items():  # noqa: B020, PLR1704
        if section == "phases":  # what was one value is one of each
            config.phases = tuple(token_weights(config.phases, **values))
            continue
        if section not in SECTIONS:
            if not values:  # a section that is gone, with nothing in it that counts
                continue
            known = did_you_mean(section, [*SECTIONS, "phases"])
            raise UserError(f"unknown config section {section!r}: {known}")
        for key, value in values.items():
            if key not in known_keys(section):
                raise UserError(
                    f"unknown config key {section}.{key}: {did_you_mean(key, known_keys(section))}"
                )
            try:
                config[section][key] = value
            except OverflowError as error:  # it compares numbers as floats
                raise UserError(f"{section}.{key}: {error}.") from error


def _is_section(values) -> bool:
    return isinstance(values, (dict, ConfigDict)) and all(isinstance(key, str) for key in values)


def _is_text(section: str, key: str) -> bool:
    """Whether a setting holds text, so that `2024` is a name and no number."""
    fields = dataclasses.fields(SECTIONS[section]) if section in SECTIONS else ()
    return any(field.name == key and field.type is str for field in fields)


def literal(text: str):
    """A value as an override spells it; words need no quotes."""
    try:
        return ast.literal_eval(text)
    # Of odd texts the parser also says that they hold a key twice over, or nest too deep.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def save_config(config: ConfigDict, path: Path) -> None:
    """Write the resolved config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


# ---------------------------------------------------------------------------- resolving


@dataclass(frozen=True)
class Experiment:
    """A config whose every value has been checked, as the objects that use them."""

    data: DataConfig
    text_vae: dict
    dit: dict
    autoencoding: AutoencodingConfig
    diffusion: DiffusionConfig
    optim: OptimizerConfig
    train: TrainConfig
    sample: SampleConfig
    mesh: MeshConfig
    sharding: AxisRules
    teacher: TeacherConfig
    alignment: AlignmentConfig
    backbone: BackboneConfig
    phases: tuple[Phase, ...]

    @property
    def aligned(self) -> bool:
        """Whether any phase aligns latents with a teacher."""
        return any(phase.has("alignment") for phase in self.phases)

    def networks(
        self, vocab_size: int, teacher_width: int = 0, backbone: Backbone | None = None
    ) -> Networks:
        """The networks; without a teacher's width they hold no projection to it."""
        vae = TextVAE(vocab_size=vocab_size, backbone=backbone, **self.text_vae)
        site = self.alignment.site if self.aligned else ""
        hidden_layer = self.alignment.block if site in IN_DIT else 0
        dit = DiT(vae.latent_channels, hidden_layer=hidden_layer, **self.dit)
        has_prior = self.diffusion.next_token_prior > 0
        if not teacher_width:
            return Networks(vae, dit, has_prior=has_prior)
        widths = {"encoder": vae.width, "latents": vae.latent_channels}
        align = Projection(teacher_width, self.alignment.projection)
        return Networks(vae, dit, align, widths.get(site, dit.width), has_prior)

    def recipe(self, networks: Networks, teacher=None) -> Recipe:
        """What the train step depends on."""
        return Recipe(
            networks, self.autoencoding, self.diffusion, self.optim, self.alignment, teacher,
            self.train.microbatches, self.train.logit_chunks,
        )  # fmt: skip


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
        for field in dataclasses.fields(cls):  # one word, or number, is a tuple of one
            if is_tuple(field.type) and isinstance(values.get(field.name), (str, int)):
                values[field.name] = (values[field.name],)
        check_settings(section, cls, values)
        built[section] = values if section in _DERIVED else cls(**values)
    phases = []
    known = {f.name for f in dataclasses.fields(Phase)}
    for number, phase in enumerate(config.phases):
        for key in phase:
            if key not in known:
                raise UserError(
                    f"unknown config key phases[{number}].{key}: {did_you_mean(key, known)}"
                )
        check_settings(f"phases[{number}]", Phase, phase)
        phases.append(Phase(**phase))
    check_phases(tuple(phases))
    experiment = Experiment(**built, phases=tuple(phases))
    check_sections(experiment)
    return experiment


@dataclass(frozen=True)
class Assembly:
    """All that a config names, made for a mesh: for training, for sampling, or only as shapes."""

    experiment: Experiment
    mesh: Mesh
    recipe: Recipe
    optimizer: optax.GradientTransformation
    frozen: Frozen
    backbone: LoadedBackbone

    @property
    def networks(self) -> Networks:
        """The networks."""
        return self.recipe.networks


def build(
    experiment: Experiment,
    mesh: Mesh,
    vocab_size: int,
    teacher: LoadedTeacher | None = None,
    abstract: bool = False,
) -> Assembly:
    """Make what a config names.

    Args:
      experiment: the config.
      mesh: of the devices, present or not.
      vocab_size: tokens of the tokenizer.
      teacher: the run's teacher; None where nothing is aligned, or to sample.
      abstract: weights of a backbone as shapes only.

    Raises:
      UserError: the backbone is not usable.
    """
    backbone = load_backbone(experiment.backbone, mesh, experiment.sharding, abstract)
    width = teacher.width if teacher else 0
    networks = experiment.networks(vocab_size, width, backbone.backbone)
    recipe = experiment.recipe(networks, teacher.teacher if teacher else None)
    optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
    frozen = Frozen(teacher.params if teacher else None, backbone.weights)
    return Assembly(experiment, mesh, recipe, optimizer, frozen, backbone)
