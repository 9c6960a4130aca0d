"""Quantities as people read and write them."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def in_gb(size_bytes: int) -> str:
    """`size_bytes` in decimal units, as a disk or a model card states it: "98.4 MB"."""
    for limit, unit in ((1_000, "B"), (1_000_000, "kB"), (1_000_000_000, "MB")):
        if abs(size_bytes) < limit:
            return (
                f"{size_bytes * 1_000 / limit:.0f} {unit}"
                if unit == "B"
                else f"{size_bytes * 1_000 / limit:.1f} {unit}"
            )
    return f"{size_bytes / 1e9:.1f} GB"


def in_seconds(duration_s: float) -> str:
    """A duration as a person says it: "0.4 s", "12 s", "3 min 05 s"."""
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    if duration_s < 120:
        return f"{duration_s:.0f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    return f"{minutes} min {seconds:02d} s"
