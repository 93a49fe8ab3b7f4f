"""The adapter for lm-evaluation-harness, run on a task of local data."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.evaluator import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from ldlm_jax.serving.harness import LatentLM, _until  # noqa: E402
from tests.conftest import untrained_run  # noqa: E402

# 300 steps of a tiny model of blocks.
TRAINED = Path(__file__).parent / "fixtures" / "run_0_1"
CHOICES = """
task: which_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{before}}}}"
doc_to_choice: "{{{{[right, wrong]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model():
    return LatentLM(TRAINED, batch_size=8, steps=2)


def instances(kind, *arguments):
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_a_task_of_local_data_is_scored(model, tmp_path):
    file = tmp_path / "words.jsonl"
    rows = [
        {"before": "The king blessed the", "right": "people.", "wrong": "zzz?"},
        {"before": "My son went before", "right": "Jerusalem.", "wrong": "qqqq"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "which_word.yaml").write_text(CHOICES.format(file=file))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        model, tasks=["which_word"], task_manager=manager, bootstrap_iters=0
    )["results"]  # fmt: skip
    assert results["which_word"]["acc,none"] == 1.0


def test_likelihoods_are_the_models_and_long_contexts_are_cut(model):
    pair = ("The king", " blessed the people.")
    ((value, greedy),) = model.loglikelihood(instances("loglikelihood", pair))
    (own,) = model.model.log_likelihoods([pair], ends=False)
    assert value == pytest.approx(own.log_likelihood, abs=1e-4) and isinstance(greedy, bool)
    best = max(own.top[0], key=own.top[0].get)
    word = model.model.run.tokenizer.decode([best])
    ((_, greedy),) = model.loglikelihood(instances("loglikelihood", ("The king", word)))
    assert greedy
    long = ("The king went before Jerusalem. " * 20, " people.")
    ((value, _),) = model.loglikelihood(instances("loglikelihood", long))
    assert -100 < value < 0
    assert set(model.standard_errors) == {0.0}


def test_rolling_scores_every_token_once(model):
    short, long = "The king blessed the people.", "The king blessed the people. " * 9
    values = model.loglikelihood_rolling(instances("rolling", (short,), (long,), ("",)))
    (own,) = model.model.log_likelihoods([("", short)], ends=False)
    half = (model.model.window - 1) // 2
    if len(own.tokens) <= half:
        assert values[0] == pytest.approx(own.log_likelihood, abs=1e-4)
    assert values[1] < values[0] < 0 and values[2] == 0.0


def test_texts_go_on_until_they_are_told_to_stop(model):
    asked = [("The king", {"until": ["."], "max_gen_toks": 8}), ("word " * 99, {"until": "."})]
    texts = model.generate_until(instances("generate_until", *asked))
    assert len(texts) == 2 and not any("." in text for text in texts)
    assert len(model.model.run.tokenizer.encode([texts[0]])[0]) <= 8
    assert _until("a b. c! d", ["!", "."]) == "a b" and _until("a", []) == "a"


@pytest.mark.slow
def test_of_whole_texts_there_are_bounds_with_errors(overrides, tmp_path):
    model = LatentLM(untrained_run(tmp_path / "run", overrides), batch_size=8, draws=4)
    ((value, greedy),) = model.loglikelihood(instances("l", ("The king", " went")))
    assert value < 0 and greedy is False and model.standard_errors[0] > 0
