"""Config keys and values of the release before, still understood."""

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.config import old_names

# Keys and values of the release before, still understood.
_RENAMED = {
    "data.layout": "data.packing",
    "data.round_to": "data.pad_to_multiple",
    "diffusion.own_times": "diffusion.per_token_times",
    "diffusion.blocks_of_one": "diffusion.single_token_blocks",
    "diffusion.foresight": "diffusion.next_token_prior",
    "diffusion.spans": "diffusion.random_spans",
    "diffusion.token_loss": "phases.token_loss",  # see token_weights
    "train.logit_parts": "train.logit_chunks",
    **{f"sample.{old}": f"sample.{new}" for old, new in old_names().items()},
    **{f"foundation.{key}": f"backbone.{key}" for key in ("model", "layer", "dtype")},
}
_RENAMED_VALUES = {
    ("sample.grid", "law"): "quantile",  # of 0.1; then the key itself went
    ("sample.rerank", "consensus"): "mbr",
    ("alignment.site", "reading"): "clean_pass",
    # No better at equal evaluations: experiments/reasoning.
    ("sample.solver", "heun"): "euler",
    ("sample.solver", "multistep"): "euler",
}
# Keys that are gone, with the value that changes nothing.
_REMOVED = {
    "alignment.loss": "cosine",
    "consistency.steps": 20,
    "diffusion.at_blocks": 0.0,
    "phases.consistency": 0.0,
    "sample.grid": "quantile",
    "sample.guidance_from": 0.0,
    "sample.guidance_to": 1.0,
    "teacher.run": "",
}


def token_weights(phases, token_loss: float) -> list[dict]:
    """Phases with ``diffusion.token_loss`` of the release before, a multiple of the weight of
    diffusion, as their weight ``token``."""
    if not isinstance(token_loss, (int, float)):
        raise UserError(f"diffusion.token_loss = {token_loss!r}: write phases.N.token=0.5.")

    def times(weight):
        if isinstance(weight, (int, float)):
            return token_loss * weight
        return [(step, token_loss * value) for step, value in weight]

    return [dict(phase) | {"token": times(phase.get("diffusion", 1.0))} for phase in phases]


def modern(section: str, values: dict) -> dict[str, dict]:
    """Values by section and key, with the names of this release."""
    modern: dict[str, dict] = {}
    for key, value in values.items():
        name = _RENAMED.get(f"{section}.{key}", f"{section}.{key}")
        if isinstance(value, str):
            value = _RENAMED_VALUES.get((name, value), value)
        if name in _REMOVED:
            if value != _REMOVED[name]:
                raise UserError(f"{name} = {value!r}: removed, see CHANGELOG.md; leave it out.")
            continue
        new_section, _, new_key = name.partition(".")
        modern.setdefault(new_section, {})[new_key] = value
    return modern or {section: {}}
