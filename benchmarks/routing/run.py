"""Share of prefix blocks that are hit, and how evenly, on public traces: our choice beside simple ones and the bound.

8 replicas of 1,000 and 3,000 blocks each (512 tokens a block), least recently used first. "The bound" is one cache that
all replicas would share. On Mooncake's trace a request runs for a fixed time, so that load means something; ties are
broken by chance, and one tie changes all that follows, so each way is run with eight seeds. On Azure's, which has no
prefixes, a request runs as long as its tokens take on an engine that is slowed by its batch, and what counts is how
long they take.
"""

import heapq
import statistics
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.traces import Arrival, azure, mooncake
from pilotage.routing import Board, PrefixIndex, choose

REPLICAS = 8
RUN_S = 10.0
SEEDS = 8
# Of an 8B model on an H100, roughly: prompt tokens a second, a step of one request, and of each more.
PREFILL_PER_S, STEP_S, STEP_S_PER_REQUEST = 20_000.0, 0.007, 0.0003
# As vLLM is often run; no replica comes near it here.
SLOTS = 64
Route = Callable[[Arrival, "Fleet"], int]


class Fleet:
    """Replicas with caches of their own, and requests that end."""

    def __init__(self, capacity_blocks: int) -> None:
        self.caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(REPLICAS)]
        self.capacity = capacity_blocks
        self.busy = [0] * REPLICAS
        self.ends: list[tuple[float, int]] = []
        self.took_s: list[float] = []
        self.hits = self.blocks = 0
        self.by_minute: dict[int, Counter[int]] = {}

    def serve(self, arrival: Arrival, route: Route, *, as_loaded: bool = False) -> None:
        while self.ends and self.ends[0][0] <= arrival.at_s:
            self.busy[heapq.heappop(self.ends)[1]] -= 1
        replica = route(arrival, self)
        self.busy[replica] += 1
        run_s = took_s(arrival, self.busy[replica]) if as_loaded else RUN_S
        self.took_s.append(run_s)
        heapq.heappush(self.ends, (arrival.at_s + run_s, replica))
        self.by_minute.setdefault(int(arrival.at_s // 60), Counter())[replica] += 1
        self.blocks += len(arrival.blocks)
        self.hits += touch(self.caches[replica], arrival.blocks, self.capacity)

    def imbalance(self) -> float:
        """The busiest replica of a minute over the mean, 95th percentile over minutes."""
        ratios = sorted(
            max(c.values()) * REPLICAS / sum(c.values()) for c in self.by_minute.values() if sum(c.values()) > 40
        )
        return ratios[int(0.95 * (len(ratios) - 1))] if ratios else float("nan")


def took_s(arrival: Arrival, requests: int) -> float:
    """How long a request takes beside so many others, itself included."""
    return arrival.prompt_tokens / PREFILL_PER_S + arrival.output_tokens * (STEP_S + STEP_S_PER_REQUEST * requests)


def touch(cache: OrderedDict[int, None], blocks: tuple[int, ...], capacity: int) -> int:
    """Leading blocks found in the cache, which then holds all of them."""
    hits = 0
    for block in blocks:
        if block not in cache:
            break
        hits += 1
    for block in blocks:
        cache[block] = None
        cache.move_to_end(block)
    while len(cache) > capacity:
        cache.popitem(last=False)
    return hits


def ours(capacity: int, seed: int) -> Route:
    index, tie, board = PrefixIndex(), Random(seed), Board()
    for replica in range(REPLICAS):
        index.add_replica(replica, capacity_blocks=capacity)
        board.set_slots(replica, SLOTS)

    def route(arrival: Arrival, fleet: Fleet) -> int:
        for replica, in_flight in enumerate(fleet.busy):
            board.set_in_flight(replica, in_flight)
        cached = index.cached_blocks(arrival.blocks)
        pick = choose(board, chain_blocks=len(arrival.blocks), cached_blocks=cached, age=index.age, tie=tie.randrange)
        assert pick
        index.record(pick.order[0], arrival.blocks)
        return pick.order[0]

    return route


def round_robin() -> Route:
    turn = [0]

    def route(_: Arrival, __: Fleet) -> int:
        turn[0] += 1
        return turn[0] % REPLICAS

    return route


def least_request(seed: int) -> Route:
    chance = Random(seed)

    def route(_: Arrival, fleet: Fleet) -> int:
        least = min(fleet.busy)
        return chance.choice([replica for replica in range(REPLICAS) if fleet.busy[replica] == least])

    return route


def on_mooncake() -> None:
    """Shares hit."""
    arrivals = mooncake()
    print(f"Mooncake conversation trace, {len(arrivals)} requests, {REPLICAS} replicas, a request runs {RUN_S:.0f} s\n")
    print(
        "| blocks a replica | routing | share hit | of the bound, mean of 8 seeds | range | busiest/mean of a minute, p95 |"
    )
    print("|---|---|---|---|---|---|")
    for capacity in (1_000, 3_000):
        pooled: OrderedDict[int, None] = OrderedDict()
        hits = sum(touch(pooled, a.blocks, REPLICAS * capacity) for a in arrivals)
        bound = hits / sum(len(a.blocks) for a in arrivals)
        ways: dict[str, Callable[[int], Route]] = {
            "round robin": lambda _: round_robin(),
            "least request": least_request,
            "ours": lambda seed, capacity=capacity: ours(capacity, seed),  # type: ignore[misc]
        }
        for name, way in ways.items():
            shares, uneven = [], []
            for seed in range(SEEDS if name == "ours" else 1):
                fleet, route = Fleet(capacity), way(seed)
                for arrival in arrivals:
                    fleet.serve(arrival, route)
                shares.append(fleet.hits / fleet.blocks)
                uneven.append(fleet.imbalance())
            print(
                f"| {capacity} | {name} | {statistics.mean(shares):.3f} | {statistics.mean(shares) / bound:.3f} | "
                f"{min(shares) / bound:.3f} to {max(shares) / bound:.3f} | {max(uneven):.2f} |",
                flush=True,
            )
        print(f"| {capacity} | the bound | {bound:.3f} | 1 | | |")


def on_azure() -> None:
    """Times taken."""
    arrivals = azure()
    print(f"\nAzure 2023 conversations, {len(arrivals)} requests, {REPLICAS} replicas, no prefixes\n")
    print("| routing | mean time of a request, s | to least request | p99, s |")
    print("|---|---|---|---|")
    ways = {
        "round robin": lambda _: round_robin(),
        "least request": least_request,
        "ours": lambda seed: ours(1_000, seed),
    }
    means: dict[str, float] = {}
    for name in ("least request", "ours", "round robin"):
        taken: list[float] = []
        for seed in range(SEEDS):
            fleet, route = Fleet(1_000), ways[name](seed)
            for arrival in arrivals:
                fleet.serve(arrival, route, as_loaded=True)
            taken += fleet.took_s
        means[name] = statistics.mean(taken)
        p99 = sorted(taken)[int(0.99 * len(taken))]
        print(f"| {name} | {means[name]:.4f} | {means[name] / means['least request']:.4f} | {p99:.2f} |", flush=True)


if __name__ == "__main__":
    on_mooncake()
    on_azure()
