"""Whose features the encoder is aligned with, all else equal."""

CONFIG = "configs/web_aligned.py"
STEPS = 400
STEP_COUNTS = (20,)
_OPEN = ("teacher.run=''", "teacher.dtype=bfloat16")
# The phases of the config without alignment.
_FIRST = {
    "until": 213, "next_token": 1.0, "diffusion": 0.0, "reconstruction": 0.0,
    "encoder_gradient": 1.0,
}  # fmt: skip
_SECOND = {"next_token": 1.0, "reconstruction": 0.2, "encoder_gradient": 1.0}
ARMS = {
    "none": ("teacher.run=''", f"phases={[_FIRST, _SECOND]}"),
    "own masked LM": (),
    "SmolLM2-135M, layer 10": (*_OPEN, "teacher.model=smollm2-135m", "teacher.layer=10"),
    "MiniLM-L6, last layer": (*_OPEN, "teacher.model=minilm-l6", "teacher.layer=-1"),
}
