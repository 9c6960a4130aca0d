"""One active picker for all gateways, or a share of the slots for each? What each costs, measured.

1. What a far picker costs: a check over a Unix socket and over TCP, in turn, five rounds; and decisions a second that
   one process gives to one and to two gateways.
2. What shares cost: the wait for a slot, on a virtual clock, with the same arrivals.
3. What two prefix indexes cost: share of blocks hit, on a public trace.
"""

import asyncio
import heapq
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop

from benchmarks.routing.run import Fleet, Route, ours
from benchmarks.traces import Arrival, mooncake
from pilotage.clock import SystemClock
from pilotage.gateway.answers import Answer
from pilotage.gateway.large_bodies import LargeBodies
from pilotage.gateway.leases import Lease
from pilotage.gateway.picker import Picker
from pilotage.gateway.table import ReplicaEntry, RouteRule, RoutingTable, ServiceEntry
from pilotage.gateway.wire import protocol_factory

ROUNDS = 5
CHECKS = 3_000
BODY = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "x" * 1_500}]}).encode()
CHECK = b"POST /check/v1/chat/completions HTTP/1.1\r\nhost: p\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Nobody:
    def answered(self, service: str, answer: Answer) -> None: ...

    def admitted(self, lease: Lease, *, chain_blocks: int, cached_blocks: int) -> None: ...

    def left(self, service: str) -> None: ...


def picker() -> Picker:
    replicas = tuple(ReplicaEntry(name=f"r{n}", endpoint=f"127.0.0.1:{n + 1}", slots=10**9) for n in range(8))
    service = ServiceEntry(
        key="default/chat", names=("chat",), created_s=0, replicas=replicas,
        routes=(RouteRule(path="/v1/chat/completions", prompt="messages"),),
    )  # fmt: skip
    found = Picker(clock=SystemClock(), random=Random(1), observer=Nobody())
    found.use(RoutingTable(generation=1, services=(service,)))
    found.envoy_applied(frozenset((service.cluster, r.endpoint) for r in replicas))
    return found


async def check_many(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        writer.write(CHECK)
        await reader.readuntil(b"\r\n\r\n")
        took.append(time.perf_counter() - began)
    return took


async def far_and_near() -> None:
    loop = asyncio.get_running_loop()
    near: list[float] = []
    far: list[float] = []
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="plt-") as folder:
        path = f"{folder}/p.sock"
        factory = protocol_factory(picker(), SystemClock(), LargeBodies())
        unix = await loop.create_unix_server(factory, path)
        tcp = await loop.create_server(factory, "127.0.0.1", 0)
        port = tcp.sockets[0].getsockname()[1]
        for _ in range(ROUNDS):
            near.append(statistics.median(await check_many(*await asyncio.open_unix_connection(path), CHECKS)))
            far.append(statistics.median(await check_many(*await asyncio.open_connection("127.0.0.1", port), CHECKS)))
            for gateways in rates:
                connections = [await asyncio.open_unix_connection(path) for _ in range(16 * gateways)]
                began = time.perf_counter()
                await asyncio.gather(*(check_many(r, w, CHECKS // 16 // gateways) for r, w in connections))
                rates[gateways].append(CHECKS / (time.perf_counter() - began))
                for _, writer in connections:
                    writer.close()
        unix.close()
        tcp.close()
    print("## 1. A far picker (client and picker on one event loop, so both are in the figures)\n")
    print("| | median of 5 rounds | range |")
    print("|---|---|---|")
    for name, values in (("check over a Unix socket", near), ("check over TCP, loopback", far)):
        low, high = min(values) * 1e6, max(values) * 1e6
        print(f"| {name} | {statistics.median(values) * 1e6:.0f} us | {low:.0f} to {high:.0f} us |")
    ratio = statistics.median(f / n for f, n in zip(far, near, strict=True))
    print(f"| TCP over Unix socket, pair by pair | {ratio:.2f} x | |")
    for gateways, found in rates.items():
        said = f"{statistics.median(found):.0f}/s | {min(found):.0f} to {max(found):.0f}/s"
        print(f"| checks a second, connections of {gateways} gateway{'s' if gateways > 1 else ''} | {said} |")


def waits(arrivals: list[tuple[float, float, int]], slots: list[int]) -> list[float]:
    """Seconds that each request waits when gateway g admits slots[g] at once; one entry in `slots` is one brain."""
    free = list(slots)
    queues: list[deque[tuple[float, float]]] = [deque() for _ in slots]
    ends: list[tuple[float, int]] = []
    found: list[float] = []

    def admit(gateway: int, now: float) -> None:
        while queues[gateway] and free[gateway]:
            arrived, run_s = queues[gateway].popleft()
            found.append(now - arrived)
            free[gateway] -= 1
            heapq.heappush(ends, (now + run_s, gateway))

    for at_s, run_s, gateway in arrivals:
        while ends and ends[0][0] <= at_s:
            ended, freed = heapq.heappop(ends)
            free[freed] += 1
            admit(freed, ended)
        chosen = gateway % len(slots)
        queues[chosen].append((at_s, run_s))
        admit(chosen, at_s)
    while ends:
        ended, freed = heapq.heappop(ends)
        free[freed] += 1
        admit(freed, ended)
    return found


def shares() -> None:
    print("\n## 2. Shares of the slots (2 gateways, exponential arrivals and run times of 10 s, 40,000 requests)\n")
    print("| slots | load | traffic of the gateways | one brain: wait mean, p99 | halves: wait mean, p99 |")
    print("|---|---|---|---|---|")
    for slots in (4, 16, 64):
        for skew in (0.5, 0.6):
            random = Random(7)
            load, run_s, now = 0.85, 10.0, 0.0
            arrivals = []
            for _ in range(40_000):
                now += random.expovariate(load * slots / run_s)
                arrivals.append((now, random.expovariate(1 / run_s), 0 if random.random() < skew else 1))
            cells = []
            for split in ([slots], [slots // 2, slots // 2]):
                found = sorted(waits(arrivals, split))
                cells.append(f"{statistics.fmean(found):.1f} s, {found[int(0.99 * len(found))]:.1f} s")
            print(f"| {slots} | {load} | {skew:.0%} / {1 - skew:.0%} | {cells[0]} | {cells[1]} |")


def two_indexes(capacity: int) -> Route:
    routes, random = (ours(capacity), ours(capacity)), Random(3)

    def route(arrival: Arrival, busy: list[int]) -> int:
        # Each gateway knows only what it sent itself; that the load is shared knowledge is in its favor.
        return routes[random.randrange(2)](arrival, busy)

    return route


def indexes() -> None:
    arrivals = mooncake()
    print(f"\n## 3. Two prefix indexes (Mooncake conversation, {len(arrivals)} requests, 8 replicas)\n")
    print("| blocks a replica | one index | an index in each of 2 gateways | ratio |")
    print("|---|---|---|---|")
    for capacity in (1_000, 3_000):
        found = []
        for route in (ours(capacity), two_indexes(capacity)):
            fleet = Fleet(capacity)
            for arrival in arrivals:
                fleet.serve(arrival, route)
            found.append(fleet.hits / fleet.blocks)
        print(f"| {capacity} | {found[0]:.3f} | {found[1]:.3f} | {found[1] / found[0]:.2f} |")


if __name__ == "__main__":
    uvloop.run(far_and_near())
    shares()
    indexes()
