"""The replica that serves a request soonest, for the least work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The replicas of one service at one moment, as parallel sequences: entry i of each is one replica.

    `replicas` are their numbers in the prefix index, `in_flight` the requests each has, `slots` those it takes at most,
    `load_tokens` the prompt tokens of those it has.
    """

    replicas: Sequence[int]
    in_flight: Sequence[int]
    slots: Sequence[int]
    load_tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Pick:
    """The replicas to try, best first, as positions in the candidates; and why the first was chosen."""

    order: tuple[int, ...]
    cached_blocks: int
    reason: str


def choose(
    candidates: Candidates,
    *,
    chain_blocks: int,
    cached_blocks: Mapping[int, int],
    tie: Callable[[int], int],
) -> Pick | None:
    """The best replica with a free slot and the next best, or None when every slot is taken.

    The cost of a replica is the blocks it would have to prefill times the requests it would then have: a product needs
    no weights between unlike things, is least request where nothing is cached, and keeps a first block that all
    requests share (a system prompt) from drawing them all to one replica. Of equal costs the one with fewer prompt
    tokens running is the better; of equal ones still, `tie(n)` chooses, which returns a number below n.
    """
    best: list[int] = []
    best_cost: tuple[float, int] = (float("inf"), 0)
    second_cost = best_cost
    second = -1
    for position, (replica, busy, slots, load_tokens) in enumerate(
        zip(candidates.replicas, candidates.in_flight, candidates.slots, candidates.load_tokens, strict=True)
    ):
        if busy >= slots:
            continue
        cost: tuple[float, int] = ((chain_blocks - cached_blocks.get(replica, 0) + 1) * (busy + 1), load_tokens)
        if cost < best_cost:
            if best:
                second, second_cost = best[0], best_cost
            best, best_cost = [position], cost
        elif cost == best_cost:
            best.append(position)
        elif cost < second_cost:
            second, second_cost = position, cost
    if not best:
        return None
    first = best[tie(len(best))] if len(best) > 1 else best[0]
    if len(best) > 1:
        second = next(position for position in best if position != first)
    cached = cached_blocks.get(candidates.replicas[first], 0)
    reason = f"{cached} of {chain_blocks} prefix blocks cached, {candidates.in_flight[first]} requests running"
    return Pick((first,) if second < 0 else (first, second), cached, reason)
