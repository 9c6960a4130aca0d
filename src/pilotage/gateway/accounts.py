"""What each API key of a service may still do: requests at once, requests and tokens a minute.

Each limit a minute is a bucket that fills evenly and holds a minute's worth, so there is no edge of a window to wait
for. Tokens are reserved when a request is admitted, by estimate, and settled by what the engine reports; what was used
beyond the reservation is a debt that the next minute pays. Buckets are kept in a mapped file: a picker that is killed
finds them as they were.
"""

import errno
import hashlib
import math
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import structlog

from pilotage.gateway.requests import Parsed
from pilotage.gateway.table import KeyEntry, KeyLimits, ServiceEntry

log = structlog.get_logger()

# Reserved for an answer whose request sets no limit.
DEFAULT_OUTPUT_TOKENS = 256
_RECORD = struct.Struct("<16sddd")
MOST_KEPT = 4_096
MINUTE_S = 60.0


class Refusal(Exception):
    """A limit is reached. `after_s` is when a retry makes sense; None is never."""

    def __init__(self, limit: str, message: str, after_s: float | None) -> None:
        super().__init__(message)
        self.limit = limit
        self.after_s = after_s


class Account:
    """One key of one service. `now_s` is monotonic seconds."""

    __slots__ = ("_at_s", "_ledger", "_place", "_requests", "_tokens", "id", "is_limited", "limits", "waiting",
                 "waiting_tokens")  # fmt: skip

    def __init__(self, account_id: str, limits: KeyLimits, *, ledger: "Ledger", now_s: float) -> None:
        self.id = account_id
        self.limits = limits
        self.is_limited = limits != KeyLimits()
        self.waiting = 0
        self.waiting_tokens = 0
        self._requests = float(limits.requests_per_minute or 0)
        self._tokens = float(limits.tokens_per_minute or 0)
        self._at_s = now_s
        self._ledger = ledger
        self._place, kept = ledger.place(account_id) if self.is_limited else (-1, None)
        if kept:
            requests, tokens, at_s = kept
            # After a reboot the clock begins anew; what was used before it is long forgiven.
            if at_s <= now_s:
                self._requests, self._tokens, self._at_s = requests, tokens, at_s
        self._fill(now_s)

    def use(self, limits: KeyLimits, *, now_s: float) -> None:
        """Go by `limits` from now on; what has been used stays used."""
        if limits == self.limits:
            return
        self._fill(now_s)
        used_requests = (self.limits.requests_per_minute or 0) - self._requests
        used_tokens = (self.limits.tokens_per_minute or 0) - self._tokens
        self._requests = (limits.requests_per_minute or 0) - (used_requests if self.limits.requests_per_minute else 0)
        self._tokens = (limits.tokens_per_minute or 0) - (used_tokens if self.limits.tokens_per_minute else 0)
        self.limits = limits
        self.is_limited = limits != KeyLimits()
        if self.is_limited and self._place < 0:
            self._place, _ = self._ledger.place(self.id)
        self._keep()

    def reservation(self, parsed: Parsed) -> int:
        """Tokens to reserve for a request: its prompt and the answer that it allows, at most a minute's worth."""
        if self.limits.tokens_per_minute is None:
            return 0
        wanted = DEFAULT_OUTPUT_TOKENS if parsed.max_output_tokens is None else parsed.max_output_tokens
        return min(parsed.prompt_tokens + wanted, self.limits.tokens_per_minute)

    def require(self, parsed: Parsed, *, running: int, now_s: float) -> int:
        """The tokens to reserve, when the request may come in beside those that run and wait. Raises Refusal."""
        limits = self.limits
        if limits.concurrent_requests is not None and running + self.waiting >= limits.concurrent_requests:
            raise Refusal(
                "requests", f"{limits.concurrent_requests} requests of this key are running or waiting already", 1.0
            )
        self._fill(now_s)
        if limits.requests_per_minute is not None:
            missing = 1 + self.waiting - self._requests
            if missing > 1e-9:
                raise Refusal(
                    "requests",
                    f"this key has made its {limits.requests_per_minute} requests a minute",
                    missing * MINUTE_S / limits.requests_per_minute,
                )
        tokens = self.reservation(parsed)
        if limits.tokens_per_minute is not None:
            if parsed.prompt_tokens > limits.tokens_per_minute:
                raise Refusal(
                    "tokens",
                    f"the prompt alone has about {parsed.prompt_tokens} tokens, and this key may use "
                    f"{limits.tokens_per_minute} a minute",
                    None,
                )
            short = tokens + self.waiting_tokens - self._tokens
            if short > 1e-9:
                raise Refusal(
                    "tokens",
                    f"this key has used its {limits.tokens_per_minute} tokens a minute: about {tokens} are wanted, "
                    f"{max(0, int(self._tokens - self.waiting_tokens))} are left",
                    short * MINUTE_S / limits.tokens_per_minute,
                )
        return tokens

    def wait(self, tokens: int) -> None:
        """A request that was let in waits for a place; what it will take is kept free for it."""
        self.waiting += 1
        self.waiting_tokens += tokens

    def wait_no_more(self, tokens: int) -> None:
        """It is admitted now, or gone."""
        self.waiting -= 1
        self.waiting_tokens -= tokens

    def admit(self, tokens: int, *, now_s: float) -> None:
        """A request is sent to an engine: one of the minute's, and its tokens, reserved."""
        self._fill(now_s)
        self._requests -= 1
        self._tokens -= tokens
        self._keep()

    def settle(self, *, reserved: int, used: int, now_s: float) -> None:
        """It is over, and used so many tokens."""
        if self.limits.tokens_per_minute is None:
            return
        self._fill(now_s)
        self._tokens = min(self._tokens + reserved - used, float(self.limits.tokens_per_minute))
        self._keep()

    def headers(self, *, now_s: float) -> list[tuple[str, str]]:
        """OpenAI's x-ratelimit-* headers, as they stand after this request."""
        self._fill(now_s)
        found: list[tuple[str, str]] = []
        for name, limit, level in (
            ("requests", self.limits.requests_per_minute, self._requests - self.waiting),
            ("tokens", self.limits.tokens_per_minute, self._tokens - self.waiting_tokens),
        ):
            if limit is not None:
                found += [
                    (f"x-ratelimit-limit-{name}", str(limit)),
                    (f"x-ratelimit-remaining-{name}", str(max(0, int(level + 1e-6)))),
                    (f"x-ratelimit-reset-{name}", as_openai_duration(max(0.0, (limit - level) * MINUTE_S / limit))),
                ]
        return found

    def close(self) -> None:
        """The key is gone; its place is free for another."""
        self._ledger.free(self.id)
        self._place = -1

    def _fill(self, now_s: float) -> None:
        elapsed_s = now_s - self._at_s
        if elapsed_s <= 0:
            return
        self._at_s = now_s
        requests, tokens = self.limits.requests_per_minute, self.limits.tokens_per_minute
        if requests is not None:
            self._requests = min(float(requests), self._requests + elapsed_s * requests / MINUTE_S)
        if tokens is not None:
            self._tokens = min(float(tokens), self._tokens + elapsed_s * tokens / MINUTE_S)

    def _keep(self) -> None:
        self._ledger.keep(self._place, self.id, self._requests, self._tokens, self._at_s)


class Ledger:
    """The buckets of all accounts, in a mapped file: written at the speed of memory, and safe from a kill."""

    def __init__(self, path: Path | None) -> None:
        self._map: mmap.mmap | None = None
        self._known: dict[str, int] = {}
        self._free = list(range(MOST_KEPT - 1, -1, -1))
        if path is None:
            return
        try:
            self._map = _mapped(path, MOST_KEPT * _RECORD.size)
        except OSError as error:
            # Limits still hold; only a killed picker would forget what was used.
            log.warning("limits_not_kept", error=error.strerror)
            return
        for place in range(MOST_KEPT):
            name = self._read(place)[0]
            if name:
                self._known[name] = place
        taken = set(self._known.values())
        self._free = [place for place in self._free if place not in taken]

    def place(self, account_id: str) -> tuple[int, tuple[float, float, float] | None]:
        """A place for the account, -1 where none is left, and what it holds from before: requests, tokens, when."""
        known = self._known.get(account_id)
        if known is not None:
            _, requests, tokens, at_s = self._read(known)
            sane = math.isfinite(requests) and math.isfinite(tokens) and math.isfinite(at_s)
            return known, (requests, tokens, at_s) if sane else None
        if self._map is None or not self._free:
            return -1, None
        self._known[account_id] = self._free.pop()
        return self._known[account_id], None

    def keep(self, place: int, account_id: str, requests: float, tokens: float, at_s: float) -> None:
        """Write it down."""
        if self._map is not None and place >= 0:
            _RECORD.pack_into(self._map, place * _RECORD.size, account_id.encode(), requests, tokens, at_s)

    def free(self, account_id: str) -> None:
        """Nobody needs what stands there of this account any more."""
        place = self._known.pop(account_id, None)
        if self._map is None or place is None:
            return
        self._map[place * _RECORD.size : (place + 1) * _RECORD.size] = bytes(_RECORD.size)
        self._free.append(place)

    def keep_only(self, account_ids: Iterable[str]) -> None:
        """Free the places of all others."""
        wanted = set(account_ids)
        for account_id in list(self._known):
            if account_id not in wanted:
                self.free(account_id)

    def _read(self, place: int) -> tuple[str, float, float, float]:
        assert self._map is not None
        name, requests, tokens, at_s = _RECORD.unpack_from(self._map, place * _RECORD.size)
        return name.rstrip(b"\0").decode("ascii", "replace"), requests, tokens, at_s


def _mapped(path: Path, size: int) -> mmap.mmap:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(handle).st_size != size:
            os.ftruncate(handle, 0)
            # Written and not left as a hole: a page that the disk has no room for would end the process when touched.
            os.pwrite(handle, bytes(size), 0)
            if os.fstat(handle).st_size != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return mmap.mmap(handle, size)
    finally:
        os.close(handle)


def account_id(service: ServiceEntry, key: KeyEntry) -> str:
    """What a key of a service is called in leases and logs: tells the key to nobody."""
    return hashlib.sha256(f"{service.key}\0{key.hash}".encode()).hexdigest()[:12]


def as_openai_duration(duration_s: float) -> str:
    """`duration_s` as OpenAI's headers write it: 20ms, 1s, 6m0s."""
    if duration_s < 1:
        return f"{math.ceil(duration_s * 1000)}ms"
    minutes, seconds = divmod(math.ceil(duration_s), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
