"""Whose features the pass over clean text is aligned with, all else equal."""

CONFIG = "configs/web_aligned.py"
STEPS = 1000
STEP_COUNTS = (20,)
JUDGE = "gemma3-270m"  # no teacher
_MINILM = ("teacher.model=minilm-l6", "teacher.layer=-1", "teacher.cached=False")
_OWN = ("teacher.model=''", "teacher.run=runs/web_masked_lm", "teacher.cached=False")
ARMS = {
    "none": ("phases.0.alignment=0.0", "phases.1.alignment=0.0"),
    "SmolLM2-135M, layer 28 of 30": (),
    "the same, by Huber's loss": ("alignment.loss=smooth_l1",),
    "the same, noisy pass": ("alignment.site=dit", "phases.0.alignment=0.0"),
    "MiniLM-L6, last layer": _MINILM,
    "own masked LM": _OWN,
}
