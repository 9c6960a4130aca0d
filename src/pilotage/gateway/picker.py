"""One decision a request: who asks, what for, and which replica answers, now or when a place is free.

Runs on one event loop and never waits by itself: a request that must wait becomes a `Waiter`, answered later.
"""

import json
import secrets
from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from pilotage.clock import Clock
from pilotage.gateway import answers
from pilotage.gateway.answers import Answer
from pilotage.gateway.leases import Lease, Leases
from pilotage.gateway.requests import BYTES_PER_TOKEN, Parsed, Unreadable, parse
from pilotage.gateway.table import ReplicaEntry, RouteRule, RoutingTable, ServiceEntry, hash_of_key
from pilotage.routing import Candidates, PrefixIndex, choose


@dataclass(frozen=True, slots=True)
class Request:
    """What Envoy tells of a client's request."""

    method: str
    path: str
    key: str | None
    body: bytes
    arrival_s: float
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request on: to these endpoints in order, with this key for the engine and these fields appended."""

    lease: Lease
    endpoints: tuple[str, ...]
    engine_key: str
    patch: str
    traceparent: str


Verdict = Answer | Forward


class Observer(Protocol):
    """Who is told of what the picker does."""

    def answered(self, service: str, answer: Answer) -> None: ...

    def admitted(self, lease: Lease, *, chain_blocks: int, cached_blocks: int, reason: str) -> None: ...

    def left(self, service: str) -> None: ...


@dataclass(slots=True, order=True)
class Waiter:
    """A held request. Ordered by arrival, so that a restarted picker serves in the old order."""

    arrival_s: float
    number: int
    request: Request = field(compare=False)
    parsed: Parsed = field(compare=False)
    service: str = field(compare=False)
    deadline_s: float = field(compare=False)
    reply: Callable[[Verdict], None] = field(compare=False)


@dataclass(slots=True)
class _Service:
    entry: ServiceEntry
    index: PrefixIndex
    numbers: dict[str, int]
    usable: tuple[ReplicaEntry, ...] = ()
    waiting: list[Waiter] = field(default_factory=list)


class Picker:
    """The picker's state and its answers. `now` moves on with each call; nothing here reads a clock but `clock`."""

    def __init__(self, *, clock: Clock, random: Random, observer: Observer) -> None:
        self._clock = clock
        self._tie = random.randrange
        self._observer = observer
        self._services: dict[str, _Service] = {}
        self._by_name: dict[str, str] = {}
        self._applied: frozenset[tuple[str, str]] = frozenset()
        self._numbers = 0
        self._held_bytes = 0
        self._held = 0
        self._run = secrets.token_hex(4)
        self._admits_after_s = 0.0
        self.table = RoutingTable(generation=0)
        self.leases = Leases()

    # What the world is -------------------------------------------------------------------------------------------

    def use(self, table: RoutingTable) -> None:
        """Go by `table` from now on. Requests that wait for a service that is gone are answered 404."""
        self.table = table
        current = self._services
        self._services = {entry.key: self._carried(current.pop(entry.key, None), entry) for entry in table.services}
        self._by_name = _names(table)
        for gone in current.values():
            for waiter in list(gone.waiting):
                self._finish(
                    gone, waiter, answers.unknown_model(waiter.parsed.model, self._open_to(waiter.request.key))
                )
        self._refresh()

    def envoy_applied(self, endpoints: frozenset[tuple[str, str]]) -> None:
        """Envoy knows these endpoints now, as pairs of cluster and address; only they can be chosen."""
        if endpoints != self._applied:
            self._applied = endpoints
            self._refresh()

    @property
    def waits_for_envoy(self) -> bool:
        """Some endpoint of the table is not yet known to Envoy."""
        return any(
            (service.cluster, replica.endpoint) not in self._applied
            for service in self.table.services
            for replica in service.replicas
        )

    def admit_after(self, at_s: float) -> None:
        """Hold everything until `at_s` on the monotonic clock: after a restart, until what runs is known again."""
        self._admits_after_s = at_s

    # Requests ----------------------------------------------------------------------------------------------------

    def decide(self, request: Request, reply: Callable[[Verdict], None]) -> Waiter | None:
        """Answer through `reply`, at once (returns None) or later (returns the waiter, for `leave`)."""
        outcome = self._understand(request)
        if isinstance(outcome, Answer):
            self._observer.answered("", outcome)
            reply(outcome)
            return None
        service, parsed = outcome
        if not service.waiting:
            forward = self._place(service, request, parsed)
            if forward:
                reply(forward)
                return None
        return self._hold(service, request, parsed, reply)

    def leave(self, waiter: Waiter) -> None:
        """The client of `waiter` is gone."""
        service = self._services.get(waiter.service)
        if service and self._remove(service, waiter):
            self._observer.left(waiter.service)

    def tick(self) -> None:
        """Answer those who waited too long; end leases that nobody renewed; place who can be placed."""
        now_s = self._clock.monotonic_s()
        self.leases.expire(now_s=now_s)
        for service in self._services.values():
            self._serve(service)
            for waiter in [waiter for waiter in service.waiting if waiter.deadline_s <= now_s]:
                self._finish(service, waiter, self._no_capacity(service))

    def ended(self, lease_id: str) -> None:
        """The request of this lease is over; its place is free."""
        lease = self.leases.end(lease_id, now_s=self._clock.monotonic_s())
        if lease and lease.service in self._services:
            self._serve(self._services[lease.service])

    def renewed(self, lease: Lease, endpoint: str | None) -> None:
        """The request of this lease still runs, on `endpoint`."""
        self.leases.renew(lease, endpoint=endpoint, now_s=self._clock.monotonic_s())

    # What others see -----------------------------------------------------------------------------------------------

    def waiting(self) -> Mapping[str, int]:
        """Held requests of each service."""
        return {key: len(service.waiting) for key, service in self._services.items()}

    def usable(self) -> Mapping[str, list[str]]:
        """Names of the replicas of each service that requests can be sent to."""
        return {key: [replica.name for replica in service.usable] for key, service in self._services.items()}

    # ---------------------------------------------------------------------------------------------------------------

    def _understand(self, request: Request) -> Answer | tuple[_Service, Parsed]:
        path = request.path.partition("?")[0]
        if request.method == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
            return self._models(request, path.removeprefix("/v1/models").lstrip("/"))
        rules = {rule.path: rule for service in self.table.services for rule in service.routes}
        rule = rules.get(path) or COMMON_ROUTES.get(path)
        if rule is None or request.method != "POST":
            return answers.unknown_route(request.method, path)
        parsed = parse(request.body, rule.prompt)
        if isinstance(parsed, Unreadable):
            return answers.bad_request(parsed.code, parsed.message)
        return self._authorized(request, parsed, path)

    def _authorized(self, request: Request, parsed: Parsed, path: str) -> Answer | tuple[_Service, Parsed]:
        service = self._services.get(self._by_name.get(parsed.model, ""))
        if service is None:
            return answers.unknown_model(parsed.model, self._open_to(request.key))
        if not _opens(service.entry, request.key):
            known = request.key and any(_opens(s, request.key) for s in self.table.services if s.key_hashes is not None)
            return answers.unknown_model(parsed.model, self._open_to(request.key)) if known else answers.no_key()
        if all(rule.path != path for rule in service.entry.routes):
            return answers.not_supported(parsed.model, path)
        return service, parsed

    def _models(self, request: Request, name: str) -> Answer:
        open_services = [service for service in self.table.services if _opens(service, request.key)]
        if not open_services and self.table.services and not request.key:
            return answers.no_key()
        names = {name: s.created_s for s in open_services for name in (*s.names, s.key) if self._by_name[name] == s.key}
        if not name:
            return answers.models(names.items())
        return answers.model(name, names[name]) if name in names else answers.unknown_model(name, names)

    def _open_to(self, key: str | None) -> Iterator[str]:
        return (
            name
            for name, service in self._by_name.items()
            if name != service and _opens(self._services[service].entry, key)
        )

    def _place(self, service: _Service, request: Request, parsed: Parsed) -> Forward | None:
        now_s = self._clock.monotonic_s()
        if not service.usable or now_s < self._admits_after_s:
            return None
        replicas = service.usable
        in_flight, load_tokens = self.leases.in_flight, self.leases.load_tokens
        cached = service.index.cached_blocks(parsed.chain)
        pick = choose(
            Candidates(
                replicas=[service.numbers[replica.name] for replica in replicas],
                in_flight=[in_flight[replica.endpoint] for replica in replicas],
                slots=[replica.slots for replica in replicas],
                load_tokens=[load_tokens[replica.endpoint] for replica in replicas],
            ),
            chain_blocks=len(parsed.chain),
            cached_blocks=cached,
            tie=self._tie,
        )
        if pick is None:
            return None
        first = replicas[pick.order[0]]
        endpoints = tuple(replicas[position].endpoint for position in pick.order)
        lease = Lease(
            id=self._next_id(),
            service=service.entry.key,
            endpoint=first.endpoint,
            arrival_s=request.arrival_s,
            streams=parsed.streams,
            prompt_tokens=parsed.prompt_bytes // BYTES_PER_TOKEN,
            hold_s=max(0.0, self._clock.wall_s() - request.arrival_s),
        )
        self.leases.grant(lease, now_s=now_s)
        service.index.record(service.numbers[first.name], parsed.chain)
        self._observer.admitted(
            lease, chain_blocks=len(parsed.chain), cached_blocks=pick.cached_blocks, reason=pick.reason
        )
        return Forward(
            lease,
            # With one replica the second try goes to it again: a connection that was just closing is no crash.
            endpoints if len(endpoints) > 1 else endpoints * 2,
            service.entry.engine_key,
            _patch(service.entry, parsed),
            request.traceparent or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        )

    def _hold(
        self, service: _Service, request: Request, parsed: Parsed, reply: Callable[[Verdict], None]
    ) -> Waiter | None:
        limits = self.table.limits
        if self._held >= limits.max_held_requests or self._held_bytes + len(request.body) > limits.max_held_bytes:
            answer = answers.too_many_waiting(retry_after_s=5)
            self._observer.answered(service.entry.key, answer)
            reply(answer)
            return None
        self._numbers += 1
        waited_s = max(0.0, self._clock.wall_s() - request.arrival_s)
        waiter = Waiter(
            arrival_s=request.arrival_s,
            number=self._numbers,
            request=request,
            parsed=parsed,
            service=service.entry.key,
            deadline_s=self._clock.monotonic_s() + max(0.0, service.entry.max_wait_s - waited_s),
            reply=reply,
        )
        insort(service.waiting, waiter)
        self._held += 1
        self._held_bytes += len(request.body)
        return waiter

    def _serve(self, service: _Service) -> None:
        while service.waiting:
            waiter = service.waiting[0]
            forward = self._place(service, waiter.request, waiter.parsed)
            if forward is None:
                return
            self._remove(service, waiter)
            waiter.reply(forward)

    def _finish(self, service: _Service, waiter: Waiter, answer: Answer) -> None:
        if self._remove(service, waiter):
            self._observer.answered(service.entry.key, answer)
            waiter.reply(answer)

    def _remove(self, service: _Service, waiter: Waiter) -> bool:
        for position, other in enumerate(service.waiting):
            if other is waiter:
                del service.waiting[position]
                self._held -= 1
                self._held_bytes -= len(waiter.request.body)
                return True
        return False

    def _no_capacity(self, service: _Service) -> Answer:
        waited = f"after waiting {service.entry.max_wait_s:.0f} s"
        if service.usable:
            return answers.no_capacity("no_capacity", f"Every replica was busy, {waited}.", retry_after_s=5)
        if service.entry.wanted_replicas == 0:
            return answers.no_capacity("scaled_to_zero", "This model has no replicas now.", retry_after_s=60)
        return answers.no_capacity("no_ready_replicas", f"No replica was ready, {waited}.", retry_after_s=30)

    def _carried(self, known: _Service | None, entry: ServiceEntry) -> _Service:
        service = known or _Service(entry, PrefixIndex(), {})
        service.entry = entry
        present = {replica.name for replica in entry.replicas}
        for name in [name for name in service.numbers if name not in present]:
            service.index.remove_replica(service.numbers.pop(name))
        for replica in entry.replicas:
            if replica.name not in service.numbers:
                taken = set(service.numbers.values())
                number = next(n for n in range(len(taken) + 1) if n not in taken)
                service.numbers[replica.name] = number
                service.index.add_replica(number, capacity_blocks=replica.cache_blocks)
        return service

    def _refresh(self) -> None:
        for service in self._services.values():
            cluster = service.entry.cluster
            service.usable = tuple(
                replica
                for replica in service.entry.replicas
                if not replica.draining and (cluster, replica.endpoint) in self._applied
            )
            self._serve(service)

    def _next_id(self) -> str:
        self._numbers += 1
        return f"{self._run}-{self._numbers:x}"


COMMON_ROUTES = {
    rule.path: rule
    for rule in (
        RouteRule(path="/v1/chat/completions", prompt="messages"),
        RouteRule(path="/v1/completions", prompt="prompt"),
        RouteRule(path="/v1/embeddings", prompt="input"),
    )
}


def _names(table: RoutingTable) -> dict[str, str]:
    """Each name's service. A name that two services want stays with the older one."""
    names: dict[str, str] = {}
    for service in sorted(table.services, key=lambda entry: (entry.created_s, entry.key)):
        for name in service.names:
            names.setdefault(name, service.key)
    return names | {service.key: service.key for service in table.services}


def _opens(service: ServiceEntry, key: str | None) -> bool:
    if service.key_hashes is None:
        return True
    return key is not None and hash_of_key(key) in service.key_hashes


def _patch(service: ServiceEntry, parsed: Parsed) -> str:
    """Fields to append to the body, as the inside of a JSON object in plain ASCII."""
    fields: dict[str, object] = dict(service.stream_patch) if parsed.streams else {}
    if service.engine_model is not None and service.engine_model != parsed.model:
        fields["model"] = service.engine_model
    return json.dumps(fields, separators=(",", ":"))[1:-1]
