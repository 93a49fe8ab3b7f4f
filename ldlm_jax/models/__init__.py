"""The networks: Flax Linen modules that know nothing of configs, meshes or losses."""
