"""The demo's recipe with about 130M parameters in the denoiser: blocks of four, 16 TPU v5e chips.

Command:  ldlm train --config configs/ldlm_130m_blocks_v5e_16.py --workdir /mnt/shared/ldlm_blocks
          Data: any folder of OpenWebText as .jsonl or .parquet (set data.source to it), or the
          TFDS dataset by name; prepare it once beforehand with `ldlm data --config ...`.
Hardware: TPU v5e-16 (4x4). Planned, not run: experiments/scale/.
Result:   none yet.

What experiments/half_hour/ measured beside an autoregressive model, but for two things that the
kernel for attention does not know: heads that begin at their neighbours, and holes; what is known
beforehand is a text's beginning. Diffusion, losses and latents are the demo's, sizes and optimizer
those of ldlm_130m_v5e_16.py.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    demo, config = (
        runpy.run_path(str(Path(__file__).with_name(name)))["get_config"]()
        for name in ("web_cpu.py", "ldlm_130m_v5e_16.py")
    )
    config["data"] |= {"pad_to_multiple": 4}
    config["text_vae"] = demo["text_vae"] | {"width": 1536, "heads": 12}
    config["autoencoding"] = demo["autoencoding"]
    config["diffusion"] = demo["diffusion"] | {"prefix": 0.3, "suffix": 0.0, "infill": 0.0}
    config["train"] |= {"batch_size": 224}
    config["sample"] = demo["sample"] | {"batch_size": 16}
    first, both = demo["phases"]
    config["phases"] = [first | {"until": 200_000}, both]
    return config
