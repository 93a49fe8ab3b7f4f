"""Open models in JAX, read from safetensors or GGUF: pure functions of a tree of parameters."""
