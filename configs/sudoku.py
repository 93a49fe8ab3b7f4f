"""Sudoku of side 9 with 6M parameters: whole grids out of noise, for one GPU.

Command:  ldlm train --config configs/sudoku.py --workdir runs/sudoku
          ldlm eval --workdir runs/sudoku --evals puzzles --split test --num-samples 1000
            --levels "30 given" easy hard --step-counts 1 2 5 10 20 50 100 180
Hardware: one H100, planned for eight minutes.
Result:   not run.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        # A token is a byte: 3 special tokens and the 256 bytes. 81 cells and the end.
        "data": {"source": "sudoku", "vocab_size": 259, "window": 82, "packing": "pad"},
        # A latent for each symbol alone: what agrees with what is the DiT's work.
        "text_vae": {
            "width": 256,
            "encoder_layers": 0,
            "decoder_layers": 0,
            "latent_channels": 16,
            "dtype": "bfloat16",
        },
        "dit": {"width": 256, "layers": 8, "time_tokens": 0, "dtype": "bfloat16"},
        "autoencoding": {"token_mask": 0.0},
        # Any subset of the cells is given in training, so any puzzle can be asked.
        "diffusion": {
            "token_posterior": True,
            "token_loss": 1.0,
            "self_condition": 0.5,
            "random_spans": 0.95,
            "prefix": 0.0,
            "infill": 0.0,
        },
        "optim": {"learning_rate": 2e-3, "warmup_steps": 200, "ema_decay": 0.999},
        "train": {
            "num_steps": 20000,
            "batch_size": 512,
            "eval_every": 5000,
            "checkpoint_every": 1000,
            "evals": ("puzzles",),
            "eval_samples": 256,
            "eval_steps": (5, 20, 100),
        },
        "sample": {"steps": 100, "batch_size": 256},
        "phases": [{"reconstruction": 0.0, "encoder_gradient": 1.0}],
    }
