from hypothesis import given
from hypothesis import strategies as st

from pilotage.gateway.leases import LEASE_S, Lease, Leases, lease_from_text


def lease(number: int = 1, endpoint: str = "a:1") -> Lease:
    return Lease(
        id=f"x-{number}",
        service="default/chat",
        endpoint=endpoint,
        arrival_s=1.5,
        streams=True,
        prompt_tokens=7,
        hold_s=0.25,
    )


def test_a_lease_reads_back_from_its_text():
    assert lease_from_text(lease().to_text()) == lease()
    assert lease_from_text("") is None
    assert lease_from_text("a;b;c;d;e;f;g") is None


def test_a_lease_that_nobody_renews_ends_and_its_place_is_free():
    leases = Leases()
    leases.grant(lease(), now_s=0)
    assert leases.expire(now_s=LEASE_S - 0.1) == []
    leases.renew(lease(), endpoint="a:1", now_s=LEASE_S - 0.1)
    assert leases.expire(now_s=LEASE_S + 0.1) == []
    assert leases.expire(now_s=2 * LEASE_S) == [lease()]
    assert not leases.in_flight


def test_a_retry_moves_the_lease_to_where_the_request_is():
    leases = Leases()
    leases.grant(lease(), now_s=0)
    leases.renew(lease(), endpoint="b:2", now_s=1)
    assert dict(leases.in_flight) == {"b:2": 1}
    leases.end("x-1", now_s=2)
    assert not leases.in_flight


def test_a_late_renewal_brings_no_ended_lease_back():
    leases = Leases()
    leases.grant(lease(), now_s=0)
    leases.end("x-1", now_s=1)
    leases.renew(lease(), endpoint="a:1", now_s=1.1)
    assert not leases.in_flight


def test_a_restarted_picker_takes_up_a_lease_it_has_never_granted():
    leases = Leases()
    leases.renew(lease(), endpoint="a:1", now_s=0)
    assert dict(leases.in_flight) == {"a:1": 1}


steps = st.lists(
    st.tuples(
        st.sampled_from(["grant", "renew", "end", "expire"]),
        st.integers(0, 6),
        st.sampled_from(["a:1", "b:2"]),
        st.floats(0, 3),
    ),
    max_size=60,
)


@given(steps)
def test_the_counts_are_always_those_of_the_leases(steps: list[tuple[str, int, str, float]]):
    leases, now_s, granted = Leases(), 0.0, set[int]()
    for what, number, endpoint, passes_s in steps:
        now_s += passes_s
        if what == "grant" and number not in granted:
            granted.add(number)
            leases.grant(lease(number, endpoint), now_s=now_s)
        elif what == "renew":
            # Ids are never given twice, so what was taken up after a restart is not granted later.
            granted.add(number)
            leases.renew(lease(number), endpoint=endpoint, now_s=now_s)
        elif what == "end":
            leases.end(f"x-{number}", now_s=now_s)
        elif what == "expire":
            leases.expire(now_s=now_s)
        assert sum(leases.in_flight.values()) == len(leases)
        assert all(count > 0 for count in leases.in_flight.values())
    leases.expire(now_s=now_s + LEASE_S + 1)
    assert len(leases) == 0
    assert not leases.in_flight
