"""The demo, aligned with a frozen SmolLM2-135M where it reads clean text.

Command:  make models
          ldlm data --config configs/web_aligned.py --teacher
          ldlm train --config configs/web_aligned.py --workdir runs/web_aligned
          Another open model: teacher.model=gemma3-270m, a folder or a GGUF file, with both.
          In the step, without a cache: teacher.cached=False, and no second command.
Hardware: 2 virtual CPU cores with bf16 vector units (AMD EPYC); the second command took 22
          minutes beside a training, once for a corpus.
Result:   1,000 of its 1,500 steps, seeds 0, 1, 2 (25 November 2026): context/nats_blocks_of_one
          4.158, 4.167, 4.172, without a teacher 4.239, 4.235, 4.247 (`ldlm eval --evals context
          --batches 52`); what it writes is judged in experiments/alignment/. The whole run was
          not done.

The pass that reads clean text is asked for what comes next, and a causal language model's third
layer from the end knows more of that than a small corpus can teach.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    config["teacher"] = {
        "model": "smollm2-135m",
        "layer": -3,
        "dtype": "bfloat16",
        "cached": True,
    }
    config["alignment"] = {"site": "clean_pass", "block": 3}
    for phase in config["phases"]:
        phase["alignment"] = 4.0
    return config
