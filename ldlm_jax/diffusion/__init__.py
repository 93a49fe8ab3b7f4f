"""The arithmetic of noise: pure functions and frozen dataclasses, no Flax, no config."""
