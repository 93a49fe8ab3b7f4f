"""Diffusion transformer over latents, with a time and a known/unknown mark per position.

Shape letters: B batch, N latents, D latent channels, M width, T in-context time tokens.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.layers import Dense, Transformer
from ldlm_jax.models.token_layout import (
    ALL,
    Places,
    Sight,
    see_memory_and_own_block,
    see_up_to_block,
    see_what_is_read,
)

# So many positions of a text have a mark each; those after them share one.
BEGINNING = 8
# What the DiT is told of each position.
UNKNOWN, KNOWN, DROPPED = 0, 1, 2


class Memory(NamedTuple):
    """What the DiT remembers of clean blocks: keys and values of every layer, the trunk's features
    of them, and their places."""

    keys_and_values: tuple[jax.Array, jax.Array]  # each (layers, B, R, heads, head width)
    features_BxRxM: jax.Array
    places: Places


class Foreseen(NamedTuple):
    """What the clean latent just before each position says of it.

    Attributes:
      features_BxNxM: the trunk's, zeros where there are none.
      told_BxN: whether there are any.
      news_BxN: how much the rest of the block can add, from 0 (nothing, it is noise) to 1.
      blind_BxN: whether known text follows that the latent before has not read.
    """

    features_BxNxM: jax.Array
    told_BxN: jax.Array
    news_BxN: jax.Array
    blind_BxN: jax.Array


class Denoised(NamedTuple):
    """What the DiT says of noisy latents.

    ``memory`` is for the blocks that come after them; ``tapped`` is what came out of block ``tap``.
    """

    output_BxNxD: jax.Array
    features_BxNxM: jax.Array
    memory: Memory | None
    tapped_BxNxM: jax.Array | None


def time_features(t: jax.Array, features: int) -> jax.Array:
    """Sinusoids of ``t`` in [0, 1] (Vaswani et al. 2017 with wavelengths from 1e-3 to 6), fp32."""
    frequency = jnp.exp(jnp.linspace(0.0, jnp.log(1000.0), features // 2))
    angle = t[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _sight(places: Places, memory: Memory | None, reading: bool, near: bool) -> Sight:
    """What positions see of these places and of the memory."""
    of_memory = None if memory is None else memory.places
    if reading:
        sight = see_what_is_read(places, of_memory)
    elif memory is None:
        sight = see_up_to_block(places)
    else:
        sight = see_memory_and_own_block(places, of_memory)
    return sight.replace(reach=0 if reading else 1) if near else sight


class DiT(nn.Module):
    """Predicts the clean latents (or the velocity) from noisy ones.

    Attributes:
      latent_channels: D.
      width: model width M.
      heads: attention heads; the head width must be even.
      layers: transformer blocks.
      mlp_ratio: feed-forward width over model width.
      conditioning: how time reaches the blocks. ``"in_context"``: ``time_tokens`` learned tokens
        shifted by the running time stand before the sequence (ELF, arXiv 2605.10938);
        ``"adaln"``: per-position adaLN-zero modulation (Peebles & Xie 2023). In both, every
        position's own time is also added to its input.
      time_tokens: number of in-context tokens; 0 leaves it at each position's own time (blocks
        need that: each has a time of its own).
      dtype: compute dtype, ``"float32"`` or ``"bfloat16"``.
      remat: what blocks keep for the backward pass, see ``layers.REMAT``.
      attention: implementation of attention, see ``attention.attend``.
      offset_radius: reach of a learned attention bias by offset that starts with heads looking at
        their neighbours; 0 for none.
      tap: block (from 1) whose output is returned as well, to be aligned; 0 for none.
      dropout: see ``layers.Transformer``.
      foresight: whether positions may be told what is foreseen of them.
    """

    latent_channels: int
    width: int = 256
    heads: int = 4
    layers: int = 6
    mlp_ratio: float = 2.5
    conditioning: str = "in_context"
    time_tokens: int = 4
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    offset_radius: int = 0
    tap: int = 0
    dropout: float = 0.0
    foresight: bool = False

    @nn.compact
    def __call__(
        self,
        z_BxNxD,
        t_BxN,
        state_BxN,
        self_condition_BxNxD,
        places: Places,
        memory: Memory | None = None,
        foreseen: Foreseen | None = None,
        reading: bool = False,
        near: bool = False,
        only_foreseen: bool = False,
    ) -> Denoised:
        """Predict from noisy latents.

        Args:
          z_BxNxD: noisy latents; known positions carry their clean latent.
          t_BxN: time of each position, 0 (data, and every known position) to 1 (noise).
          state_BxN: UNKNOWN, KNOWN or DROPPED (known, but hidden from the model for guidance).
          self_condition_BxNxD: an earlier estimate of the clean latents, or zeros.
          places: where each position stands.
          memory: of the clean text, from an earlier call. With it a position sees the remembered
            blocks before its own, and of this call's positions those of its own block alone.
          foreseen: taken for the trunk's features of the positions that are told, to which their
            own are added as far as there is news, by a scale that starts at zero (Bachlechner et
            al. 2020, "ReZero"); the mean of both where it is blind to what follows. None tells
            none. Only with ``foresight``.
          reading: whether these are clean latents to be remembered. Each then sees those before it
            alone, also in its own block: what is remembered foretells every next latent, and is the
            same in whatever blocks a text is written.
          near: see next to nothing: of noisy latents the neighbours, of clean ones themselves.
          only_foreseen: take what is foreseen as it is, without a look at anything else: the same
            where all are told and there is no news, for next to no cost. Makes no memory.

        Returns:
          ``output_BxNxD``, fp32: clean latents or velocity, as trained; the trunk's features,
          from which a TextVAE without a decoder trunk of its own reads the tokens; and the memory
          of these positions.
        """
        init = nn.initializers.zeros
        head = Dense(self.latent_channels, ("embed", "latent"), kernel_init=init, name="output")
        if only_foreseen:
            y_BxNxM = foreseen.features_BxNxM
            return Denoised(head(y_BxNxM), y_BxNxM, None, None)
        z_BxNxD = jnp.where((state_BxN == DROPPED)[..., None], 0.0, z_BxNxD)
        inputs = jnp.concatenate([z_BxNxD, self_condition_BxNxD], axis=-1)
        x_BxNxM, time_BxNxM = self._embed(inputs, t_BxN, state_BxN, places)
        if foreseen is not None:
            told_M = self._vector("told")
            x_BxNxM += jnp.where(foreseen.told_BxN[..., None], told_M, 0).astype(x_BxNxM.dtype)
        trunk = Transformer(
            self.layers,
            self.heads,
            self.mlp_ratio,
            jnp.dtype(self.dtype),
            self.remat,
            self.offset_radius,
            self.attention,
            self.tap,
            self.dropout,
            name="trunk",
        )
        sight = _sight(places, memory, reading, near)
        if self.conditioning == "adaln" or self.time_tokens == 0:
            condition = time_BxNxM if self.conditioning == "adaln" else None
            remembered = None if memory is None else memory.keys_and_values
            said = trunk(x_BxNxM, sight, places.positions_BxN, condition, remembered)
        else:
            # One running time a row: the mean over what is being written.
            writing_BxN = (state_BxN == UNKNOWN) & (places.segments_BxN > 0)
            running_B = jnp.sum(t_BxN * writing_BxN, 1) / jnp.maximum(jnp.sum(writing_BxN, 1), 1)
            said = self._with_time_tokens(trunk, x_BxNxM, running_B, sight)
        y_BxNxM, own, tapped_BxNxM = said
        if foreseen is not None:
            y_BxNxM = self._with_foreseen(y_BxNxM, foreseen)
        return Denoised(head(y_BxNxM), y_BxNxM, Memory(own, y_BxNxM, places), tapped_BxNxM)

    def _vector(self, name: str) -> jax.Array:
        """A parameter (M,) that starts at zero."""
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        return self.param(name, init, (self.width,), jnp.float32)

    def _mark(self, name: str, init, rows: int, index_BxN) -> jax.Array:
        """Rows (B, N, M) of a table of learned marks."""
        init = nn.with_logical_partitioning(init, (None, "embed"))
        table = self.param(name, init, (rows, self.width), jnp.float32)
        return jnp.take(table, index_BxN, axis=0).astype(self.dtype)

    def _embed(self, inputs, t_BxN, state_BxN, places: Places):
        """Latents with all that is said of their places: what the blocks read, and the times."""
        dtype = jnp.dtype(self.dtype)
        x_BxNxM = Dense(self.width, ("latent", "embed"), dtype, name="input")(inputs)
        time = Dense(self.width, ("time", "embed"), dtype, name="time")
        time_BxNxM = nn.silu(time(time_features(t_BxN, 64)))
        x_BxNxM += self._mark("state", nn.initializers.normal(0.5), 3, state_BxN)
        # Rotary positions are relative: without a mark of its own the first block, which sees
        # nothing before it, does not know that a text begins here.
        place_BxN = jnp.minimum(places.positions_BxN, BEGINNING)
        x_BxNxM += self._mark("begin", nn.initializers.zeros, BEGINNING + 1, place_BxN)
        x_BxNxM += Dense(self.width, ("embed", "mlp"), dtype, name="position_time")(time_BxNxM)
        return x_BxNxM, time_BxNxM

    def _with_foreseen(self, y_BxNxM, foreseen: Foreseen) -> jax.Array:
        """The trunk's features, or where positions are told, what is foreseen and the news."""
        scale_M = self._vector("told_scale")
        told_BxNxM = foreseen.features_BxNxM + (
            y_BxNxM * (scale_M * foreseen.news_BxN[..., None]).astype(y_BxNxM.dtype)
        )
        # An average of logits: one is learned better, the other has seen both sides.
        mean_BxNxM = (y_BxNxM + foreseen.features_BxNxM) / 2
        told_BxNxM = jnp.where(foreseen.blind_BxN[..., None], mean_BxNxM, told_BxNxM)
        return jnp.where(foreseen.told_BxN[..., None], told_BxNxM, y_BxNxM)

    def _with_time_tokens(self, trunk, x_BxNxM, running_B, sight: Sight):
        """Run the trunk with time tokens in front, which every position sees, and drop them."""
        dtype = jnp.dtype(self.dtype)
        features = nn.silu(
            Dense(self.width, ("time", "embed"), dtype, name="running_time")(
                time_features(running_B, 64)
            )
        )
        tokens_BxTM = Dense(self.time_tokens * self.width, ("embed", "mlp"), dtype, name="tokens")(
            features
        )
        T = self.time_tokens
        token_init = nn.with_logical_partitioning(nn.initializers.normal(0.5), (None, "embed"))
        learned_TxM = self.param("time_token", token_init, (T, self.width), jnp.float32)
        tokens_BxTxM = tokens_BxTM.reshape(-1, T, self.width) + learned_TxM.astype(
            tokens_BxTM.dtype
        )
        x = jnp.concatenate([tokens_BxTxM, x_BxNxM], axis=1)
        # Time tokens see one another alone: through anything else, packed documents would meet.
        blank = jnp.zeros((x.shape[0], T), jnp.int32)
        of_tokens = Places(blank - 1, blank, blank)
        of_all = jax.tree.map(
            lambda *parts: jnp.concatenate(parts, axis=1),
            of_tokens, sight.query.replace(block_size=0),
        )  # fmt: skip
        sight = Sight(of_all, (of_tokens, *sight.keys), (ALL, *sight.rules))
        y, own, tapped = trunk(x, sight, of_all.positions_BxN)
        own = jax.tree.map(lambda kv: kv[:, :, T:], own)
        return y[:, T:], own, None if tapped is None else tapped[:, T:]
