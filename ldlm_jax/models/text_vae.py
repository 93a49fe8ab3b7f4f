"""TextVAE: tokens to a smooth latent space, and all tokens back at once.

Shape letters: B batch, L tokens, N latents (N = L / tokens_per_latent), D latent channels,
M width, V vocabulary.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.layers import Dense, RMSNorm, Transformer, collected
from ldlm_jax.models.lowering import constrain
from ldlm_jax.models.token_layout import Places, lay_out, see_up_to_block


class Posterior(NamedTuple):
    """What the encoder says of a text: a diagonal Gaussian per latent, and its trunk features."""

    mean_BxNxD: jax.Array
    logvar_BxNxD: jax.Array
    features_BxNxM: jax.Array


class Encoder(nn.Module):
    """Tokens to posterior. Attributes are those of ``TextVAE``."""

    vocab_size: int
    width: int
    heads: int
    layers: int
    mlp_ratio: float
    latent_channels: int
    tokens_per_latent: int
    dtype: jnp.dtype
    remat: str
    attention: str
    foundation: Any

    @nn.compact
    def __call__(self, tokens_BxL, places: Places, known_BxN, weights=None) -> Posterior:
        """See ``TextVAE.encode``; ``weights`` are the foundation's."""
        # Known and unknown do not see each other, so that the latent of a known text holds nothing
        # of the text to be written.
        sides_BxN = 2 * places.segments_BxN + known_BxN
        places = places.replace(segments_BxN=sides_BxN)
        if self.foundation is None:
            init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
            table_VxM = self.param("embed", init, (self.vocab_size, self.width), jnp.float32)
            # Split by columns, every device would look its own up for the tokens of all.
            table_VxM = collected(table_VxM, ("vocab", "embed"), self.dtype)
            x_BxLxM = jnp.take(table_VxM, tokens_BxL, axis=0)
        else:
            states_BxLxH = jnp.zeros((*tokens_BxL.shape, self.foundation.width))
            if weights is not None:
                of_tokens = places.of_parts(self.tokens_per_latent)
                states_BxLxH = self.foundation.read(weights, tokens_BxL, of_tokens)
            x_BxLxM = Dense(self.width, ("feature", "embed"), self.dtype, name="down")(states_BxLxH)
        x_BxLxM = constrain(x_BxLxM, "batch", "sequence", None)
        # tokens_per_latent neighbours become one position.
        x_BxNxM = x_BxLxM.reshape(*known_BxN.shape, -1)
        if self.tokens_per_latent > 1:
            x_BxNxM = Dense(self.width, ("embed", "mlp"), self.dtype, name="fold")(x_BxNxM)
        sight = see_up_to_block(places)
        features_BxNxM = x_BxNxM
        if self.layers > 0:
            features_BxNxM, *_ = Transformer(
                self.layers,
                self.heads,
                self.mlp_ratio,
                self.dtype,
                self.remat,
                attention=self.attention,
                name="trunk",
            )(x_BxNxM, sight, places.positions_BxN)
        # Two maps, not one twice as wide: ``codes`` needs the mean alone, of the whole vocabulary.
        mean_BxNxD, logvar_BxNxD = (
            Dense(self.latent_channels, ("embed", "latent"), name=name)(features_BxNxM)
            for name in ("mean", "logvar")
        )
        # A mean of fixed length cannot outgrow the noise that the decoder is trained on.
        mean_BxNxD = RMSNorm(use_scale=False, name="mean_norm")(mean_BxNxD)
        return Posterior(mean_BxNxD, jnp.clip(logvar_BxNxD - 4.0, -10.0, 2.0), features_BxNxM)


class Decoder(nn.Module):
    """Latents to logits, all positions in parallel. Attributes are those of ``TextVAE``."""

    vocab_size: int
    width: int
    heads: int
    layers: int
    mlp_ratio: float
    tokens_per_latent: int
    dtype: jnp.dtype
    remat: str
    attention: str
    foundation: Any

    def setup(self):
        """Create the parts (called by Flax)."""
        if self.layers > 0:
            self.input = Dense(self.width, ("latent", "embed"), self.dtype)
            self.trunk = Transformer(
                self.layers, self.heads, self.mlp_ratio, self.dtype, self.remat,
                attention=self.attention,
            )  # fmt: skip
        if self.tokens_per_latent > 1:
            self.unfold = Dense(self.tokens_per_latent * self.width, ("embed", "mlp"), self.dtype)
        if self.foundation is None:
            self.head = Dense(self.vocab_size, ("embed", "vocab"), self.dtype)
            return
        width = self.foundation.width
        self.up = Dense(width, ("embed", "feature"), self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("feature", None))
        self.specials = self.param("specials", init, (width, self.foundation.specials), jnp.float32)

    def features(self, inputs, places: Places, weights=None) -> jax.Array:
        """See ``TextVAE.token_features``; ``weights`` are the foundation's."""
        x_BxNxM = inputs
        if self.layers > 0:
            x_BxNxM, *_ = self.trunk(
                self.input(inputs), see_up_to_block(places), places.positions_BxN
            )
        if self.tokens_per_latent > 1:
            x_BxNxM = self.unfold(x_BxNxM)
        width = x_BxNxM.shape[-1] // self.tokens_per_latent
        x_BxLxM = x_BxNxM.reshape(x_BxNxM.shape[0], -1, width)
        if self.foundation is None:
            return x_BxLxM
        states_BxLxH = self.up(x_BxLxM).astype(jnp.float32)
        if weights is None:
            return states_BxLxH
        of_tokens = places.of_parts(self.tokens_per_latent)
        return self.foundation.speak(weights, states_BxLxH, of_tokens)

    def read(self, features_BxLxM, weights=None) -> jax.Array:
        """See ``TextVAE.read``; ``weights`` are the foundation's."""
        if self.foundation is None:
            logits_BxLxV = self.head(features_BxLxM).astype(jnp.float32)
        elif weights is None:
            logits_BxLxV = jnp.zeros((*features_BxLxM.shape[:2], self.vocab_size))
        else:
            logits_BxLxV = self.foundation.logits(
                weights, features_BxLxM, self.specials, self.vocab_size
            )
        return constrain(logits_BxLxV, "batch", "sequence", "vocab")


class TextVAE(nn.Module):
    """Variational autoencoder over token sequences (after TextLDM, arXiv 2605.07748, stage 1).

    Attributes:
      vocab_size: tokens, special tokens included.
      width: model width M.
      heads: attention heads; the head width must be even.
      encoder_layers: transformer blocks of the encoder; 0 leaves a latent for each token alone.
      decoder_layers: transformer blocks of the decoder; 0 shares the DiT's trunk, whose features
        the decoder then reads instead of latents (ELF, arXiv 2605.10938).
      mlp_ratio: feed-forward width over model width.
      latent_channels: D.
      tokens_per_latent: tokens that share one latent; must divide the window.
      dtype: compute dtype, ``"float32"`` or ``"bfloat16"``.
      remat: what blocks keep for the backward pass, see ``layers.REMAT``.
      attention: implementation of attention, see ``attention.attend``.
      foundation: a frozen language model that reads in place of an embedding table and speaks in
        place of a head (``teachers.foundation``), or None. Its weights are the variable
        ``foundation/weights``; creating parameters needs none.
    """

    vocab_size: int
    width: int = 256
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    mlp_ratio: float = 2.5
    latent_channels: int = 32
    tokens_per_latent: int = 1
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    foundation: Any = None

    def setup(self):
        """Create encoder and decoder (called by Flax)."""
        shared = {
            "vocab_size": self.vocab_size,
            "width": self.width,
            "heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "tokens_per_latent": self.tokens_per_latent,
            "dtype": jnp.dtype(self.dtype),
            "remat": self.remat,
            "attention": self.attention,
            "foundation": self.foundation,
        }
        self.encoder = Encoder(
            layers=self.encoder_layers, latent_channels=self.latent_channels, **shared
        )
        self.decoder = Decoder(layers=self.decoder_layers, **shared)

    @property
    def _weights(self):
        """The foundation's, or None while parameters are created."""
        return self.get_variable("foundation", "weights")

    def encode(self, tokens_BxL, places: Places, known_BxN) -> Posterior:
        """Encode a batch.

        Args:
          tokens_BxL: token ids; masked tokens are already replaced.
          places: where each latent stands; none sees a later block.
          known_BxN: true where the text is given; known and unknown are encoded apart.

        Returns:
          The posterior; its mean has root-mean-square 1 over the channels of each latent.
        """
        return self.encoder(tokens_BxL, places, known_BxN, self._weights)

    def codes(self) -> jax.Array:
        """Posterior mean (V, D) of every token alone, in a text of one token."""
        tokens_Vx1 = jnp.arange(self.vocab_size)[:, None]
        places = lay_out(jnp.ones_like(tokens_Vx1))
        return self.encode(tokens_Vx1, places, jnp.zeros_like(tokens_Vx1, bool)).mean_BxNxD[:, 0]

    def token_features(self, inputs, places: Places) -> jax.Array:
        """Features (B, L, M) from which each token is read.

        Args:
          inputs: normalised latents (B, N, D) of unit variance a channel; with ``decoder_layers``
            0 the features (B, N, M) of the DiT's trunk for such latents.
          places: where each latent stands.
        """
        return self.decoder.features(inputs, places, self._weights)

    def read(self, features_BxLxM) -> jax.Array:
        """Logits (B, L, V), fp32, of ``token_features``; each position by itself."""
        return self.decoder.read(features_BxLxM, self._weights)

    def __call__(self, tokens_BxL, places: Places, inputs) -> jax.Array:
        """Encode, and decode other inputs; used to create the parameters."""
        self.encode(tokens_BxL, places, jnp.zeros(places.segments_BxN.shape, bool))
        return self.read(self.token_features(inputs, places))
