"""Whether the parts of a config fit each other, and the devices they are to run on."""

from types import SimpleNamespace

from ldlm_jax.errors import UserError
from ldlm_jax.losses.alignment import IN_DIT
from ldlm_jax.models.attention import IMPLEMENTATIONS
from ldlm_jax.models.kernels.splash import LANES
from ldlm_jax.models.layers import REMAT
from ldlm_jax.parallel.sharding import AxisRules, split_count


def check_shapes(experiment) -> None:
    """Raise UserError unless the parts of an ``Experiment`` fit each other."""
    vae, dit = SimpleNamespace(**experiment.text_vae), SimpleNamespace(**experiment.dit)
    data, networks = experiment.data, {"text_vae": vae, "dit": dit}
    _check_networks(vae, dit)
    _check_implementations(networks)
    parts = experiment.train.logit_parts
    if data.window % parts:
        raise UserError(f"train.logit_parts = {parts} must divide data.window = {data.window}.")
    if data.round_to % vae.tokens_per_latent:
        raise UserError(
            f"data.round_to = {data.round_to} must be a multiple of text_vae.tokens_per_latent = "
            f"{vae.tokens_per_latent}, so that no latent belongs to two documents."
        )
    if experiment.diffusion.token_posterior:
        _check_posterior(experiment, vae)
    if experiment.diffusion.block_size:
        _check_blocks(experiment.diffusion, data, networks)
    experiment.sample.check_fits(experiment.diffusion)
    for number, phase in enumerate(experiment.phases):
        if phase.has("next_token") and not experiment.diffusion.block_size:
            raise UserError(
                f"phases[{number}].next_token: a text written as a whole sees what comes next; set "
                "diffusion.block_size, or leave next_token out."
            )
    if experiment.foundation.model:
        _check_foundation(experiment)
    if experiment.aligned:
        _check_alignment(experiment, dit)


def _check_networks(vae, dit) -> None:
    """Raise UserError unless both networks can be built, and share what they must."""
    for section, part in (("text_vae", vae), ("dit", dit)):
        if part.dtype not in ("float32", "bfloat16"):
            raise UserError(f"{section}.dtype = {part.dtype!r}: choose 'float32' or 'bfloat16'.")
        if part.heads < 1 or part.width % (2 * part.heads):
            raise UserError(
                f"{section}.heads = {part.heads} must divide {section}.width = {part.width} into "
                "heads of even width."
            )
    if not 0 <= dit.dropout < 1:
        raise UserError(f"dit.dropout = {dit.dropout}: must be in [0, 1).")
    least = {
        "text_vae.latent_channels": (vae.latent_channels, 1),
        "text_vae.tokens_per_latent": (vae.tokens_per_latent, 1),
        "text_vae.encoder_layers": (vae.encoder_layers, 0),
        "dit.layers": (dit.layers, 1),
        "dit.time_tokens": (dit.time_tokens, 0),
        "dit.offset_radius": (dit.offset_radius, 0),
    }
    for key, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{key} = {value}: must be at least {smallest}.")
    if vae.decoder_layers < 0 or (vae.decoder_layers == 0 and vae.width != dit.width):
        raise UserError(
            f"text_vae.decoder_layers = {vae.decoder_layers}: at least 0; with 0 the decoder reads "
            f"the DiT's features, so text_vae.width = {vae.width} must equal dit.width = "
            f"{dit.width}."
        )
    if dit.conditioning not in ("in_context", "adaln"):
        raise UserError(f"dit.conditioning = {dit.conditioning!r}: choose 'in_context' or 'adaln'.")


def _check_posterior(experiment, vae) -> None:
    wrong = [
        f"{key} = {value!r} (must be {need!r})"
        for key, value, need in (
            ("text_vae.decoder_layers", vae.decoder_layers, 0),
            ("text_vae.tokens_per_latent", vae.tokens_per_latent, 1),
            ("diffusion.prediction", experiment.diffusion.prediction, "x"),
        )
        if value != need
    ]
    if wrong:
        raise UserError(f"diffusion.token_posterior does not go with {', '.join(wrong)}.")


def _check_implementations(parts: dict) -> None:
    for section, part in parts.items():
        for key, known in (("attention", IMPLEMENTATIONS), ("remat", tuple(REMAT))):
            value = getattr(part, key)
            if value not in known:
                raise UserError(f"{section}.{key} = {value!r}: choose one of {', '.join(known)}.")
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
        if part.attention == "splash" and head % LANES:
            raise UserError(
                f"{section}.heads = {part.heads} gives heads of width {head}; {section}.attention "
                f"= 'splash' needs a multiple of {LANES}."
            )


def _check_alignment(experiment, dit) -> None:
    if not experiment.teacher.model:
        raise UserError(
            "phases: alignment has a weight, but teacher.model names no model to align with."
        )
    alignment = experiment.alignment
    if alignment.site not in IN_DIT:
        return
    if alignment.block > dit.layers:
        raise UserError(
            f"alignment.block = {alignment.block}: the DiT has dit.layers = {dit.layers}."
        )
    needed = ["diffusion"]
    if alignment.site == "reading":
        needed.append("next_token")
        if not experiment.diffusion.block_size:
            raise UserError(
                "alignment.site = 'reading': a text written as a whole is not read beforehand; set "
                "diffusion.block_size, or alignment.site=dit."
            )
    for number, phase in enumerate(experiment.phases):
        if phase.has("alignment") and not any(map(phase.has, needed)):
            raise UserError(
                f"phases[{number}]: alignment.site = {alignment.site!r} needs a weight above 0 of "
                f"{' or '.join(needed)}, since that pass of the DiT does not run without."
            )


def _check_foundation(experiment) -> None:
    said, diffusion = experiment.foundation.model, experiment.diffusion
    if experiment.data.tokenizer != said:
        raise UserError(
            f"foundation.model = {said!r} reads and speaks in tokens of its own; set "
            f"data.tokenizer={said}."
        )
    if diffusion.block_size:
        raise UserError(
            f"diffusion.block_size = {diffusion.block_size}: the upper blocks of foundation.model "
            "remember no earlier block; set it to 0."
        )
    if diffusion.token_posterior:
        raise UserError(
            "diffusion.token_posterior needs a latent for each token alone, but those of "
            "foundation.model hold what stands before it; set it to False."
        )


def _check_blocks(diffusion, data, networks: dict) -> None:
    """Raise UserError unless texts can be written in blocks of ``block_size`` latents."""
    vae, dit, block = networks["text_vae"], networks["dit"], diffusion.block_size
    tokens = block * vae.tokens_per_latent
    if data.window % tokens or data.round_to % tokens:
        raise UserError(
            f"diffusion.block_size = {block} is {tokens} tokens, which must divide data.window = "
            f"{data.window} and data.round_to = {data.round_to}, so that every text ends with a "
            f"whole block; set data.round_to={tokens}."
        )
    if dit.conditioning == "in_context" and dit.time_tokens > 0:
        raise UserError(
            f"dit.time_tokens = {dit.time_tokens}: a time token holds one time for a row, but each "
            "block has its own; set dit.time_tokens=0 or dit.conditioning=adaln."
        )
    if vae.decoder_layers > 0:
        raise UserError(
            f"text_vae.decoder_layers = {vae.decoder_layers}: with diffusion.block_size the "
            "decoder must share the DiT's trunk, which remembers earlier blocks; set it to 0."
        )
    static = [name for name, part in networks.items() if part.attention == "splash"]
    if static and diffusion.fills_holes:
        raise UserError(
            f"{static[0]}.attention = 'splash' sees blocks in their order only, but holes are "
            "filled with what follows them; choose another, or set diffusion.suffix, "
            "diffusion.infill and diffusion.spans to 0."
        )
    if static and diffusion.blocks_of_one and (LANES % block or block == LANES):
        raise UserError(
            f"{static[0]}.attention = 'splash' works in tiles of {LANES} latents, in which blocks "
            f"of one must stay within those of diffusion.block_size = {block}: choose a part of "
            f"{LANES}, another attention, or set diffusion.blocks_of_one to 0."
        )


def check_mesh(experiment, mesh) -> None:
    """Raise UserError unless rows, positions and heads divide among the devices of a mesh.

    Parameters are checked where their shardings are made, ``sharding.placements``.
    """
    train, vae, dit = experiment.train, experiment.text_vae, experiment.dit
    rules: AxisRules = experiment.sharding
    positions = experiment.data.window // vae["tokens_per_latent"]
    sizes = [
        (f"train.batch_size = {train.batch_size} in train.microbatches = {train.microbatches}",
         "batch", train.batch_size // train.microbatches, "rows"),
        (f"data.window = {experiment.data.window} in train.logit_parts = {train.logit_parts}",
         "sequence", positions // train.logit_parts, "positions"),
        (f"text_vae.heads = {vae['heads']}", "heads", vae["heads"], "heads"),
        (f"dit.heads = {dit['heads']}", "heads", dit["heads"], "heads"),
    ]  # fmt: skip
    for said, axis, size, kind in sizes:
        count = split_count(mesh, rules, axis)
        if size % count:
            raise UserError(
                f"{said}: {size} {kind} do not divide among the {count} devices along mesh axes "
                f"{rules.mesh_axes(axis)} (sharding.{axis})."
            )
