"""The Python API: one loaded model, with a method for each thing that it can do.

Shape letters: N latents, D latent channels.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.errors import UserError
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.dit import OBSERVED
from ldlm_jax.models.lowering import jit
from ldlm_jax.parallel.sharding import row_multiple
from ldlm_jax.sampling.candidates import Sample
from ldlm_jax.sampling.config import SampleConfig, with_options
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.likelihood import Likelihood, log_likelihoods
from ldlm_jax.sampling.logits import likeliest
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.revision import Revision, find_phrase
from ldlm_jax.sampling.stream import InOrder, TextStream
from ldlm_jax.workdir import LoadedRun


class Model:
    """A trained model. Its methods may be called from any thread.

    ``options`` of a method are those of ``sampling.config.SampleConfig``, such as ``steps`` and
    ``temperature``; what is left out is as in the config of the run. The same seed gives the same
    texts. Impossible requests raise ``UserError``.
    """

    def __init__(self, run: LoadedRun):
        self.run = run
        self._blocks = BlockListener()

    @property
    def window(self) -> int:
        """Tokens that the model reads and writes at once."""
        return self.run.generator.window

    def options(self, **options) -> SampleConfig:
        """The sampling options of the run's config, with these changed."""
        return with_options(self.run.experiment.sample, options)

    def generate(
        self, prompt: str = "", *, suffix: str = "", num_samples: int = 1, seed: int = 0, **options
    ) -> list[Sample]:
        """Texts that begin with ``prompt`` and end with ``suffix``.

        Args:
          prompt: given beginning, or empty.
          suffix: given end, or empty.
          num_samples: how many.
          seed: of all randomness.
          **options: see ``Model``.
        """
        request = Request(prompt, seed, config=self.options(**options), suffix=suffix)
        return self.requests(request.several(num_samples))

    def infill(
        self, template: str, *, num_samples: int = 1, seed: int = 0, **options
    ) -> list[Sample]:
        """Texts with the spans of a template filled.

        Args:
          template: text in which ``____`` marks a span of open length, ``____{3}`` one of three
            tokens.
          num_samples: how many.
          seed: of all randomness.
          **options: see ``Model``.
        """
        request = Request(template=template, seed=seed, config=self.options(**options))
        return self.requests(request.several(num_samples))

    def revise(
        self,
        text: str,
        *,
        find: str = "",
        spans: Sequence[tuple[int, int]] = (),
        num_samples: int = 1,
        seed: int = 0,
        **options,
    ) -> list[str]:
        """Versions of a text of which some parts are rewritten, each to as many tokens.

        Args:
          text: the text; paragraphs, between blank lines, are documents of their own.
          find: a phrase to rewrite wherever it stands.
          spans: or ``(begin, end)`` in characters.
          num_samples: how many.
          seed: of all randomness.
          **options: see ``Model``; ``strength`` below 1 keeps a part of what was there.
        """
        if bool(find) == bool(spans):
            raise UserError("revise needs find or spans, and not both.")
        where = find_phrase(text, find) if find else sorted(spans)
        revision = Revision.of(text, where, self.options(**options), seed)
        with self.run.use_sharding():
            return list(revision.texts(self.run.generator, num_samples))

    def requests(self, requests: Sequence[Request]) -> list[Sample]:
        """Texts for unlike requests, generated together; see ``sampling.request``."""
        with self.run.use_sharding():
            return list(generate_requests(self.run.generator, requests))

    def stream(self, prompt: str = "", *, seed: int = 0, **options) -> Iterator[str]:
        """The pieces of one text as its blocks are finished, the prompt first.

        A model of whole texts has one block, so that its text comes in one piece. One text of a
        model is streamed at a time; another waits for it.

        Args:
          prompt: given beginning, or empty.
          seed: of all randomness.
          **options: see ``Model``.
        """
        request = Request(prompt, seed, config=self.options(**options))
        generator = self.run.generator.in_blocks(request.config.block_size)
        stream, pieces = TextStream(generator, request), SimpleQueue()

        def work() -> None:
            try:
                for sample in self._with_blocks(
                    [request], lambda tokens_BxT: pieces.put(stream.add(tokens_BxT[0]))
                ):
                    pieces.put(stream.rest(sample))
                pieces.put(None)
            except Exception as error:  # raised where the text is read
                pieces.put(error)

        # A thread of its own: a mesh in use here would be in use where the pieces are read, too.
        threading.Thread(target=work, daemon=True).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            if piece:
                yield piece

    def _with_blocks(self, requests: Sequence[Request], on_block) -> list[Sample]:
        """Texts of one batch, of which each finished block is shown to ``on_block``."""
        with self._blocks.shown_to(on_block), self.run.use_sharding():
            samples = list(generate_requests(self.run.generator, requests, on_block=self._blocks))
            jax.effects_barrier()  # the last block may still be on its way
        return samples

    def log_likelihood(
        self, text: str, *, given: str = "", draws: int = 16, seed: int = 0
    ) -> Likelihood:
        """Log-likelihood of a text with its end, in nats.

        Exact for models with blocks and a token posterior, generating token by token. Of every
        other model it is a Monte-Carlo estimate of a lower bound; see ``sampling.likelihood``.

        Args:
          text: the text.
          given: text before it, which does not count.
          draws: of a bound; its standard error falls with their square root.
          seed: of the draws.
        """
        return self.log_likelihoods([(given, text)], draws=draws, seed=seed)[0]

    def log_likelihoods(self, asked: Sequence[tuple[str, str]], **how) -> list[Likelihood]:
        """Log-likelihoods of several texts, each with what is given before it."""
        with self.run.use_sharding():
            return log_likelihoods(self.run.generator, asked, **how)

    def encode(self, text: str) -> np.ndarray:
        """Latents (N, D) of a text with its end: posterior means of unit variance a channel."""
        generator = self.run.generator
        ids = [*generator.tokenizer.encode([text])[0], EOS]
        ids += [PAD] * (-len(ids) % generator.block_tokens)
        if len(ids) > generator.window:
            raise UserError(
                f"the text takes {len(ids)} tokens; the window holds {generator.window}."
            )
        tokens_L = np.full(generator.window, PAD, np.int32)
        tokens_L[: len(ids)] = ids
        z_NxD = self._run_row(_encode, tokens_L, self._segments(len(ids)))
        return z_NxD[: len(ids) // generator.networks.vae.tokens_per_latent]

    def decode(self, latents: np.ndarray) -> str:
        """The likeliest text of latents (N, D) such as ``encode`` returns."""
        generator, vae = self.run.generator, self.run.generator.networks.vae
        room, channels = generator.window // vae.tokens_per_latent, vae.latent_channels
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 2 or latents.shape[1] != channels or not 0 < len(latents) <= room:
            raise UserError(
                f"latents of shape {latents.shape}: expected (N, {channels}), N from 1 to {room}."
            )
        count = len(latents) * vae.tokens_per_latent
        z_NxD = np.pad(latents, ((0, room - len(latents)), (0, 0)))
        tokens_L = self._run_row(_decode, z_NxD, self._segments(count))
        return generator.tokenizer.decode(tokens_L[:count])

    def interpolate(self, a: str, b: str, t: float) -> str:
        """What is decoded between the latents of two texts.

        Each latent turns from that of ``a`` to that of ``b`` on the sphere through both (t = 0 is
        ``a``, 1 is ``b``). The number of latents lies between theirs, too; where one text has
        ended, the other's latents stand.
        """
        if not 0 <= t <= 1:
            raise UserError(f"t = {t}: must be in [0, 1].")
        first, second = self.encode(a), self.encode(b)
        shared = min(len(first), len(second))
        between = slerp(first[:shared], second[:shared], t)
        longer = first if len(first) > len(second) else second
        multiple = max(1, self.run.generator.diffusion.block_size)
        wanted = (1 - t) * len(first) + t * len(second)
        length = min(len(longer), multiple * max(1, round(wanted / multiple)))
        return self.decode(np.concatenate([between, longer[shared:]])[:length])

    def _segments(self, count: int) -> np.ndarray:
        return (np.arange(self.window) < count).astype(np.int32)

    def _run_row(self, function, *row: np.ndarray) -> np.ndarray:
        """A compiled function of one row, as many times as the mesh asks for."""
        generator = self.run.generator
        with self.run.use_sharding():
            rows = (np.repeat(x[None], row_multiple(), axis=0) for x in row)
            out = function(
                generator.params, generator.latents, *rows, networks=generator.networks,
                diffusion=generator.diffusion,
            )  # fmt: skip
            return np.asarray(jax.device_get(out))[0]


class BlockListener:
    """Where a compiled sampler leaves finished blocks; whoever has its turn takes them.

    It is part of what a sampler is compiled for, so that a model has one and not one a text.
    """

    def __init__(self):
        self._turn, self._show = threading.Lock(), None

    def __call__(self, index, tokens_BxT: np.ndarray) -> None:
        """A finished block (B, T)."""
        self._show(index, tokens_BxT)

    @contextmanager
    def shown_to(self, show: Callable[[np.ndarray], None]):
        """A context in which the blocks of one batch are shown to this function, in order; one
        context at a time."""
        with self._turn:
            self._show = InOrder(show)
            yield


def slerp(a_NxD: np.ndarray, b_NxD: np.ndarray, t: float) -> np.ndarray:
    """Spherical interpolation, latent by latent, the lengths interpolated evenly."""
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (a_NxD, b_NxD)]
    a, b = (x / np.maximum(n, 1e-6) for x, n in zip((a_NxD, b_NxD), norms, strict=True))
    angle = np.arccos(np.clip(np.sum(a * b, axis=-1, keepdims=True), -1, 1))
    sine = np.sin(angle)
    near = sine < 1e-4  # one direction, or opposite ones, between which no way is the shortest
    sine = np.where(near, 1, sine)
    from_a = np.where(near, 1 - t, np.sin((1 - t) * angle) / sine)
    from_b = np.where(near, t, np.sin(t * angle) / sine)
    return (from_a * a + from_b * b) * ((1 - t) * norms[0] + t * norms[1])


@jit(static_argnames=("networks", "diffusion"))
def _encode(params, latents, tokens_BxL, segments_BxL, *, networks, diffusion):
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    layout = latent_layout(segments_BxL, networks, diffusion)
    return denoiser.encode(tokens_BxL, layout, jnp.zeros(layout.segment_ids_BxN.shape, bool))


@jit(static_argnames=("networks", "diffusion"))
def _decode(params, latents, z_BxNxD, segments_BxL, *, networks, diffusion):
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    layout, cache = latent_layout(segments_BxL, networks, diffusion), None
    shape = layout.segment_ids_BxN.shape
    if layout.block_size:
        cache = denoiser.prefill(z_BxNxD, jnp.full(shape, OBSERVED), layout).cache
    return likeliest(denoiser.decode(z_BxNxD, jnp.zeros(shape), layout, cache))[0]
