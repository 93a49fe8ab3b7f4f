"""Measure a frozen Llama of 135M parameters: memory to load it, and its forward pass and PyTorch's.

Command: python experiments/teachers/measure.py FOLDER TORCH_PYTHON OUT.json
         (FOLDER is made with random weights; TORCH_PYTHON has torch and transformers; the two
         libraries run in turns, each in a process of its own)
"""

import json
import os
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

# The shape of SmolLM2-135M.
SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
ROWS, LENGTH, TURNS = 4, 256, 3


def make(folder: Path) -> None:
    """Random fp32 weights in Hugging Face's layout."""
    from safetensors.numpy import save_file

    width, hidden = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = width // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    block = {
        "input_layernorm": (width,), "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{k}.weight": s for i in range(SHAPE["num_hidden_layers"])
              for k, s in block.items()}  # fmt: skip
    shapes |= {"model.embed_tokens.weight": (SHAPE["vocab_size"], width)}
    shapes |= {"model.norm.weight": (width,)}
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: 0.05 * rng.standard_normal(s, np.float32) for k, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(SHAPE))


def resident() -> int:
    """Bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Bytes of this process at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tokens() -> np.ndarray:
    """The tokens that both models read."""
    return np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (ROWS, LENGTH))


def best(run, times: int = 4) -> float:
    """Fastest of some runs, in seconds, after one that may compile."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def ours(folder: Path) -> dict:
    """Measure this project's model."""
    import jax
    import jax.numpy as jnp

    from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
    from ldlm_jax.parallel.sharding import AxisRules
    from ldlm_jax.pretrained import decoder_lm
    from ldlm_jax.pretrained.load import load_pretrained

    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    jax.block_until_ready(jnp.ones(8) + 1)
    before = resident()
    model = load_pretrained(folder, mesh=mesh, rules=AxisRules())
    jax.block_until_ready(model.params)
    loaded = peak() - before
    layers, ids = (model.config.layers,), jnp.asarray(tokens())
    read = jax.jit(lambda params, ids: decoder_lm.hidden_states(
        params, ids, jnp.ones_like(ids), config=model.config, layers=layers)[0])  # fmt: skip
    seconds = best(lambda: jax.block_until_ready(read(model.params, ids)))
    size = sum(x.nbytes for x in jax.tree.leaves(model.params))
    mean = float(jnp.abs(read(model.params, ids)).mean())
    return {"seconds": seconds, "load_peak_bytes": loaded, "weight_bytes": size, "mean": mean}


def with_torch(folder: Path) -> dict:
    """Measure that of transformers."""
    import torch
    from transformers import AutoModel

    before = resident()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    loaded, ids = peak() - before, torch.from_numpy(tokens())
    with torch.inference_mode():
        seconds = best(lambda: model(ids).last_hidden_state)
        mean = float(model(ids).last_hidden_state.abs().mean())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"seconds": seconds, "load_peak_bytes": loaded, "weight_bytes": size, "mean": mean,
            "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip


def main(folder: str, torch_python: str, out: str) -> None:
    """Make the weights, run both in turns, and write."""
    if not (Path(folder) / "model.safetensors").exists():
        make(Path(folder))
    runs: dict[str, list] = {"ours": [], "torch": []}
    for _ in range(TURNS):
        for name, python in (("ours", sys.executable), ("torch", torch_python)):
            done = subprocess.run([python, __file__, name, folder], check=True, text=True,
                                  capture_output=True, env=os.environ)  # fmt: skip
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, runs[name][-1], flush=True)
    fastest = {name: min(r["seconds"] for r in some) for name, some in runs.items()}
    result = {
        "date": date.today().isoformat(), "tokens": ROWS * LENGTH, "runs": runs,
        "speed_over_torch": fastest["torch"] / fastest["ours"],
        "load_peak_over_weights": max(r["load_peak_bytes"] / r["weight_bytes"]
                                      for r in runs["ours"]),
    }  # fmt: skip
    Path(out).write_text(json.dumps(result, indent=1) + "\n")
    print({k: v for k, v in result.items() if k != "runs"})


if __name__ == "__main__":
    if sys.argv[1] in ("ours", "torch"):
        print(json.dumps((ours if sys.argv[1] == "ours" else with_torch)(Path(sys.argv[2]))))
    else:
        main(*sys.argv[1:])
