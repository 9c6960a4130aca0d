"""The replica that serves a request soonest, for the least work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A replica's standing is one integer, so that the least of a thousand is found at the speed of C: its requests in the
# high bits, and in the low ones when it was last given what it would have to forget first (see PrefixIndex.oldest).
AGE_BITS = 40
TAKEN = 1 << 62


class Board:
    """How busy each replica is. Replicas are numbers from 0, as in the prefix index."""

    def __init__(self) -> None:
        # By replica, for reading: less is freer, and TAKEN is no place at all.
        self.standings: list[int] = []
        # What an engine's step costs however few requests are in it, in requests. An engine that takes many at once is
        # slowed little by one more. An eighth of the slots was the best of those tried on the Mooncake trace
        # (benchmarks/routing): 1, 2, 4 and 8 of 64 gave 0.945, 0.942, 0.965 and 0.987 of the bound.
        self.bases: list[float] = []
        self._load: list[int] = []
        self._slots: list[int] = []

    def set_slots(self, replica: int, slots: int) -> None:
        """`replica` takes so many requests at once; 0 where it is to get none, as while it drains."""
        while len(self._slots) <= replica:
            self._slots.append(0)
            self._load.append(0)
            self.standings.append(TAKEN)
            self.bases.append(1.0)
        self._slots[replica] = slots
        self.bases[replica] = max(1.0, slots / 8)
        self._restate(replica)

    def set_load(self, replica: int, *, in_flight: int, oldest: int = 0) -> None:
        """`replica` has so many requests; `oldest` is from the prefix index."""
        self._load[replica] = (in_flight << AGE_BITS) + oldest
        self._restate(replica)

    def in_flight(self, replica: int) -> int:
        """Requests that `replica` has."""
        return self._load[replica] >> AGE_BITS

    def freest(self, tie: Callable[[int], int]) -> tuple[int, int]:
        """The two freest replicas, -1 where there is none. Of equals, `tie(n)` says where to begin to look."""
        standing = self.standings
        first = self._least(tie)
        if first < 0:
            return -1, -1
        kept, standing[first] = standing[first], TAKEN
        second = self._least(tie)
        standing[first] = kept
        return first, second

    def _least(self, tie: Callable[[int], int]) -> int:
        standing = self.standings
        least = min(standing, default=TAKEN)
        if least == TAKEN:
            return -1
        try:
            return standing.index(least, tie(len(standing)))
        except ValueError:
            return standing.index(least)

    def _restate(self, replica: int) -> None:
        load = self._load[replica]
        self.standings[replica] = load if load >> AGE_BITS < self._slots[replica] else TAKEN


@dataclass(frozen=True, slots=True)
class Pick:
    """The replicas to try, best first, by number; and the blocks that the first one holds already."""

    order: tuple[int, ...]
    cached_blocks: int
    in_flight: int


def choose(
    board: Board, *, chain_blocks: int, cached_blocks: Mapping[int, int], tie: Callable[[int], int]
) -> Pick | None:
    """The best replica with a free slot and the next best, or None when every slot is taken.

    The cost of a replica is the blocks it would have to prefill times how slow it is, which is the requests it has and
    a base (see `Board.bases`): a product needs no weights between unlike things, is least request where nothing is
    cached, and keeps a first block that all requests share (a system prompt) from drawing them all to one replica. Of
    equal costs the one with fewer requests is the better, then the one that would forget what was longest unused, as
    one cache of all replicas would; of equal ones still, `tie(n)` chooses, which returns a number below n.

    Only the two freest and those that hold something can be the best, so no other is looked at.
    """
    first, second = board.freest(tie)
    if first < 0:
        return None
    best, next_best = first, second
    if cached_blocks:
        best_cost: tuple[float, int] = (float("inf"), 0)
        next_cost = best_cost
        best = next_best = -1
        candidates = {first: 0, **cached_blocks} if second < 0 else {first: 0, second: 0, **cached_blocks}
        standings, bases = board.standings, board.bases
        for replica, cached in candidates.items():
            standing = standings[replica]
            if standing == TAKEN:
                continue
            cost = ((chain_blocks - cached + 1) * ((standing >> AGE_BITS) + bases[replica]), standing)
            if cost < best_cost:
                next_best, next_cost = best, best_cost
                best, best_cost = replica, cost
            elif cost < next_cost:
                next_best, next_cost = replica, cost
    order = (best,) if next_best < 0 else (best, next_best)
    return Pick(order, cached_blocks.get(best, 0), board.in_flight(best))
