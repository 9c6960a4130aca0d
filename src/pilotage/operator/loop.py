"""Observe, decide, apply, report: again and again, from what is there and not from what was done."""

import asyncio
import contextlib
import functools
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog

from pilotage.api import LLMGateway, LLMService
from pilotage.catalog import ModelFacts
from pilotage.clock import Clock
from pilotage.engines import EngineAdapter, adapter_for
from pilotage.errors import Invalid, PilotageError, Unavailable
from pilotage.fleet import AgentConfig, ReplicaRecord
from pilotage.gateway import (
    GatewayLimits,
    KeyEntry,
    KeyLimits,
    ReplicaEntry,
    RouteRule,
    RoutingTable,
    ServiceEntry,
    hash_of_key,
)
from pilotage.operator.events import EventLog
from pilotage.operator.records import WEIGHTS_LOST, Resolved, ServiceRecord, ServiceRecords
from pilotage.operator.seams import Fleet, Gateway, GatewayState, Machine, Weights
from pilotage.operator.status import Condition, Trouble, conditions_of, view
from pilotage.planning import DEFAULT_CONTEXT_TOKENS, plan_for_host
from pilotage.rollout import Drain, Phase, ReplicaView, Situation, Start, Stop, decide, restart_delay_s
from pilotage.signals import PlatformMetrics
from pilotage.units import in_gb, in_seconds
from pilotage.weights import Fetched, Progress, WeightsError

log = structlog.get_logger()

# How often the world is looked at: while something changes, and while nothing does.
MOVING_TICK_S = 0.2
STILL_TICK_S = 1.0
# A failing source is asked again after this long, twice as long each time.
FETCH_RETRY_S = 5.0
LONGEST_FETCH_RETRY_S = 300.0
# A replica that has been ready this long has proven itself: failures before it no longer count.
PROVEN_AFTER_S = 60.0
# Failures in a row after which a service is called failing; it is tried again all the same, with growing pauses.
FAILING_AFTER = 3
PROGRESS_EVERY_S = 0.1
# The gateway counts a prefix block as 512 bytes, about 128 tokens.
TOKENS_PER_BLOCK = 128
STOP_WHEN_IDLE_S = 10.0
# Sources that are fetched at once; others wait for their turn.
MOST_FETCHES = 16
INTERNAL_ERROR = "InternalError"


@dataclass(slots=True)
class _Memory:
    """What the loop keeps of one service between rounds; all of it can be lost."""

    fetch: asyncio.Task[Fetched] | None = None
    fetch_failures: int = 0
    fetch_after_s: float = 0.0
    progress: Progress | None = None
    progress_told_s: float = 0.0
    trouble: Trouble | None = None
    failures: int = 0
    start_after_s: float = 0.0
    seen_phases: dict[str, Phase] = field(default_factory=dict)
    drained_at_generation: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    last_view: dict[str, Any] | None = None
    fetch_source: str = ""
    fetch_ends: threading.Event = field(default_factory=threading.Event)

    def end_fetch(self) -> None:
        """Stop what is being fetched; its parts stay for another time."""
        self.fetch_ends.set()
        if self.fetch:
            self.fetch.cancel()
        self.fetch = self.progress = None


class FetchEnded(Exception):
    """Nobody wants any more what is being fetched."""


class Operator:
    """The control loop of one fleet and one gateway."""

    def __init__(
        self,
        *,
        clock: Clock,
        fleet: Fleet,
        gateway: Gateway,
        weights: Weights,
        machine: Machine,
        records: ServiceRecords,
        events: EventLog,
        metrics: PlatformMetrics,
        run_key: str,
        agent_defaults: Mapping[str, Any],
    ) -> None:
        self._clock = clock
        self._fleet = fleet
        self._gateway = gateway
        self._weights = weights
        self._machine = machine
        self._store = records
        self._events = events
        self._metrics = metrics
        self._run_key = run_key
        self._agent_defaults = dict(agent_defaults)
        self._records = records.load()
        self._memory: dict[str, _Memory] = {}
        self._table = RoutingTable(generation=0)
        self._wake = asyncio.Event()
        # Threads of their own: fetches take minutes, and what the loop itself does in threads must not wait for them.
        self._fetching = ThreadPoolExecutor(MOST_FETCHES, thread_name_prefix="fetch")
        self._state = GatewayState(listening=False, generation=None, usable={}, waiting={}, in_flight={})
        self._replicas: list[ReplicaRecord] = []
        self.gateway_resource = records.load_gateway()

    # What users want -----------------------------------------------------------------------------------------------

    def apply(self, services: Sequence[LLMService]) -> list[tuple[str, str]]:
        """Make these wanted, beside what is. Returns pairs of key and outcome: created, configured, unchanged."""
        keys = {}
        for service in services:
            adapter = adapter_for(service.spec.engine.type)
            adapter.slots(service.spec.engine.args)
            adapter.require_name(service.served_names[0])
            self._machine.require_engine(service)
            keys[service.key] = self._keys(service)
        outcomes = []
        for service in services:
            known = self._records.get(service.key)
            if known is None or known.delete_within_s is not None:
                created_s = known.created_s if known else self._clock.wall_s()
                record = ServiceRecord(
                    service=service, created_s=created_s, generation=known.generation + 1 if known else 1
                )
                outcome = "created"
            elif known.service == service:
                record, outcome = known, "unchanged"
            else:
                record = known.model_copy(update={"service": service, "generation": known.generation + 1})
                outcome = "configured"
            self._save(record.model_copy(update={"keys": keys[service.key]}))
            memory = self._memory.setdefault(service.key, _Memory())
            memory.trouble, memory.failures, memory.start_after_s = None, 0, 0.0
            memory.fetch_failures, memory.fetch_after_s = 0, 0.0
            if known is None or known.service.spec.model != service.spec.model or service.spec.model.credentials:
                # What runs goes by the old source, or by credentials that may have been wrong.
                memory.end_fetch()
            if outcome != "unchanged":
                # What was seen before says nothing of this generation.
                memory.last_view = None
                self._tell(service.key, "decision", reason=outcome.capitalize(), message=f"the file was {outcome}")
            outcomes.append((service.key, outcome))
        self._wake.set()
        return outcomes

    def use_gateway(self, gateway: LLMGateway) -> None:
        """Make `gateway` the one in force."""
        self.gateway_resource = gateway
        self._store.save_gateway(gateway)
        self._wake.set()

    def delete(self, keys: Sequence[str], *, now: bool) -> None:
        """Take these down: draining by their own limits, or at once."""
        for key in keys:
            record = self._records[key]
            within_s = 0.0 if now else float(record.service.spec.lifecycle.drain_seconds)
            self._save(record.model_copy(update={"delete_within_s": within_s}))
            self._tell(key, "decision", reason="Deleted", message="it is taken down" + (" at once" if now else ""))
        self._wake.set()

    def look(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    @property
    def keys(self) -> list[str]:
        """All services there are, those going down included."""
        return sorted(self._records)

    @property
    def replica_names(self) -> frozenset[str]:
        """Replicas of all services, those going down included."""
        return frozenset(replica.name for replica in self._replicas)

    @property
    def is_empty(self) -> bool:
        """Nothing is wanted and nothing runs."""
        return not self._records and not self._replicas

    def view(self, key: str) -> dict[str, Any]:
        """The service with its status."""
        memory = self._memory.setdefault(key, _Memory())
        if memory.last_view is None:
            self._report(self._records[key], self._of(key), memory)
        assert memory.last_view is not None
        return memory.last_view

    # The loop -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reconcile for ever; a round that fails is logged and tried again."""
        while True:
            # Before the round: what is asked for during it gets a round of its own.
            self._wake.clear()
            try:
                await self.reconcile()
            except Exception:
                log.exception("reconcile_failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout=MOVING_TICK_S if self._is_moving else STILL_TICK_S)

    @property
    def _is_moving(self) -> bool:
        """Something is on its way from what is to what is wanted."""
        settled = all(
            record.delete_within_s is None
            and record.is_planned
            and len([r for r in self._of(key) if r.phase is Phase.READY])
            == record.service.replicas
            == len(self._of(key))
            for key, record in self._records.items()
        )
        return not settled or not self._state.listening or self._state.generation != self._table.generation

    async def reconcile(self) -> None:
        """One round over all services."""
        self._state, self._replicas = await asyncio.gather(self._gateway.observe(), self._fleet.observe())
        self._fleet.forget_ended(self._replicas)
        self._replicas = [r for r in self._replicas if r.phase is not Phase.GONE]
        for replica in self._replicas:
            if replica.service not in self._records:
                # Left by a service that is gone: nobody can want it again.
                await self._fleet.stop(replica.name, within_s=0)
        for key in list(self._records):
            structlog.contextvars.bind_contextvars(service=key)
            try:
                await self._reconcile_service(self._records[key])
            except Exception as error:
                # One service must not stop the others; what happened stands in its status.
                log.exception("service_failed")
                said = Unavailable(f"{type(error).__name__}: {error}", hint="`pilotage logs --part daemon` has more")
                memory = self._memory.setdefault(key, _Memory())
                self._trouble(self._records[key], memory, "Planned", said, final=False, reason=INTERNAL_ERROR)
            else:
                memory = self._memory.get(key, _Memory())
                if memory.trouble and memory.trouble.reason == INTERNAL_ERROR:
                    memory.trouble = None
        structlog.contextvars.unbind_contextvars("service")
        self._program()
        for key, record in self._records.items():
            self._report(record, self._of(key), self._memory[key])
        self._count()

    async def _reconcile_service(self, record: ServiceRecord) -> None:
        memory = self._memory.setdefault(record.key, _Memory())
        replicas = self._of(record.key)
        self._note_phases(record, replicas, memory)
        if record.delete_within_s is None:
            record = await self._resolve(record, memory)
        elif not replicas:
            await self._forget(record, memory)
            return
        situation = self._situation(record, replicas, memory)
        self._note_room(record, situation, memory)
        for action in decide(situation):
            await self._carry_out(action, record, memory)

    async def _resolve(self, record: ServiceRecord, memory: _Memory) -> ServiceRecord:
        """The record with its weights found and its plan made, when that can be; `memory.trouble` when not."""
        if record.resolved and record.is_planned:
            current = sum(replica.revision == record.revision for replica in self._of(record.key))
            # Looked at only when something is to be started: what runs has its weights open.
            if current >= record.service.replicas or await asyncio.to_thread(_is_there, record.resolved):
                return self._records.get(record.key, record)
            if self._records.get(record.key) is not record:
                return self._records.get(record.key, record)
            # Nothing is started until the weights are back.
            record = record.model_copy(update={"resolved_for": WEIGHTS_LOST})
            self._save(record)
        adapter = adapter_for(record.service.spec.engine.type)
        fetched: Fetched | None = None
        if adapter.needs_weights:
            fetched = await self._fetched(record, memory)
            if fetched is None:
                return record
        try:
            resolved = await asyncio.to_thread(self._planned, record, adapter, fetched)
        except Invalid as error:
            if self._records.get(record.key) is record:
                self._trouble(record, memory, "Planned", error, final=True)
            return self._records.get(record.key, record)
        if self._records.get(record.key) is not record:
            # It was changed or taken down meanwhile: the next round goes by that.
            return self._records.get(record.key, record)
        memory.trouble = None
        record = record.model_copy(update={"resolved": resolved, "resolved_for": record.planning_key})
        self._save(record)
        self._tell(record.key, "decision", reason="Planned", message=resolved.reason)
        return record

    async def _fetched(self, record: ServiceRecord, memory: _Memory) -> Fetched | None:
        source = record.service.spec.model.source
        if memory.fetch and memory.fetch_source != source:
            memory.end_fetch()
        if memory.fetch is None:
            if memory.trouble and memory.trouble.final:
                return None
            if self._clock.monotonic_s() < memory.fetch_after_s:
                return None
            memory.trouble = None
            memory.fetch_source, memory.fetch_ends = source, threading.Event()
            memory.fetch = asyncio.create_task(self._fetch(record, memory, memory.fetch_ends))
        if not memory.fetch.done():
            return None
        task, memory.fetch = memory.fetch, None
        memory.progress = None
        try:
            fetched = task.result()
        except (WeightsError, Invalid) as error:
            # Weights that were here before may come back: a share that is mounted again, say.
            final = not isinstance(error, Unavailable) and not record.has_lost_weights
            memory.fetch_failures += 1
            pause_s = min(LONGEST_FETCH_RETRY_S, FETCH_RETRY_S * 2 ** (memory.fetch_failures - 1))
            memory.fetch_after_s = self._clock.monotonic_s() + pause_s
            self._trouble(record, memory, "WeightsAvailable", error, final=final)
            return None
        except Exception as error:
            # A full disk, or something that a library did not foresee.
            log.exception("fetch_failed", source=source)
            said = Unavailable(f"the weights can't be had: {type(error).__name__}: {error}", hint="check the disk")
            memory.fetch_after_s = self._clock.monotonic_s() + LONGEST_FETCH_RETRY_S
            self._trouble(record, memory, "WeightsAvailable", said, final=False)
            return None
        memory.fetch_failures = 0
        return fetched

    async def _fetch(self, record: ServiceRecord, memory: _Memory, ends: threading.Event) -> Fetched:
        loop = asyncio.get_running_loop()
        source = record.service.spec.model.source
        credentials = record.service.spec.model.credentials
        token = self._machine.secret(credentials.secret_ref) if credentials else None
        began_s = self._clock.monotonic_s()

        def report(progress: Progress) -> None:
            if ends.is_set():
                raise FetchEnded
            loop.call_soon_threadsafe(self._progressed, record.key, memory, progress)

        ensure = functools.partial(self._weights.ensure, source, token=token, progress=report)
        fetched = await loop.run_in_executor(self._fetching, ensure)
        took_s = self._clock.monotonic_s() - began_s
        how = "was here already" if fetched.was_cached else f"fetched in {in_seconds(took_s)}"
        self._tell(
            record.key, "phase", reason="Fetched", message=f"{source} {how}",
            facts={"phase": "Fetching", "took_s": round(took_s, 3), "cached": fetched.was_cached},
        )  # fmt: skip
        self._metrics.start_up.labels(record.key, "Fetching").observe(took_s)
        return fetched

    def _planned(self, record: ServiceRecord, adapter: EngineAdapter, fetched: Fetched | None) -> Resolved:
        spec = record.service.spec
        slots = adapter.slots(spec.engine.args)
        if fetched is None:
            tokens = spec.model.context_tokens or DEFAULT_CONTEXT_TOKENS
            return Resolved(
                weights_path=None, weights_source=spec.model.source, weights_digest="", store_entry=None,
                context_tokens=tokens, slots=slots, shared_bytes=0, replica_bytes=128 * 1024 * 1024,
                cache_tokens=tokens * slots, reason=f"simulated, with {tokens} tokens of context",
            )  # fmt: skip
        facts: ModelFacts = self._weights.facts(fetched.path)
        if facts.file_format not in adapter.file_formats:
            raise Invalid(
                f"{fetched.path.name} is a {facts.file_format} file, and {spec.engine.type.value} reads "
                f"{' and '.join(adapter.file_formats)}",
                hint="choose another file with #FILE in spec.model.source, or another engine",
            )
        plan = plan_for_host(
            facts,
            name=facts.name or spec.model.source,
            replicas=record.service.replicas,
            slots=slots,
            context_tokens=spec.model.context_tokens,
            available_bytes=self._machine.available_memory_bytes() + self._own_bytes(record.key),
        )
        return Resolved(
            weights_path=fetched.path,
            weights_source=fetched.resolved,
            weights_digest=fetched.digest,
            store_entry=fetched.entry_id,
            context_tokens=plan.context_tokens,
            slots=plan.slots,
            shared_bytes=plan.shared_bytes,
            replica_bytes=plan.replica_bytes,
            cache_tokens=plan.context_tokens * plan.slots,
            reason=f"{plan.reason}; {plan.slots} requests at once and {in_gb(plan.replica_bytes)} a replica",
        )

    def _own_bytes(self, key: str) -> int:
        """Memory of replicas that a new plan would replace; their mapped weights count as free already."""
        resolved = self._records[key].resolved
        mapped_bytes = resolved.shared_bytes if resolved else 0
        return sum(max(0, (r.engine_memory_bytes or 0) - mapped_bytes) for r in self._of(key))

    def _situation(self, record: ServiceRecord, replicas: Sequence[ReplicaRecord], memory: _Memory) -> Situation:
        going = record.delete_within_s is not None
        now_s = self._clock.wall_s()
        drain_s = record.delete_within_s if record.delete_within_s is not None else None
        return Situation(
            wanted=0 if going or record.resolved is None else record.service.replicas,
            # Until a change is planned, what runs goes on.
            revision=record.revision if record.is_planned else _newest_revision(replicas),
            replicas=[
                ReplicaView(
                    name=r.name,
                    revision=r.revision,
                    phase=r.phase,
                    in_flight=self._in_flight(r, memory),
                    drained_for_s=now_s - r.since_s if r.phase is Phase.DRAINING else None,
                    failure=r.failure,
                )
                for r in replicas
            ],
            room=self._room(record, replicas),
            drain_s=drain_s if drain_s is not None else float(record.service.spec.lifecycle.drain_seconds),
            start_allowed=record.is_planned and self._clock.monotonic_s() >= memory.start_after_s,
        )

    def _in_flight(self, replica: ReplicaRecord, memory: _Memory) -> int | None:
        """Requests on the replica by the gateway's count; None until the gateway goes by the table that drains it."""
        generation = memory.drained_at_generation.get(replica.name, 0)
        if self._table.generation == 0:
            # This process has not told the gateway anything yet, and what the last one told is not certain.
            return None
        if self._state.generation is None or self._state.generation < max(generation, self._table.generation):
            return None
        return self._state.in_flight.get(replica.endpoint, 0)

    def _room(self, record: ServiceRecord, replicas: Sequence[ReplicaRecord]) -> int:
        if record.resolved is None:
            return 0
        loading = sum(r.phase in (Phase.PLACED, Phase.LOADING) for r in replicas)
        shared = 0 if any(r.revision == record.revision for r in replicas) else record.resolved.shared_bytes
        free_bytes = self._machine.available_memory_bytes() - shared - loading * record.resolved.replica_bytes
        return max(0, free_bytes // record.resolved.replica_bytes)

    def _note_room(self, record: ServiceRecord, seen: Situation, memory: _Memory) -> None:
        """Say so when fewer replicas fit than are wanted."""
        there = sum(r.phase not in (Phase.FAILED, Phase.DRAINING, Phase.GONE) for r in seen.replicas)
        blocked = seen.start_allowed and there < seen.wanted and seen.room == 0
        if blocked and memory.trouble is None and record.resolved:
            said = Unavailable(
                f"{there} of {seen.wanted} replicas run, and there is no memory for another: one takes "
                f"{in_gb(record.resolved.replica_bytes)}, {in_gb(self._machine.available_memory_bytes())} are free",
                hint="free memory, lower spec.replicas, or lower spec.model.contextTokens",
            )
            self._trouble(record, memory, "ReplicasAvailable", said, final=False, reason="NoRoom")
        elif not blocked and memory.trouble and memory.trouble.reason == "NoRoom":
            memory.trouble = None

    async def _carry_out(self, action: Start | Drain | Stop, record: ServiceRecord, memory: _Memory) -> None:
        match action:
            case Start(count=count, reason=reason):
                for _ in range(count):
                    config = self._agent_config(record)
                    self._tell(record.key, "decision", reason="Start", message=reason, replica=config.replica)
                    await self._fleet.start(config)
            case Drain(name=name, reason=reason):
                self._tell(record.key, "decision", reason="Drain", message=reason, replica=name)
                self._fleet.mark_draining(name)
                # The next table says so; until the gateway goes by it, its count of this replica means nothing.
                memory.drained_at_generation[name] = self._table.generation + 1
            case Stop(name=name, reason=reason):
                replica = next(r for r in self._replicas if r.name == name)
                if memory.seen_phases.get(name) is not Phase.GONE:
                    memory.seen_phases[name] = Phase.GONE
                    self._tell(record.key, "decision", reason="Stop", message=reason, replica=name)
                    if replica.phase is Phase.FAILED:
                        self._failed(record, replica, memory)
                idle = replica.phase is Phase.DRAINING and self._in_flight(replica, memory) == 0
                await self._fleet.stop(name, within_s=STOP_WHEN_IDLE_S if idle and record.delete_within_s != 0 else 0.0)

    def _failed(self, record: ServiceRecord, replica: ReplicaRecord, memory: _Memory) -> None:
        was_proven = replica.phase_s.get(Phase.READY.value, 0.0) >= PROVEN_AFTER_S
        memory.failures = 1 if was_proven else memory.failures + 1
        pause_s = restart_delay_s(memory.failures)
        memory.start_after_s = self._clock.monotonic_s() + pause_s
        self._metrics.restarts.labels(record.key, "hung" if "hangs" in replica.failure else "ended").inc()
        if memory.failures >= FAILING_AFTER:
            said = Unavailable(
                f"replicas failed {memory.failures} times in a row: {replica.failure}",
                hint=f"see `pilotage logs {record.service.metadata.name}`; the next try is in {in_seconds(pause_s)}",
            )
            self._trouble(record, memory, "ReplicasAvailable", said, final=False, reason="ReplicasFailing")

    def _agent_config(self, record: ServiceRecord) -> AgentConfig:
        assert record.resolved
        service, resolved = record.service, record.resolved
        adapter = adapter_for(service.spec.engine.type)
        port = self._machine.free_port()
        launch = adapter.launch(
            model=resolved.weights_path,
            args=service.spec.engine.args,
            port=port,
            context_tokens=resolved.context_tokens,
            served_name=service.served_names[0],
        )
        name = f"{service.metadata.name}-{record.revision}-{secrets.token_hex(3)}"
        return AgentConfig(
            service=record.key,
            replica=name,
            revision=record.revision,
            created_s=self._clock.wall_s(),
            argv=launch.argv,
            env={**launch.env, **{env.name: env.value for env in service.spec.engine.env}},
            engine_key=self._run_key,
            key_variable=launch.key_variable,
            port=port,
            health_path=adapter.health_path,
            warm_up_path=adapter.warm_up.path,
            warm_up_body=dict(adapter.warm_up.body),
            metric_running=adapter.metrics.running,
            metric_waiting=adapter.metrics.waiting,
            metric_progress=adapter.metrics.progress,
            control_socket=self._fleet.socket_of(name),
            engine_log=self._fleet.log_of(name),
            store_entry=resolved.store_entry,
            **self._agent_defaults,
        )

    async def _forget(self, record: ServiceRecord, memory: _Memory) -> None:
        memory.end_fetch()
        self._store.delete(record.key)
        del self._records[record.key]
        self._tell(record.key, "condition", reason="Gone", message="it is down")
        self._memory.pop(record.key, None)
        metrics = self._metrics
        for gauge in (metrics.replicas, metrics.engine_running, metrics.engine_waiting, metrics.engine_memory):
            gauge.remove_by_labels({"service": record.key})

    # The gateway ------------------------------------------------------------------------------------------------------

    def _program(self) -> None:
        limits = self.gateway_resource.spec.limits
        table = RoutingTable(
            generation=self._table.generation,
            limits=GatewayLimits(
                max_body_bytes=limits.max_body_bytes,
                max_held_requests=limits.max_held_requests,
                max_held_bytes=limits.max_held_bytes,
            ),
            services=tuple(self._entry(record) for record in self._records.values()),
        )
        if table != self._table or self._table.generation == 0:
            # Numbers go on over restarts of this process, so that an old one is never taken for a new one.
            generation = max(self._table.generation, self._state.generation or 0) + 1
            table = table.model_copy(update={"generation": generation})
            self._gateway.program(table)
            # Only what was written counts as told; after a full disk it is written again.
            self._table = table
            log.info("gateway_programmed", generation=generation)

    def _entry(self, record: ServiceRecord) -> ServiceEntry:
        service, adapter = record.service, adapter_for(record.service.spec.engine.type)
        slots = record.resolved.slots if record.resolved else 1
        return ServiceEntry(
            key=record.key,
            names=tuple(service.served_names),
            created_s=record.created_s,
            engine_key=self._run_key,
            engine_model=adapter.model_name,
            routes=tuple(RouteRule(path=r.path, prompt=r.prompt) for r in adapter.routes(service.spec.engine.args)),
            keys=record.keys,
            max_wait_s=float(service.spec.lifecycle.max_wait_seconds),
            first_byte_timeout_s=float(service.spec.lifecycle.first_byte_timeout_seconds),
            replicas=tuple(
                ReplicaEntry(
                    name=r.name,
                    endpoint=r.endpoint,
                    slots=slots,
                    draining=r.phase is Phase.DRAINING or r.name in self._memory[record.key].drained_at_generation,
                    cache_blocks=max(1, (record.resolved.cache_tokens if record.resolved else 0) // TOKENS_PER_BLOCK),
                )
                for r in self._of(record.key)
                if r.phase in (Phase.READY, Phase.DRAINING)
            ),
            wanted_replicas=service.replicas if record.delete_within_s is None else 0,
            stream_patch=dict(adapter.stream_patch),
            keepalive_s=adapter.keepalive_s,
        )

    def _keys(self, service: LLMService) -> tuple[KeyEntry, ...] | None:
        """What is kept of the service's keys; None when it needs none. Raises SecretMissing or Invalid."""
        if service.spec.access is None:
            return None
        keys: list[KeyEntry] = []
        for source in service.spec.access.keys_from:
            lines = [line.strip() for line in self._machine.secret(source.secret_ref).splitlines()]
            limits = KeyLimits(**source.limits.model_dump())
            keys += [KeyEntry(hash=_kept(line), limits=limits) for line in lines if line and not line.startswith("#")]
        if not keys:
            raise Invalid(
                f"{service.key} wants API keys, and its secrets hold none", hint="write one key a line into the secret"
            )
        return tuple(keys)

    # Reports ----------------------------------------------------------------------------------------------------------

    def _note_phases(self, record: ServiceRecord, replicas: Sequence[ReplicaRecord], memory: _Memory) -> None:
        for replica in replicas:
            before = memory.seen_phases.get(replica.name)
            if replica.phase is before or before is Phase.GONE:
                continue
            memory.seen_phases[replica.name] = replica.phase
            facts: dict[str, Any] = {"phase": replica.phase.value, "phase_s": dict(replica.phase_s)}
            reason = replica.phase.value
            if replica.phase is Phase.READY and before is not None:
                for name, took_s in replica.phase_s.items():
                    if name in (Phase.LOADING.value, Phase.WARMING.value):
                        self._metrics.start_up.labels(record.key, name).observe(took_s)
                if memory.trouble and memory.trouble.condition == "ReplicasAvailable":
                    memory.trouble = None
            self._tell(record.key, "phase", reason=reason, message=replica.failure, replica=replica.name, facts=facts)
        there = {replica.name for replica in replicas}
        memory.seen_phases = {name: phase for name, phase in memory.seen_phases.items() if name in there}
        memory.drained_at_generation = {n: g for n, g in memory.drained_at_generation.items() if n in there}

    def _progressed(self, key: str, memory: _Memory, progress: Progress) -> None:
        memory.progress = progress
        now_s = self._clock.monotonic_s()
        if now_s - memory.progress_told_s >= PROGRESS_EVERY_S or progress.done_bytes == progress.size_bytes:
            memory.progress_told_s = now_s
            facts = {"done_bytes": progress.done_bytes, "size_bytes": progress.size_bytes}
            self._tell(key, "progress", reason="Fetching", facts=facts)

    def _trouble(
        self,
        record: ServiceRecord,
        memory: _Memory,
        condition: str,
        error: PilotageError,
        *,
        final: bool,
        reason: str | None = None,
    ) -> None:
        message = f"{error}" + (f" ({error.hint})" if error.hint else "")
        reason = reason or error.condition_reason
        trouble = Trouble(condition=condition, reason=reason, message=message, final=final)
        if trouble != memory.trouble:
            memory.trouble = trouble
            self._tell(record.key, "decision", reason=reason, message=message, facts={"final": final})
            log.error("service_in_trouble", reason=reason, message=message)

    def _report(self, record: ServiceRecord, replicas: Sequence[ReplicaRecord], memory: _Memory) -> None:
        conditions = conditions_of(
            record,
            replicas=replicas,
            gateway=self._state,
            fetching=memory.fetch is not None,
            trouble=memory.trouble,
            names_lost=self._names_lost(record),
        )
        for condition in conditions:
            self._note_condition(record, condition, memory)
        listener = self.gateway_resource.spec.listener
        host = f"[{listener.address}]" if ":" in listener.address else listener.address
        memory.last_view = view(
            record,
            url=f"http://{host}:{listener.port}/v1",
            conditions=conditions,
            since={name: since_s for name, (_, _, since_s) in memory.conditions.items()},
            replicas=replicas,
            waiting=self._state.waiting.get(record.key, 0),
        )
        if memory.fetch and memory.progress:
            memory.last_view["status"]["fetch"] = {
                "doneBytes": memory.progress.done_bytes,
                "sizeBytes": memory.progress.size_bytes,
            }

    def _note_condition(self, record: ServiceRecord, condition: Condition, memory: _Memory) -> None:
        status, reason, since_s = memory.conditions.get(condition.type, ("", "", 0.0))
        if (status, reason) == (condition.status, condition.reason):
            return
        now_s = self._clock.wall_s()
        memory.conditions[condition.type] = (
            condition.status, condition.reason, now_s if status != condition.status else since_s,
        )  # fmt: skip
        if condition.type == "Ready":
            facts = {"status": condition.status, "generation": record.generation}
            self._tell(record.key, "condition", reason=condition.reason, message=condition.message, facts=facts)

    def _names_lost(self, record: ServiceRecord) -> dict[str, str]:
        """Names of this service that an older one holds."""
        older = [r for r in self._records.values() if (r.created_s, r.key) < (record.created_s, record.key)]
        return {
            name: other.key
            for name in record.service.served_names
            for other in older
            if name in other.service.served_names
        }

    def _count(self) -> None:
        for key in self._records:
            replicas = self._of(key)
            for phase in Phase:
                self._metrics.replicas.labels(key, phase.value).set(sum(r.phase is phase for r in replicas))
            for gauge in (self._metrics.engine_running, self._metrics.engine_waiting, self._metrics.engine_memory):
                gauge.remove_by_labels({"service": key})
            for replica in replicas:
                # What an engine did not say has no sample: a missing value must not read as zero.
                if replica.running is not None:
                    self._metrics.engine_running.labels(key, replica.name).set(replica.running)
                if replica.waiting is not None:
                    self._metrics.engine_waiting.labels(key, replica.name).set(replica.waiting)
                if replica.engine_memory_bytes is not None:
                    self._metrics.engine_memory.labels(key, replica.name).set(replica.engine_memory_bytes)

    def _tell(self, service: str, kind: str, **more: Any) -> None:
        self._events.record(at_s=self._clock.wall_s(), kind=kind, service=service, **more)
        if kind == "decision":
            log.info("decided", reason=more.get("reason"), message=more.get("message"), replica=more.get("replica"))

    def _of(self, key: str) -> list[ReplicaRecord]:
        return [replica for replica in self._replicas if replica.service == key]

    def _save(self, record: ServiceRecord) -> None:
        # The disk first: what it can't keep must not run.
        self._store.save(record)
        self._records[record.key] = record


def _newest_revision(replicas: Sequence[ReplicaRecord]) -> str:
    return max(replicas, key=lambda r: r.created_s).revision if replicas else ""


def _is_there(resolved: Resolved) -> bool:
    """The weights still are where they were: a cache may have been pruned while nothing ran."""
    return resolved.weights_path is None or resolved.weights_path.exists()


def _kept(line: str) -> str:
    return line.removeprefix("sha256:") if line.startswith("sha256:") else hash_of_key(line)
