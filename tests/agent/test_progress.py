from hypothesis import given
from hypothesis import strategies as st

from pilotage.agent.progress import ProgressWatch
from pilotage.signals import EngineSample


def sample(running: int | None, progress: float | None) -> EngineSample:
    return EngineSample(running=running, waiting=0, progress=progress)


def watch() -> ProgressWatch:
    return ProgressWatch(deadline_s=30, now_s=0)


def test_an_idle_engine_never_hangs():
    seen = watch()
    assert not any(seen.see(sample(0, 5), cpu_s=None, now_s=now_s).hung for now_s in range(0, 1000, 10))


def test_an_engine_that_moves_never_hangs():
    seen = watch()
    assert not any(seen.see(sample(3, now_s), cpu_s=None, now_s=now_s).hung for now_s in range(0, 1000, 10))


def test_requests_without_progress_are_a_hang_after_the_deadline():
    seen = watch()
    seen.see(sample(1, 5), cpu_s=None, now_s=0)
    assert not seen.see(sample(1, 5), cpu_s=None, now_s=29).hung
    verdict = seen.see(sample(1, 5), cpu_s=None, now_s=30)
    assert verdict.hung
    assert "1 requests run" in verdict.reason


def test_silence_is_a_hang_after_the_deadline():
    seen = watch()
    seen.see(sample(0, 5), cpu_s=None, now_s=10)
    assert not seen.see(None, cpu_s=None, now_s=39).hung
    assert seen.see(None, cpu_s=None, now_s=41).hung


def test_an_engine_that_computes_without_answering_is_given_more_time_but_not_for_ever():
    seen = watch()
    seen.see(sample(1, 5), cpu_s=0, now_s=0)
    assert not any(seen.see(None, cpu_s=now_s, now_s=now_s).hung for now_s in range(1, 300, 3))
    verdict = seen.see(None, cpu_s=301, now_s=301)
    assert verdict.hung
    assert "though it computes" in verdict.reason


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 29)), max_size=50))
def test_nothing_hangs_before_a_whole_deadline_without_movement(steps: list[tuple[int, int, float]]):
    seen, now_s, moved_s, last = watch(), 0.0, 0.0, None
    for running, progress, passes_s in steps:
        now_s += passes_s
        if not running or progress != last:
            moved_s, last = now_s, progress
        assert seen.see(sample(running, progress), cpu_s=None, now_s=now_s).hung == (now_s - moved_s >= 30)
