"""Which requests run where. A lease that is not renewed ends, so a lost end never leaves a replica full for ever."""

from collections import Counter
from dataclasses import dataclass, replace

# Periodic access-log entries renew a lease every second; three may be lost before it ends.
LEASE_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One request on one replica. As text it travels through Envoy's metadata into the access log, and back."""

    id: str
    service: str
    endpoint: str
    arrival_s: float
    streams: bool
    prompt_tokens: int
    hold_s: float

    def to_text(self) -> str:
        """The text that `lease_from_text` reads: a header value, so plain ASCII."""
        return (
            f"{self.id};{self.service};{self.endpoint};{self.arrival_s:.6f};{int(self.streams)};"
            f"{self.prompt_tokens};{self.hold_s:.6f}"
        )


def lease_from_text(text: str) -> Lease | None:
    """The lease that `text` says, or None when it says none."""
    parts = text.split(";")
    if len(parts) != 7:
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
        )
    except ValueError:
        return None


class Leases:
    """All leases of one gateway, and how many each endpoint has."""

    def __init__(self) -> None:
        self._leases: dict[str, tuple[Lease, float]] = {}
        self.in_flight: Counter[str] = Counter()
        # Prompt tokens of the requests on each endpoint, as estimated when they were picked.
        self.load_tokens: Counter[str] = Counter()
        # Ends that were seen, so that a late periodic entry brings no lease back to life.
        self._ended: dict[str, float] = {}

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
            moved = replace(current, endpoint=endpoint)
            if known:
                self._leave(current)
                self._enter(moved)
            current = moved
        if not known:
            self._enter(current)
        self._leases[lease.id] = (current, now_s + LEASE_S)

    def end(self, lease_id: str, *, now_s: float) -> Lease | None:
        """The lease that ends here, or None when it had ended."""
        self._ended[lease_id] = now_s
        known = self._leases.pop(lease_id, None)
        if known is None:
            return None
        self._leave(known[0])
        return known[0]

    def expire(self, *, now_s: float) -> list[Lease]:
        """Leases that nobody renewed in time; they are ended."""
        late = [lease for lease, until_s in self._leases.values() if until_s <= now_s]
        for lease in late:
            del self._leases[lease.id]
            self._leave(lease)
        self._ended = {known: at_s for known, at_s in self._ended.items() if at_s > now_s - 3 * LEASE_S}
        return late

    def _enter(self, lease: Lease) -> None:
        self.in_flight[lease.endpoint] += 1
        self.load_tokens[lease.endpoint] += lease.prompt_tokens

    def _leave(self, lease: Lease) -> None:
        self.in_flight[lease.endpoint] -= 1
        self.load_tokens[lease.endpoint] -= lease.prompt_tokens
        if not self.in_flight[lease.endpoint]:
            del self.in_flight[lease.endpoint], self.load_tokens[lease.endpoint]
