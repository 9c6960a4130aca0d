"""The loop over a world in memory: what was wanted before, and what is gone, must not decide what is now."""

from pathlib import Path

import pytest

from pilotage.operator import records
from pilotage.weights import Fetched
from pilotage.weights.problems import NotFound, TokenNeeded
from tests.operator.world import World, here, service


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_service_is_fetched_planned_started_and_serves(world: World):
    world.fetches["hf://a/b"] = here(world.file("b.gguf"))
    world.operator.apply([service("hf://a/b", replicas=2)])
    assert world.condition()[0] != "True"
    await world.rounds()
    assert world.condition() == ("True", "Serving")
    assert len(world.replicas) == 2


async def test_the_late_failure_of_a_fetch_that_nobody_wants_any_more_is_not_told_of_the_new_one(world: World):
    def refused(_: str | None) -> Fetched:
        raise TokenNeeded("hf://a/private")

    world.fetches = {"hf://a/private": refused, "hf://a/open": here(world.file("open.gguf"))}
    world.may_fetch.clear()
    world.operator.apply([service("hf://a/private")])
    await world.rounds(2)
    world.operator.apply([service("hf://a/open")])
    world.may_fetch.set()
    await world.rounds()
    assert world.condition() == ("True", "Serving")


async def test_other_credentials_begin_the_fetch_anew(world: World):
    path = world.file("b.gguf")

    def by_token(token: str | None) -> Fetched:
        if token != "right":
            raise TokenNeeded("hf://a/b")
        return here(path)(token)

    world.fetches["hf://a/b"] = by_token
    world.secrets["hub"] = "wrong"
    world.may_fetch.clear()
    world.operator.apply([service("hf://a/b", secret="hub")])
    await world.rounds(2)
    # The same file again, with the secret mended: what is under way goes by the old one.
    world.secrets["hub"] = "right"
    world.operator.apply([service("hf://a/b", secret="hub")])
    world.may_fetch.set()
    await world.rounds()
    assert world.condition() == ("True", "Serving")


async def test_a_changed_file_does_not_read_as_serving_before_it_is_planned(world: World):
    world.fetches = {"hf://a/b": here(world.file("b.gguf")), "hf://a/c": here(world.file("c.gguf"))}
    world.operator.apply([service("hf://a/b")])
    await world.rounds()
    before = set(world.replicas)
    world.may_fetch.clear()
    world.operator.apply([service("hf://a/c")])
    assert world.condition() == ("True", "Progressing")
    await world.rounds(2)
    assert world.condition() == ("True", "Progressing")
    assert set(world.replicas) == before
    world.may_fetch.set()
    await world.rounds(8)
    assert world.condition() == ("True", "Serving")
    assert not before & set(world.replicas)


async def test_weights_that_are_gone_for_a_while_stop_nothing_that_runs_and_come_back(world: World):
    path = world.file("b.gguf")
    world.fetches["hf://a/b"] = here(path)
    world.operator.apply([service("hf://a/b", replicas=2)])
    await world.rounds()
    running = set(world.replicas)
    path.unlink()

    def missing(_: str | None) -> Fetched:
        raise NotFound(f"{path} does not exist")

    world.fetches["hf://a/b"] = missing
    await world.rounds()
    assert world.condition() == ("True", "Serving")
    assert set(world.replicas) == running
    # Now one is needed.
    world.replicas.pop(running.pop())
    await world.rounds()
    assert world.condition("WeightsAvailable") == ("False", "NotFound")
    assert world.condition()[0] == "True"
    world.fetches["hf://a/b"] = here(world.file("b.gguf"))
    world.clock.advance(3_600)
    await world.rounds()
    assert world.condition() == ("True", "Serving")
    assert len(world.replicas) == 2


async def test_weights_that_never_were_there_are_looked_for_once(world: World):
    def missing(_: str | None) -> Fetched:
        raise NotFound("no such file")

    world.fetches["hf://a/b"] = missing
    world.operator.apply([service("hf://a/b")])
    await world.rounds()
    world.clock.advance(3_600)
    await world.rounds()
    assert world.fetched == ["hf://a/b"]
    assert world.condition() == ("False", "NotFound")


def test_a_record_tells_lost_weights_from_weights_never_had():
    fresh = records.ServiceRecord(service=service("hf://a/b"), created_s=1.0)
    assert not fresh.has_lost_weights
    assert not fresh.is_planned
