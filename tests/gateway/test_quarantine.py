"""A body that ends engines is stopped after the second; what breaks for other reasons counts for nothing."""

from pilotage.gateway import ServiceEntry
from pilotage.gateway.answers import Answer
from pilotage.gateway.picker import Forward
from pilotage.gateway.quarantine import MOST_BODIES, QUARANTINE_S, Quarantine
from tests.gateway.test_picker import Desk, error, service


def fleet(first: int, count: int = 2) -> ServiceEntry:
    entry = service(replicas=first + count)
    return entry.model_copy(update={"replicas": entry.replicas[first:]})


def test_a_body_that_was_on_two_replicas_when_they_crashed_is_answered_with_the_reason():
    desk = Desk(fleet(0))
    for number in range(2):
        verdict = desk.answer(content="the poison")
        assert isinstance(verdict, Forward)
        desk.picker.ended(verdict.lease, used_tokens=0, broke_on=(verdict.lease.endpoint,))
        # A moment later the loop has seen that the engine is gone, and started another.
        dead = verdict.lease.endpoint
        entry = fleet(number + 1)
        desk.use(entry.model_copy(update={"replicas": tuple(r for r in entry.replicas if r.endpoint != dead)}))
    status, code, message = error(desk.answer(content="the poison"))
    assert (status, code) == (400, "request_quarantined")
    assert "2 replicas" in message
    assert isinstance(desk.answer(content="something else"), Forward)
    desk.clock.advance(QUARANTINE_S + 1)
    desk.picker.tick()
    assert isinstance(desk.answer(content="the poison"), Forward)


def test_a_connection_that_breaks_while_the_replica_lives_is_no_crash():
    desk = Desk(service(replicas=3))
    for _ in range(3):
        verdict = desk.answer(content="innocent")
        assert isinstance(verdict, Forward)
        desk.picker.ended(verdict.lease, used_tokens=0, broke_on=(verdict.lease.endpoint,))
    assert not isinstance(desk.answer(content="innocent"), Answer)


def test_a_replica_that_was_drained_has_not_crashed():
    entry = service(replicas=2)
    desk = Desk(entry)
    verdicts = [desk.answer(content="innocent") for _ in range(2)]
    draining = tuple(r.model_copy(update={"draining": True}) for r in entry.replicas)
    desk.use(entry.model_copy(update={"replicas": draining}))
    for verdict in verdicts:
        assert isinstance(verdict, Forward)
        desk.picker.ended(verdict.lease, used_tokens=0, broke_on=(verdict.lease.endpoint,))
    new = service(replicas=4)
    desk.use(new.model_copy(update={"replicas": new.replicas[2:]}))
    assert isinstance(desk.answer(content="innocent"), Forward)


def test_what_is_kept_is_bounded():
    quarantine = Quarantine()
    for number in range(MOST_BODIES + 100):
        quarantine.broke_off(f"{number}", "a:1", now_s=float(number))
    assert len(quarantine._broken) == MOST_BODIES
    quarantine.forget_old(now_s=MOST_BODIES + 100 + QUARANTINE_S)
    assert not quarantine._broken
