"""A self-contained page on which text sharpens from noise, step by step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldlm_jax.sampling.generate import Generator, Sample

_PAGE = Path(__file__).with_name("page.html")


def denoising_page(generator: Generator, panels: Mapping[int, Sequence[Sample]]) -> str:
    """The page: a panel for each number of steps, a slider and a play button for all.

    Args:
      generator: the model.
      panels: samples with their drafts, by number of steps.
    """
    words: dict[int, str] = {}

    def note(ids: Sequence[int]) -> list[int]:
        for i in ids:
            if i not in words:
                words[i] = generator.tokenizer.bytes_of(i).decode("utf-8", "replace")
        return list(ids)

    data = {
        "block": generator.diffusion.block_size * generator.networks.vae.tokens_per_latent
        or generator.window,
        "panels": [
            {
                "steps": steps,
                "texts": [
                    {
                        "final": note(sample.tokens),
                        "given": sample.given,
                        "evaluations": sample.evaluations,
                        "steps": [[note(d.tokens), d.confidence] for d in sample.drafts],
                    }
                    for sample in samples
                ],
            }
            for steps, samples in panels.items()
        ],
        "words": words,
    }
    # "</" would end the script.
    text = json.dumps(data).replace("</", "<\\/")
    return _PAGE.read_text(encoding="utf-8").replace("__DATA__", text)
