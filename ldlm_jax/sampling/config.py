"""How text is generated: every option of the sampler, declared once.

From a field's type, default and ``knob`` follow its check, its flag, its place in a file of
requests, whether the texts of one compiled call may differ in it, and its array over their rows.
"""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.validate import Natural, NotNegative, Positive, Share, check_settings

# Texts of one compiled call may differ in a knob of a ROW (an array) or of a REQUEST (read outside
# the compiled call); they share those of a CALL.
ROW, REQUEST, CALL = "row", "request", "call"


# Headings under which the options stand in the help.
SAMPLING, GUIDING, BLOCKS, CHOOSING = (
    "how to sample", "guidance", "blocks and length", "revising and choosing",
)  # fmt: skip


def knob(
    default, help: str, kind: str = CALL, *, off=None, was: str = "", group: str = SAMPLING
) -> Any:
    """A field of ``SampleConfig``.

    Args:
      default: its default.
      help: what it does, in a line.
      kind: ROW, REQUEST or CALL.
      off: value at which a ROW knob does nothing and need not be compiled; None for none.
      was: name in the release before, still understood.
      group: heading in the help.
    """
    metadata = {"help": help, "kind": kind, "off": off, "was": was, "group": group}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SampleConfig:
    """How text is generated; ``sampling/README.md`` says more of each."""

    steps: Annotated[int, "[1, 10000]"] = knob(
        50, "denoising steps of a block; more cost more and write better", ROW
    )
    solver: Literal["euler", "stochastic", "ancestral"] = knob(
        "stochastic", "how to step, see diffusion/solvers.py; ancestral draws tokens at every step"
    )
    churn: NotNegative = knob(1.0, "noise of the stochastic and the ancestral solver; 0 is Euler")
    guidance: NotNegative = knob(
        1.0, "weight of the prompt (classifier-free)", ROW, off=1.0, group=GUIDING
    )
    self_condition_guidance: NotNegative = knob(
        1.0,
        "weight of the model's own previous estimate",
        ROW,
        off=1.0,
        was="self_guidance",
        group=GUIDING,
    )
    context_guidance: NotNegative = knob(
        1.0,
        "weight of the whole context against the neighbours' alone",
        ROW,
        off=1.0,
        group=GUIDING,
    )
    temperature: Positive = knob(1.0, "of the tokens given their context; below 1 is duller", ROW)
    top_p: Annotated[float, "(0, 1]"] = knob(
        1.0, "probability of the tokens that the context may propose", ROW, off=1.0
    )
    block_size: Natural = knob(
        0, "latents generated together; 0 for as many as in training", group=BLOCKS
    )
    time_offset: NotNegative = knob(
        0.0, "how far a block's beginning runs ahead of its end", ROW, was="lag", group=BLOCKS
    )
    stable_steps: Natural = knob(
        0, "finish a block once its tokens stayed the same for so many steps; 0 never",
        ROW, off=0, was="patience", group=BLOCKS)  # fmt: skip
    confidence: Share = knob(
        0.9, "and all of them are at least so probable", ROW, was="sure", group=BLOCKS
    )
    strength: Annotated[float, "(0, 1]"] = knob(
        1.0,
        "how much of a revised span is forgotten; 1 keeps nothing but its length",
        ROW,
        group=CHOOSING,
    )
    best_of: Annotated[int, "[1, 4096]"] = knob(
        1, "texts generated for each that is asked for, of which one is kept", REQUEST,
        group=CHOOSING,
    )  # fmt: skip
    rerank: Literal["likelihood", "mbr"] = knob(
        "likelihood", "which: the likeliest, or the one most like the others (extra eval)",
        REQUEST, was="choose", group=CHOOSING)  # fmt: skip
    length: Natural = knob(
        0, "tokens of the longest text; a model with blocks goes on beyond its window", group=BLOCKS
    )
    batch_size: Annotated[int, "[1, 65536]"] = knob(32, "texts generated at once")
    batch_shape: Literal["fitting", "fixed"] = knob(
        "fitting", "fixed: as many rows however few texts, so that rounding is the same"
    )

    def __post_init__(self):
        check_settings("sample", SampleConfig, vars(self))

    def check_fits(self, diffusion: DiffusionConfig) -> None:
        """Raise UserError unless a model that was trained so can be sampled so."""
        trained = diffusion.block_size
        if self.block_size and (not trained or trained % self.block_size):
            blocks = f"blocks of {trained}, which it must divide" if trained else "no blocks"
            raise UserError(
                f"sample.block_size = {self.block_size}: the model is trained with {blocks}."
            )
        if self.context_guidance != 1 and not (trained and diffusion.token_posterior):
            raise UserError(
                "sample.context_guidance needs a model trained with diffusion.block_size and "
                "diffusion.token_posterior; use 1."
            )
        if diffusion.token_posterior or self.solver == "ancestral":
            return
        for name in ("temperature", "top_p"):
            if getattr(self, name) != (unused := knobs()[name].default):
                raise UserError(
                    f"sample.{name} is of tokens that are drawn, but from a model without "
                    f"diffusion.token_posterior sample.solver = {self.solver!r} draws none; set "
                    f"sample.solver=ancestral, or sample.{name}={unused:g}."
                )


def knobs(*kinds: str) -> dict[str, dataclasses.Field]:
    """The fields of ``SampleConfig`` of these kinds, by name; all without any."""
    return {f.name: f for f in fields(SampleConfig) if not kinds or f.metadata["kind"] in kinds}


def with_options(config: SampleConfig, options: dict[str, Any]) -> SampleConfig:
    """A config with some options changed.

    Raises:
      UserError: an option is unknown, or a value impossible.
    """
    options = {old_names().get(name, name): value for name, value in options.items()}
    for name in options:
        if name not in knobs():
            raise UserError(f"unknown option {name!r}: {did_you_mean(name, knobs())}")
    return dataclasses.replace(config, **options)


def old_names() -> dict[str, str]:
    """New names of knobs by those of the release before."""
    return {f.metadata["was"]: f.name for f in fields(SampleConfig) if f.metadata["was"]}


def knobs_in_use(configs) -> frozenset[str]:
    """The ROW knobs that can be off and are not, in any of these configs."""
    return frozenset(
        name
        for name, knob in knobs(ROW).items()
        if knob.metadata["off"] is not None
        and any(getattr(config, name) != knob.metadata["off"] for config in configs)
    )


def row_params(keys, configs) -> dict[str, jax.Array]:
    """The ROW knobs of several rows as arrays (B,), and their random ``keys``."""
    arrays = {
        name: np.array([getattr(config, name) for config in configs], np.float32)
        for name in knobs(ROW)
    }
    return arrays | {"keys": jnp.stack(list(keys))}
