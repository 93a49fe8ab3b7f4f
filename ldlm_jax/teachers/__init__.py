"""Frozen models whose features the latents are aligned with."""
