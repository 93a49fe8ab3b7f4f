"""The commands as a user types them: train, resume, sample, eval, and every refusal."""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ldlm_jax.cli import main
from ldlm_jax.errors import UserError
from ldlm_jax.evals import REGISTRY, quality
from ldlm_jax.evals import command as eval_command
from ldlm_jax.evals.report import rows_of
from ldlm_jax.evals.scorer import Score
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.output import add_knobs
from ldlm_jax.telemetry.metrics import MetricsWriter
from ldlm_jax.workdir import Workdir


@pytest.fixture(scope="module")
def trained(overrides, tmp_path_factory):
    """A finished debug run."""
    workdir = tmp_path_factory.mktemp("runs") / "debug"
    assert main(train_command(workdir, overrides)) == 0
    return workdir


def train_command(workdir, overrides, *more):
    return ["train", "--config", "configs/debug.py", "--workdir", str(workdir), *overrides, *more]


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_everything(trained):
    lines = metrics_of(trained)
    logged = {name for line in lines for name in line}
    assert {"loss/reconstruction", "loss/kl", "loss/diffusion", "grad_norm", "latent/std_min",
            "tokens_per_second", "reconstruction/accuracy_noise_0", "denoising/error_mean",
            "reconstruction/accuracy_noise_1", "samples/text_steps_5"} <= logged  # fmt: skip
    assert lines[-1]["step"] == 20
    assert any((trained / "tensorboard").iterdir())
    first, last = (
        [line["loss/reconstruction"] for line in lines if "loss/reconstruction" in line][i]
        for i in (0, -1)
    )
    assert last < first


@pytest.mark.slow
def test_sample_prints_and_writes(trained, tmp_path, capsys):
    command = ["sample", "--workdir", str(trained), "--num-samples", "3", "--steps", "4"]
    assert main([*command, "--prompt", "The king", "--show-denoising", "1,2"]) == 0
    out = capsys.readouterr().out
    assert out.count("The king") == 9 and "after step 2/4" in out
    assert main([*command, "--jsonl", str(tmp_path / "s.jsonl"), "--seed", "5"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all({"text", "tokens", "steps", "seed"} <= set(r) for r in rows)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "My son"}\n{"steps": 2, "seed": 5, "number": 1}\n')
    assert main([*command, "--requests", str(asked), "--jsonl", str(tmp_path / "r.jsonl")]) == 0
    mixed = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [r["steps"] for r in mixed] == [4, 2] and mixed[0]["text"].startswith("My son")


def test_every_knob_has_a_flag_and_old_names_are_understood():
    parser = argparse.ArgumentParser()
    add_knobs(parser)
    args = parser.parse_args(["--workdir", "x", "--lag", "2", "--choose", "mbr", "--top-p", "0.5"])
    assert (args.time_offset, args.rerank, args.top_p, args.steps) == (2.0, "mbr", 0.5, None)
    assert {field.name for field in fields(SampleConfig)} <= set(vars(args))


@pytest.mark.slow
def test_holes_are_filled_and_files_revised(trained, tmp_path, capsys):
    command = ["sample", "--workdir", str(trained), "--num-samples", "2", "--steps", "2"]
    assert main([*command, "--template", "My ____ went ____{2} home"]) == 0
    lines = capsys.readouterr().out
    assert len(re.findall("] My .+ went .+ home", lines)) == 2
    assert main([*command, "--prompt", "The king ", "--suffix", " people."]) == 0
    assert len(re.findall("] The king .+ people.", capsys.readouterr().out)) == 2
    file = tmp_path / "letter.txt"
    file.write_bytes(b"My son went\n \nThe king.\r\n\n\nEnd\ttoo ")
    out = tmp_path / "revised.jsonl"
    asked = ["--revise", str(file), "--spans", "17:21,3:6", "--strength", "0.5"]
    assert main([*command, *asked, "--jsonl", str(out)]) == 0
    for line in out.read_text().splitlines():
        text = json.loads(line)["text"]
        assert re.fullmatch("My .+ went\n \nThe.+g\\.\r\n\n\nEnd\ttoo ", text, re.DOTALL), text
    refused(capsys, [*command, "--revise", str(file), "--spans", "3:15"], "crosses paragraphs")
    refused(capsys, [*command, "--revise", str(file), "--spans", "3:99"], "outside the text")
    refused(capsys, [*command, "--revise", str(file)], "needs --spans")
    refused(capsys, [*command, "--template", "none"], "has no span")
    refused(capsys, [*command, "--template", "a ____", "--prompt", "b"], "do not go together")
    refused(capsys, [*command, "--show-denoising", "1,9"], "steps are 1 to 2")
    refused(capsys, [*command, "--stream"], "one text")


@pytest.mark.slow
def test_a_revision_that_changes_nothing_says_so(tmp_path, capsys):
    file, out = tmp_path / "letter.txt", tmp_path / "out.jsonl"
    file.write_text("The king spoke to the people.")
    known = str(Path(__file__).parent / "fixtures" / "run_0_1")
    command = ["sample", "--workdir", known, "--num-samples", "2", "--steps", "2",
               "--revise", str(file), "--find", "king"]  # fmt: skip
    assert main([*command, "--strength", "0.01"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [f"[{i}] (unchanged) {file.read_text()}" for i in (1, 2)]
    assert "2 of 2 are as they were: with --strength 0.01" in told.err
    assert main([*command, "--strength", "1", "--seed", "3", "--jsonl", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["changed"] for row in rows] == [row["text"] != file.read_text() for row in rows]
    assert any(row["changed"] for row in rows)


@pytest.mark.slow
def test_text_sharpens_on_a_page(trained, tmp_path):
    out = tmp_path / "out.html"
    command = ["sample", "--workdir", str(trained), "--num-samples", "2", "--prompt", "The"]
    assert main([*command, "--html", str(out), "--panels", "2", "5"]) == 0
    page = out.read_text()
    assert "src=" not in page and "href=" not in page  # nothing comes from elsewhere
    data = json.loads(re.search("const DATA = (.*);\n", page)[1])
    assert [panel["steps"] for panel in data["panels"]] == [2, 5]
    for panel in data["panels"]:
        assert len(panel["texts"]) == 2
        for text in panel["texts"]:
            assert len(text["steps"]) == panel["steps"] and text["given"][0]
            assert text["steps"][-1][0] == text["final"]
            words = "".join(data["words"][str(i)] for i in text["final"])
            assert words.startswith("The")


@pytest.mark.slow
def test_eval_writes_json(trained, tmp_path, capsys):
    out = tmp_path / "eval.json"
    command = ["eval", "--workdir", str(trained), "--num-samples", "64", "--step-counts", "2", "4"]
    assert main([*command, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert {"denoising/error_mean", "samples/distinct_2_steps_4"} <= set(record["results"])
    assert "denoising/error_mean" in capsys.readouterr().out


class Letters:
    """A judge that reads letter by letter, where the real one's package need not be."""

    def read(self, texts):
        return [Score([ord(c) for c in t], np.ones(len(t)), np.zeros(2)) for t in texts]

    def score_once(self, texts, folder):
        return self.read(texts)


@pytest.mark.slow
def test_quality_is_measured_row_by_row(trained, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(quality, "_scorer", lambda name: Letters())
    monkeypatch.setattr(eval_command, "find_model", lambda name: name)  # it is not installed
    out, page = tmp_path / "quality.json", tmp_path / "quality.html"
    command = ["eval", "--workdir", str(trained), "--evals", "quality", "--num-samples", "4"]
    assert main([*command, "--step-counts", "2", "--json", str(out), "--html", str(page)]) == 0
    said = capsys.readouterr()
    rows = rows_of(json.loads(out.read_text())["results"])
    written = ["unconditional_steps_2", "continuation_0.25_steps_2",
               "continuation_0.5_steps_2"]  # fmt: skip
    assert list(rows) == ["held_out", "other_held_out", "trained_on", "shuffled", *written]
    held_out = rows["held_out"]
    assert held_out["perplexity"] == pytest.approx(math.e) and held_out["loop_rate"] == 0
    assert rows["trained_on"]["copied_longest"] > rows["shuffled"]["copied_longest"]
    # Continuations go on from the words that they were given.
    wholes, continued = (rows[row]["texts"].splitlines() for row in ("held_out", written[-1]))
    for whole, text in zip(wholes, continued, strict=True):
        words = whole.split()[1:]
        assert text.split()[1:][: len(words) // 2] == words[: len(words) // 2]
    # A long evaluation says how far it is.
    lines = [line for line in said.err.splitlines() if line.startswith("quality: ")]
    assert [line.split(": ")[1] for line in lines] == written and "perplexity 2.718" in lines[0]
    assert "shuffled" in page.read_text()


def test_eval_reads_as_many_batches_as_asked(trained, monkeypatch):
    asked, read = [], eval_command.eval_batches
    monkeypatch.setattr(eval_command, "eval_batches", lambda *a: asked.append(a[3]) or read(*a))
    command = ["eval", "--workdir", str(trained), "--evals", "denoising"]
    assert main(command) == 0 and main([*command, "--batches", "7"]) == 0
    as_trained = json.loads((trained / "config.json").read_text())["train"]["eval_batches"]
    assert asked == [as_trained, 7] and as_trained != 7


@pytest.mark.slow
def test_resumed_training_is_uninterrupted_training(trained, overrides, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(trained, workdir)  # as if stopped after the checkpoint of step 10
    shutil.rmtree(workdir / "checkpoints" / "20")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # as if killed while it was written
    assert main(train_command(workdir, overrides)) == 0
    whole, resumed = metrics_of(trained), metrics_of(workdir)
    steps = [line["step"] for line in resumed if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 20
    by_step = {line["step"]: line for line in whole if "loss" in line}
    last = [line for line in resumed if "loss" in line][-1]
    for name in ("loss", "grad_norm", "latent/std_min"):
        assert last[name] == pytest.approx(by_step[20][name], rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_a_further_phase_and_says_so_in_its_config(
    trained, overrides, tmp_path, capsys
):
    workdir = tmp_path / "more"
    shutil.copytree(trained, workdir)
    was = (workdir / "config.json").read_text()
    last = "{'reconstruction': 0.0, 'kl': 0.0, 'diffusion': 0.0, 'token': 1.0, "
    last += "'train': ['decoder']}"
    begun = ("{'until': 10, 'diffusion': 0.0}", "{'until': 20, 'encoder_gradient': 0.1}")
    too_early = f"phases=[{begun[0]}, {last}]"
    assert main([*train_command(workdir, overrides), too_early]) == 2
    assert "phases differ at step 10, and step 20 is trained already" in capsys.readouterr().err
    assert (workdir / "config.json").read_text() == was
    more = [f"phases=[{begun[0]}, {begun[1]}, {last}]", "train.num_steps=22"]
    for _ in range(2):  # what it went on with is what it is compared with from now on
        assert main([*train_command(workdir, overrides), *more]) == 0
    assert metrics_of(workdir)[-2]["step"] == 22
    record = json.loads((workdir / "config.json").read_text())
    assert record["train"]["num_steps"] == 22 and len(record["phases"]) == 3


def test_a_damaged_checkpoint_falls_back_to_the_last_good_one(trained, tmp_path, capsys, caplog):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained, workdir)
    newest = workdir / "checkpoints" / "20"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 0:
            file.write_bytes(b"\0" * 7)
    assert main(["sample", "--workdir", str(workdir), "--steps", "2", "--num-samples", "1"]) == 0
    assert "step 20 cannot be read" in caplog.text
    shutil.rmtree(workdir / "checkpoints" / "10")
    assert main(["sample", "--workdir", str(workdir), "--steps", "2"]) == 2
    assert "no checkpoint can be read" in capsys.readouterr().err
    assert newest.exists()  # nothing was destroyed


@pytest.mark.slow
def test_a_run_that_only_skips_ends_and_saves_nothing_more(overrides, tmp_path, capsys):
    wild = ("optim.learning_rate=1e6", "train.num_steps=400", "train.checkpoint_every=50",
            "train.eval_every=400", "train.log_every=5")  # fmt: skip
    command = train_command(tmp_path / "wild", overrides, *wild)
    refused(capsys, command, "steps up to", "grad_norm was not finite", "learning_rate")
    assert not list((tmp_path / "wild" / "checkpoints").glob("[0-9]*"))


def test_two_trainings_do_not_share_a_folder(tmp_path):
    folder = Workdir(tmp_path)
    words = f"process {os.getpid()} of .* is training there"
    with folder.exclusive(), pytest.raises(UserError, match=words), folder.exclusive():
        pass
    with folder.exclusive():
        pass


def test_half_written_checkpoints_are_not_seen(trained, tmp_path):
    workdir = tmp_path / "half"
    shutil.copytree(trained, workdir)
    partial = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20", partial)
    assert main(["sample", "--workdir", str(workdir), "--steps", "2", "--num-samples", "1"]) == 0


def refused(capsys, command, *words):
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err
    return err


def test_another_config_or_tokenizer_is_refused(trained, overrides, tmp_path, capsys):
    refused(capsys, train_command(trained, overrides, "dit.layers=3"), "dit.layers", "--workdir")
    refused(capsys, train_command(trained, overrides, "data.vocab_size=330"), "vocab_size")
    workdir = tmp_path / "other"
    shutil.copytree(trained, workdir)
    tokenizer = (workdir / "tokenizer.json").read_text()
    (workdir / "tokenizer.json").write_text(tokenizer.replace('"<mask>"', '"<musk>"'))
    refused(capsys, ["sample", "--workdir", str(workdir)], "not the tokenizer")
    (workdir / "config.json").write_text("{")
    refused(capsys, ["sample", "--workdir", str(workdir)], "damaged")


def test_every_refusal_is_one_line(trained, overrides, tmp_path, capsys):
    sample = ["sample", "--workdir", str(trained)]
    refused(capsys, [*sample, "--steps", "0"], "steps = 0")
    refused(capsys, [*sample, "--solver", "rk9"], "euler")
    refused(capsys, [*sample, "--step", "7"], "no checkpoint of step 7", "10, 20")
    refused(capsys, [*sample, "--prompt", "long " * 99], "window")
    refused(capsys, [*sample, "train.num_steps=3"], "keeps its config")
    refused(capsys, [*sample, "--jsonl", "/no/such/folder/x"], "cannot write")
    refused(capsys, ["sample", "--workdir", str(tmp_path)], "no run folder")
    refused(capsys, ["data", "no_such_corpus"], "Known: austen")
    refused(capsys, ["eval", "--workdir", str(trained), "--evals", "x"], "reconstruction")
    refused(capsys, ["eval", "--workdir", str(trained), "--batches", "0"], "--batches")
    train = ["train", "--workdir", str(tmp_path / "x"), "--config"]
    refused(capsys, [*train, "configs/none.py"], "no config file")
    refused(capsys, [*train, "configs/debug.py", "optim.lr=1"], "optim.lr", "learning_rate")
    refused(capsys, [*train, "configs/debug.py", *overrides, "train.evals=('x',)"], "train.evals")
    refused(capsys, [*train, "configs/debug.py", *overrides, "train.batch_size=12"], "8 devices")


def test_metrics_are_json_for_every_reader(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "text": "a"})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "text": "a"}\n'


def test_files_by_any_name_are_shown_as_they_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = Path("lr=0.1")
    text.mkdir()
    words = "\n\n".join(f"The {i} kings of the east saw the star." for i in range(300))
    (text / "2024.txt").write_text(words)
    (text / "notes.docx").write_text("")
    command = ["data", "lr=0.1", "data.root=.", "data.vocab_size=300", "data.window=16"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "| The 0 kings of the east" in out and "not read: lr=0.1/notes.docx" in out


def test_terminals_of_few_letters_and_closed_pipes_end_nothing():
    shown = "from ldlm_jax.cli import main; import sys; main(['data', '--list']); print('\u201c')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-c", shown], env=environment, capture_output=True, check=True
    )
    assert done.stdout.endswith(b"\\u201c\n")
    closed = "from ldlm_jax.cli import main; import sys; sys.exit(main(['data', '--list']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", closed], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_streams_get_a_place_before_any_file_can_take_it(tmp_path):
    # Written to number 2, as a library in C++ would: it may end up in no file of ours.
    code = (
        "import os, sys; from ldlm_jax.cli import main; code = main(['configs'])\n"
        "with open('mine', 'w') as file: os.write(2, b'from a library')"
        "; print('!', file=sys.stderr)\nos._exit(code)"
    )
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        shell = f"exec '{sys.executable}' -c \"$CODE\" {closed}"
        done = subprocess.run(["sh", "-c", shell], env=os.environ | {"CODE": code}, cwd=tmp_path)
        assert done.returncode == 0 and not (tmp_path / "mine").read_bytes()


def test_a_home_that_cannot_be_written_holds_no_cache(tmp_path):
    code = (
        "from ldlm_jax.cli import main; main(['configs']); import jax; "
        "print(jax.config.jax_compilation_cache_dir)"
    )
    for home, cache in (("/proc/none", None), (tmp_path, tmp_path / ".cache/ldlm_jax")):
        environment = os.environ | {"HOME": str(home)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.stdout.decode().splitlines()[-1] == str(cache) and not done.stderr


def test_tracebacks_only_on_demand(trained):
    with pytest.raises(UserError):
        main(["--debug", "sample", "--workdir", str(trained), "--steps", "0"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(overrides, tmp_path, capsys):
    tmp_path.chmod(0o500)
    refused(capsys, train_command(tmp_path / "run", overrides), "cannot write")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_leaves_earlier_checkpoints(overrides, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small disk here")
    try:
        refused(capsys, train_command(disk / "run", overrides), "Free some space")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_phrase_is_found_and_one_text_streamed(trained, tmp_path, capsys):
    file = tmp_path / "letter.txt"
    file.write_text("The king went.\n\nMy king spoke.")
    command = ["sample", "--workdir", str(trained), "--steps", "2"]
    revise = [*command, "--num-samples", "1", "--revise", str(file)]
    assert main([*revise, "--find", "king"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"\[1\] The.+ went\.\n\nMy.+ spoke\.\n", out, re.DOTALL), out
    refused(capsys, [*revise, "--find", "queen"], "does not hold 'queen'")
    refused(capsys, [*revise, "--find", "king", "--spans", "1:2"], "not both")
    assert main([*command, "--stream", "--prompt", "My son"]) == 0  # one text, not eight
    streamed = capsys.readouterr().out
    assert main([*command, "--num-samples", "1", "--prompt", "My son"]) == 0
    assert streamed.rsplit("\n[", 1)[0] == capsys.readouterr().out.removeprefix("[1] ").strip("\n")


def test_help_of_eval_names_every_evaluation(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    named = " ".join(capsys.readouterr().out.split()).split("names, joined by commas: ")[1]
    assert set(REGISTRY) == set(re.split("[,;] ", named.split(";")[0]))


def test_help_shows_groups_defaults_and_examples(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    told = capsys.readouterr().out
    for words in ("guidance:", "blocks and length:", "revising and choosing:", "(default: 50)"):
        assert words in told
    assert told.count("  ldlm sample --workdir") == 3
