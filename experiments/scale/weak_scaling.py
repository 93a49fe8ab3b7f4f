"""Plan one config on more and more chips, with as many rows on each: weak scaling.

Command: python experiments/scale/weak_scaling.py configs/ldlm_130m_v5e_16.py 24 \
           experiments/scale/weak_scaling.json v5e:4x4 v5e:8x8 v5e:16x16 v5e:16x16*4
         (rows a chip, the file, then the topologies with their number of slices, smallest first;
         what the file holds already is not planned again)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from ldlm_jax.config import load_config
from ldlm_jax.plan.hardware import count_of


def planned(config: str, topology: str, slices: int, rows: int) -> dict:
    """A plan of the training step in the last phase."""
    phase = dict(load_config(config).phases[-1])
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run(
            ["ldlm", "plan", "--config", config, "--topology", topology, "--programs", "train",
             "--num-slices", str(slices), "--json", file.name, f"mesh.slice={slices}",
             f"train.batch_size={rows}", f"phases={[phase]}"],
            check=True,
        )  # fmt: skip
        return json.loads(Path(file.name).read_text())


def main(config: str, rows_a_chip: str, out: str, *topologies: str) -> None:
    """Plan each, write the table and a plot beside it."""
    table = json.loads(Path(out).read_text())["table"] if Path(out).exists() else []
    for topology in topologies[len(table) :]:
        shape, _, slices = topology.partition("*")
        chips = count_of(shape) * int(slices or 1)
        plan = planned(config, shape, int(slices or 1), chips * int(rows_a_chip))
        phase = plan["phases"][-1]
        rate = phase["tokens_per_second"] / chips
        table.append({
            "topology": topology, "chips": chips, "seconds": phase["forecast"]["seconds"],
            "exposed_seconds": phase["forecast"]["exposed_seconds"],
            "mfu": phase["forecast"]["mfu"], "tokens_per_second_a_chip": rate,
            "efficiency": rate / table[0]["tokens_per_second_a_chip"] if table else 1.0,
            "share_of_hbm": phase["memory"]["share_of_hbm"],
        })  # fmt: skip
        Path(out).write_text(json.dumps({"config": config, "table": table}, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot([r["chips"] for r in table], [r["efficiency"] for r in table], "o-")
    axes.set(xscale="log", xlabel="chips", ylabel="predicted efficiency", ylim=(0, 1.05))
    axes.set_xticks([r["chips"] for r in table], [str(r["chips"]) for r in table])
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(Path(out).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
