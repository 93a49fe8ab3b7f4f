"""Puzzles with verified answers: how they are made, and how an answer is checked."""
