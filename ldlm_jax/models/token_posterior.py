"""The token posterior: clean latents as the mean of token embeddings under Bayes' rule.

The network contributes what the context makes likely; what the noisy latent itself tells is added
in closed form (after the output prior and the categorical reparameterisation of Gulrajani &
Hashimoto 2023, "Likelihood-Based Diffusion Language Models"). The network then learns context from
the first step on.

Shape letters: B rows, N latents, D latent channels, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.rows import row_choice
from ldlm_jax.diffusion.schedule import Schedule
from ldlm_jax.models.dense import matmul


@dataclass(frozen=True)
class TokenPosterior:
    """Bayes' rule over tokens. Made inside a jitted function; not a pytree.

    Attributes:
      embeddings_VxD: normalised latent of every token alone.
      variance: of a token's latents around its embedding.
      schedule: of the noise.
      dtype: of the product that makes the mean.
    """

    embeddings_VxD: jax.Array
    variance: float
    schedule: Schedule
    dtype: jnp.dtype

    def log_likelihood(self, z_BxNxD, t_BxN) -> jax.Array:
        """Log-likelihood (B, N, V) of noisy latents under each token, up to a constant.

        A latent of token v is N(e_v, s^2), hence (schedule.py, equation 1)

            z_t | v ~ N(alpha e_v, sigma^2 + alpha^2 s^2)

        The factors that are alike for all tokens stand before the product, where the array is
        small.
        """
        t = t_BxN[..., None]
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        precision = 1 / (sigma**2 + alpha**2 * self.variance)
        square_V = jnp.sum(jnp.square(self.embeddings_VxD), axis=-1)
        # In fp32: near the data these numbers are in the thousands, and their differences decide.
        dots_BxNxV = (alpha * precision * z_BxNxD) @ self.embeddings_VxD.T
        return dots_BxNxV - 0.5 * alpha**2 * precision * square_V

    def mean(self, logits_BxNxV) -> jax.Array:
        """Mean (B, N, D) of the token embeddings under these logits."""
        # Embeddings that learned from the squared error would all become one.
        embeddings_VxD = jax.lax.stop_gradient(self.embeddings_VxD)
        return matmul(jax.nn.softmax(logits_BxNxV), embeddings_VxD, self.dtype)

    def draw(self, logits_BxNxV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Embeddings (B, N, D) of tokens drawn by these logits, each row by its own key."""
        return self.embeddings_VxD[row_choice(keys_B, logits_BxNxV)]
