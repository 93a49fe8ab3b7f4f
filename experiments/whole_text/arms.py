"""Latent spaces, denoisers and lengths of whole texts, each one change from ``CONFIG``.

Command: see ``run_gpu.sh``; on two cores ``experiments/compare.py``
"""

CONFIG = "configs/whole_cpu_1h.py"
STEPS = 3200
STEP_COUNTS = (5, 20, 50)
SCORER = "smollm2-135m"
ARMS = {
    "base": (),
    # spaces
    "mask 0.15": ("autoencoding.token_mask=0.15",),
    "mask 0.7": ("autoencoding.token_mask=0.7",),
    "decoder noise 5": ("autoencoding.decoder_noise=5.0",),
    "8 channels": ("text_vae.latent_channels=8",),
    "64 channels": ("text_vae.latent_channels=64", "diffusion.time_location=None"),
    "KL 0.03": ("phases.0.kl=0.03",),
    "two tokens a latent": ("text_vae.tokens_per_latent=2", "data.pad_to_multiple=32"),
    "MiniLM at the encoder": (
        "teacher.model=minilm-l6", "teacher.layer=-1", "phases.0.alignment=1.0",
    ),
    "single tokens, posterior": (
        "text_vae.encoder_layers=0", "text_vae.decoder_layers=0", "autoencoding.token_mask=0.0",
        "diffusion.token_posterior=True", "text_vae.width=384", "dit.width=384",
        "phases=[{'token': 1.0, 'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
    ),
    # denoisers
    "no self-conditioning": ("diffusion.self_condition=0.0",),
    "velocity": ("diffusion.prediction=v", "diffusion.loss_space=v"),
    "one time for a row": ("diffusion.per_token_times=0.0",),
    # readout
    "no token loss": ("phases.1.token=0.0", "phases.1.train=('dit',)"),
    "decoder frozen": ("phases.1.train=('dit',)",),
    # sampling
    "no tokens drawn": ("sample.solver=stochastic", "sample.top_p=1.0"),
    # lengths
    "a text a row": ("data.packing=pad", "data.pad_to_multiple=64"),
}  # fmt: skip
