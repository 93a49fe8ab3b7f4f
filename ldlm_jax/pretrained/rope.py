"""Rotary frequencies of pretrained models, with the scalings that stretch their context."""

import math
from dataclasses import dataclass

import numpy as np

from ldlm_jax.errors import UserError

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer; fields are named as in a model's ``config.json``.

    Attributes:
      theta: wavelength base.
      kind: ``"default"``; ``"linear"`` (positions divided by ``factor``); ``"llama3"`` (long waves
        alone are stretched: Llama 3.1); ``"yarn"`` (Peng et al. 2023, section 3.2 and 3.4).
      factor: how far the context is stretched.
      original: context in tokens before it was stretched.
      low: of llama3 ``low_freq_factor``, of yarn ``beta_slow``.
      high: of llama3 ``high_freq_factor``, of yarn ``beta_fast``.
      scale: what rotated queries and keys are multiplied by.
      divisors: of every frequency, where a file lists them (GGUF); they stand for all scalings.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 1.0
    scale: float = 1.0
    divisors: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("theta", "factor", "low", "high", "scale"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 < value < math.inf):
                raise ValueError(f"{name} of rotary frequencies is {value!r}, no number above 0")
        if self.kind in ("llama3", "yarn") and not self.low < self.high:
            raise ValueError(f"rotary frequencies stretch from {self.low} to {self.high}")

    @classmethod
    def from_config(cls, section: dict, theta: float, context: int) -> "Rope":
        """From the ``rope_parameters`` (or older ``rope_scaling``) of a ``config.json``.

        Args:
          section: that section, or an empty one.
          theta: base for a section that names none.
          context: the model's ``max_position_embeddings``, in tokens.

        Raises:
          UserError: a kind that is not among ``KINDS``.
        """
        kind = section.get("rope_type", section.get("type", "default"))
        theta = section.get("rope_theta", theta)
        if kind not in KINDS:
            raise UserError(
                f"config.json: rope_type = {kind!r} is not supported; known: {', '.join(KINDS)}."
            )
        if kind == "default":
            return cls(theta)
        factor = section["factor"]
        original = section.get("original_max_position_embeddings") or context
        if kind == "linear":
            return cls(theta, kind, factor, original)
        if kind == "llama3":
            return cls(
                theta,
                kind,
                factor,
                original,
                section["low_freq_factor"],
                section["high_freq_factor"],
            )
        scale = section.get("attention_factor") or _yarn_scale(factor, section)
        return cls(
            theta, kind, factor, original, section.get("beta_slow") or 1.0,
            section.get("beta_fast") or 32.0, scale,
        )  # fmt: skip

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position (head_dim / 2,), fp32."""
        plain = self.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.divisors:
            return (plain / np.array(self.divisors)).astype(np.float32)
        if self.kind == "default":
            return plain.astype(np.float32)
        stretched = plain / self.factor
        if self.kind == "linear":
            keep = np.zeros_like(plain)
        elif self.kind == "llama3":
            turns = self.original * plain / (2 * math.pi)
            keep = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        else:
            keep = 1 - self._yarn_ramp(head_dim)
        return (keep * plain + (1 - keep) * stretched).astype(np.float32)

    def _yarn_ramp(self, head_dim: int) -> np.ndarray:
        """0 for waves that turn often within the original context, 1 for those that hardly do."""

        def dimension(turns: float) -> float:
            wave = self.original / (turns * 2 * math.pi)
            return head_dim * math.log(wave) / (2 * math.log(self.theta))

        first = max(math.floor(dimension(self.high)), 0)
        last = min(math.ceil(dimension(self.low)), head_dim - 1)
        width = max(last - first, 1e-3)
        return np.clip((np.arange(head_dim // 2) - first) / width, 0.0, 1.0)


def _yarn_scale(factor: float, section: dict) -> float:
    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if section.get("mscale") and section.get("mscale_all_dim"):
        return of(section["mscale"]) / of(section["mscale_all_dim"])
    return of(1.0)
