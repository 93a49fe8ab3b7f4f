"""Meshes, shardings, and several processes as one program."""
