"""Write where each parameter of the configs of record lives; the tests compare with these files.

Command: python experiments/scale/golden.py
"""

import json
from pathlib import Path

from ldlm_jax.config import load_config, resolve
from ldlm_jax.plan.report import sharding_table

DEVICES = {
    "ldlm_130m_v5e_16": 16,
    "ldlm_130m_blocks_v5e_16": 16,
    "ldlm_1b_v5e_256": 256,
    "ldlm_7b_v5p_512": 512,
    "ldlm_1b_h100_64": 64,
}

if __name__ == "__main__":
    folder = Path(__file__).with_name("shardings")
    for name, devices in DEVICES.items():
        table = sharding_table(resolve(load_config(f"configs/{name}.py")), devices)
        lines = ",\n  ".join(map(json.dumps, table))
        text = f'{{"devices": {devices}, "parameters": [\n  {lines}\n]}}\n'
        (folder / f"{name}.json").write_text(text)
