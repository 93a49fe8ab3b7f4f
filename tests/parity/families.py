"""Tiny models of every supported family, with weights that anyone can make again.

``python -m tests.parity.families`` (needs torch and transformers) runs them by transformers and
stores what came out in ``references/``; the tests compare with that, and where both packages are
installed they run transformers anew.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ldlm_jax.pretrained.zoo import find_model

REFERENCES = Path(__file__).parent / "references"

_SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "vocab_size": 40,
          "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
_DECODER = {**_SMALL, "hidden_act": "silu", "num_key_value_heads": 2, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": False}  # fmt: skip
_ENCODER = {**_SMALL, "hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12}


def _llama(**more) -> dict:
    return {**_DECODER, "model_type": "llama", **more}


# config.json by case.
CASES = {
    "llama": _llama(),
    "llama_tied_one_kv_head": _llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama_biases_wide_heads": _llama(attention_bias=True, head_dim=8),
    "llama_linear": _llama(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama_llama3": _llama(rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }),
    "llama_yarn": _llama(rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
    }),
    "mistral_window": {**_DECODER, "model_type": "mistral", "sliding_window": 4},
    "qwen2": {**_DECODER, "model_type": "qwen2", "rms_norm_eps": 1e-6},
    "qwen2_window": {**_DECODER, "model_type": "qwen2", "use_sliding_window": True,
                     "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {**_DECODER, "model_type": "qwen3", "head_dim": 8},
    "gemma3": {
        **_DECODER, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 4,
        "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 12, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "bert": {**_ENCODER, "model_type": "bert", "pad_token_id": 0},
    "roberta": {**_ENCODER, "model_type": "roberta", "pad_token_id": 1,
                "max_position_embeddings": 40},
}  # fmt: skip


def make_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask (2, 20); the second row ends in padding."""
    rng = np.random.RandomState(1)
    tokens = rng.randint(3, 40, size=(2, 20)).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[1, 13:] = 0
    return tokens, mask


def make_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Random tensors by name, the same on every machine."""
    rng = np.random.RandomState(0)
    weights = {}
    for name in sorted(shapes):
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        weights[name] = (centre + 0.3 * rng.standard_normal(shapes[name])).astype(np.float32)
    return weights


def write_model(case: str, folder: Path, **changes) -> None:
    """A Hugging Face folder of a case, from its stored tensor shapes.

    Args:
      case: one of ``CASES``.
      folder: where to.
      changes: to its ``config.json``; another ``vocab_size`` changes the tables, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = CASES[case] | changes
    (folder / "config.json").write_text(json.dumps(config))
    shapes = json.loads((REFERENCES / f"{case}.json").read_text())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in shapes:
            shapes[name][0] = config["vocab_size"]
    save_file(make_weights(shapes), folder / "model.safetensors")


def run_transformers(case: str) -> tuple[dict, dict]:
    """Tensor shapes, and hidden states (layers + 1, B, N, M) and logits by transformers."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**CASES[case])
    config._attn_implementation = "eager"
    encoder = CASES[case]["model_type"] in ("bert", "roberta")
    auto = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    tied = CASES[case].get("tie_word_embeddings", False)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (tied and name.startswith("lm_head")) and "pooler" not in name
        and tensor.is_floating_point()
    }  # fmt: skip
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    made = {k: torch.from_numpy(v) for k, v in make_weights(shapes).items()}
    missing, unexpected = model.load_state_dict(made, strict=False)
    assert not unexpected, (missing, unexpected)
    if tied:
        model.tie_weights()
    tokens, mask = make_inputs()
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
        )  # fmt: skip
    results = {"hidden": np.stack([h.numpy() for h in out.hidden_states])}
    if not encoder:
        results["logits"] = out.logits.numpy()
    return shapes, results


SENTENCES = ("The king gathered all the people of the city.", "Naïve café, 1234!", "Water boils.")


def run_minilm() -> np.ndarray:
    """Sentence embeddings (3, 384) of all-MiniLM-L6-v2 by transformers: mean, unit length."""
    import torch
    import transformers

    folder = str(find_model("minilm-l6"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


def main() -> None:
    """Store every case's shapes and results, and MiniLM's embeddings."""
    REFERENCES.mkdir(exist_ok=True)
    np.savez_compressed(REFERENCES / "minilm.npz", embeddings=run_minilm())
    for case in CASES:
        shapes, results = run_transformers(case)
        (REFERENCES / f"{case}.json").write_text(json.dumps(shapes))
        np.savez_compressed(REFERENCES / f"{case}.npz", **results)
        print(case, {k: v.shape for k, v in results.items()})


if __name__ == "__main__":
    main()
