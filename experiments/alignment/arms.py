"""Whose features the pass over clean text is aligned with, all else equal."""

CONFIG = "configs/web_aligned.py"
STEPS = 1000
STEP_COUNTS = (1,)
JUDGE = "gemma3-270m"  # no teacher
# Texts are written in blocks of one, as those of experiments/half_hour/.
_WRITTEN = ("sample.block_size=1", "sample.lag=0.0", "sample.top_p=0.95")
_IN_STEP = "teacher.cached=False"
ARMS = {
    name: (*_WRITTEN, *overrides)
    for name, overrides in {
        "none": ("phases.0.alignment=0.0", "phases.1.alignment=0.0"),
        "SmolLM2-135M": (),
        "SmolLM2-135M, noisy pass": ("alignment.site=dit", "phases.0.alignment=0.0"),
        "MiniLM-L6": (_IN_STEP, "teacher.model=minilm-l6", "teacher.layer=-1"),
    }.items()
}
