"""The timing model: deterministic, and with nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from pilotage.engines.simulated import Batch, Request, Timing


def run(batch: Batch, most_steps: int = 100_000) -> tuple[float, dict[int, int]]:
    """Seconds until all is done, and the tokens that each request got."""
    seconds, tokens = 0.0, dict[int, int]()
    for _ in range(most_steps):
        step = batch.step()
        if step is None:
            return seconds, tokens
        seconds += step.duration_s
        for request_id in step.emitted:
            tokens[request_id] = tokens.get(request_id, 0) + 1
    raise AssertionError("it never ends")


def test_one_request_takes_its_prefill_and_a_step_for_each_token_after_the_first():
    timing = Timing(prefill_tokens_per_s=1000, step_s=0.01, step_s_per_sequence=0.001)
    batch = Batch(timing)
    batch.add(Request(id=1, prompt_tokens=500, output_tokens=11))
    seconds, tokens = run(batch)
    assert tokens == {1: 11}
    assert abs(seconds - (0.5 + 10 * 0.011)) < 1e-9


def test_a_cached_prefix_saves_its_prefill():
    batch = Batch(Timing(prefill_tokens_per_s=1000, block_tokens=16))
    batch.add(Request(id=1, prompt_tokens=160, output_tokens=1, blocks=range(10)))
    first, _ = run(batch)
    batch.add(Request(id=2, prompt_tokens=160, output_tokens=1, blocks=range(10)))
    second, _ = run(batch)
    assert second < first / 10


def test_a_longer_batch_makes_each_step_slower_but_the_whole_faster():
    def seconds(at_once: int) -> float:
        batch = Batch(Timing(most_sequences=at_once))
        for number in range(16):
            batch.add(Request(id=number, prompt_tokens=10, output_tokens=20))
        return run(batch)[0]

    assert seconds(16) < seconds(4) < seconds(1)


def test_what_can_never_fit_is_refused():
    assert not Batch(Timing(cache_tokens=100)).add(Request(id=1, prompt_tokens=90, output_tokens=11))


def test_a_cancelled_request_gives_its_cache_back():
    batch = Batch(Timing(cache_tokens=100))
    batch.add(Request(id=1, prompt_tokens=50, output_tokens=50))
    batch.step()
    batch.add(Request(id=2, prompt_tokens=50, output_tokens=50))
    batch.step()
    assert 2 not in batch.running
    batch.cancel(1)
    batch.step()
    assert list(batch.running) == [2]
    assert batch.reserved_tokens == 100


requests = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), max_size=20)


@given(requests, st.integers(1, 8), st.integers(16, 600), st.integers(340, 2000))
def test_every_request_gets_all_its_tokens_and_all_cache_comes_back(
    sizes: list[tuple[int, int]], at_once: int, step_tokens: int, cache_tokens: int
):
    batch = Batch(Timing(most_sequences=at_once, step_tokens=step_tokens, cache_tokens=cache_tokens))
    for number, (prompt, output) in enumerate(sizes):
        assert batch.add(Request(id=number, prompt_tokens=prompt, output_tokens=output))
    seconds, tokens = run(batch)
    assert tokens == {number: output for number, (_, output) in enumerate(sizes)}
    assert batch.reserved_tokens == 0
    assert seconds >= 0
