import pytest

from pilotage.units import in_gb, in_seconds


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (98_362_432, "98.4 MB"), (8_000_000_000, "8.0 GB")],
)
def test_sizes_are_said_in_decimal_units(size_bytes: int, said: str):
    assert in_gb(size_bytes) == said


@pytest.mark.parametrize(("duration_s", "said"), [(0.04, "0.0 s"), (9.5, "9.5 s"), (61, "61 s"), (185, "3 min 05 s")])
def test_durations_are_said_as_a_person_says_them(duration_s: float, said: str):
    assert in_seconds(duration_s) == said
