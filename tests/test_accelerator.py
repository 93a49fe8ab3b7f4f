"""The script for accelerators runs whole on a CPU, tiny: rows are guarded, failures are told."""

import json
import os
import subprocess
import sys

import pytest

from experiments.accelerator.row import ROWS
from experiments.accelerator.table import table


def test_rows_become_a_table():
    rows = [{"row": "a", "device": "card", "jax": "1", "tokens_per_second": 12_345.6, "mfu": None},
            {"row": "b", "error": "ended with 124"}]  # fmt: skip
    lines = table(rows).splitlines()
    assert lines[2].startswith("| a | 12,346 |") and "ended with 124" in lines[3]
    assert lines[-1] == "card, jax 1"


@pytest.mark.slow
def test_one_call_measures_every_row_and_outlives_those_that_fail(tmp_path):
    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "elf_bench.py").write_text('import sys; print(\'{"row": "elf"}\', sys.argv[1:])')
    (peers / "cola_bench.py").write_text("raise SystemExit(3)")
    rows = "product pipeline_64 nothing ar_1x1024@graph sample_1x1024_8"
    environment = os.environ | {"ROWS": rows, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        ["experiments/accelerator/run.sh", str(tmp_path / "out"), "--tiny", "--jobs", "2",
         "--peers", str(peers)],
        env=environment, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    by_name = {row["row"]: row for row in found}
    # Two at a time, in any order; the peers after those before them.
    assert {*by_name} == {*rows.split(), "peer_cola"} and len(found) == 6
    assert [row["row"] for row in found][-2:] == ["peer_cola", "sample_1x1024_8"]
    assert "KeyError" in by_name["nothing"]["error"] and "3" in by_name["peer_cola"]["error"]
    for name in ("pipeline_64", "ar_1x1024@graph", "sample_1x1024_8"):
        assert by_name[name]["tokens_per_second"] > 0
    assert "| ar_1x1024@graph |" in done.stdout and "--tiny" in done.stdout
    assert len(ROWS) > 15
