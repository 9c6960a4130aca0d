"""Requests that end engines. A body that was running on two replicas when each crashed is not sent to a third."""

from collections import OrderedDict

# A crash is known when a replica whose connections broke leaves the table without having been drained; that takes the
# control loop a moment.
CONFIRMED_WITHIN_S = 60.0
QUARANTINE_S = 600.0
CRASHES = 2
MOST_BODIES = 4_096


class Quarantine:
    """Which bodies ran where when connections broke. `now_s` is monotonic seconds; a body is its digest."""

    def __init__(self) -> None:
        # For each body, the endpoints on which its request broke off, and when.
        self._broken: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._crashed: dict[str, float] = {}

    def broke_off(self, body: str, endpoint: str, *, now_s: float) -> None:
        """A request with this body was on `endpoint` when the connection broke."""
        if not body:
            return
        self._broken.setdefault(body, {})[endpoint] = now_s
        self._broken.move_to_end(body)
        while len(self._broken) > MOST_BODIES:
            self._broken.popitem(last=False)

    def crashed(self, endpoint: str, *, now_s: float) -> None:
        """The replica at `endpoint` is gone, and nobody asked it to go."""
        self._crashed[endpoint] = now_s

    def holds(self, body: str, *, now_s: float) -> int:
        """The number of crashes that speak against this body; 0 while it may be sent."""
        if not self._broken:
            return 0
        endpoints = self._broken.get(body)
        if not endpoints:
            return 0
        crashes = sum(
            abs(self._crashed[endpoint] - at_s) <= CONFIRMED_WITHIN_S and now_s - at_s < QUARANTINE_S
            for endpoint, at_s in endpoints.items()
            if endpoint in self._crashed
        )
        return crashes if crashes >= CRASHES else 0

    def forget_old(self, *, now_s: float) -> None:
        """Let go of what counts no more."""
        while self._broken:
            body, endpoints = next(iter(self._broken.items()))
            if any(now_s - at_s < QUARANTINE_S for at_s in endpoints.values()):
                break
            del self._broken[body]
        self._crashed = {e: at_s for e, at_s in self._crashed.items() if now_s - at_s < QUARANTINE_S}
