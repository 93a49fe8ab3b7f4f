"""The server as its clients see it: the real OpenAI client and plain HTTP, on a socket."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import jax
import openai
import pytest
import uvicorn

from ldlm_jax import load
from ldlm_jax.cli import main
from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.sampling.likelihood import token_likelihoods
from ldlm_jax.sampling.request import Request
from ldlm_jax.serving.batcher import Batcher, Closed, Job, Limits
from ldlm_jax.serving.protocol import Choice, parse
from ldlm_jax.serving.server import Server, ServerConfig, serve

# 300 steps of a tiny model of blocks.
TRAINED = Path(__file__).parent / "fixtures" / "run_0_1"
LIMITS = Limits(max_batch=8, queue=24, gather_seconds=0.05)


@pytest.fixture(scope="module")
def model():
    return load(TRAINED, mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))


@contextmanager
def running(run, config):
    """A server on a port of its own; the address and the server."""
    server = Server(run, config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = uvicorn.Server(uvicorn.Config(server.app(), port=port, log_level="error"))
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        web.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(model):
    with running(model.run, ServerConfig("tiny", LIMITS, timeout=600, choices=16)) as made:
        yield made


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="any", max_retries=0) as client:
        yield client


@contextmanager
def held(server):
    """The batcher holds its next batch until the context ends."""
    go, taken, generate = threading.Event(), threading.Event(), server.batcher._generate

    def wait(batch):
        taken.set()
        go.wait()
        generate(batch)

    server.batcher._generate = wait
    try:
        yield taken
    finally:
        server.batcher._generate = generate
        go.set()


def post(served, body, **how):
    return httpx.post(f"{served[0]}/v1/completions", json=body, timeout=600, **how)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_answers_are_what_the_model_writes(client, model):
    answer = client.completions.create(
        model="tiny", prompt="The king", n=2, seed=3, extra_body={"steps": 2}
    )
    samples = model.generate("The king", num_samples=2, seed=3, steps=2)
    assert ["The king" + c.text for c in answer.choices] == [s.text for s in samples]
    assert answer.object == "text_completion" and answer.seed == 3
    assert answer.choices[0].finish_reason == "stop"
    prompt = len(model.run.tokenizer.encode(["The king"])[0])
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == sum(len(s.tokens) - prompt for s in samples)
    assert [m.id for m in client.models.list()] == ["tiny"]


@pytest.mark.slow
def test_unlike_requests_share_a_batch_and_get_their_own_texts(served, model):
    asked = [
        {"prompt": "The king", "seed": 1, "steps": 2},
        {"prompt": "My son", "seed": 2, "steps": 2, "temperature": 0.7},
        {"prompt": "An angel", "seed": 3, "steps": 1, "echo": True},
        {"template": "The ____{2} blessed ____{3}.", "seed": 4, "steps": 2},
        {"prompt": "A servant", "suffix": " people.", "seed": 5, "steps": 2, "best_of": 1},
    ]
    with ThreadPoolExecutor(8) as pool, held(served[1]) as taken:
        first = pool.submit(post, served, {"seed": 9, "steps": 2})
        taken.wait()
        answers = [pool.submit(post, served, body) for body in asked[:4]]
        until(lambda: served[1].batcher.waiting == 4)
        before = served[1].batcher.counts.batches[4]
    texts = [a.result().json()["choices"][0]["text"] for a in answers]
    assert first.result().status_code == 200
    assert served[1].batcher.counts.batches[4] == before + 1
    alone = [
        model.generate("The king", seed=1, steps=2)[0].text.removeprefix("The king"),
        model.generate("My son", seed=2, steps=2, temperature=0.7)[0].text.removeprefix("My son"),
        model.generate("An angel", seed=3, steps=1)[0].text,
        model.infill("The ____{2} blessed ____{3}.", seed=4, steps=2)[0].text,
    ]
    assert texts == alone
    between = post(served, asked[4]).json()["choices"][0]["text"]
    whole = model.generate("A servant", suffix=" people.", seed=5, steps=2)[0].text
    assert f"A servant{between} people." == whole


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, ["p", "xx"]])
def test_a_stream_is_the_answer_in_pieces(client, stop):
    how = {"model": "tiny", "prompt": "The", "seed": 3, "n": 2, "stop": stop}
    whole = client.completions.create(**how, extra_body={"steps": 2})
    events = list(
        client.completions.create(
            **how, stream=True, stream_options={"include_usage": True}, extra_body={"steps": 2}
        )
    )
    texts, ended = ["", ""], {}
    for event in events[:-1]:
        for choice in event.choices:
            assert choice.index not in ended
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ended[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert ended == {choice.index: choice.finish_reason for choice in whole.choices}
    assert events[-1].usage == whole.usage and not events[-1].choices
    assert len(events) > 4 or stop


def test_stops_limits_and_echoes(served, model):
    body = {"prompt": "The king", "seed": 3, "steps": 2}
    whole = post(served, body).json()["choices"][0]["text"]
    echoed = post(served, body | {"echo": True}).json()["choices"][0]["text"]
    assert echoed == "The king" + whole
    stop = whole[5:7]
    cut = post(served, body | {"stop": stop}).json()["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    short = post(served, body | {"max_tokens": 2}).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 2
    assert whole.startswith(short["choices"][0]["text"])
    several = post(served, body | {"prompt": ["The king", "My son"]}).json()
    assert [c["index"] for c in several["choices"]] == [0, 1]
    assert several["choices"][0]["text"] == whole


def test_log_probabilities_are_the_models_own(served, model):
    body = {"prompt": "The king", "seed": 3, "steps": 2, "logprobs": 2, "echo": True}
    choice = post(served, body).json()["choices"][0]
    found = choice["logprobs"]
    (sample,) = model.generate("The king", seed=3, steps=2)
    with model.run.use_sharding():  # of the tokens as they came, whatever their text is cut into
        (scored,) = token_likelihoods(model.run.generator, [([], sample.tokens)])
    assert found["token_logprobs"] == pytest.approx(scored.token_log_probs, abs=1e-3)
    assert "".join(found["tokens"]) == choice["text"]
    for word, offset, top in zip(
        found["tokens"], found["text_offset"], found["top_logprobs"], strict=True
    ):
        assert choice["text"][offset:].startswith(word) and 1 <= len(top) <= 2
    rest = post(served, body | {"echo": False, "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert rest["top_logprobs"] is None
    assert rest["token_logprobs"] == found["token_logprobs"][-len(rest["tokens"]) :]


BAD = {
    "no object": ("[1]", "no JSON object"),
    "no JSON": ("{", "no JSON"),
    "too many digits": ('{"seed": ' + "9" * 5000 + "}", "no JSON"),
    "too deep": ("[" * 100_000, "no JSON"),
    "an unknown field": ({"stepz": 3}, "did you mean 'steps'"),
    "no steps": ({"steps": 0}, "steps = 0: must be in [1, 10000]"),
    "a thousand steps": ({"steps": 1000}, "at most 256"),
    "a word for a number": ({"temperature": "hot"}, "temperature = 'hot'"),
    "cold": ({"temperature": 0}, "temperature = 0: must be above 0"),
    "a call's option": ({"solver": "euler"}, "unknown field 'solver'"),
    "token ids": ({"prompt": [1, 2]}, "token ids are not taken"),
    "no prompt at all": ({"prompt": []}, "list of strings"),
    "too many": ({"n": 17}, "1 to 16 texts"),
    "none": ({"n": 0}, "1 to 16 texts"),
    "a large seed": ({"seed": 2**40}, "seed = "),
    "a long prompt": ({"prompt": "word " * 60}, "window"),
    "two ways to ask": ({"prompt": "a", "template": "b ____"}, "leave prompt empty"),
    "no span": ({"template": "b"}, "has no span"),
    "a penalty": ({"presence_penalty": 1}, "presence_penalty"),
    "five stops": ({"stop": list("abcde")}, "up to four"),
    "an empty stop": ({"stop": ""}, "none of them empty"),
    "no tokens": ({"max_tokens": 0}, "max_tokens = 0"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens = 1.5"),
    "many probabilities": ({"logprobs": 9}, "logprobs = 9"),
    "probabilities in a stream": ({"logprobs": 1, "stream": True}, "not with stream"),
    "probabilities of a template": ({"logprobs": 1, "template": "a ____ b"}, "template or suffix"),
    "drafts of blocks": ({"stream_options": {"include_drafts": True}}, "include_drafts"),
    "a word for a switch": ({"stream": "yes"}, "stream = 'yes'"),
    "a choice of many": ({"best_of": 9}, "at most 8"),
}


@pytest.mark.parametrize("body", BAD)
def test_bad_requests_are_refused_in_a_line(served, body):
    sent, words = BAD[body]
    content = sent if isinstance(sent, str) else json.dumps(sent)
    answer = httpx.post(f"{served[0]}/v1/completions", content=content)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert words in error["message"] and "\n" not in error["message"]


def test_other_refusals_have_their_own_status(served, client):
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.completions.create(model="other", prompt="a")
    assert post(served, {"prompt": "a" * (1 << 20)}).status_code == 413
    assert httpx.get(f"{served[0]}/v1/completions").status_code == 405


def test_models_without_probabilities_say_so(model):
    generator = model.run.generator
    whole = generator.in_blocks(0)
    object.__setattr__(whole.diffusion, "block_size", 0)
    try:
        with pytest.raises(UserError, match="tells no probabilities"):
            parse(b'{"logprobs": 1}', whole, model.options(), 4)
    finally:
        object.__setattr__(whole.diffusion, "block_size", 4)


def test_a_full_queue_is_429_and_those_in_it_are_answered(served, client):
    with ThreadPoolExecutor(8) as pool, held(served[1]) as taken:
        waiting = [pool.submit(post, served, {"n": 8, "seed": i, "steps": 2}) for i in range(4)]
        taken.wait()
        until(lambda: served[1].batcher.waiting == 24)
        with pytest.raises(openai.RateLimitError, match="queue is full"):
            client.completions.create(model="tiny", prompt="a")
        assert httpx.get(f"{served[0]}/health").json()["status"] == "ok"
    assert all(len(a.result().json()["choices"]) == 8 for a in waiting)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(served, stream):
    body = {"n": 8, "seed": 1, "steps": 2, "stream": stream}
    with ThreadPoolExecutor(2) as pool, held(served[1]) as taken:
        first = pool.submit(post, served, {"seed": 1, "steps": 2})
        taken.wait()

        async def leave():
            async with httpx.AsyncClient() as web:
                call = asyncio.create_task(web.post(f"{served[0]}/v1/completions", json=body))
                while served[1].batcher.waiting < 8:
                    await asyncio.sleep(0.02)
                call.cancel()

        asyncio.run(leave())
        until(lambda: served[1].batcher.waiting == 0)
    assert first.result().status_code == 200


def test_a_late_answer_is_504_and_leaves_the_queue(model):
    config = ServerConfig("tiny", LIMITS, timeout=0.3)
    with running(model.run, config) as served, held(served[1]):
        answers = [post(served, {"steps": 2}) for _ in range(2)]
        assert [a.status_code for a in answers] == [504, 504]
        assert served[1].batcher.waiting == 0


def test_a_key_is_asked_for_where_there_is_one(model):
    with running(model.run, ServerConfig("tiny", LIMITS, api_key="sésame")) as served:
        for path in ("/v1/models", "/metrics"):
            assert httpx.get(served[0] + path).status_code == 401
        wrong = {"Authorization": "Bearer sesame"}
        assert post(served, {}, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{served[0]}/v1/models", headers=right).status_code == 200
        assert httpx.get(f"{served[0]}/health").status_code == 200


def test_what_fails_is_500_and_the_next_is_answered(served, monkeypatch):
    def fail(self, job, sample):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Batcher, "_score", fail)
    failed = post(served, {"steps": 2, "logprobs": 1})
    assert failed.status_code == 500 and "RuntimeError" in failed.json()["error"]["message"]
    assert post(served, {"steps": 2}).status_code == 200


def test_shutting_down_finishes_a_batch_and_refuses_the_rest(model):
    batcher, answers = Batcher(model.run, LIMITS), {}
    taken, go, generate = threading.Event(), threading.Event(), batcher._generate
    batcher._generate = lambda batch: (taken.set(), go.wait(), generate(batch))
    config = model.options(steps=2)
    jobs = [Job(Request("", n, 0, config), lambda x, _, n=n: answers.update({n: x}))
            for n in range(2)]  # fmt: skip
    batcher.submit(jobs[:1])
    taken.wait()
    batcher.submit(jobs[1:])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: 1 in answers)
    go.set()
    closing.join()
    assert isinstance(answers[1], Closed) and answers[0].text
    with pytest.raises(Closed):
        batcher.submit(jobs)


def test_prometheus_reads_what_happened(served):
    post(served, {"seed": 1, "steps": 2})
    text = httpx.get(f"{served[0]}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['ldlm_requests_total{status="200"}']) >= 1
    assert float(values["ldlm_generated_tokens_total"]) > 0
    assert float(values["ldlm_queue_rows"]) == 0 and float(values["ldlm_batches"]) > 0


def test_the_page_is_given_and_its_data(served):
    page = httpx.get(served[0]).text
    assert "const DATA = null;" in page and "http://" not in page
    data = httpx.post(
        f"{served[0]}/v1/denoise", json={"prompt": "The", "steps": 2, "seed": 1}, timeout=600
    ).json()
    (text,) = data["panels"][0]["texts"]
    assert len(text["steps"]) == 2 and text["steps"][-1][0] == text["final"]


def test_what_may_begin_a_stop_is_held_back(model):
    generator, tokenizer = model.run.generator, model.run.tokenizer
    body = json.dumps({"prompt": "", "stop": ["END"], "stream": True}).encode()
    asked = parse(body, generator, model.options(), 4)
    ids = tokenizer.encode(["a ENx EN", "D b"])
    choice = Choice(generator, asked.requests[0], asked)
    assert choice.add(ids[0]) == "a ENx " and choice.finish_reason is None
    assert choice.add(ids[1]) == "" and choice.finish_reason == "stop"
    assert choice.text == "a ENx "


def test_impossible_sizes_are_refused_before_a_model_is_read(capsys):
    command = ["serve", "--workdir", "nowhere"]
    assert main([*command, "--queue", "8"]) == 2
    assert "must hold a batch" in capsys.readouterr().err
    for flag, value in (("timeout", "0"), ("timeout", "nan"), ("timeout", "inf"),
                        ("port", "99999"), ("port", "-1"), ("max-batch", "0")):  # fmt: skip
        assert main([*command, f"--{flag}={value}"]) == 2
        assert f"--{flag} = " in capsys.readouterr().err


def test_an_address_that_cannot_be_had_is_named_before_anything_is_compiled(model):
    taken = socket.create_server(("127.0.0.1", 0))
    for host, port in (("127.0.0.1", taken.getsockname()[1]), ("no.such.host.invalid", 8000)):
        with pytest.raises(UserError, match=f"cannot serve on {host}:{port}"):
            serve(model.run, ServerConfig("name", LIMITS, 1.0), host, port)
    taken.close()


def test_a_stream_of_a_whole_text_shows_its_drafts():
    """Each in place of the one before, and last the text that a request without them gets."""
    model = load("checkpoints/sudoku6", mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    body = {"template": "12____{4}345____{27}", "seed": 3, "steps": 7, "stable_steps": 0}
    with running(model.run, ServerConfig("grids", Limits(max_batch=1))) as served:
        whole = post(served, body).json()["choices"][0]["text"]
        asked = body | {"stream": True, "stream_options": {"include_drafts": True}}
        lines = post(served, asked).text.split("\n\n")
    *events, end = [line.removeprefix("data: ") for line in lines if line]
    choices = [json.loads(event)["choices"][0] for event in events]
    drafts = [choice["draft"] for choice in choices if "draft" in choice]
    assert end == "[DONE]" and len(drafts) == 3 and len(choices) == 4
    assert all(draft.startswith("12") and draft[6:9] == "345" for draft in drafts)
    assert [choice["text"] for choice in choices] == ["", "", "", whole]
    assert choices[-1]["finish_reason"] == "stop"
