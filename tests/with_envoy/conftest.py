import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from pilotage.gateway import GatewayLimits
from tests.with_envoy.harness import Gateway

LIMITS = GatewayLimits(max_body_bytes=2_000_000, max_held_requests=400, max_held_bytes=16_000_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.envoy)


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[Gateway]:
    # A short path: a Unix socket's may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="plt-") as folder:
        running = Gateway(Path(folder), limits=LIMITS)
        try:
            await running.start()
            yield running
        finally:
            running.stop()


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=30, limits=limits) as running:
        yield running
        await asyncio.sleep(0)
