"""Which requests run where. A lease that is not renewed ends, so a lost end never leaves a replica full for ever."""

from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

# Periodic access-log entries renew a lease every second; three may be lost before it ends.
LEASE_S = 4.0
_FIELDS = 10


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One request on one replica. As text it travels through Envoy's metadata into the access log, and back.

    `account` is the key it came with and `reserved_tokens` what was reserved of its limit; `body` is the digest of what
    was sent.
    """

    id: str
    service: str
    endpoint: str
    arrival_s: float
    streams: bool
    prompt_tokens: int
    hold_s: float
    account: str = ""
    reserved_tokens: int = 0
    body: str = ""

    def to_text(self) -> str:
        """The text that `lease_from_text` reads: a header value, so plain ASCII."""
        return (
            f"{self.id};{self.service};{self.endpoint};{self.arrival_s:.6f};{self.streams:d};{self.prompt_tokens};"
            f"{self.hold_s:.6f};{self.account};{self.reserved_tokens};{self.body}"
        )


def lease_from_text(text: str) -> Lease | None:
    """The lease that `text` says, or None when it says none."""
    parts = text.split(";")
    if len(parts) != _FIELDS:
        return None
    try:
        return Lease(
            id=parts[0],
            service=parts[1],
            endpoint=parts[2],
            arrival_s=float(parts[3]),
            streams=parts[4] == "1",
            prompt_tokens=int(parts[5]),
            hold_s=float(parts[6]),
            account=parts[7],
            reserved_tokens=int(parts[8]),
            body=parts[9],
        )
    except ValueError:
        return None


class Leases:
    """All leases of one gateway, and how many each endpoint and each account has.

    `changed` is called with an endpoint whose count changed.
    """

    def __init__(self, changed: Callable[[str], None] = lambda _: None) -> None:
        # In the order in which they end: a renewed one goes to the back.
        self._leases: OrderedDict[str, tuple[Lease, float]] = OrderedDict()
        self.in_flight: Counter[str] = Counter()
        self.of_account: Counter[str] = Counter()
        self._changed = changed
        # Ends that were seen, oldest first, so that a late periodic entry brings no lease back to life.
        self._ended: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def grant(self, lease: Lease, *, now_s: float) -> None:
        """`lease` begins."""
        self._leases[lease.id] = (lease, now_s + LEASE_S)
        self._enter(lease)

    def renew(self, lease: Lease, *, endpoint: str | None, now_s: float) -> None:
        """`lease` still runs, on `endpoint` where a retry has moved it. One that is not known is taken up again."""
        if lease.id in self._ended:
            return
        known = self._leases.get(lease.id)
        current = known[0] if known else lease
        if endpoint and endpoint != current.endpoint:
            moved = msgspec.structs.replace(current, endpoint=endpoint)
            if known:
                self._leave(current)
                self._enter(moved)
            current = moved
        if not known:
            self._enter(current)
        self._leases[lease.id] = (current, now_s + LEASE_S)
        self._leases.move_to_end(lease.id)

    def end(self, lease_id: str, *, now_s: float) -> Lease | None:
        """The lease that ends here, or None when it had ended."""
        self._ended[lease_id] = now_s
        known = self._leases.pop(lease_id, None)
        if known is None:
            return None
        self._leave(known[0])
        return known[0]

    def known(self, lease_id: str) -> Lease | None:
        """The lease, where it runs."""
        found = self._leases.get(lease_id)
        return found[0] if found else None

    def has_ended(self, lease_id: str) -> bool:
        """Its end was seen, not long ago."""
        return lease_id in self._ended

    def expire(self, *, now_s: float) -> list[Lease]:
        """Leases that nobody renewed in time; they are ended."""
        late = []
        while self._leases:
            lease, until_s = next(iter(self._leases.values()))
            if until_s > now_s:
                break
            del self._leases[lease.id]
            self._leave(lease)
            late.append(lease)
        while self._ended:
            lease_id, at_s = next(iter(self._ended.items()))
            if at_s > now_s - 3 * LEASE_S:
                break
            del self._ended[lease_id]
        return late

    def _enter(self, lease: Lease) -> None:
        self._count(lease, 1)

    def _leave(self, lease: Lease) -> None:
        self._count(lease, -1)

    def _count(self, lease: Lease, change: int) -> None:
        counts: tuple[tuple[Counter[str], str], ...] = (
            (self.in_flight, lease.endpoint),
            (self.of_account, lease.account),
        )
        for counter, name in counts:
            if name:
                count = counter.get(name, 0) + change
                if count:
                    counter[name] = count
                else:
                    del counter[name]
        self._changed(lease.endpoint)
