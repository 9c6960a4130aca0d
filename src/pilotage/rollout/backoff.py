"""How long to wait before a replica that failed is replaced."""

FIRST_S = 1.0
LONGEST_S = 60.0


def restart_delay_s(failures: int) -> float:
    """Seconds to wait after this many failures in a row: none after the first, then 1, 2, 4, up to 60."""
    if failures < 2:
        return 0.0
    return float(min(LONGEST_S, FIRST_S * 2 ** min(failures - 2, 16)))
