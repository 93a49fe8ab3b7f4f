"""About one billion parameters in the denoiser, a TPU v5e slice of 256 chips.

Command:  ldlm train --config configs/ldlm_1b_v5e_256.py --workdir /mnt/shared/ldlm_1b
          Data: a folder of web text as .parquet (set data.source to it); prepare it once
          beforehand with `ldlm data --config ...`.
Hardware: TPU v5e-256 (16x16). Planned, not run: experiments/scale/.
Result:   none yet.

Parameters, optimizer and average are split over the 16 chips of a row of the torus (split over all
256 the parts would be too thin for the compiler to sum gradients where they lie); rows are split
over all, 15 a chip, which leaves room for whole logits and for all that the autoencoder's backward
pass needs; the DiT's blocks keep what attention gave and compute the rest again.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("ldlm_130m_v5e_16.py")))["get_config"]()
    config["data"] = {"source": "web_text/", "vocab_size": 65_536, "window": 1024}
    config["text_vae"] |= {"encoder_layers": 6, "decoder_layers": 6, "mlp_ratio": 2.5}
    config["dit"] |= {"width": 2560, "heads": 20, "layers": 13, "remat": "attention"}
    config["optim"] |= {"name": "adamw", "learning_rate": 4e-4}
    config["train"] |= {"batch_size": 3840, "checkpoint_every": 2500}
    config["sample"] |= {"batch_size": 256}
    config["mesh"] = {"data": -1, "fsdp": 16}
    return config
