"""Sizes of the blocks that are generated together, all else equal.

Command: see ``experiments/compare.py``
"""

CONFIG = "configs/web_cpu.py"
STEPS = 240
STEP_COUNTS = (20,)
SCORER = "smollm2-135m"


def _blocks(size: int) -> tuple[str, ...]:
    return f"diffusion.block_size={size}", f"data.pad_to_multiple={size}"


ARMS = {f"blocks of {size}": _blocks(size) for size in (4, 8, 16, 32)} | {
    "whole texts": (
        "diffusion.block_size=0",
        "diffusion.single_token_blocks=0.0",
        "diffusion.next_token_prior=0.0",
        "phases=[{'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
        "data.pad_to_multiple=1",
        "sample.time_offset=0.0",
    ),  # fmt: skip
}
