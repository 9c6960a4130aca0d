"""Which replica holds which prefix, as far as the requests sent to it tell."""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """The prefix blocks that each replica was given last, up to its cache's capacity.

    A block's hash stands for the block and everything before it, so a chain is held as far as its hashes are found in
    order. Replicas are numbers from 0; a set of replicas is the bits of one integer, which keeps a lookup at one
    dictionary read a block however many replicas there are.
    """

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        # For each replica its blocks, least recently given first, with the number of the record that gave them.
        self._blocks: dict[int, OrderedDict[int, int]] = {}
        # And how many blocks each record gave that are still there and were given by none since.
        self._given: dict[int, OrderedDict[int, int]] = {}
        self._capacity_blocks: dict[int, int] = {}
        self._records = 0

    def add_replica(self, replica: int, *, capacity_blocks: int) -> None:
        """Begin to know `replica`, which holds at most `capacity_blocks`."""
        self._blocks.setdefault(replica, OrderedDict())
        self._given.setdefault(replica, OrderedDict())
        self._capacity_blocks[replica] = capacity_blocks

    def remove_replica(self, replica: int) -> None:
        """Forget `replica` and all that it held."""
        for block in self._blocks.pop(replica, ()):
            self._drop(block, replica)
        self._given.pop(replica, None)
        self._capacity_blocks.pop(replica, None)

    def cached_blocks(self, chain: Sequence[int]) -> dict[int, int]:
        """For each replica that holds the beginning of `chain`, how many of its blocks."""
        depths: dict[int, int] = {}
        holding = -1
        for depth, block in enumerate(chain):
            still = self._holders.get(block, 0) & holding
            if depth:
                _note(depths, holding & ~still, depth)
            holding = still
            if not holding:
                return depths
        if chain:
            _note(depths, holding, len(chain))
        return depths

    def record(self, replica: int, chain: Sequence[int]) -> None:
        """`replica` was given a request with this chain, so it holds these blocks now."""
        blocks = self._blocks.get(replica)
        if blocks is None:
            return
        bit = 1 << replica
        given = self._given[replica]
        self._records += 1
        for block in chain:
            before = blocks.get(block)
            if before is None:
                self._holders[block] = self._holders.get(block, 0) | bit
            else:
                blocks.move_to_end(block)
                _take(given, before)
            blocks[block] = self._records
            given[self._records] = given.get(self._records, 0) + 1
        while len(blocks) > self._capacity_blocks[replica]:
            oldest, before = blocks.popitem(last=False)
            _take(given, before)
            self._drop(oldest, replica)

    def age(self, replica: int, new_blocks: int) -> int:
        """When the last of those blocks was given that `replica` would forget for so many new ones, as the number of a
        record: less is longer ago, and 0 is that there is room."""
        missing = len(self._blocks[replica]) + new_blocks - self._capacity_blocks[replica]
        if missing <= 0:
            return 0
        for record, count in self._given[replica].items():
            missing -= count
            if missing <= 0:
                return record
        return self._records

    def _drop(self, block: int, replica: int) -> None:
        left = self._holders[block] & ~(1 << replica)
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]


def _take(given: OrderedDict[int, int], record: int) -> None:
    left = given[record] - 1
    if left:
        given[record] = left
    else:
        del given[record]


def _note(depths: dict[int, int], replicas: int, depth: int) -> None:
    while replicas:
        lowest = replicas & -replicas
        depths[lowest.bit_length() - 1] = depth
        replicas ^= lowest
