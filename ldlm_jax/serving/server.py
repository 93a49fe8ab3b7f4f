"""``ldlm serve``: an OpenAI-compatible HTTP server over one batching thread."""

import asyncio
import hmac
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ldlm_jax.errors import UserError
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.page import live_page, page_data
from ldlm_jax.serving.batcher import Batcher, Closed, Job, Limits, Overloaded
from ldlm_jax.serving.protocol import Asked, Choice, parse
from ldlm_jax.workdir import LoadedRun


@dataclass(frozen=True)
class ServerConfig:
    """How a model is served.

    Attributes:
      name: of the model.
      limits: of the queue and of batches.
      timeout: seconds until a request is given up.
      body_bytes: of the largest body.
      choices: texts that one request may ask for.
      api_key: that clients must send; empty for none.
    """

    name: str
    limits: Limits = Limits()
    timeout: float = 120.0
    body_bytes: int = 1 << 20
    choices: int = 64
    api_key: str = ""


class Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, message: str, code: str):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def response(self) -> Response:
        """In the protocol's layout."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse({"error": error}, self.status, headers)


class Metrics:
    """What Prometheus reads."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        new = {"registry": self.registry}
        self.requests = Counter("ldlm_requests", "Requests by status.", ["status"], **new)
        self.tokens = Counter("ldlm_generated_tokens", "Tokens that were generated.", **new)
        self.seconds = Histogram(
            "ldlm_request_seconds", "From a request to the end of its answer.", **new,
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120),
        )  # fmt: skip
        waiting = Gauge("ldlm_queue_rows", "Rows that wait.", **new)
        waiting.set_function(lambda: batcher.waiting)
        batches = Gauge("ldlm_batches", "Compiled calls so far.", **new)
        batches.set_function(lambda: batcher.counts.batches.total())
        rows = Gauge("ldlm_batch_rows", "Rows of all compiled calls so far.", **new)
        rows.set_function(lambda: sum(n * k for n, k in batcher.counts.batches.items()))
        busy = Gauge("ldlm_busy_seconds", "Seconds of generating so far.", **new)
        busy.set_function(lambda: batcher.counts.busy_seconds)


class Server:
    """The routes and what they share."""

    def __init__(self, run: LoadedRun, config: ServerConfig):
        self.config, self.generator, self.sample = config, run.generator, run.experiment.sample
        self.batcher, self.task = Batcher(run, config.limits), TASKS.get(run.experiment.data.source)
        self.metrics, self.created = Metrics(self.batcher), int(time.time())

    def app(self) -> Starlette:
        """The ASGI application; its shutdown closes the batcher."""

        @asynccontextmanager
        async def lifespan(_):
            yield
            await run_in_threadpool(self.batcher.close)

        routes = [
            Route("/v1/completions", self._guarded(self.completions), methods=["POST"]),
            Route("/v1/denoise", self._guarded(self.denoise), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models)),
            Route("/metrics", self._guarded(self.metrics_text)),
            Route("/health", self.health),
            Route("/", self.page),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    def _guarded(self, handler):
        """The handler behind the key, its refusals as answers, all of it counted."""

        async def handle(request: Request) -> Response:
            start = time.perf_counter()
            try:
                self._check_key(request)
                response = await handler(request)
            except Refused as refused:
                response = refused.response()
            except UserError as error:
                response = Refused(400, str(error), "invalid_request").response()
            self.metrics.requests.labels(response.status_code).inc()
            if not isinstance(response, StreamingResponse):
                self.metrics.seconds.observe(time.perf_counter() - start)
            return response

        return handle

    def _check_key(self, request: Request) -> None:
        # The framework reads bytes of a header as Latin-1.
        given = request.headers.get("authorization", "").encode("latin-1")
        wanted = f"Bearer {self.config.api_key}".encode()
        if self.config.api_key and not hmac.compare_digest(given, wanted):
            raise Refused(401, "send the header Authorization: Bearer KEY.", "invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.config.body_bytes:
                most = self.config.body_bytes
                raise Refused(413, f"the body is over {most} bytes.", "body_too_large")
        return bytes(body)

    async def _asked(self, request: Request) -> Asked:
        asked = parse(await self._body(request), self.generator, self.sample, self.config.choices)
        if asked.model and asked.model != self.config.name:
            message = f"no model {asked.model!r}; here is {self.config.name!r}."
            raise Refused(404, message, "model_not_found")
        return asked

    def _submit(self, jobs: list[Job]) -> None:
        try:
            self.batcher.submit(jobs)
        except Overloaded:
            raise Refused(429, "the queue is full; try again later.", "overloaded") from None
        except Closed:
            raise Refused(503, "the server is shutting down.", "closed") from None

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        asked = await self._asked(request)
        answer = Answer(self, asked)
        self._submit(answer.jobs)
        if asked.stream:
            return StreamingResponse(
                answer.stream(request.is_disconnected), media_type="text/event-stream"
            )
        async for _ in answer.pieces(request.is_disconnected):
            pass
        return JSONResponse(answer.whole())

    async def denoise(self, request: Request) -> Response:
        """``POST /v1/denoise``: one text with its drafts, as the page at ``/`` shows them."""
        asked = await self._asked(request)
        answer = Answer(self, asked, keep_drafts=True)
        self._submit(answer.jobs)
        async for _ in answer.pieces(request.is_disconnected):
            pass
        generator = self.generator.in_blocks(self.sample.block_size)
        steps = asked.requests[0].config.steps
        return JSONResponse(page_data(generator, {steps: answer.samples}, self.task))

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``."""
        model = {"id": self.config.name, "object": "model", "created": self.created,
                 "owned_by": "ldlm_jax"}  # fmt: skip
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics_text(self, _: Request) -> Response:
        """``GET /metrics``."""
        return Response(generate_latest(self.metrics.registry), media_type="text/plain")

    async def health(self, _: Request) -> Response:
        """``GET /health``."""
        return JSONResponse({"status": "ok", "model": self.config.name})

    async def page(self, _: Request) -> Response:
        """``GET /``: a page to type into and to watch text sharpen."""
        return HTMLResponse(live_page())


class Answer:
    """What becomes of one body: its jobs in the batcher, and their texts as they come."""

    def __init__(self, server: Server, asked: Asked, keep_drafts: bool = False):
        self.server, self.asked = server, asked
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self.choices = [Choice(server.generator, request, asked) for request in asked.requests]
        self.samples: list = [None] * len(self.choices)
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue()

        def tell(index: int, kind: str, *what) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, (index, kind, what))

        drafts = asked.stream and asked.drafts
        self.jobs = [
            Job(
                request, partial(tell, index, "done"),
                partial(tell, index, "block") if asked.stream and choice.grows else None,
                partial(tell, index, "draft") if drafts else None,
                keep_drafts or drafts, asked.logprobs is not None,
            )
            for index, (request, choice) in enumerate(
                zip(asked.requests, self.choices, strict=True)
            )
        ]  # fmt: skip

    async def pieces(self, is_gone) -> AsyncIterator[tuple[int, str, str]]:
        """Pieces of text, with the numbers of their choices and their kinds: ``"block"``,
        ``"draft"`` (in place of all that will come), or ``"done"`` for the last.

        Whoever stops reading gives all up.

        Args:
          is_gone: asked now and then whether the client has left.

        Raises:
          Refused: too late, or something failed.
        """
        deadline = time.monotonic() + self.server.config.timeout
        left = len(self.jobs)
        try:
            while left:
                index, kind, what = await self._next(deadline, is_gone)
                if kind == "block":
                    text = self.choices[index].add(*what)
                elif kind == "draft":
                    text = self.choices[index].draft(*what)
                else:
                    text = self._finish(index, *what)
                    left -= 1
                if text or kind == "done":
                    yield index, text, kind
        finally:
            self.server.batcher.cancel(self.jobs)

    async def _next(self, deadline: float, is_gone):
        while (rest := deadline - time.monotonic()) > 0:
            try:
                return await asyncio.wait_for(self._events.get(), min(rest, 0.5))
            except TimeoutError:
                if await is_gone():
                    raise Refused(499, "the client has left.", "cancelled") from None
        seconds = self.server.config.timeout
        raise Refused(504, f"not done within {seconds:g} seconds.", "timeout")

    def _finish(self, index: int, sample, likelihood) -> str:
        if isinstance(sample, Closed):
            raise Refused(503, "the server is shutting down.", "closed")
        if isinstance(sample, UserError):
            raise sample
        if isinstance(sample, Exception):
            raise Refused(500, f"generation failed ({type(sample).__name__}).", "failed")
        self.samples[index] = sample
        text = self.choices[index].finish(sample, likelihood)
        self.server.metrics.tokens.inc(self.choices[index].completion_tokens)
        return text

    async def stream(self, is_gone) -> AsyncIterator[str]:
        """Server-sent events; see ``pieces``."""
        start = time.perf_counter()
        try:
            async for index, text, kind in self.pieces(is_gone):
                reason = self.choices[index].finish_reason if kind == "done" else None
                choice = {"text": text, "index": index, "logprobs": None, "finish_reason": reason}
                if kind == "draft":
                    choice |= {"text": "", "draft": text}
                yield self._event([choice])
            if self.asked.usage:
                yield self._event([], usage=self._usage())
        except (Refused, UserError) as error:
            refused = error if isinstance(error, Refused) else Refused(400, str(error), "invalid")
            yield f"data: {refused.response().body.decode()}\n\n"
        yield "data: [DONE]\n\n"
        self.server.metrics.seconds.observe(time.perf_counter() - start)

    def whole(self) -> dict:
        """The answer to a request without ``stream``."""
        choices = [
            {"text": choice.text, "index": index, "logprobs": choice.logprobs,
             "finish_reason": choice.finish_reason}
            for index, choice in enumerate(self.choices)
        ]  # fmt: skip
        return self._object(choices, usage=self._usage())

    def _event(self, choices: list[dict], **more) -> str:
        return f"data: {json.dumps(self._object(choices, **more))}\n\n"

    def _object(self, choices: list[dict], **more) -> dict:
        return {
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.server.config.name, "seed": self.asked.seed, "choices": choices, **more,
        }  # fmt: skip

    def _usage(self) -> dict:
        # Of every prompt once, as its texts share it.
        prompt = sum(c.prompt_tokens for c in self.choices if c.request.number == 0)
        completion = sum(choice.completion_tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion,
                "total_tokens": prompt + completion}  # fmt: skip


def serve(run: LoadedRun, config: ServerConfig, host: str, port: int) -> None:
    """Serve until a signal ends it; requests under way are finished first.

    Raises:
      UserError: the address cannot be had; found before anything is compiled.
    """
    import uvicorn

    address = _bound(host, port)
    server = Server(run, config)
    print("compiling for batches of up to", config.limits.max_batch, "texts", flush=True)
    server.batcher.warm_up()
    port = address.getsockname()[1]  # asked for 0, any free one
    print(f"serving {config.name} on http://{host}:{port}", flush=True)
    program = uvicorn.Server(
        uvicorn.Config(
            server.app(), log_level="warning", timeout_graceful_shutdown=int(config.timeout)
        )
    )
    program.run(sockets=[address])


def _bound(host: str, port: int) -> socket.socket:
    """A socket of that address, on which nothing is taken yet."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot serve on {host}:{port}: {reason}.") from error
    return bound
