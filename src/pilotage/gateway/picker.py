"""One decision a request: who asks, what for, and which replica answers, now or when a place is free.

Runs on one event loop and never waits by itself: a request that must wait becomes a `Waiter`, answered later.
"""

import json
import math
import secrets
from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import msgspec

from pilotage.clock import Clock
from pilotage.gateway import answers
from pilotage.gateway.accounts import Account, Ledger, Refusal, account_id
from pilotage.gateway.answers import Answer
from pilotage.gateway.leases import Lease, Leases
from pilotage.gateway.quarantine import Quarantine
from pilotage.gateway.requests import Parsed, PromptField, Unreadable, parse
from pilotage.gateway.table import ReplicaEntry, RouteRule, RoutingTable, ServiceEntry, hash_of_key
from pilotage.routing import Board, PrefixIndex, choose


class Request(msgspec.Struct, frozen=True):
    """What Envoy tells of a client's request. A large body is read elsewhere: then `parsed` is there, and its size."""

    method: str
    path: str
    key: str | None
    body: bytes
    arrival_s: float
    traceparent: str | None
    parsed: Parsed | Unreadable | None = None
    large_bytes: int = 0


class Forward(msgspec.Struct, frozen=True):
    """Send the request on: to these endpoints in order, with this key for the engine and these fields appended.

    `headers` are for the client, with the answer.
    """

    lease: Lease
    endpoints: tuple[str, ...]
    engine_key: str
    patch: str
    traceparent: str
    headers: tuple[tuple[str, str], ...] = ()


Verdict = Answer | Forward


class Observer(Protocol):
    """Who is told of what the picker does."""

    def answered(self, service: str, answer: Answer) -> None: ...

    def admitted(self, lease: Lease, *, chain_blocks: int, cached_blocks: int) -> None: ...

    def left(self, service: str) -> None: ...


class _Asked(msgspec.Struct, frozen=True):
    """What is kept of a request while it waits: not its body, which Envoy has."""

    parsed: Parsed
    key: str | None
    arrival_s: float
    traceparent: str | None
    body_bytes: int
    account: Account | None
    tokens: int


@dataclass(slots=True, order=True)
class Waiter:
    """A held request. Ordered by arrival, so that a restarted picker serves in the old order."""

    arrival_s: float
    number: int
    asked: _Asked = field(compare=False)
    service: str = field(compare=False)
    deadline_s: float = field(compare=False)
    reply: Callable[[Verdict], None] = field(compare=False)


@dataclass(slots=True)
class _Service:
    entry: ServiceEntry
    index: PrefixIndex = field(default_factory=PrefixIndex)
    board: Board = field(default_factory=Board)
    numbers: dict[str, int] = field(default_factory=dict)
    replicas: dict[int, ReplicaEntry] = field(default_factory=dict)
    usable: list[str] = field(default_factory=list)
    waiting: list[Waiter] = field(default_factory=list)
    # By the key's hash; None when no key is needed.
    accounts: dict[str, Account] | None = None
    paths: frozenset[str] = frozenset()
    # What is appended to bodies, by whether they stream and what model they name.
    patches: dict[tuple[bool, str], str] = field(default_factory=dict)


class Picker:
    """The picker's state and its answers. `now` moves on with each call; nothing here reads a clock but `clock`."""

    def __init__(self, *, clock: Clock, random: Random, observer: Observer, ledger: Ledger | None = None) -> None:
        self._clock = clock
        draw = random.random
        self._tie: Callable[[int], int] = lambda count: int(draw() * count)
        self._trace = random.getrandbits
        self._observer = observer
        self._ledger = ledger or Ledger(None)
        self._services: dict[str, _Service] = {}
        self._by_name: dict[str, str] = {}
        self._by_endpoint: dict[str, tuple[_Service, int]] = {}
        self._by_account: dict[str, Account] = {}
        self._rules: dict[str, RouteRule] = COMMON_ROUTES
        self._applied: frozenset[tuple[str, str]] = frozenset()
        self._numbers = 0
        self._held_bytes = 0
        self._held = 0
        self._run = secrets.token_hex(4)
        self._admits_after_s = 0.0
        self.table = RoutingTable(generation=0)
        self.leases = Leases(self._load_changed)
        self.quarantine = Quarantine()

    # What the world is -------------------------------------------------------------------------------------------

    def use(self, table: RoutingTable) -> None:
        """Go by `table` from now on. Requests that wait for a service that is gone are answered 404."""
        self._note_crashes(table)
        self.table = table
        current = self._services
        self._services = {entry.key: self._carried(current.pop(entry.key, None), entry) for entry in table.services}
        self._by_name = _names(table)
        self._rules = {rule.path: rule for service in table.services for rule in service.routes} | COMMON_ROUTES
        self._by_endpoint = {
            replica.endpoint: (service, number)
            for service in self._services.values()
            for number, replica in service.replicas.items()
        }
        self._use_accounts()
        for gone in current.values():
            for waiter in list(gone.waiting):
                self._finish(
                    gone, waiter, answers.unknown_model(waiter.asked.parsed.model, self._open_to(waiter.asked.key))
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

    def prompt_field(self, method: str, path: str) -> PromptField | None:
        """Where a request to this path says its prompt; None for a path that nobody may ask."""
        rule = self._rules.get(path.partition("?")[0])
        return rule.prompt if rule and method == "POST" else None

    def decide(self, request: Request, reply: Callable[[Verdict], None]) -> Waiter | None:
        """Answer through `reply`, at once (returns None) or later (returns the waiter, for `leave`)."""
        outcome = self._understand(request)
        if isinstance(outcome, Answer):
            self._observer.answered("", outcome)
            reply(outcome)
            return None
        service, asked = outcome
        if not service.waiting:
            forward = self._place(service, asked)
            if forward:
                reply(forward)
                return None
        return self._hold(service, asked, reply)

    def leave(self, waiter: Waiter) -> None:
        """The client of `waiter` is gone."""
        service = self._services.get(waiter.service)
        if service and self._remove(service, waiter):
            self._observer.left(waiter.service)

    def tick(self) -> None:
        """Answer those who waited too long; end leases that nobody renewed; place who can be placed."""
        now_s = self._clock.monotonic_s()
        self.leases.expire(now_s=now_s)
        self.quarantine.forget_old(now_s=now_s)
        for service in self._services.values():
            self._serve(service)
            for waiter in [waiter for waiter in service.waiting if waiter.deadline_s <= now_s]:
                self._finish(service, waiter, self._no_capacity(service))

    def ended(self, lease: Lease, *, used_tokens: int, broke_on: tuple[str, ...] = ()) -> None:
        """The request of this lease is over and used so many tokens; its place is free.

        `broke_on` are the endpoints that closed the connection on it.
        """
        now_s = self._clock.monotonic_s()
        if self.leases.has_ended(lease.id):
            return
        self.leases.end(lease.id, now_s=now_s)
        account = self._by_account.get(lease.account)
        if account:
            account.settle(reserved=lease.reserved_tokens, used=used_tokens, now_s=now_s)
        for endpoint in broke_on:
            place = self._by_endpoint.get(endpoint)
            if place is None or not place[0].replicas[place[1]].draining:
                self.quarantine.broke_off(lease.body, endpoint, now_s=now_s)
        service = self._services.get(lease.service)
        if service and service.waiting:
            self._serve(service)

    def renewed(self, lease: Lease, endpoint: str | None) -> None:
        """The request of this lease still runs, on `endpoint`."""
        self.leases.renew(lease, endpoint=endpoint, now_s=self._clock.monotonic_s())

    # What others see -----------------------------------------------------------------------------------------------

    def waiting(self) -> Mapping[str, int]:
        """Held requests of each service."""
        return {key: len(service.waiting) for key, service in self._services.items()}

    def usable(self) -> Mapping[str, list[str]]:
        """Names of the replicas of each service that requests can be sent to."""
        return {key: list(service.usable) for key, service in self._services.items()}

    # ---------------------------------------------------------------------------------------------------------------

    def _understand(self, request: Request) -> Answer | tuple[_Service, _Asked]:
        path = request.path.partition("?")[0]
        if request.method == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
            return self._models(request.key, path.removeprefix("/v1/models").lstrip("/"))
        rule = self._rules.get(path)
        if rule is None or request.method != "POST":
            return answers.unknown_route(request.method, path)
        parsed = request.parsed or parse(request.body, rule.prompt)
        if isinstance(parsed, Unreadable):
            return answers.bad_request(parsed.code, parsed.message)
        return self._authorized(request, parsed, path)

    def _authorized(self, request: Request, parsed: Parsed, path: str) -> Answer | tuple[_Service, _Asked]:
        service = self._services.get(self._by_name.get(parsed.model, ""))
        if service is None:
            return answers.unknown_model(parsed.model, self._open_to(request.key))
        account: Account | None = None
        if service.accounts is not None:
            account = service.accounts.get(hash_of_key(request.key)) if request.key else None
            if account is None:
                return self._not_opened(request.key, parsed)
        if path not in service.paths:
            return answers.not_supported(parsed.model, path)
        now_s = self._clock.monotonic_s()
        if crashes := self.quarantine.holds(parsed.digest, now_s=now_s):
            return answers.quarantined(crashes)
        tokens = 0
        if account:
            try:
                tokens = account.require(parsed, running=self.leases.of_account[account.id], now_s=now_s)
            except Refusal as refusal:
                after_s = None if refusal.after_s is None else max(1, math.ceil(refusal.after_s))
                return answers.over_limit(
                    refusal.limit, str(refusal), retry_after_s=after_s, headers=account.headers(now_s=now_s)
                )
        body_bytes = request.large_bytes or len(request.body)
        return service, _Asked(parsed, request.key, request.arrival_s, request.traceparent, body_bytes, account, tokens)

    def _not_opened(self, key: str | None, parsed: Parsed) -> Answer:
        # A key that opens another service learns nothing about this one.
        known = key and any(_opens(s, key) for s in self._services.values() if s.accounts is not None)
        return answers.unknown_model(parsed.model, self._open_to(key)) if known else answers.no_key()

    def _models(self, key: str | None, name: str) -> Answer:
        open_services = [service.entry for service in self._services.values() if _opens(service, key)]
        if not open_services and self.table.services and not key:
            return answers.no_key()
        names = {name: s.created_s for s in open_services for name in (*s.names, s.key) if self._by_name[name] == s.key}
        if not name:
            return answers.models(names.items())
        return answers.model(name, names[name]) if name in names else answers.unknown_model(name, names)

    def _open_to(self, key: str | None) -> Iterator[str]:
        return (
            name for name, service in self._by_name.items() if name != service and _opens(self._services[service], key)
        )

    def _place(self, service: _Service, asked: _Asked) -> Forward | None:
        now_s = self._clock.monotonic_s()
        if now_s < self._admits_after_s:
            return None
        parsed = asked.parsed
        pick = choose(
            service.board,
            chain_blocks=len(parsed.chain),
            cached_blocks=service.index.cached_blocks(parsed.chain) if parsed.chain else {},
            age=service.index.age,
            tie=self._tie,
        )
        if pick is None:
            return None
        first = pick.order[0]
        endpoints = tuple([service.replicas[number].endpoint for number in pick.order])
        account = asked.account
        lease = Lease(
            id=self._next_id(),
            service=service.entry.key,
            endpoint=endpoints[0],
            arrival_s=asked.arrival_s,
            streams=parsed.streams,
            prompt_tokens=parsed.prompt_tokens,
            hold_s=max(0.0, self._clock.wall_s() - asked.arrival_s),
            account=account.id if account else "",
            reserved_tokens=asked.tokens,
            body=parsed.digest,
        )
        service.index.record(first, parsed.chain)
        self.leases.grant(lease, now_s=now_s)
        headers: tuple[tuple[str, str], ...] = ()
        if account and account.is_limited:
            account.admit(asked.tokens, now_s=now_s)
            headers = tuple(account.headers(now_s=now_s))
        self._observer.admitted(lease, chain_blocks=len(parsed.chain), cached_blocks=pick.cached_blocks)
        return Forward(
            lease,
            # With one replica the second try goes to it again: a connection that was just closing is no crash.
            endpoints if len(endpoints) > 1 else endpoints * 2,
            service.entry.engine_key,
            service.patches.get((parsed.streams, parsed.model)) or _patch(service, parsed),
            asked.traceparent or f"00-{self._trace(128):032x}-{self._trace(64):016x}-01",
            headers,
        )

    def _hold(self, service: _Service, asked: _Asked, reply: Callable[[Verdict], None]) -> Waiter | None:
        limits = self.table.limits
        if self._held >= limits.max_held_requests or self._held_bytes + asked.body_bytes > limits.max_held_bytes:
            answer = answers.too_many_waiting(retry_after_s=5)
            self._observer.answered(service.entry.key, answer)
            reply(answer)
            return None
        self._numbers += 1
        waited_s = max(0.0, self._clock.wall_s() - asked.arrival_s)
        waiter = Waiter(
            arrival_s=asked.arrival_s,
            number=self._numbers,
            asked=asked,
            service=service.entry.key,
            deadline_s=self._clock.monotonic_s() + max(0.0, service.entry.max_wait_s - waited_s),
            reply=reply,
        )
        insort(service.waiting, waiter)
        if asked.account:
            asked.account.wait(asked.tokens)
        self._held += 1
        self._held_bytes += asked.body_bytes
        return waiter

    def _serve(self, service: _Service) -> None:
        while service.waiting:
            waiter = service.waiting[0]
            asked = waiter.asked
            if asked.account:
                # What is kept free for it while it waits is what it takes now.
                asked.account.wait_no_more(asked.tokens)
            forward = self._place(service, asked)
            if asked.account:
                asked.account.wait(asked.tokens)
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
                self._held_bytes -= waiter.asked.body_bytes
                if waiter.asked.account:
                    waiter.asked.account.wait_no_more(waiter.asked.tokens)
                return True
        return False

    def _no_capacity(self, service: _Service) -> Answer:
        waited = f"after waiting {service.entry.max_wait_s:.0f} s"
        if service.usable:
            return answers.no_capacity("no_capacity", f"Every replica was busy, {waited}.", retry_after_s=5)
        if service.entry.wanted_replicas == 0:
            return answers.no_capacity("scaled_to_zero", "This model has no replicas now.", retry_after_s=60)
        return answers.no_capacity("no_ready_replicas", f"No replica was ready, {waited}.", retry_after_s=30)

    # The table -----------------------------------------------------------------------------------------------------

    def _carried(self, known: _Service | None, entry: ServiceEntry) -> _Service:
        service = known or _Service(entry)
        service.entry = entry
        service.paths = frozenset(rule.path for rule in entry.routes)
        service.patches = {}
        present = {replica.name for replica in entry.replicas}
        for name in [name for name in service.numbers if name not in present]:
            number = service.numbers.pop(name)
            service.index.remove_replica(number)
            service.board.set_slots(number, 0)
        taken = set(service.numbers.values())
        free = (number for number in range(len(entry.replicas)) if number not in taken)
        for replica in entry.replicas:
            if replica.name not in service.numbers:
                service.numbers[replica.name] = number = next(free)
                service.index.add_replica(number, capacity_blocks=replica.cache_blocks)
        service.replicas = {service.numbers[replica.name]: replica for replica in entry.replicas}
        return service

    def _use_accounts(self) -> None:
        now_s = self._clock.monotonic_s()
        before, self._by_account = self._by_account, {}
        for service in self._services.values():
            if service.entry.keys is None:
                service.accounts = None
                continue
            service.accounts = {}
            for key in service.entry.keys:
                name = account_id(service.entry, key)
                account = before.pop(name, None) or self._by_account.get(name)
                if account is None:
                    account = Account(name, key.limits, ledger=self._ledger, now_s=now_s)
                account.use(key.limits, now_s=now_s)
                service.accounts[key.hash] = self._by_account[name] = account
        for gone in before.values():
            gone.close()
        if self.table.generation:
            self._ledger.keep_only(self._by_account)

    def _note_crashes(self, table: RoutingTable) -> None:
        """A replica that was not drained and is there no more has crashed."""
        now_s = self._clock.monotonic_s()
        there = {replica.endpoint for service in table.services for replica in service.replicas}
        wanted = {service.key for service in table.services}
        for service in self.table.services:
            for replica in service.replicas:
                if replica.endpoint not in there and not replica.draining and service.key in wanted:
                    self.quarantine.crashed(replica.endpoint, now_s=now_s)

    def _refresh(self) -> None:
        for service in self._services.values():
            cluster = service.entry.cluster
            service.usable = []
            for number, replica in service.replicas.items():
                is_usable = not replica.draining and (cluster, replica.endpoint) in self._applied
                if is_usable:
                    service.usable.append(replica.name)
                service.board.set_slots(number, replica.slots if is_usable else 0)
                service.board.set_in_flight(number, self.leases.in_flight[replica.endpoint])
            self._serve(service)

    def _load_changed(self, endpoint: str) -> None:
        place = self._by_endpoint.get(endpoint)
        if place:
            place[0].board.set_in_flight(place[1], self.leases.in_flight[endpoint])

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


def _opens(service: _Service, key: str | None) -> bool:
    if service.accounts is None:
        return True
    return key is not None and hash_of_key(key) in service.accounts


def _patch(service: _Service, parsed: Parsed) -> str:
    """Fields to append to the body, as the inside of a JSON object in plain ASCII."""
    entry = service.entry
    fields: dict[str, object] = dict(entry.stream_patch) if parsed.streams else {}
    if entry.engine_model is not None and entry.engine_model != parsed.model:
        fields["model"] = entry.engine_model
    patch = json.dumps(fields, separators=(",", ":"))[1:-1] if fields else ""
    service.patches[parsed.streams, parsed.model] = patch
    return patch
