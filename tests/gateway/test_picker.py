"""What the picker answers, on a clock that stands still until told to move."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.clock import ManualClock
from pilotage.gateway import (
    GatewayLimits,
    KeyEntry,
    ReplicaEntry,
    RouteRule,
    RoutingTable,
    ServiceEntry,
    hash_of_key,
)
from pilotage.gateway.answers import Answer
from pilotage.gateway.leases import Lease
from pilotage.gateway.picker import Forward, Picker, Request, Verdict, Waiter

CHAT = RouteRule(path="/v1/chat/completions", prompt="messages")


class Nobody:
    def answered(self, service: str, answer: Answer) -> None: ...

    def admitted(self, lease: Lease, *, chain_blocks: int, cached_blocks: int) -> None: ...

    def left(self, service: str) -> None: ...


class Desk:
    """A picker, and what it answered."""

    def __init__(self, *services: ServiceEntry, **limits: int) -> None:
        self.clock = ManualClock(1000.0)
        self.picker = Picker(clock=self.clock, random=Random(1), observer=Nobody())
        self.use(*services, **limits)

    def use(self, *services: ServiceEntry, **limits: int) -> None:
        table = RoutingTable(
            generation=self.picker.table.generation + 1, limits=GatewayLimits(**limits), services=services
        )
        self.picker.use(table)
        self.picker.envoy_applied(frozenset((s.cluster, r.endpoint) for s in services for r in s.replicas))

    def ask(self, model: Any = "chat", **more: Any) -> tuple[list[Verdict], Waiter | None]:
        answers: list[Verdict] = []
        return answers, self.picker.decide(request(model, arrival_s=self.clock.wall_s(), **more), answers.append)

    def answer(self, model: Any = "chat", **more: Any) -> Verdict:
        answers, waiter = self.ask(model, **more)
        assert waiter is None
        (verdict,) = answers
        return verdict


def request(model: Any, *, content: str = "hi", key: str | None = None, path: str = CHAT.path, method: str = "POST",
            body: bytes | None = None, arrival_s: float = 0.0) -> Request:  # fmt: skip
    said = {"model": model, "messages": [{"role": "user", "content": content}]}
    return Request(method, path, key, json.dumps(said).encode() if body is None else body, arrival_s, None)


def service(name: str = "chat", *, replicas: int = 1, slots: int = 2, **more: Any) -> ServiceEntry:
    entries = tuple(
        ReplicaEntry(name=f"{name}-{n}", endpoint=f"127.0.0.1:{1000 + n}", slots=slots) for n in range(replicas)
    )
    defaults = {
        "key": f"default/{name}",
        "names": (name,),
        "created_s": 1.0,
        "routes": (CHAT,),
        "wanted_replicas": replicas,
    }
    return ServiceEntry(**{**defaults, "replicas": entries, **more})


def error(verdict: Verdict) -> tuple[int, str, str]:
    assert isinstance(verdict, Answer)
    said = json.loads(verdict.body)["error"]
    return verdict.status, said["code"], said["message"]


def test_a_known_model_is_sent_on_under_both_its_names():
    desk = Desk(service())
    for name in ("chat", "default/chat"):
        verdict = desk.answer(name)
        assert isinstance(verdict, Forward)
        assert verdict.endpoints[0] == "127.0.0.1:1000"
        assert verdict.traceparent.startswith("00-")


def test_an_unknown_model_is_answered_with_the_names_the_caller_may_use():
    desk = Desk(service("open"), service("closed", keys=(KeyEntry(hash=hash_of_key("k")),)))
    status, code, message = error(desk.answer("opne"))
    assert (status, code) == (404, "model_not_found")
    assert "open" in message
    assert "closed" not in message
    assert "closed" in error(desk.answer("opne", key="k"))[2]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"), (b"{", "invalid_json"), (b"[]", "invalid_json"), (b"\xff\xfe", "invalid_json"),
        (b"{}", "missing_model"), (b'{"model": 7}', "missing_model"), (b'{"model": ""}', "missing_model"),
        (b'{"model": "' + b"x" * 300 + b'"}', "invalid_model"), (b"[" * 100_000, "invalid_json"),
    ],
)  # fmt: skip
def test_a_bad_body_is_400_with_its_reason(body: bytes, code: str):
    status, found, _ = error(Desk(service()).answer(body=body))
    assert (status, found) == (400, code)


def test_keys_open_their_own_service_only():
    desk = Desk(
        service("a", keys=(KeyEntry(hash=hash_of_key("key-a")),)),
        service("b", keys=(KeyEntry(hash=hash_of_key("key-b")),)),
    )
    assert isinstance(desk.answer("a", key="key-a"), Forward)
    assert error(desk.answer("a"))[:2] == (401, "invalid_api_key")
    assert error(desk.answer("a", key="nobody's"))[:2] == (401, "invalid_api_key")
    # A key that opens another service learns nothing about this one.
    assert error(desk.answer("a", key="key-b"))[:2] == (404, "model_not_found")


def test_an_open_service_takes_whatever_key_a_client_library_sends():
    assert isinstance(Desk(service()).answer(key="sk-none"), Forward)


def test_models_lists_what_the_caller_may_use():
    desk = Desk(service("a"), service("b", keys=(KeyEntry(hash=hash_of_key("k")),)))

    def listed(key: str | None) -> list[str]:
        verdict = desk.answer(path="/v1/models", method="GET", key=key, body=b"")
        assert isinstance(verdict, Answer)
        return [entry["id"] for entry in json.loads(verdict.body)["data"]]

    assert listed(None) == ["a", "default/a"]
    assert set(listed("k")) == {"a", "default/a", "b", "default/b"}
    one = desk.answer(path="/v1/models/a", method="GET", body=b"")
    assert isinstance(one, Answer)
    assert json.loads(one.body)["id"] == "a"
    assert error(desk.answer(path="/v1/models/x", method="GET", body=b""))[0] == 404


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/metrics", "/slots", "/v1/chat/completions/x", "/props", "/simulate/fault"]
)
def test_what_is_not_on_the_list_is_404(path: str):
    assert error(Desk(service()).answer(path=path))[:2] == (404, "unknown_url")


def test_a_route_that_this_engine_has_not_is_said():
    assert error(Desk(service()).answer(path="/v1/embeddings"))[:2] == (404, "unsupported_route")
    assert error(Desk(service()).answer(method="GET"))[:2] == (404, "unknown_url")


def test_a_name_that_two_services_want_stays_with_the_older():
    desk = Desk(
        service("new", names=("shared",), created_s=9.0), service("old", names=("shared",), created_s=2.0, replicas=1)
    )
    verdict = desk.answer("shared")
    assert isinstance(verdict, Forward)
    assert verdict.lease.service == "default/old"


def test_requests_beyond_the_slots_wait_and_are_served_in_order():
    desk = Desk(service(slots=1))
    running = desk.answer()
    assert isinstance(running, Forward)
    waiting = [desk.ask(content=str(n)) for n in range(3)]
    assert all(waiter for _, waiter in waiting)
    lease = running.lease
    for answers, _ in waiting:
        assert answers == []
        desk.picker.ended(lease, used_tokens=0)
        (verdict,) = answers
        assert isinstance(verdict, Forward)
        lease = verdict.lease


def test_a_newcomer_does_not_overtake_who_waits():
    desk = Desk(service(slots=1))
    first = desk.answer()
    assert isinstance(first, Forward)
    early, _ = desk.ask()
    late, _ = desk.ask()
    desk.picker.ended(first.lease, used_tokens=0)
    assert len(early) == 1
    assert late == []


def test_who_arrived_first_is_served_first_also_after_a_restart():
    desk = Desk(service(slots=1))
    desk.answer()
    answers: dict[float, list[Verdict]] = {}
    for arrival_s in (990.0, 970.0, 980.0):
        answers[arrival_s] = []
        desk.picker.decide(request("chat", arrival_s=arrival_s), answers[arrival_s].append)
    desk.use(service(slots=2))
    assert [arrival_s for arrival_s, said in answers.items() if said] == [970.0]


def test_who_waits_too_long_is_answered_503_with_the_reason():
    desk = Desk(service(slots=1, max_wait_s=10))
    desk.answer()
    answers, _ = desk.ask()
    desk.clock.advance(9.9)
    desk.picker.renewed(next(iter_leases(desk)), None)
    desk.picker.tick()
    assert answers == []
    desk.clock.advance(0.2)
    desk.picker.renewed(next(iter_leases(desk)), None)
    desk.picker.tick()
    assert error(answers[0])[:2] == (503, "no_capacity")
    assert answers[0].retry_after_s == 5  # type: ignore[union-attr]


def iter_leases(desk: Desk) -> Any:
    return (lease for lease, _ in desk.picker.leases._leases.values())


def test_a_service_without_replicas_says_why():
    desk = Desk(service(replicas=0, max_wait_s=0), service("zero", replicas=0, max_wait_s=0, wanted_replicas=0))
    desk.use(
        service(replicas=0, max_wait_s=0, wanted_replicas=1),
        service("zero", replicas=0, max_wait_s=0, wanted_replicas=0),
    )
    starting, _ = desk.ask("chat")
    zero, _ = desk.ask("zero")
    desk.picker.tick()
    assert error(starting[0])[:2] == (503, "no_ready_replicas")
    assert error(zero[0])[:2] == (503, "scaled_to_zero")


def test_more_held_than_allowed_is_429_by_number_and_by_bytes():
    desk = Desk(service(slots=1), max_held_requests=2)
    desk.answer()
    desk.ask()
    desk.ask()
    verdict = desk.answer()
    assert error(verdict)[:2] == (429, "overloaded")
    assert verdict.retry_after_s == 5  # type: ignore[union-attr]
    desk = Desk(service(slots=1), max_held_bytes=1000)
    desk.answer()
    desk.ask(content="x" * 600)
    assert error(desk.answer(content="x" * 600))[:2] == (429, "overloaded")


def test_a_client_that_leaves_frees_its_place_in_the_queue():
    desk = Desk(service(slots=1), max_held_requests=1)
    desk.answer()
    _, waiter = desk.ask()
    assert waiter
    desk.picker.leave(waiter)
    _, second = desk.ask()
    assert second


def test_a_draining_replica_gets_nothing_new():
    entry = service(replicas=2)
    draining = entry.model_copy(
        update={"replicas": (entry.replicas[0].model_copy(update={"draining": True}), entry.replicas[1])}
    )
    desk = Desk(draining)
    for _ in range(2):
        verdict = desk.answer()
        assert isinstance(verdict, Forward)
        assert verdict.lease.endpoint == entry.replicas[1].endpoint
    assert desk.ask()[1] is not None


def test_an_endpoint_that_envoy_has_not_applied_is_never_chosen():
    desk = Desk(service())
    desk.picker.envoy_applied(frozenset())
    answers, waiter = desk.ask()
    assert waiter
    assert desk.picker.waits_for_envoy
    desk.picker.envoy_applied(frozenset({("service/default/chat", "127.0.0.1:1000")}))
    assert len(answers) == 1


def test_a_service_that_goes_answers_those_who_wait_for_it():
    desk = Desk(service(slots=1))
    desk.answer()
    answers, _ = desk.ask()
    desk.use()
    assert error(answers[0])[:2] == (404, "model_not_found")


def test_streams_get_the_engines_patch_and_aliases_its_name():
    desk = Desk(service(stream_patch={"timings_per_token": True}, engine_model="real"))
    body = json.dumps({"model": "chat", "stream": True, "messages": []}).encode()
    verdict = desk.answer(body=body)
    assert isinstance(verdict, Forward)
    assert json.loads("{" + verdict.patch + "}") == {"timings_per_token": True, "model": "real"}


@given(st.binary(max_size=200), st.sampled_from(["GET", "POST", "PUT", "DELETE"]), st.text(max_size=30))
def test_no_request_makes_a_traceback(body: bytes, method: str, path: str):
    desk = Desk(service())
    for where in (path, CHAT.path, "/v1/embeddings", "/v1/models/" + path):
        answers, waiter = desk.ask(body=body, method=method, path=where)
        assert waiter or len(answers) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(json_values, json_values)
def test_no_value_of_a_field_makes_a_traceback(messages: object, stream: object):
    desk = Desk(service())
    body = json.dumps({"model": "chat", "messages": messages, "stream": stream}).encode()
    answers, waiter = desk.ask(body=body)
    assert waiter or len(answers) == 1


@given(
    st.lists(st.sampled_from(["ask", "end", "leave", "tick", "lose", "grow", "shrink"]), max_size=60), st.integers(1, 3)
)
def test_no_replica_ever_has_more_than_its_slots_and_nobody_waits_beside_a_free_one(steps: list[str], slots: int):
    desk = Desk(service(replicas=2, slots=slots))
    running: list[Lease] = []
    asked: list[tuple[list[Verdict], Waiter | None]] = []
    count = 2
    for step in steps:
        match step:
            case "ask":
                asked.append(desk.ask(content=f"{len(asked)}"))
            case "end" if running:
                desk.picker.ended(running.pop(0), used_tokens=0)
            case "leave" if asked and asked[-1][1] and not asked[-1][0]:
                desk.picker.leave(asked.pop()[1])  # type: ignore[arg-type]
            case "lose":
                desk.clock.advance(5)
                desk.picker.tick()
            case "grow":
                count = min(4, count + 1)
                desk.use(service(replicas=count, slots=slots))
            case "shrink":
                count = max(1, count - 1)
                desk.use(service(replicas=count, slots=slots))
            case _:
                desk.picker.tick()
        running = [
            v.lease
            for said, _ in asked
            for v in said
            if isinstance(v, Forward) and v.lease.id in desk.picker.leases._leases
        ]
        busy = desk.picker.leases.in_flight
        assert all(number <= slots for number in busy.values())
        usable = desk.picker.usable()["default/chat"]
        free = any(busy[f"127.0.0.1:{1000 + int(name.split('-')[1])}"] < slots for name in usable)
        assert not (free and desk.picker.waiting()["default/chat"])


class SteppingClock(ManualClock):
    """A clock whose wall time can be set, as administrators and NTP do."""

    step_s = 0.0

    def wall_s(self) -> float:
        return self.now_s + self.step_s


@pytest.mark.parametrize("step_s", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_is_set_ends_no_wait_and_lengthens_none(step_s: float):
    desk = Desk()
    clock = desk.clock = SteppingClock(1000.0)
    desk.picker = Picker(clock=clock, random=Random(1), observer=Nobody())
    desk.use(service(slots=1, max_wait_s=10))
    running = desk.answer()
    assert isinstance(running, Forward)
    waiting, _ = desk.ask()
    clock.step_s = step_s
    clock.advance(9)
    desk.picker.renewed(running.lease, None)
    desk.picker.tick()
    assert waiting == []
    late, _ = desk.ask(content="late")
    clock.advance(2)
    desk.picker.renewed(running.lease, None)
    desk.picker.tick()
    assert error(waiting[0])[:2] == (503, "no_capacity")
    # Who came after the step waits as long as the others.
    assert late == []
    clock.advance(9)
    desk.picker.renewed(running.lease, None)
    desk.picker.tick()
    assert error(late[0])[:2] == (503, "no_capacity")
