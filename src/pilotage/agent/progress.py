"""Whether an engine gets on with its work."""

from dataclasses import dataclass

from pilotage.signals import EngineSample

# An engine that computes but says nothing gets this many times the deadline.
SILENT_DEADLINES = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """`hung` with the reason, or not."""

    hung: bool
    reason: str = ""


class ProgressWatch:
    """Watches samples of a ready engine. It hangs when requests run and nothing moves, or when it says nothing at all.

    An idle engine never hangs, and one that is busy with a long prompt moves its counters with every batch.
    """

    def __init__(self, *, deadline_s: float, now_s: float) -> None:
        self._deadline_s = deadline_s
        self._moved_s = self._worked_s = now_s
        self._progress: float | None = None
        self._cpu_s: float | None = None

    def see(self, sample: EngineSample | None, *, cpu_s: float | None, now_s: float) -> Verdict:
        """Judge by one more sample (None is an engine that did not answer) and the CPU seconds it has used so far."""
        works = cpu_s is not None and self._cpu_s is not None and cpu_s > self._cpu_s
        self._cpu_s = cpu_s
        if sample is not None and (not sample.running or sample.progress != self._progress):
            self._moved_s = now_s
            self._worked_s = now_s
            self._progress = sample.progress
        elif sample is None and works:
            # Some engines answer nothing during a long batch; that they compute is progress, for a while.
            self._worked_s = now_s
        still_s = now_s - self._moved_s
        if sample is not None:
            if still_s < self._deadline_s:
                return Verdict(False)
            return Verdict(True, f"{sample.running} requests run and no token has come for {still_s:.0f} s")
        silent = now_s - self._worked_s >= self._deadline_s
        if silent or still_s >= SILENT_DEADLINES * self._deadline_s:
            return Verdict(
                True, f"it has not answered for {still_s:.0f} s" + ("" if silent else ", though it computes")
            )
        return Verdict(False)
