"""A training that is killed at any moment goes on as if nothing had happened."""

import pytest

from experiments.reliability.kill import kill_and_compare


# Each start imports and compiles: a minute on a busy machine.
@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_killed_runs_end_as_whole_ones_bit_for_bit(tmp_path):
    seen = kill_and_compare(tmp_path, kills=4, seed=0)
    assert len(seen["resumed_from"]) == 4
