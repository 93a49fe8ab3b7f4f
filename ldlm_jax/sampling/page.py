"""A self-contained page on which text sharpens from noise, step by step.

What it shows is one JSON object::

    block      tokens that are generated together; the window for whole texts
    words      the text of each token id that occurs
    grid       side, and rows and columns of a box, of texts that are square grids; null for others
    panels     one for each number of steps:
      steps      the number
      texts      one for each text:
        final        its token ids
        given        whether each was given
        evaluations  of the network
        cut          whether the text would go on, had the window not ended
        steps        for each step the token ids that it would decode to, and their probabilities
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldlm_jax.puzzles.base import Task
from ldlm_jax.sampling.candidates import Sample
from ldlm_jax.sampling.generator import Generator

_PAGE = Path(__file__).with_name("page.html")


Panels = Mapping[int, Sequence[Sample]]


def page_data(generator: Generator, panels: Panels, task: Task | None = None) -> dict:
    """What the page shows.

    Args:
      generator: the model.
      panels: samples with their drafts, by number of steps.
      task: of the puzzles that the texts are, if they are any.
    """
    words: dict[int, str] = {}

    def note(ids: Sequence[int]) -> list[int]:
        for i in ids:
            if i not in words:
                words[i] = generator.tokenizer.bytes_of(i).decode("utf-8", "replace")
        return list(ids)

    return {
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
                        "cut": sample.cut,
                        "steps": [[note(d.tokens), d.confidence] for d in sample.drafts],
                    }
                    for sample in samples
                ],
            }
            for steps, samples in panels.items()
        ],
        "words": words,
        "grid": {"side": task.side, "rows": task.box[0], "columns": task.box[1]}
        if task and task.side
        else None,
    }


def denoising_page(generator: Generator, panels: Panels, task: Task | None = None) -> str:
    """The page of finished samples; see ``page_data``."""
    # "</" would end the script.
    text = json.dumps(page_data(generator, panels, task)).replace("</", "<\\/")
    return _filled(text)


def live_page() -> str:
    """The page of a server, which asks what to write and fetches it from ``/v1/denoise``."""
    return _filled("null")


def _filled(data: str) -> str:
    return _PAGE.read_text(encoding="utf-8").replace("__DATA__", data)
