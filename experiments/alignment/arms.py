"""Whose features the encoder is aligned with, all else equal."""

CONFIG = "configs/web_aligned.py"
STEPS = 400
STEP_COUNTS = (20,)
# The features of open models may be cached: `ldlm data --teacher` with the same overrides.
_OPEN = ("teacher.run=''", "teacher.dtype=bfloat16", "teacher.cached=True")
ARMS = {
    "none": ("teacher.run=''", "phases=[{'reconstruction': 0.2, 'encoder_gradient': 1.0}]"),
    "own masked LM": (),
    "SmolLM2-135M, layer 10": (*_OPEN, "teacher.model=smollm2-135m", "teacher.layer=10"),
    "MiniLM-L6, last layer": (*_OPEN, "teacher.model=minilm-l6", "teacher.layer=-1"),
}
