"""Continuous latent diffusion language models in JAX and Flax."""
