"""When what is minimised: loss weights and trained parts by step range."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError

LOSSES = ("reconstruction", "kl", "diffusion", "token", "next_token", "alignment")
GROUPS = ("encoder", "decoder", "dit", "align")

# A constant, or (step, value) corners of a piecewise linear schedule.
Weight = float | tuple[tuple[int, float], ...]


def weight_at(weight: Weight, step: jax.Array) -> jax.Array:
    """Value of a weight at a (global) step; beyond its corners a schedule stays constant."""
    if isinstance(weight, (int, float)):
        return jnp.float32(weight)
    steps, values = zip(*weight, strict=True)
    return jnp.interp(step, jnp.array(steps, jnp.float32), jnp.array(values, jnp.float32))


@dataclass(frozen=True)
class Phase:
    """A range of steps with one set of losses. Hashable: it is a static argument of the step.

    Attributes:
      until: the phase ends before this step; -1 is the end of training.
      reconstruction: weight of the cross-entropy of all tokens given their latents.
      kl: weight of the divergence of the posterior from N(0, I), in nats a channel.
      diffusion: weight of the denoising error of the latents.
      token: weight of the cross-entropy of the tokens decoded from the denoiser's estimates: it
        weighs errors by what they change in the text, and shows the decoder, where it trains, what
        estimates look like. With ``train=("decoder",)`` a last phase of it alone is a readout.
      next_token: weight of the cross-entropy of the tokens after each clean latent, see
        ``losses.next_token``. A phase that does not denoise trains a language model, at half the
        cost of a step: each latent is a block of its own, and nothing is observed beforehand.
      alignment: weight of one minus the cosine between the student's and the teacher's features.
      train: which parameter groups receive gradient: encoder, decoder, dit, align.
      encoder_gradient: share of the gradient of the diffusion, token and next-token losses that
        reaches the encoder; a weight.
      time_location: of the training times in this phase; None for ``diffusion.time_location``,
        which the sampler keeps.

    A loss whose weight is the constant 0 is not computed at all.
    """

    until: int = -1
    reconstruction: Weight = 1.0
    kl: Weight = 1e-4
    diffusion: Weight = 1.0
    token: Weight = 0.0
    next_token: Weight = 0.0
    alignment: Weight = 0.0
    train: tuple[str, ...] = GROUPS
    encoder_gradient: Weight = 0.0
    time_location: float | None = None

    def __post_init__(self):
        for name in (*LOSSES, "encoder_gradient"):
            object.__setattr__(self, name, _as_weight(name, getattr(self, name)))
        object.__setattr__(self, "train", tuple(self.train))
        for group in self.train:
            if group not in GROUPS:
                raise UserError(
                    f"phases: unknown group {group!r} in train; known: {', '.join(GROUPS)}."
                )
        if not any(self.has(loss) for loss in LOSSES):
            raise UserError("phases: a phase in which every loss weight is 0 trains nothing.")

    @property
    def denoises(self) -> bool:
        """Whether it generates from noise."""
        return self.has("diffusion") or self.has("token")

    @property
    def language_model(self) -> bool:
        """Whether it trains a language model, and nothing that generates from noise."""
        return self.has("next_token") and not self.denoises

    def times_of(self, diffusion: DiffusionConfig) -> DiffusionConfig:
        """The same, with the training times of this phase."""
        if self.time_location is None:
            return diffusion
        return replace(diffusion, time_location=self.time_location)

    def has(self, name: str) -> bool:
        """Whether a weight is anything but the constant 0."""
        return getattr(self, name) != 0.0


def _as_weight(name: str, value) -> Weight:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    try:
        corners = tuple((int(step), float(v)) for step, v in value)
        if corners and list(corners) == sorted(corners):
            return corners
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"phases.{name} = {value!r}: give a number of at least 0, or (step, value) pairs in order."
    )


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase a step belongs to."""
    for phase in phases:
        if phase.until == -1 or step < phase.until:
            return phase
    return phases[-1]


def first_difference(before: tuple[Phase, ...], after: tuple[Phase, ...]) -> int | None:
    """The first step that is trained otherwise by the phases ``after``; None if none is."""
    for step in sorted({0, *(p.until for p in (*before, *after) if p.until > 0)}):
        a, b = (replace(phase_at(phases, step), until=-1) for phases in (before, after))
        if a != b:
            return step
    return None


def change(before: Phase | None, after: Phase) -> str:
    """What a phase minimises, or what is another than before: ``diffusion 0 to 1``, by commas."""
    parts = []
    for name in (*LOSSES, "encoder_gradient"):
        new, old = getattr(after, name), getattr(before, name) if before else None
        if before and new != old:
            parts.append(f"{name} {_spelt(old)} to {_spelt(new)}")
        elif not before and new != 0.0:
            parts.append(f"{name} {_spelt(new)}")
    if before and before.time_location != after.time_location:
        old, new = (phase.time_location for phase in (before, after))
        parts.append(f"time_location {_spelt(old)} to {_spelt(new)}")
    if before and before.train != after.train:
        parts.append(f"trained {'+'.join(before.train)} to {'+'.join(after.train)}")
    return ", ".join(parts)


def _spelt(weight: Weight | None) -> str:
    """A number; the first and the last of a schedule; None is what the section diffusion says."""
    if weight is None:
        return "diffusion's"
    if isinstance(weight, (int, float)):
        return f"{weight:g}"
    return f"({weight[0][1]:g} at step {weight[0][0]}, {weight[-1][1]:g} at {weight[-1][0]})"


def check_phases(phases: tuple[Phase, ...]) -> None:
    """Raise UserError unless the phases follow one another to the end of training."""
    ends = [phase.until for phase in phases]
    if not ends:
        raise UserError("phases: at least one phase is needed.")
    if ends[-1] != -1 or any(a >= b for a, b in zip(ends[:-2], ends[1:-1], strict=True)):
        raise UserError(f"phases: until = {ends} must ascend, and the last must be -1 (the end).")


def begins(phases: tuple[Phase, ...], before: Phase | None, phase: Phase) -> str:
    """What a user is told where a phase begins: why losses jump, and why nothing moves meanwhile.

    Args:
      phases: all of them.
      before: the one before, or None at the beginning of a run.
      phase: the one that begins.
    """
    number = phases.index(phase)
    if before:
        told = f"phase {number} begins, with another loss than before, which is not comparable"
    else:
        told = f"phase {number} of 0 to {len(phases) - 1}"
    return f"{told}: {change(before, phase)}\ncompiling the step of phase {number} ..."
