"""The same number of training steps with and without a last phase of consistency."""

CONFIG = "configs/web_few_steps.py"
STEPS, FIRST = 400, 280
STEP_COUNTS = (1, 2, 5, 20)
JUDGE = "smollm2-135m"
_PLAIN = {"reconstruction": 0.0, "next_token": 1.0, "encoder_gradient": 1.0}
_LAST = _PLAIN | {"encoder_gradient": 0.0, "consistency": 1.0, "train": ("dit", "decoder")}
ARMS = {
    "plain": (f"phases={[_PLAIN]}",),
    "consistency": (f"phases={[_PLAIN | {'until': FIRST}, _LAST]}",),
}
