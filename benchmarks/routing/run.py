"""Share of prefix blocks that are hit, and how evenly, on a public trace: our choice beside simple ones and the bound.

8 replicas of 1,000 blocks each (512 tokens a block), least recently used first. "The bound" is one cache that all
replicas would share. A request runs for a fixed time, so that load means something.
"""

import heapq
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.traces import Arrival, mooncake
from pilotage.routing import Board, PrefixIndex, choose

REPLICAS = 8
RUN_S = 10.0
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
        self.hits = self.blocks = 0
        self.by_minute: dict[int, Counter[int]] = {}

    def serve(self, arrival: Arrival, route: Route) -> None:
        while self.ends and self.ends[0][0] <= arrival.at_s:
            self.busy[heapq.heappop(self.ends)[1]] -= 1
        replica = route(arrival, self)
        self.busy[replica] += 1
        heapq.heappush(self.ends, (arrival.at_s + RUN_S, replica))
        self.by_minute.setdefault(int(arrival.at_s // 60), Counter())[replica] += 1
        self.blocks += len(arrival.blocks)
        self.hits += touch(self.caches[replica], arrival.blocks, self.capacity)

    def imbalance(self) -> float:
        """The busiest replica of a minute over the mean, 95th percentile over minutes."""
        ratios = sorted(
            max(c.values()) * REPLICAS / sum(c.values()) for c in self.by_minute.values() if sum(c.values()) > 40
        )
        return ratios[int(0.95 * (len(ratios) - 1))] if ratios else float("nan")


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


def ours(capacity: int) -> Route:
    index, tie, board = PrefixIndex(), Random(1), Board()
    for replica in range(REPLICAS):
        index.add_replica(replica, capacity_blocks=capacity)
        board.set_slots(replica, SLOTS)

    def route(arrival: Arrival, fleet: Fleet) -> int:
        for replica, in_flight in enumerate(fleet.busy):
            board.set_load(replica, in_flight=in_flight, oldest=index.oldest(replica))
        cached = index.cached_blocks(arrival.blocks)
        pick = choose(board, chain_blocks=len(arrival.blocks), cached_blocks=cached, tie=tie.randrange)
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


def least_request(_: Arrival, fleet: Fleet) -> int:
    return min(range(REPLICAS), key=lambda replica: fleet.busy[replica])


def main() -> None:
    arrivals = mooncake()
    print(f"Mooncake conversation trace, {len(arrivals)} requests, {REPLICAS} replicas, a request runs {RUN_S:.0f} s\n")
    print("| blocks a replica | routing | share hit | of the bound | busiest/mean of a minute, p95 |")
    print("|---|---|---|---|---|")
    for capacity in (1_000, 3_000):
        pooled: OrderedDict[int, None] = OrderedDict()
        hits = sum(touch(pooled, a.blocks, REPLICAS * capacity) for a in arrivals)
        bound = hits / sum(len(a.blocks) for a in arrivals)
        routes: dict[str, Route] = {
            "round robin": round_robin(),
            "least request": least_request,
            "ours": ours(capacity),
        }
        for name, route in routes.items():
            fleet = Fleet(capacity)
            for arrival in arrivals:
                fleet.serve(arrival, route)
            share = fleet.hits / fleet.blocks
            print(f"| {capacity} | {name} | {share:.3f} | {share / bound:.2f} | {fleet.imbalance():.2f} |")
        print(f"| {capacity} | the bound | {bound:.3f} | 1.00 | |")


if __name__ == "__main__":
    main()
