from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pilotage.routing import Candidates, PrefixIndex, choose


def candidates(*busy: int, slots: int = 8, load_tokens: Sequence[int] | None = None) -> Candidates:
    tokens = load_tokens or [0] * len(busy)
    return Candidates(replicas=range(len(busy)), in_flight=busy, slots=[slots] * len(busy), load_tokens=tokens)


def first(_: int) -> int:
    return 0


def test_without_a_shared_prefix_the_least_busy_replica_is_chosen():
    pick = choose(candidates(3, 1, 2), chain_blocks=10, cached_blocks={}, tie=first)
    assert pick
    assert pick.order == (1, 2)


def test_a_cached_prefix_outweighs_some_load_but_not_any():
    little = choose(candidates(1, 0), chain_blocks=9, cached_blocks={0: 8}, tie=first)
    assert little
    assert little.order[0] == 0
    much = choose(candidates(7, 0), chain_blocks=9, cached_blocks={0: 5}, tie=first)
    assert much
    assert much.order[0] == 1


def test_a_full_replica_is_never_chosen_and_all_full_is_none():
    pick = choose(candidates(8, 7), chain_blocks=3, cached_blocks={0: 3}, tie=first)
    assert pick
    assert pick.order == (1,)
    assert choose(candidates(8, 8), chain_blocks=3, cached_blocks={}, tie=first) is None
    assert choose(candidates(), chain_blocks=3, cached_blocks={}, tie=first) is None


def test_of_equally_busy_replicas_the_one_with_shorter_prompts_is_chosen():
    pick = choose(candidates(2, 2, 2, load_tokens=[900, 100, 500]), chain_blocks=3, cached_blocks={}, tie=first)
    assert pick
    assert pick.order[0] == 1


def test_ties_are_broken_by_the_generator_alone():
    chosen = {
        pick.order[0]
        for seed in range(50)
        if (pick := choose(candidates(2, 2, 2), chain_blocks=1, cached_blocks={}, tie=Random(seed).randrange))
    }
    assert chosen == {0, 1, 2}


def test_a_first_block_that_all_requests_share_draws_them_not_to_one_replica():
    index = PrefixIndex()
    for replica in range(4):
        index.add_replica(replica, capacity_blocks=1000)
    busy = [0] * 4
    random = Random(7)
    for number in range(40):
        chain = [1, *(1000 * number + depth for depth in range(2, 9))]
        pick = choose(
            candidates(*busy, slots=100), chain_blocks=8, cached_blocks=index.cached_blocks(chain), tie=random.randrange
        )
        assert pick
        busy[pick.order[0]] += 1
        index.record(pick.order[0], chain)
    assert max(busy) - min(busy) <= 2


@given(
    busy=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    slots=st.integers(1, 5),
    cached=st.dictionaries(st.integers(0, 7), st.integers(0, 20)),
    seed=st.integers(),
)
def test_a_pick_has_a_free_slot_and_names_no_replica_twice(
    busy: list[int], slots: int, cached: dict[int, int], seed: int
):
    pick = choose(candidates(*busy, slots=slots), chain_blocks=20, cached_blocks=cached, tie=Random(seed).randrange)
    free = [position for position, count in enumerate(busy) if count < slots]
    assert (pick is None) == (not free)
    if pick:
        assert set(pick.order) <= set(free)
        assert len(set(pick.order)) == len(pick.order)
        assert len(pick.order) == min(2, len(free))


class SlowIndex:
    """What the index promises, said plainly."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: dict[int, list[int]] = {}

    def record(self, replica: int, chain: list[int]) -> None:
        held = self.blocks[replica]
        for block in chain:
            if block in held:
                held.remove(block)
            held.append(block)
        del held[: max(0, len(held) - self.capacity)]

    def cached(self, chain: list[int]) -> dict[int, int]:
        found = {}
        for replica, held in self.blocks.items():
            depth = 0
            while depth < len(chain) and chain[depth] in held:
                depth += 1
            if depth:
                found[replica] = depth
        return found


chains = st.lists(st.integers(1, 12), min_size=1, max_size=5, unique=True)


@given(st.lists(st.tuples(st.sampled_from(["record", "remove", "add"]), st.integers(0, 3), chains), max_size=40))
def test_the_index_holds_what_the_plain_one_holds(steps: list[tuple[str, int, list[int]]]):
    index, plain = PrefixIndex(), SlowIndex(capacity=6)
    for what, replica, chain in steps:
        if what == "add" and replica not in plain.blocks:
            index.add_replica(replica, capacity_blocks=6)
            plain.blocks[replica] = []
        elif what == "remove":
            index.remove_replica(replica)
            plain.blocks.pop(replica, None)
        elif replica in plain.blocks:
            index.record(replica, chain)
            plain.record(replica, chain)
        assert index.cached_blocks(chain) == plain.cached(chain)
