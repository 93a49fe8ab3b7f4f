"""About seven billion parameters in the denoiser, aligned with a 7B teacher, 512 TPU v5p chips.

Command:  ldlm train --config configs/ldlm_7b_v5p_512.py --workdir /mnt/shared/ldlm_7b \
            teacher.model=/mnt/shared/Mistral-7B-v0.3
          Data: a folder of web text as .parquet (set data.source to it).
Hardware: TPU v5p, 512 chips (8x8x8). Planned, not run: experiments/scale/.
Result:   none yet.

Eight rows of 2,048 tokens a chip. The teacher runs inside the step, split over the same chips, and
attends by the kernel; latents are aligned with its 29th of 32 layers (TextLDM: the third
from the end). Parameters are split over 128 chips, which leaves room for whole logits and for all
that the autoencoder's backward pass needs.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("ldlm_1b_v5e_256.py")))["get_config"]()
    config["data"] |= {"vocab_size": 131_072, "window": 2048}
    config["text_vae"] |= {"width": 2048, "heads": 16}
    # A v5p has room to keep products, and memory fast enough for it to pay.
    config["dit"] |= {"width": 4096, "heads": 32, "layers": 36, "remat": "dots"}
    config["optim"] |= {"learning_rate": 2e-4}
    config["train"] |= {"batch_size": 4096}
    config["mesh"] = {"data": -1, "fsdp": 128}
    # Only shape and layer matter to a plan; a run names the folder with the weights.
    config["teacher"] = {
        "model": "experiments/scale/mistral-7b",
        "layer": 29,
        "dtype": "bfloat16",
        "window": 2560,
        "attention": "splash",
    }
    config["alignment"] = {"site": "encoder"}
    config["phases"] = [
        {"until": 50_000, "diffusion": 0.0, "alignment": 1.0},
        {"until": -1, "reconstruction": 0.1, "kl": 1e-5, "train": ["decoder", "dit"]},
    ]
    return config
