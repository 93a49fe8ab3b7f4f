"""How many tokens come out of noise together, all else equal."""

CONFIG = "configs/web_cpu.py"
STEPS = 240
STEP_COUNTS = (20,)
JUDGE = "smollm2-135m"


def _blocks(size: int) -> tuple[str, ...]:
    return f"diffusion.block_size={size}", f"data.round_to={size}"


ARMS = {f"blocks of {size}": _blocks(size) for size in (4, 8, 16, 32)} | {
    "whole texts": (
        "diffusion.block_size=0",
        "diffusion.blocks_of_one=0.0",
        "diffusion.foresight=0.0",
        "phases=[{'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
        "data.round_to=1",
        "sample.lag=0.0",
    ),  # fmt: skip
}
