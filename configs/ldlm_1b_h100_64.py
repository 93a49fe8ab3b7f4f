"""The recipe of ldlm_1b_v5e_256 for 64 NVIDIA H100 in eight nodes.

Command:  srun ldlm train --config configs/ldlm_1b_h100_64.py --workdir /mnt/shared/ldlm_1b
Hardware: 8 nodes of 8 H100. Planned as far as can be without one, not run: experiments/scale/.
Result:   none yet.

Parameters are split over the eight GPUs of a node, and nodes hold copies: only gradients cross the
network between nodes.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("ldlm_1b_v5e_256.py")))["get_config"]()
    config["text_vae"] |= {"attention": "cudnn", "remat": "attention"}
    config["dit"] |= {"attention": "cudnn"}
    config["train"] |= {"batch_size": 2048, "microbatches": 2, "logit_chunks": 8}
    config["mesh"] = {"slice": 8, "data": 1, "fsdp": -1}
    return config
