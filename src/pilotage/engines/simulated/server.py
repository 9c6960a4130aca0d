"""`python -m pilotage.engines.simulated.server`: OpenAI's API over the timing model, with faults on demand.

POST /simulate/fault with {"kind": "hang" | "crash" | "error" | "recover"} makes the next steps hang, the process die,
or the next requests fail; "recover" ends it. The gateway passes no such path on. --crash-on=TEXT makes the process die
of any prompt that holds the text.
"""

import asyncio
import hashlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pilotage.engines.adapter import KEY_VARIABLE, parsed_args
from pilotage.engines.simulated.adapter import FLAGS, timing_from
from pilotage.engines.simulated.timing import Batch, Request, Timing

OWN_FLAGS: dict[str, type[int] | type[float] | type[str] | type[bool]] = {
    "--port": int,
    "--served-name": str,
    "--max-model-len": int,
}
CHARACTERS_PER_TOKEN = 4
WORDS = ("the ", "model ", "that ", "is ", "not ", "there ", "says ", "as ", "much ", "as ", "it ", "was ", "asked. ")
EMIT, DONE = 1, 2


class Metrics:
    """vLLM's metric names, as far as gateways and autoscalers read them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.running = Gauge("vllm:num_requests_running", "Requests running.", registry=self.registry)
        self.waiting = Gauge("vllm:num_requests_waiting", "Requests waiting.", registry=self.registry)
        self.cache = Gauge("vllm:kv_cache_usage_perc", "Share of the cache in use.", registry=self.registry)
        self.prompt = Counter("vllm:prompt_tokens", "Prompt tokens computed.", registry=self.registry)
        self.generated = Counter("vllm:generation_tokens", "Tokens generated.", registry=self.registry)
        self.queries = Counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", registry=self.registry)
        self.hits = Counter("vllm:prefix_cache_hits", "Prompt tokens found.", registry=self.registry)
        self.first = Histogram("vllm:time_to_first_token_seconds", "Time to first token.", registry=self.registry)


@dataclass
class Answer:
    """A request and the queue that its tokens arrive in."""

    request: Request
    began_s: float
    tokens: asyncio.Queue[int] = field(default_factory=asyncio.Queue)


class Engine:
    """Runs the timing model in real time."""

    def __init__(self, timing: Timing) -> None:
        self.batch = Batch(timing)
        self.metrics = Metrics()
        self.hangs = False
        self.fails = False
        self._answers: dict[int, Answer] = {}
        self._numbers = 0
        self._work = asyncio.Event()

    def begin(self, prompt: str, output_tokens: int) -> Answer | None:
        """Queue a request; None when it can never fit."""
        self._numbers += 1
        block_characters = self.batch.timing.block_tokens * CHARACTERS_PER_TOKEN
        request = Request(
            id=self._numbers,
            prompt_tokens=max(1, len(prompt) // CHARACTERS_PER_TOKEN),
            output_tokens=output_tokens,
            blocks=_blocks(prompt, block_characters),
        )
        if not self.batch.add(request):
            return None
        answer = self._answers[request.id] = Answer(request, time.monotonic())
        self._work.set()
        return answer

    def drop(self, answer: Answer) -> None:
        """Nobody waits for this one."""
        self._answers.pop(answer.request.id, None)
        self.batch.cancel(answer.request.id)

    async def run(self) -> None:
        """Step for ever."""
        while True:
            while self.hangs:
                await asyncio.sleep(0.05)
            step = self.batch.step()
            if step is None:
                self._work.clear()
                self._observe()
                await self._work.wait()
                continue
            self._observe()
            await asyncio.sleep(step.duration_s)
            self.metrics.prompt.inc(step.prefill_tokens)
            self.metrics.generated.inc(len(step.emitted))
            for request_id in step.emitted:
                self._tell(request_id, EMIT)
            for request_id in step.finished:
                self._tell(request_id, DONE)

    def _tell(self, request_id: int, what: int) -> None:
        answer = self._answers.get(request_id)
        if not answer:
            return
        if what == EMIT and answer.request.generated_tokens == 1:
            self.metrics.first.observe(time.monotonic() - answer.began_s)
            self.metrics.queries.inc(answer.request.prompt_tokens)
            self.metrics.hits.inc(answer.request.cached_tokens)
        answer.tokens.put_nowait(what)

    def _observe(self) -> None:
        self.metrics.running.set(len(self.batch.running))
        self.metrics.waiting.set(len(self.batch.waiting))
        self.metrics.cache.set(self.batch.reserved_tokens / self.batch.timing.cache_tokens)


class Api:
    """The HTTP side."""

    def __init__(
        self, engine: Engine, *, key: str, name: str, output_tokens: int, longest_tokens: int, crash_on: str
    ) -> None:
        self._engine = engine
        self._key = key
        self._name = name
        self._output_tokens = output_tokens
        self._longest_tokens = longest_tokens
        self._crash_on = crash_on

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(middlewares=[self._with_key], client_max_size=64 * 1024 * 1024)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
                web.post("/simulate/fault", self._fault),
            ]
        )
        return app

    @web.middleware
    async def _with_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path != "/health" and request.headers.get("authorization") != f"Bearer {self._key}":
            return _error(401, "Invalid API key")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._engine.metrics.registry), content_type="text/plain")

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def _fault(self, request: web.Request) -> web.Response:
        kind = (await request.json())["kind"]
        match kind:
            case "hang":
                self._engine.hangs = True
            case "recover":
                self._engine.hangs = self._engine.fails = False
            case "error":
                self._engine.fails = True
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case _:
                return _error(400, f"no fault {kind!r}: hang, recover, error, crash")
        return web.json_response({"fault": kind})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
            return _error(400, "`messages` must be a non-empty list")
        try:
            prompt = orjson.dumps(body["messages"]).decode()
        except orjson.JSONEncodeError:
            return _error(400, "`messages` is nested too deep")
        return await self._answer(request, body, prompt, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            return _error(400, "`prompt` must be a string")
        return await self._answer(request, body, body["prompt"], chat=False)

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: str, *, chat: bool
    ) -> web.StreamResponse:
        if self._engine.fails:
            return _error(500, "a fault that was asked for")
        wanted = body.get("max_completion_tokens", body.get("max_tokens", self._output_tokens))
        if not isinstance(wanted, int) or wanted < 1:
            return _error(400, "`max_tokens` must be a positive whole number")
        if len(prompt) // CHARACTERS_PER_TOKEN + wanted > self._longest_tokens:
            return _error(400, f"prompt and answer are longer than {self._longest_tokens} tokens")
        if self._crash_on and self._crash_on in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = self._engine.begin(prompt, wanted)
        if answer is None:
            return _error(400, "prompt and answer are longer than the cache")
        try:
            if body.get("stream") is True:
                return await self._stream(request, answer, body.get("stream_options") or {}, chat=chat)
            return await self._whole(answer, chat=chat)
        finally:
            self._engine.drop(answer)

    async def _whole(self, answer: Answer, *, chat: bool) -> web.Response:
        text = ""
        while await answer.tokens.get() == EMIT:
            text += WORDS[(answer.request.generated_tokens - 1) % len(WORDS)]
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": "length", **content}
        return web.json_response(
            {**self._head(answer, chat, chunk=False), "choices": [choice], "usage": _usage(answer, None)}
        )

    async def _stream(
        self, request: web.Request, answer: Answer, options: dict[str, Any], *, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        head = self._head(answer, chat, chunk=True)
        running = bool(options.get("include_usage") and options.get("continuous_usage_stats"))
        sent = 0
        while await answer.tokens.get() == EMIT:
            sent += 1
            word = WORDS[(sent - 1) % len(WORDS)]
            content = {"delta": {"content": word}} if chat else {"text": word}
            last = sent >= answer.request.output_tokens
            choice = {"index": 0, "finish_reason": "length" if last else None, **content}
            event = {**head, "choices": [choice], **({"usage": _usage(answer, sent)} if running else {})}
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
        if options.get("include_usage"):
            await response.write(
                b"data: " + orjson.dumps({**head, "choices": [], "usage": _usage(answer, sent)}) + b"\n\n"
            )
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _head(self, answer: Answer, chat: bool, *, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion" if chat else "text_completion"
        return {
            "id": f"sim-{answer.request.id}",
            "object": f"{kind}.chunk" if chat and chunk else kind,
            "created": int(time.time()),
            "model": self._name,
        }


async def _json(request: web.Request) -> Any:
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        return None


def _usage(answer: Answer, sent: int | None) -> dict[str, Any]:
    output = answer.request.generated_tokens if sent is None else sent
    return {
        "prompt_tokens": answer.request.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": answer.request.prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": answer.request.cached_tokens},
    }


def _error(status: int, message: str) -> web.Response:
    kind = "authentication_error" if status == 401 else "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


def _blocks(prompt: str, block_characters: int) -> list[int]:
    hasher, blocks = hashlib.blake2b(digest_size=8), []
    for start in range(0, len(prompt) - block_characters + 1, block_characters):
        hasher.update(prompt[start : start + block_characters].encode("utf-8", "surrogatepass"))
        blocks.append(int.from_bytes(hasher.digest(), "big"))
    return blocks


async def serve(argv: list[str]) -> None:
    """Load for as long as asked, then serve until SIGTERM."""
    flags = parsed_args(argv, known={**FLAGS, **OWN_FLAGS}, engine="the simulated engine")
    await asyncio.sleep(float(flags.get("--startup-seconds", 0)))
    if flags.get("--fail-to-load"):
        print("the fault --fail-to-load was asked for", file=sys.stderr)
        sys.exit(1)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = Engine(timing_from(flags))
    api = Api(
        engine,
        key=os.environ[KEY_VARIABLE],
        name=str(flags["--served-name"]),
        output_tokens=int(flags.get("--output-tokens", 64)),
        longest_tokens=int(flags["--max-model-len"]),
        crash_on=str(flags.get("--crash-on", "")),
    )
    runner = web.AppRunner(api.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(flags["--port"]), backlog=4096).start()
    steps = asyncio.create_task(engine.run())
    await stop.wait()
    steps.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1:]))
