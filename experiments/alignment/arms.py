"""Whose features the encoder is aligned with, all else equal."""

CONFIG = "configs/web_aligned.py"
STEPS = 400
STEP_COUNTS = (20,)
_OPEN = ("teacher.run=''", "teacher.dtype=bfloat16")
ARMS = {
    "none": ("teacher.run=''", "phases.-1.alignment=0.0"),
    "own masked LM": (),
    "SmolLM2-135M, layer 10": (*_OPEN, "teacher.model=smollm2-135m", "teacher.layer=10"),
    "MiniLM-L6, last layer": (*_OPEN, "teacher.model=minilm-l6", "teacher.layer=-1"),
}
