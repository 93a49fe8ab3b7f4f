"""Trained models in use: a Python API, folders of weights, a server, an evaluation harness."""
