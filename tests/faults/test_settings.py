"""Configs and overrides of any spelling: understood, or refused in a line that names the key."""

import pytest

from ldlm_jax.config import SECTIONS, known_keys, load_config, resolve
from ldlm_jax.errors import UserError

# Every key is given each of these.
ODD = ("nan", "-1", "1e999", "None", "'x'", "[]", "{}", "(1, 'a')", "9" * 30, "9" * 400, "True",
       "''", "1.5", "0", "-" * 10_000 + "1", "[" * 10_000, "{[]: 1}", "'\\ud800'",
       "\u0663")  # fmt: skip


def debug(*overrides):
    return resolve(load_config("configs/debug.py", list(overrides)))


@pytest.mark.parametrize("section", SECTIONS)
def test_no_value_of_any_key_is_more_than_a_refusal(section):
    refused = 0
    for key in known_keys(section):
        for value in ODD:
            try:
                debug(f"{section}.{key}={value}")
            except UserError as error:
                refused += 1
                assert key in str(error) or section in str(error)
    assert refused > len(known_keys(section))


@pytest.mark.parametrize(
    "override",
    ["=", "=5", ".=1", "train=1", "train.=1", "phases=5", "phases=[5]", "phases=abc", "phases=None",
     "phases=[{5: 1}]", "phases.0.until=nan", "phases.0.until=1.5", "phases.0.until=[1]",
     "phases.0=5", "phases.9.until=1", "train.evals=5", "train.evals=[['a']]", "train.eval_steps=0",
     "train.eval_steps=(5, 1e9)", "train.eval_steps=(10**9,)", "train.eval_samples=10000000000",
     "train.batch_size=1000000000000", "data.window=100000000000", "data.vocab_size=99999999999",
     "dit.layers=100000000", "dit.width=0", "dit.mlp_ratio=-1", "text_vae.width=99999999999",
     "sharding.batch=('data', 'data')", "sharding.batch=x", "sample.guidance=1e39",
     "train.seed=4294967296"],
)  # fmt: skip
def test_what_would_fail_later_is_refused_at_once(override):
    with pytest.raises(UserError):
        debug(override)


def test_one_word_or_number_is_a_tuple_of_one():
    train = debug("train.evals=samples", "train.eval_steps=7").train
    assert (train.evals, train.eval_steps) == (("samples",), (7,))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.py", "\n\ndef get_config(:", "a.py:3: SyntaxError"),
        ("a.py", "import no_such_module", "a.py:1: ModuleNotFoundError"),
        ("a.py", "def get_config():\n    raise ValueError('what')", "a.py:2: ValueError: what"),
        ("a.py", "def get_config(a): pass", "a.py:1: TypeError"),
        ("a.py", "get_config = 5", "TypeError"),
        ("a.py", "x = 5", "defines get_config"),
        ("a.py", "\0", "SyntaxError"),
        ("a.py", "def get_config(): return None", "holds sections by name"),
        ("a.py", "def get_config(): return {'train': 5}", "config section 'train' is 5"),
        ("a.py", "def get_config(): return {'phases': [None]}", "give a list of phases"),
        ("a.json", "{", "a.json is damaged"),
        ("a.json", "[" * 100_000, "a.json is damaged"),
        ("a.json", "5", "holds sections by name"),
        ("a.json", '{"train": null}', "config section 'train' is None"),
        ("a.yaml", "train: 5", "a config is a .py file"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        resolve(load_config(str(tmp_path / name)))
    assert words in str(error.value)
