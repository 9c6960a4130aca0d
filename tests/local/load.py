"""Requests that go on while something happens, and what became of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx


@dataclass
class Outcome:
    """Requests that were answered whole, and what was wrong with the others."""

    whole: int = 0
    wrong: list[str] = field(default_factory=list)

    async def more(self, count: int, *, within_s: float = 90) -> None:
        """Wait until `count` more requests have been answered, one way or the other."""
        wanted = self.whole + len(self.wrong) + count
        async with asyncio.timeout(within_s):
            while self.whole + len(self.wrong) < wanted:
                await asyncio.sleep(0.05)


async def ask(client: httpx.AsyncClient, url: str, model: str, *, tokens: int, stream: bool, outcome: Outcome) -> None:
    """One request without retries; a stream must end as it should."""
    body = {"model": model, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": tokens, "stream": stream}
    try:
        response = await client.post(f"{url}/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        outcome.wrong.append(f"{type(error).__name__}: {error}")
        return
    if response.status_code != 200:
        outcome.wrong.append(f"{response.status_code}: {response.text[:200]}")
    elif stream and not response.text.endswith("data: [DONE]\n\n"):
        outcome.wrong.append(f"a stream without its end: ...{response.text[-80:]!r}")
    elif stream and response.text.count('"finish_reason":null') < tokens - 1:
        outcome.wrong.append("a stream with tokens missing")
    else:
        outcome.whole += 1


@contextlib.asynccontextmanager
async def load(url: str, model: str = "sim", *, streams: int, tokens: int = 40) -> AsyncIterator[Outcome]:
    """Keeps `streams` requests running, streamed and plain ones in turn, until the block ends; then waits for all."""
    outcome = Outcome()
    stop = asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=streams)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            turn = number
            while not stop.is_set():
                await ask(client, url, model, tokens=tokens, stream=bool(turn % 3), outcome=outcome)
                turn += 1

        tasks = [asyncio.create_task(one(number)) for number in range(streams)]
        try:
            yield outcome
        finally:
            stop.set()
            await asyncio.gather(*tasks)
