"""The shards of a corpus made by Apache Beam: on this machine, or on a cluster's.

The pieces of work are those of ``shards``, so that the files are the same, byte for byte. Every
worker must see ``data.root`` under the same path, as on a shared file system.
"""

import shlex
from collections.abc import Callable, Iterator

from ldlm_jax.data.shards import Shard
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError


def maker(options: str) -> Callable[[list[Shard], Tokenizer], Iterator[dict]]:
    """What makes shards in a pipeline, see ``dataset.prepare``.

    Args:
      options: of the pipeline, such as ``--runner=FlinkRunner``; empty for Beam's defaults.

    Raises:
      UserError: Beam is not installed, or does not take the options.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("--beam needs Apache Beam: pip install '.[beam]'.") from error

    class Make(beam.DoFn):
        """Makes a shard; a worker reads the tokenizer once."""

        def __init__(self, tokenizer: str):
            self._json = tokenizer

        def setup(self):
            self._tokenizer = Tokenizer.from_json(self._json)

        def process(self, shard: Shard):
            shard.make(self._tokenizer)

    def make(shards: list[Shard], tokenizer: Tokenizer) -> Iterator[dict]:
        with pipeline() as made:
            missing = made | beam.Create([s for s in shards if not s.facts.exists()])
            # Fused, all of them would go to one worker.
            _ = missing | beam.Reshuffle() | beam.ParDo(Make(tokenizer.to_json()))
        yield from (shard.make(tokenizer) for shard in shards)

    def pipeline() -> beam.Pipeline:
        try:
            return beam.Pipeline(options=PipelineOptions(shlex.split(options)))
        except ValueError as error:
            raise UserError(f"--beam {options}: {error}") from error

    pipeline()  # a runner that is not there is found before the documents are read
    return make
