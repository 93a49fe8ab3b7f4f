"""Attention and products for particular hardware."""
