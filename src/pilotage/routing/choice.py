"""The replica that serves a request soonest, for the least work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# The standing of a replica that nothing more may be sent to.
TAKEN = 1 << 62
# Of many replicas that are equally free so many are compared, from a place that chance chooses.
MOST_COMPARED = 8


class Board:
    """How busy each replica is. Replicas are numbers from 0, as in the prefix index."""

    def __init__(self) -> None:
        # By replica, for reading: its requests, or TAKEN. A plain list, so that the least of a thousand is found at the
        # speed of C.
        self.standings: list[int] = []
        # What an engine's step costs however few requests are in it, in requests. An engine that takes many at once is
        # slowed little by one more. An eighth of the slots was the best of those tried on the Mooncake trace
        # (benchmarks/routing): 1, 2, 4 and 8 of 64 gave 0.945, 0.942, 0.965 and 0.987 of the bound.
        self.bases: list[float] = []
        self._in_flight: list[int] = []
        self._slots: list[int] = []

    def set_slots(self, replica: int, slots: int) -> None:
        """`replica` takes so many requests at once; 0 where it is to get none, as while it drains."""
        while len(self._slots) <= replica:
            self._slots.append(0)
            self._in_flight.append(0)
            self.standings.append(TAKEN)
            self.bases.append(1.0)
        self._slots[replica] = slots
        self.bases[replica] = max(1.0, slots / 8)
        self.set_in_flight(replica, self._in_flight[replica])

    def set_in_flight(self, replica: int, count: int) -> None:
        """`replica` has so many requests."""
        self._in_flight[replica] = count
        self.standings[replica] = count if count < self._slots[replica] else TAKEN

    def freest(self, tie: Callable[[int], int]) -> list[int]:
        """The replicas with the fewest requests, and one more where that is only one; none where all are taken."""
        standings = self.standings
        least = min(standings, default=TAKEN)
        if least == TAKEN:
            return []
        if standings.count(least) == 1:
            first = standings.index(least)
            standings[first] = TAKEN
            second = min(standings)
            found = [first] if second == TAKEN else [first, standings.index(second)]
            standings[first] = least
            return found
        equals = [replica for replica, standing in enumerate(standings) if standing == least]
        if len(equals) > MOST_COMPARED:
            start = tie(len(equals))
            equals = (equals[start:] + equals[:start])[:MOST_COMPARED]
        return equals


@dataclass(frozen=True, slots=True)
class Pick:
    """The replicas to try, best first, by number; and the blocks that the first one holds already."""

    order: tuple[int, ...]
    cached_blocks: int


def choose(
    board: Board,
    *,
    chain_blocks: int,
    cached_blocks: Mapping[int, int],
    age: Callable[[int, int], int],
    tie: Callable[[int], int],
) -> Pick | None:
    """The best replica with a free slot and the next best, or None when every slot is taken.

    The cost of a replica is the blocks it would have to prefill times how slow it is, which is the requests it has and
    a base (see `Board.bases`): a product needs no weights between unlike things, is least request where nothing is
    cached, and keeps a first block that all requests share (a system prompt) from drawing them all to one replica. Of
    equal costs the one with fewer requests is the better, then the one that would forget what was longest unused, as
    one cache of all replicas would: `age(replica, blocks)` is when that was last used. Of equal ones still, `tie(n)`
    chooses, which returns a number below n.

    Only the freest and those that hold something can be the best, so no other is looked at.
    """
    free = board.freest(tie)
    if not free:
        return None
    standings, bases = board.standings, board.bases
    best: list[int] = []
    best_cost: tuple[float, int] = (float("inf"), 0)
    next_best, next_cost = -1, best_cost
    for replica, cached in {**dict.fromkeys(free, 0), **cached_blocks}.items():
        standing = standings[replica]
        if standing == TAKEN:
            continue
        cost = ((chain_blocks - cached + 1) * (standing + bases[replica]), standing)
        if cost < best_cost:
            if best:
                next_best, next_cost = best[0], best_cost
            best, best_cost = [replica], cost
        elif cost == best_cost:
            best.append(replica)
        elif cost < next_cost:
            next_best, next_cost = replica, cost
    first = best[0]
    if len(best) > 1:
        new_blocks = chain_blocks - cached_blocks.get(first, 0)
        ages = [age(replica, new_blocks) for replica in best]
        oldest = min(ages)
        equals = [replica for replica, at in zip(best, ages, strict=True) if at == oldest]
        first = equals[tie(len(equals))]
        next_best = next(replica for replica in best if replica != first)
    order = (first,) if next_best < 0 else (first, next_best)
    return Pick(order, cached_blocks.get(first, 0))
