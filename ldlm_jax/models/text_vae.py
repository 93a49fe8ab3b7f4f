"""TextVAE: tokens to a smooth latent space, and all tokens back at once.

Shape letters: B batch, L tokens, N latents (N = L / tokens_per_latent), D latent channels,
M width, V vocabulary.
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.dense import Dense, gather_kernel, look_up
from ldlm_jax.models.layers import RMSNorm, Transformer
from ldlm_jax.models.lowering import Dtype, constrain
from ldlm_jax.models.masks import block_causal
from ldlm_jax.models.token_layout import TokenLayout, token_layout


class Posterior(NamedTuple):
    """A diagonal Gaussian per latent, and the encoder trunk's features."""

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
    backbone: Any

    @nn.compact
    def __call__(self, tokens_BxL, layout: TokenLayout, observed_BxN, weights=None) -> Posterior:
        """See ``TextVAE.encode``; ``weights`` are the backbone's."""
        # Observed and generated text do not attend to each other, so that the latent of observed
        # text holds nothing of the text to be generated.
        sides_BxN = 2 * layout.segment_ids_BxN + observed_BxN
        layout = layout.replace(segment_ids_BxN=sides_BxN)
        if self.backbone is None:
            init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
            table_VxM = self.param("embed", init, (self.vocab_size, self.width), jnp.float32)
            # Split by columns, every device would look its own up for the tokens of all.
            table_VxM = gather_kernel(table_VxM, ("vocab", "embed"), self.dtype)
            x_BxLxM = look_up(table_VxM, tokens_BxL)
        else:
            states_BxLxH = jnp.zeros((*tokens_BxL.shape, self.backbone.width))
            if weights is not None:
                tokens_layout = layout.of_tokens(self.tokens_per_latent)
                states_BxLxH = self.backbone.read(weights, tokens_BxL, tokens_layout)
            x_BxLxM = Dense(self.width, ("feature", "embed"), self.dtype, name="down")(states_BxLxH)
        x_BxLxM = constrain(x_BxLxM, "batch", "sequence", None)
        # tokens_per_latent neighbours become one position.
        x_BxNxM = x_BxLxM.reshape(*observed_BxN.shape, -1)
        if self.tokens_per_latent > 1:
            x_BxNxM = Dense(self.width, ("embed", "mlp"), self.dtype, name="fold")(x_BxNxM)
        mask = block_causal(layout)
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
            )(x_BxNxM, mask, layout.positions_BxN)
        # Two maps, not one twice as wide: ``token_embeddings`` needs means alone.
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
    backbone: Any

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
        if self.backbone is None:
            self.head = Dense(self.vocab_size, ("embed", "vocab"), self.dtype)
            return
        width = self.backbone.width
        self.up = Dense(width, ("embed", "feature"), self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("feature", None))
        self.specials = self.param("specials", init, (width, self.backbone.specials), jnp.float32)

    def features(self, inputs, layout: TokenLayout, weights=None) -> jax.Array:
        """See ``TextVAE.token_features``; ``weights`` are the backbone's."""
        x_BxNxM = inputs
        if self.layers > 0:
            x_BxNxM, *_ = self.trunk(self.input(inputs), block_causal(layout), layout.positions_BxN)
        if self.tokens_per_latent > 1:
            x_BxNxM = self.unfold(x_BxNxM)
        width = x_BxNxM.shape[-1] // self.tokens_per_latent
        x_BxLxM = x_BxNxM.reshape(x_BxNxM.shape[0], -1, width)
        if self.backbone is None:
            return x_BxLxM
        states_BxLxH = self.up(x_BxLxM).astype(jnp.float32)
        if weights is None:
            return states_BxLxH
        tokens_layout = layout.of_tokens(self.tokens_per_latent)
        return self.backbone.predict(weights, states_BxLxH, tokens_layout)

    def logits(self, features_BxLxM, weights=None) -> jax.Array:
        """See ``TextVAE.logits``; ``weights`` are the backbone's."""
        if self.backbone is None:
            logits_BxLxV = self.head(features_BxLxM).astype(jnp.float32)
        elif weights is None:
            logits_BxLxV = jnp.zeros((*features_BxLxM.shape[:2], self.vocab_size))
        else:
            logits_BxLxV = self.backbone.logits(
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
      dtype: compute dtype.
      remat: what blocks keep for the backward pass, see ``layers.REMAT``.
      attention: implementation of attention, see ``attention.attend``.
      backbone: a frozen language model in place of the embedding table and of the head
        (``teachers.backbone``), or None. Its weights are the variable ``backbone/weights``;
        creating parameters needs none.
    """

    vocab_size: int
    width: int = 256
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    mlp_ratio: float = 2.5
    latent_channels: int = 32
    tokens_per_latent: int = 1
    dtype: Dtype = "float32"
    remat: Literal["none", "dots", "attention", "full"] = "none"
    attention: Literal["xla", "cudnn", "splash", "ring"] = "xla"
    backbone: Any = None

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
            "backbone": self.backbone,
        }
        self.encoder = Encoder(
            layers=self.encoder_layers, latent_channels=self.latent_channels, **shared
        )
        self.decoder = Decoder(layers=self.decoder_layers, **shared)

    @property
    def _weights(self):
        """The backbone's, or None while parameters are created."""
        return self.get_variable("backbone", "weights")

    def encode(self, tokens_BxL, layout: TokenLayout, observed_BxN) -> Posterior:
        """Encode a batch.

        Args:
          tokens_BxL: token ids; masked tokens are already replaced.
          layout: where each latent stands; none attends to a later block.
          observed_BxN: true where the text is observed; the rest is encoded apart from it.

        Returns:
          The posterior; its mean has root-mean-square 1 over the channels of each latent.
        """
        return self.encoder(tokens_BxL, layout, observed_BxN, self._weights)

    def token_embeddings(self) -> jax.Array:
        """Posterior mean (V, D) of every token alone, in a text of one token."""
        tokens_Vx1 = jnp.arange(self.vocab_size)[:, None]
        layout = token_layout(jnp.ones_like(tokens_Vx1))
        return self.encode(tokens_Vx1, layout, jnp.zeros_like(tokens_Vx1, bool)).mean_BxNxD[:, 0]

    def token_features(self, inputs, layout: TokenLayout) -> jax.Array:
        """Features (B, L, M) from which each token is read.

        Args:
          inputs: normalised latents (B, N, D) of unit variance a channel; with ``decoder_layers``
            0 the features (B, N, M) of the DiT's trunk for such latents.
          layout: where each latent stands.
        """
        return self.decoder.features(inputs, layout, self._weights)

    def logits(self, features_BxLxM) -> jax.Array:
        """Logits (B, L, V), fp32, of ``token_features``; each position by itself."""
        return self.decoder.logits(features_BxLxM, self._weights)

    def __call__(self, tokens_BxL, layout: TokenLayout, inputs) -> jax.Array:
        """Encode, and decode other inputs; used to create the parameters."""
        self.encode(tokens_BxL, layout, jnp.zeros(layout.segment_ids_BxN.shape, bool))
        return self.logits(self.token_features(inputs, layout))
