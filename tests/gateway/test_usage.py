import json
from pathlib import Path

from pilotage.gateway.usage import LogTail, read_entry


def entry(**more: object) -> bytes:
    return json.dumps(
        {"type": "DownstreamEnd", "code": 200, "flags": "-", "start_s": "10.5", "duration_ms": 1500, **more}
    ).encode()


def test_openais_usage_goes_before_running_timings():
    found = read_entry(
        entry(usage={"prompt_tokens": 9.0, "completion_tokens": 4.0, "timings_predicted": 3.0, "timings_cached": 2.0})
    )
    assert found
    assert (found.usage.prompt_tokens, found.usage.output_tokens, found.usage.cached_tokens) == (9, 4, 2)


def test_running_timings_count_where_the_answer_was_cut():
    found = read_entry(entry(usage={"timings_prompt": 5, "timings_cached": 2, "timings_predicted": 11}, flags="DC"))
    assert found
    assert (found.usage.prompt_tokens, found.usage.output_tokens, found.usage.cached_tokens) == (7, 11, 2)
    assert found.reason == "client_left"


def test_an_engine_that_says_nothing_is_not_counted_as_zero():
    found = read_entry(entry())
    assert found
    assert found.usage.output_tokens is None


def test_embeddings_have_a_prompt_and_no_output():
    found = read_entry(entry(usage={"prompt_tokens": 5}))
    assert found
    assert (found.usage.prompt_tokens, found.usage.output_tokens) == (5, 0)


def test_a_cut_off_line_is_skipped():
    assert read_entry(entry()[:-5]) is None
    assert read_entry(b"") is None
    assert read_entry(b"7") is None


def test_the_tail_follows_a_rotation_without_losing_or_repeating_a_line(tmp_path: Path):
    path = tmp_path / "access.log"
    rotations = []
    tail = LogTail(path, largest_bytes=2_000, rotate=lambda: rotations.append(1))
    writer = path.open("ab", buffering=0)
    seen = []
    for number in range(100):
        writer.write(entry(request_id=str(number)) + b"\n")
        seen += [e.request_id for e in tail.read()]
        if rotations:
            # Envoy goes on with the old file for a moment, then opens the new one.
            writer.write(entry(request_id=f"late-{number}") + b"\n")
            seen += [e.request_id for e in tail.read()]
            writer.close()
            writer = path.open("ab", buffering=0)
            rotations.clear()
    seen += [e.request_id for e in tail.read()]
    seen += [e.request_id for e in tail.read()]
    numbers = [s for s in seen if s and not s.startswith("late")]
    assert numbers == [str(n) for n in range(100)]
    assert len([s for s in seen if s and s.startswith("late")]) >= 3
    assert len(seen) == len(set(seen))


def test_a_line_that_comes_in_two_parts_is_one_entry(tmp_path: Path):
    path = tmp_path / "access.log"
    tail = LogTail(path, largest_bytes=10**6, rotate=lambda: None)
    line = entry(request_id="whole") + b"\n"
    with path.open("ab", buffering=0) as writer:
        writer.write(line[:20])
        assert list(tail.read()) == []
        writer.write(line[20:])
    assert [e.request_id for e in tail.read()] == ["whole"]


def test_what_is_written_to_the_old_log_until_the_new_one_is_there_counts(tmp_path: Path):
    path = tmp_path / "access.log"
    tail = LogTail(path, largest_bytes=10, rotate=lambda: None)
    with path.open("ab", buffering=0) as old:
        old.write(entry(request_id="first") + b"\n")
        assert [e.request_id for e in tail.read()] == ["first"]
        reading = tail.read()
        # Envoy is told to open the log anew; its last line to the old one and the new file come between two looks.
        old.write(entry(request_id="late") + b"\n")
        with path.open("ab", buffering=0) as new:
            new.write(entry(request_id="new") + b"\n")
        assert [e.request_id for e in reading] == ["late"]
        assert [e.request_id for e in tail.read()] == ["new"]


def test_where_a_request_broke_off_is_told_by_where_it_was_sent_first_and_where_it_ended():
    first_only = read_entry(entry(attempts=2, host="b:2"))
    both = read_entry(entry(attempts=2, host="b:2", flags="UC,URX", code=503))
    neither = read_entry(entry(attempts=1, host="a:1"))
    assert first_only
    assert both
    assert neither
    assert set(first_only.broke_on("a:1")) == {"a:1"}
    assert set(both.broke_on("a:1")) == {"a:1", "b:2"}
    assert neither.broke_on("a:1") == ()
