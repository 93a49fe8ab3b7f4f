"""What the release before wrote is still understood: config keys, and a run's checkpoint."""

import json
from pathlib import Path

import jax
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.errors import UserError
from ldlm_jax.sampling.generate import generate
from ldlm_jax.workdir import load_run

# 300 steps of a tiny model of blocks, trained and sampled by the code of commit 506d99a.
RUN = Path(__file__).parent / "fixtures" / "run_0_1"


def test_old_keys_and_values_mean_the_new_ones():
    old = ["data.layout=pad", "diffusion.spans=0.2", "sample.lag=2", "sample.grid=law",
           "sample.choose=consensus", "foundation.layer=3", "train.logit_parts=4"]  # fmt: skip
    new = ["data.packing=pad", "diffusion.random_spans=0.2", "sample.time_offset=2",
           "sample.rerank=mbr", "backbone.layer=3", "train.logit_chunks=4"]  # fmt: skip
    assert resolve(load_config(None, old)) == resolve(load_config(None, new))


@pytest.mark.parametrize(
    "harmless",
    ["teacher.run=''", "alignment.loss=cosine", "phases=[{'consistency': 0.0}]",
     "consistency.steps=20", "sample.grid=quantile"],
)  # fmt: skip
def test_removed_keys_are_ignored_where_they_did_nothing(harmless):
    assert resolve(load_config(None, [harmless])) == resolve(load_config(None))


@pytest.mark.parametrize(
    "gone",
    ["teacher.run=x", "alignment.loss=relational", "phases=[{'consistency': 1.0}]",
     "diffusion.at_blocks=0.5", "sample.grid=uniform"],
)  # fmt: skip
def test_removed_keys_that_did_something_are_refused(gone):
    with pytest.raises(UserError, match="removed, see CHANGELOG"):
        resolve(load_config(None, [gone]))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_an_old_run_gives_its_old_texts_on_any_number_of_devices(count):
    run = load_run(RUN, devices=jax.devices()[:count])
    kernel = run.average.ema["dit"]["trunk"]["blocks"]["mlp"]["down"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // count
    expected = [json.loads(line) for line in (RUN / "samples.jsonl").read_text().splitlines()]
    config = run.experiment.sample.__class__(**(vars(run.experiment.sample) | {"steps": 6}))
    with run.use_sharding():
        found = [s.tokens for s in generate(run.generator, config, 0, num_samples=3)]
    assert found == [row["tokens"] for row in expected]
