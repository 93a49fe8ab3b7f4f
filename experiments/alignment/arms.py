"""Teachers with which the prefill is aligned, all else equal.

Command: see ``experiments/compare.py``
"""

CONFIG = "configs/web_aligned.py"
STEPS = 1000
STEP_COUNTS = (1,)
SCORER = "gemma3-270m"  # no teacher here
# Texts are generated in blocks of one, as in experiments/half_hour/.
_SAMPLING = ("sample.block_size=1", "sample.time_offset=0.0", "sample.top_p=0.95")
_IN_STEP = "teacher.cached=False"
ARMS = {
    name: (*_SAMPLING, *overrides)
    for name, overrides in {
        "none": ("phases.0.alignment=0.0", "phases.1.alignment=0.0"),
        "SmolLM2-135M": (),
        "SmolLM2-135M, noisy pass": ("alignment.site=dit", "phases.0.alignment=0.0"),
        "MiniLM-L6": (_IN_STEP, "teacher.model=minilm-l6", "teacher.layer=-1"),
    }.items()
}
