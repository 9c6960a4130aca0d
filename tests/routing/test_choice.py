from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pilotage.routing import Board, PrefixIndex, choose
from pilotage.routing.choice import MOST_COMPARED


def board(*busy: int, slots: int = 8) -> Board:
    made = Board()
    for replica, in_flight in enumerate(busy):
        made.set_slots(replica, slots)
        made.set_in_flight(replica, in_flight)
    return made


def ageless(_: int, __: int) -> int:
    return 0


def first(_: int) -> int:
    return 0


def test_without_a_shared_prefix_the_least_busy_replica_is_chosen():
    pick = choose(board(3, 1, 2), chain_blocks=10, cached_blocks={}, age=ageless, tie=first)
    assert pick
    assert pick.order == (1, 2)


def test_a_cached_prefix_outweighs_some_load_but_not_any():
    little = choose(board(1, 0), chain_blocks=9, cached_blocks={0: 8}, age=ageless, tie=first)
    assert little
    assert little.order[0] == 0
    much = choose(board(7, 0), chain_blocks=9, cached_blocks={0: 5}, age=ageless, tie=first)
    assert much
    assert much.order[0] == 1


def test_a_full_replica_is_never_chosen_and_all_full_is_none():
    pick = choose(board(8, 7), chain_blocks=3, cached_blocks={0: 3}, age=ageless, tie=first)
    assert pick
    assert pick.order == (1,)
    assert choose(board(8, 8), chain_blocks=3, cached_blocks={}, age=ageless, tie=first) is None
    assert choose(board(), chain_blocks=3, cached_blocks={}, age=ageless, tie=first) is None


def test_of_equally_busy_replicas_the_one_that_would_forget_the_oldest_is_chosen():
    pick = choose(board(2, 2, 2), chain_blocks=3, cached_blocks={}, age=lambda r, _: [900, 100, 500][r], tie=first)
    assert pick
    assert pick.order[0] == 1


def test_ties_are_broken_by_the_generator_alone():
    chosen = {
        pick.order[0]
        for seed in range(50)
        if (pick := choose(board(2, 2, 2), chain_blocks=1, cached_blocks={}, age=ageless, tie=Random(seed).randrange))
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
            board(*busy, slots=100),
            chain_blocks=8,
            cached_blocks=index.cached_blocks(chain),
            age=ageless,
            tie=random.randrange,
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
    cached = {replica: blocks for replica, blocks in cached.items() if replica < len(busy)}
    pick = choose(
        board(*busy, slots=slots), chain_blocks=20, cached_blocks=cached, age=ageless, tie=Random(seed).randrange
    )
    free = [position for position, count in enumerate(busy) if count < slots]
    assert (pick is None) == (not free)
    if pick:
        assert set(pick.order) <= set(free)
        assert len(set(pick.order)) == len(pick.order)
        assert len(pick.order) == min(2, len(free))


@given(
    busy=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9),
    cached=st.dictionaries(st.integers(0, 8), st.integers(1, 12)),
    seed=st.integers(),
)
def test_the_choice_is_the_least_cost_of_all(busy: list[tuple[int, int]], cached: dict[int, int], seed: int):
    cached = {replica: blocks for replica, blocks in cached.items() if replica < len(busy)}
    counts, ages = [count for count, _ in busy], [age for _, age in busy]
    pick = choose(
        board(*counts, slots=4), chain_blocks=12, cached_blocks=cached, age=lambda replica, _: ages[replica],
        tie=Random(seed).randrange,
    )  # fmt: skip
    costs = {
        replica: ((12 - cached.get(replica, 0) + 1) * (counts[replica] + 1.0), counts[replica])
        for replica in range(len(busy))
        if counts[replica] < 4
    }
    if not costs:
        assert pick is None
        return
    assert pick
    first = pick.order[0]
    # With up to MOST_COMPARED equally free ones, ages decide among them all.
    if len(busy) <= MOST_COMPARED:
        assert (*costs[first], ages[first]) == min((*cost, ages[replica]) for replica, cost in costs.items())
    assert [costs[replica] for replica in pick.order] == sorted(costs.values())[:2]


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


def test_what_would_be_forgotten_is_told_by_when_it_was_last_given():
    index = PrefixIndex()
    index.add_replica(0, capacity_blocks=4)
    index.record(0, [1, 2])
    assert index.age(0, 2) == 0
    index.record(0, [3, 4])
    assert [index.age(0, blocks) for blocks in (0, 1, 2, 3, 4)] == [0, 1, 1, 2, 2]
    index.record(0, [1, 2])
    assert [index.age(0, blocks) for blocks in (1, 2, 3, 9)] == [2, 2, 3, 3]
