"""Latent spaces, denoisers and lengths of whole texts, each one change from ``CONFIG``.

Command: see ``run_gpu.sh``; on two cores ``experiments/compare.py``
"""

CONFIG = "configs/whole_cpu_1h.py"
STEPS = 4000
STEP_COUNTS = (5, 20, 50)
SCORER = "smollm2-135m"
_FROM_HISTOGRAM = ("data.packing=pack", "data.pad_to_multiple=1")
ARMS = {
    "base": (),
    # spaces
    "mask 0.15": ("autoencoding.token_mask=0.15",),
    "mask 0.7": ("autoencoding.token_mask=0.7",),
    "decoder noise 5": ("autoencoding.decoder_noise=5.0",),
    "16 channels": ("text_vae.latent_channels=16",),
    "128 channels": ("text_vae.latent_channels=128",),
    "KL 0.03": ("phases.0.kl=0.03",),
    "two tokens a latent": ("text_vae.tokens_per_latent=2",),
    "MiniLM at the encoder": (
        "teacher.model=minilm-l6", "teacher.layer=-1", "phases.0.alignment=1.0",
    ),
    "single tokens, posterior": (
        "text_vae.encoder_layers=0", "text_vae.decoder_layers=0", "autoencoding.token_mask=0.0",
        "diffusion.token_posterior=True",
        "phases=[{'token': 1.0, 'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
    ),
    # denoisers
    "no self-conditioning": ("diffusion.self_condition=0.0",),
    "velocity": ("diffusion.prediction=v", "diffusion.loss_space=v"),
    "no token loss": ("phases.1.token=0.0", "phases.1.train=('dit',)"),
    "decoder frozen": ("phases.1.train=('dit',)",),
    # lengths
    "length from the histogram": _FROM_HISTOGRAM,
}  # fmt: skip
