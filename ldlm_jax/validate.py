"""What a config may hold: declared types of settings, one checker, and rules between sections.

A setting declares what it may be by its type: ``Literal["x", "v"]`` for a choice, ``Annotated[int,
"[1, inf)"]`` for an interval; ``float`` alone takes any finite number.
"""

import dataclasses
import math
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from ldlm_jax.errors import UserError
from ldlm_jax.settings.paths import (  # noqa: F401  (rooms take them here)
    finite_file,
    local_path,
    output_file,
)

Share = Annotated[float, "[0, 1]"]
Positive = Annotated[float, "(0, inf)"]
NotNegative = Annotated[float, "[0, inf)"]
Count = Annotated[int, "[1, inf)"]
Natural = Annotated[int, "[0, inf)"]

# Whole numbers have 64 bits; numbers end up in fp32, where larger ones are infinite.
_LARGEST, _LARGEST_FLOAT = 2**63, 3.4e38

_NAMES = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}


def check_settings(section: str, kind: type, values: dict[str, Any]) -> None:
    """Raise UserError unless every value is what its field of a dataclass declares.

    Args:
      section: named before each key; empty for none.
      kind: the dataclass.
      values: by field name.
    """
    for field in dataclasses.fields(kind):
        if field.name in values:
            key = f"{section}.{field.name}" if section else field.name
            check_value(key, field.type, values[field.name])


def check_value(key: str, declared, value) -> None:
    """Raise UserError, naming the key and the fix, unless a value is of a declared type."""
    if get_origin(declared) is Literal:
        if value not in get_args(declared):
            known = ", ".join(map(repr, get_args(declared)))
            raise UserError(f"{key} = {value!r}: choose one of {known}.")
        return
    interval = ""
    if get_origin(declared) is Annotated:
        declared, interval = get_args(declared)
    if get_origin(declared) is tuple:
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{key} = {value!r}: give several, as ('a', 'b') or (1, 2).")
        of = get_args(declared)[0]
        for item in value:
            check_value(key, Annotated[of, interval] if interval else of, item)
        return
    if get_origin(declared) is UnionType:
        kinds = [kind for kind in get_args(declared) if kind is not type(None)]
        if value is None or len(kinds) > 1:
            return
        declared = kinds[0]
    if declared not in _NAMES:
        return
    if not fits_type(value, declared):
        raise UserError(f"{key} = {value!r}: must be {_NAMES[declared]}.")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise UserError(f"{key} = {str(value)[:20]}...: at most 64 bits are kept of a number.")
    if declared is float and not abs(value) <= _LARGEST_FLOAT:
        raise UserError(f"{key} = {value!r}: must be a finite number.")
    if interval and not _inside(value, interval):
        raise UserError(f"{key} = {value!r}: must be {_spelled(interval)}.")


def check_flags(args, declared: dict[str, Any]) -> None:
    """Raise UserError unless each flag of a command line that was given is what it may be.

    Args:
      args: what argparse made of it.
      declared: types by the flag's name as an attribute, see ``check_value``.
    """
    for name, kind in declared.items():
        if getattr(args, name) is not None:
            check_value(f"--{name.replace('_', '-')}", kind, getattr(args, name))


def is_tuple(declared) -> bool:
    """Whether a field's type is a tuple, with an interval for its items or without."""
    declared = get_args(declared)[0] if get_origin(declared) is Annotated else declared
    return get_origin(declared) is tuple


def fits_type(value, want: type) -> bool:
    """Whether a user's value is of a type; whole numbers are numbers, True and False are not."""
    fits = isinstance(value, (int, float) if want is float else want)
    return fits and (want is bool or not isinstance(value, bool))


def _bounds(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _inside(value: float, interval: str) -> bool:
    low, high = _bounds(interval)
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _spelled(interval: str) -> str:
    low, high = _bounds(interval)
    if high == math.inf:
        return f"at least {low:g}" if interval[0] == "[" else f"above {low:g}"
    return f"in {interval}"


# ---------------------------------------------------------------------------- between sections


def check_sections(experiment) -> None:
    """Raise UserError unless the parts of an ``Experiment`` fit each other."""
    vae, dit = SimpleNamespace(**experiment.text_vae), SimpleNamespace(**experiment.dit)
    data, networks = experiment.data, {"text_vae": vae, "dit": dit}
    _check_networks(vae, dit)
    _check_attention(networks)
    chunks = experiment.train.logit_chunks
    if data.window % chunks:
        raise UserError(f"train.logit_chunks = {chunks} must divide data.window = {data.window}.")
    if experiment.train.batch_size % experiment.train.microbatches:
        raise UserError(
            f"train.microbatches = {experiment.train.microbatches} must divide "
            f"train.batch_size = {experiment.train.batch_size}."
        )
    if data.window % data.pad_to_multiple:
        raise UserError(
            f"data.pad_to_multiple = {data.pad_to_multiple} must divide data.window = "
            f"{data.window}."
        )
    if data.pad_to_multiple % vae.tokens_per_latent:
        raise UserError(
            f"data.pad_to_multiple = {data.pad_to_multiple} must be a multiple of "
            f"text_vae.tokens_per_latent = {vae.tokens_per_latent}, so that no latent belongs to "
            "two documents."
        )
    _check_diffusion(experiment.diffusion)
    if experiment.diffusion.token_posterior:
        _check_posterior(experiment.diffusion, vae)
    if experiment.diffusion.block_size:
        _check_blocks(experiment.diffusion, data, networks)
    experiment.sample.check_fits(experiment.diffusion)
    for number, phase in enumerate(experiment.phases):
        if phase.has("next_token") and not experiment.diffusion.block_size:
            raise UserError(
                f"phases[{number}].next_token: a text generated as a whole attends to what comes "
                "next; set diffusion.block_size, or leave next_token out."
            )
    if experiment.backbone.model:
        _check_backbone(experiment)
    if experiment.aligned:
        _check_alignment(experiment, dit)


def _check_networks(vae, dit) -> None:
    """Raise UserError unless both networks can be built, and share what they must."""
    for section, part in (("text_vae", vae), ("dit", dit)):
        if part.heads < 1 or part.width % (2 * part.heads):
            raise UserError(
                f"{section}.heads = {part.heads} must divide {section}.width = {part.width} into "
                "heads of even width."
            )
    if not 0 <= dit.dropout < 1:
        raise UserError(f"dit.dropout = {dit.dropout}: must be in [0, 1).")
    most = {"width": 2**20, "layers": 2**12, "encoder_layers": 2**12, "decoder_layers": 2**12,
            "latent_channels": 2**20, "tokens_per_latent": 2**12, "time_tokens": 2**12,
            "offset_radius": 2**12}  # fmt: skip
    for section, part in (("text_vae", vae), ("dit", dit)):
        if part.width < 2 or not part.mlp_ratio > 0:
            raise UserError(
                f"{section}.width = {part.width}, {section}.mlp_ratio = {part.mlp_ratio}: both "
                "must be above 0."
            )
        for name in most.keys() & vars(part):
            if getattr(part, name) > most[name]:
                raise UserError(
                    f"{section}.{name} = {getattr(part, name)}: at most {most[name]:,}."
                )
    least = {
        "text_vae.latent_channels": (vae.latent_channels, 1),
        "text_vae.tokens_per_latent": (vae.tokens_per_latent, 1),
        "text_vae.encoder_layers": (vae.encoder_layers, 0),
        "text_vae.decoder_layers": (vae.decoder_layers, 0),
        "dit.layers": (dit.layers, 1),
        "dit.time_tokens": (dit.time_tokens, 0),
        "dit.offset_radius": (dit.offset_radius, 0),
    }
    for key, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{key} = {value}: must be at least {smallest}.")
    if vae.decoder_layers == 0 and vae.width != dit.width:
        raise UserError(
            f"text_vae.decoder_layers = 0: the decoder reads the DiT's features, so text_vae.width "
            f"= {vae.width} must equal dit.width = {dit.width}."
        )


def _check_diffusion(diffusion) -> None:
    shares = ("prefix", "suffix", "infill", "random_spans")
    if sum(getattr(diffusion, name) for name in shares) > 1:
        raise UserError(f"diffusion.{' + diffusion.'.join(shares)} must not exceed 1.")
    for name in ("single_token_blocks", "next_token_prior"):
        if getattr(diffusion, name) and not diffusion.block_size:
            raise UserError(
                f"diffusion.{name} = {getattr(diffusion, name)}: whole texts have no blocks; set "
                f"diffusion.block_size, or diffusion.{name}=0."
            )


def _check_posterior(diffusion, vae) -> None:
    wrong = [
        f"{key} = {value!r} (must be {need!r})"
        for key, value, need in (
            ("text_vae.decoder_layers", vae.decoder_layers, 0),
            ("text_vae.tokens_per_latent", vae.tokens_per_latent, 1),
            ("diffusion.prediction", diffusion.prediction, "x"),
        )
        if value != need
    ]
    if wrong:
        raise UserError(f"diffusion.token_posterior does not go with {', '.join(wrong)}.")


# Rows and head widths of the TPU kernel are multiples of this (see models.kernels.splash).
_LANES = 128


def _check_attention(networks: dict) -> None:
    for section, part in networks.items():
        if part.attention not in ("ring", "splash"):
            continue
        for key in ("offset_radius", "time_tokens"):
            impossible = key == "time_tokens" or part.attention == "splash"
            if getattr(part, key, 0) > 0 and impossible:
                raise UserError(
                    f"{section}.{key} = {getattr(part, key)} does not go with {section}.attention "
                    f"= {part.attention!r}; set {section}.{key}=0."
                )
        head = part.width // part.heads
        if part.attention == "splash" and head % _LANES:
            raise UserError(
                f"{section}.heads = {part.heads} gives heads of width {head}; {section}.attention "
                f"= 'splash' needs a multiple of {_LANES}."
            )


def _check_alignment(experiment, dit) -> None:
    if not experiment.teacher.model:
        raise UserError(
            "phases: alignment has a weight, but teacher.model names no model to align with."
        )
    alignment = experiment.alignment
    if alignment.site not in ("dit", "clean_pass"):
        return
    if alignment.block > dit.layers:
        raise UserError(
            f"alignment.block = {alignment.block}: the DiT has dit.layers = {dit.layers}."
        )
    needed = ["diffusion", "token"]
    if alignment.site == "clean_pass":
        needed.append("next_token")
        if not experiment.diffusion.block_size:
            raise UserError(
                "alignment.site = 'clean_pass': a text generated as a whole has no prefill; set "
                "diffusion.block_size, or alignment.site=dit."
            )
    for number, phase in enumerate(experiment.phases):
        if phase.has("alignment") and not any(map(phase.has, needed)):
            raise UserError(
                f"phases[{number}]: alignment.site = {alignment.site!r} needs a weight above 0 of "
                f"{', '.join(needed[:-1])} or {needed[-1]}, since that pass of the DiT does not "
                "run without."
            )


def _check_backbone(experiment) -> None:
    model, diffusion = experiment.backbone.model, experiment.diffusion
    if experiment.data.tokenizer != model:
        raise UserError(
            f"backbone.model = {model!r} has tokens of its own; set data.tokenizer={model}."
        )
    if diffusion.block_size:
        raise UserError(
            f"diffusion.block_size = {diffusion.block_size}: the upper blocks of backbone.model "
            "have no cache of earlier blocks; set it to 0."
        )
    if diffusion.token_posterior:
        raise UserError(
            "diffusion.token_posterior needs a latent for each token alone, but those of "
            "backbone.model hold what stands before it; set it to False."
        )


def _check_blocks(diffusion, data, networks: dict) -> None:
    """Raise UserError unless texts can be generated in blocks of ``block_size`` latents."""
    vae, dit, block = networks["text_vae"], networks["dit"], diffusion.block_size
    tokens = block * vae.tokens_per_latent
    if data.window % tokens or data.pad_to_multiple % tokens:
        raise UserError(
            f"diffusion.block_size = {block} is {tokens} tokens, which must divide data.window = "
            f"{data.window} and data.pad_to_multiple = {data.pad_to_multiple}, so that every text "
            f"ends with a whole block; set data.pad_to_multiple={tokens}."
        )
    if dit.conditioning == "in_context" and dit.time_tokens > 0:
        raise UserError(
            f"dit.time_tokens = {dit.time_tokens}: a time token holds one time for a row, but each "
            "block has its own; set dit.time_tokens=0 or dit.conditioning=adaln."
        )
    if vae.decoder_layers > 0:
        raise UserError(
            f"text_vae.decoder_layers = {vae.decoder_layers}: with diffusion.block_size the "
            "decoder must share the DiT's trunk, which has a cache of earlier blocks; set it to 0."
        )
    static = [name for name, part in networks.items() if part.attention == "splash"]
    if static and diffusion.infills:
        raise UserError(
            f"{static[0]}.attention = 'splash' takes blocks in their order only, but infilling "
            "attends to what follows; choose another, or set diffusion.suffix, diffusion.infill "
            "and diffusion.random_spans to 0."
        )
    if static and diffusion.single_token_blocks and (_LANES % block or block == _LANES):
        raise UserError(
            f"{static[0]}.attention = 'splash' works in tiles of {_LANES} latents, in which single-"
            f"token blocks must stay within those of diffusion.block_size = {block}: choose a part "
            f"of {_LANES}, another attention, or set diffusion.single_token_blocks to 0."
        )


def check_mesh(experiment, mesh) -> None:
    """Raise UserError unless rows, positions and heads divide among the devices of a mesh.

    Parameters are checked where their shardings are made, ``sharding.placements``.
    """
    train, vae, dit = experiment.train, experiment.text_vae, experiment.dit
    rules, window = experiment.sharding, experiment.data.window
    positions = window // vae["tokens_per_latent"]
    sizes = [
        (f"train.batch_size = {train.batch_size} in train.microbatches = {train.microbatches}",
         "batch", train.batch_size // train.microbatches, "rows"),
        (f"data.window = {window} in train.logit_chunks = {train.logit_chunks}",
         "sequence", positions // train.logit_chunks, "positions"),
        (f"text_vae.heads = {vae['heads']}", "heads", vae["heads"], "heads"),
        (f"dit.heads = {dit['heads']}", "heads", dit["heads"], "heads"),
    ]  # fmt: skip
    for setting, axis, size, kind in sizes:
        count = math.prod(mesh.shape[name] for name in rules.mesh_axes(axis))
        if size % count:
            raise UserError(
                f"{setting}: {size} {kind} do not divide among the {count} devices along mesh axes "
                f"{rules.mesh_axes(axis)} (sharding.{axis})."
            )
