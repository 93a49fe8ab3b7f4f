"""Texts with spans to fill: spelling, layout, and what comes back."""

import numpy as np
import pytest

from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Span, Template, cut_spans, parse_spans, parse_template
from tests.conftest import sentences


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(sentences(), 320)


def test_templates_are_text_and_spans_in_turn():
    assert parse_template("The king ____ the gates ___{2}.") == (
        "The king ", Span(), " the gates ", Span(2), ".",
    )  # fmt: skip
    assert parse_template("____ came ____") == (Span(), " came ", Span(open_end=True))
    assert parse_template("came ____{4}") == ("came ", Span(4))
    assert parse_template("snake_case __init__ ____")[0] == "snake_case __init__ "
    for template, words in (("no span", "has no span"), ("a ____{0} b", "no tokens")):
        with pytest.raises(UserError, match=words):
            parse_template(template)


def test_spans_are_cut_out_in_order():
    text = "The king went home."
    spans = parse_spans("14:18, 4:8")
    assert cut_spans(text, spans) == (
        "The ",
        Span(original="king"),
        " went ",
        Span(original="home"),
        ".",
    )
    for spec, words in (("4-8", "10:25"), ("5:5", "empty"), ("1:6,4:8", "overlap")):
        with pytest.raises(UserError, match=words):
            parse_spans(spec)
    with pytest.raises(UserError, match="outside the text of 19"):
        cut_spans(text, parse_spans("4:20"))


def test_a_row_holds_what_is_known_and_room_for_the_rest(tokenizer):
    template = Template.of(("My son", Span(3), " the people."), tokenizer)
    before, after = tokenizer.encode(["My son", " the people."])
    row = template.to_row(48, 48, 4, 1)
    assert row.tokens_L.tolist()[: len(before) + 3] == [*before, MASK, MASK, MASK]
    length = len(before) + 3 + len(after)
    assert row.tokens_L[length] == EOS and row.observed_L[length]
    rounded = -(-(length + 1) // 4) * 4
    assert row.segments_L.sum() == rounded and row.observed_L.sum() == rounded - 3
    assert set(row.tokens_L[length + 1 : rounded]) <= {PAD}
    assert row.no_end_L.sum() == 3 and not (row.no_end_L & row.observed_L).any()
    # A latent of two tokens is known if both are.
    assert template.to_row(48, 48, 4, 2).observed_L.sum() % 2 == 0
    on = Template.of(("My son", Span(open_end=True)), tokenizer).to_row(48, 20, 4, 1)
    assert on.segments_L.sum() == 20 and on.observed_L.sum() == len(before)
    assert not on.no_end_L.any()


def test_given_text_comes_back_to_the_last_byte(tokenizer):
    rng = np.random.default_rng(0)
    for spelled in (
        "The king ____{3} Jerusalem é 東京 \U0001f642\n\n ____{2}.",
        "____{1}My  son\t____{4} ",
        " \u0301x____{2}\x00y",
    ):
        pieces = parse_template(spelled)
        template = Template.of(pieces, tokenizer)
        noise = rng.integers(3, tokenizer.vocab_size, 256)
        ids, text = template.from_row(noise, 256, tokenizer)
        given = [piece for piece in pieces if isinstance(piece, str)]
        at = 0
        for piece in given:  # in order, and none of them changed
            at = text.index(piece, at) + len(piece)
        if isinstance(pieces[0], str):
            assert text.startswith(pieces[0])
        if isinstance(pieces[-1], str):
            assert text.endswith(pieces[-1])
        assert len(ids) == template.fixed_tokens + 1


@pytest.mark.parametrize(
    ("filling", "text"),
    [
        (" king", "The king said"),
        ("king", "The king said"),
        ("'s", "The's said"),
        (", he", "The, he said"),
        (" (he", "The (he said"),
        ("(he", "The (he said"),
    ],
)
def test_a_space_before_a_span_goes_where_none_belongs(filling, text):
    tokenizer = Tokenizer.train([*sentences(), "(he), she's, (he); 's"], 320)
    (ids,) = tokenizer.encode([filling])
    template = Template.of(("The ", Span(len(ids)), " said"), tokenizer)
    row = np.array([*template.tokens[0], *ids, *template.tokens[2], EOS])
    got, filled = template.from_row(row, len(row), tokenizer)
    assert filled == text and got == row.tolist()
    # What a client gave as its prompt stays to the last byte.
    kept = Template.of(("The ", Span(len(ids), keeps_space=True), " said"), tokenizer)
    assert kept.from_row(row, len(row), tokenizer)[1].startswith("The ")
    assert Request("The ", suffix=" said").pieces[1].keeps_space


def test_open_spans_take_the_lengths_they_are_given(tokenizer):
    template = Template.of(parse_template("My ____ went ____ home"), tokenizer)
    assert template.open_spans == [1, 3]
    longer = template.with_lengths({1: 2, 3: 5})
    assert longer.fixed_tokens == template.fixed_tokens + 7
