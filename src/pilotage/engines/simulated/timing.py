"""How long a batching engine takes, as a pure model: the server below sleeps by it, a simulator only adds it up."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A described engine. A step computes one token of each running answer and a chunk of the waiting prompts.

    Source: the usual linear model of iteration-level batching (Yu et al. 2022, Orca; for chunked prefill Agrawal et
    al. 2024, Sarathi-Serve): a fixed part, a part for each sequence, and prompt tokens at the prefill rate.
    """

    prefill_tokens_per_s: float = 8_000.0
    step_s: float = 0.02
    step_s_per_sequence: float = 0.0005
    most_sequences: int = 64
    step_tokens: int = 2_048
    cache_tokens: int = 200_000
    block_tokens: int = 16

    def duration_s(self, *, prefill_tokens: int, decoding: int) -> float:
        """Seconds for a step of this content."""
        decode_s = self.step_s + self.step_s_per_sequence * decoding if decoding else 0.0
        return decode_s + prefill_tokens / self.prefill_tokens_per_s


@dataclass(slots=True, kw_only=True)
class Request:
    """One request. `blocks` are hashes of its prompt's full blocks, each over all before it."""

    id: int
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0

    @property
    def reserved_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: it takes `duration_s`, and then each of `emitted` has one token more."""

    duration_s: float
    prefill_tokens: int
    emitted: tuple[int, ...]
    finished: tuple[int, ...]


@dataclass(slots=True)
class Batch:
    """The requests of one engine. Admits in order, while their cache fits; a request's whole cache is reserved."""

    timing: Timing
    waiting: deque[Request] = field(default_factory=deque)
    running: dict[int, Request] = field(default_factory=dict)
    reserved_tokens: int = 0
    _cached: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def add(self, request: Request) -> bool:
        """Queue `request`; False when it can never fit the cache."""
        if request.reserved_tokens > self.timing.cache_tokens:
            return False
        self.waiting.append(request)
        return True

    def cancel(self, request_id: int) -> None:
        """Drop a request that nobody waits for."""
        request = self.running.pop(request_id, None)
        if request:
            self.reserved_tokens -= request.reserved_tokens
        self.waiting = deque(r for r in self.waiting if r.id != request_id)

    def step(self) -> Step | None:
        """Do one step, or None when there is nothing to do."""
        self._admit()
        if not self.running:
            return None
        decoding = [r for r in self.running.values() if r.prefilled_tokens >= r.prompt_tokens]
        budget_tokens = max(0, self.timing.step_tokens - len(decoding))
        emitted = [r.id for r in decoding]
        prefill_tokens = 0
        for request in self.running.values():
            left_tokens = request.prompt_tokens - request.prefilled_tokens
            if left_tokens <= 0:
                continue
            chunk_tokens = min(left_tokens, budget_tokens - prefill_tokens)
            if chunk_tokens <= 0:
                break
            request.prefilled_tokens += chunk_tokens
            prefill_tokens += chunk_tokens
            if chunk_tokens == left_tokens:
                self._remember(request)
                # The last chunk's forward pass yields the first token.
                emitted.append(request.id)
        duration_s = self.timing.duration_s(prefill_tokens=prefill_tokens, decoding=len(decoding))
        return Step(duration_s, prefill_tokens, tuple(emitted), self._emit(emitted))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.timing.most_sequences:
            request = self.waiting[0]
            if self.reserved_tokens + request.reserved_tokens > self.timing.cache_tokens:
                return
            self.waiting.popleft()
            request.cached_tokens = self._cached_tokens(request)
            request.prefilled_tokens = request.cached_tokens
            self.reserved_tokens += request.reserved_tokens
            self.running[request.id] = request

    def _emit(self, emitted: Sequence[int]) -> tuple[int, ...]:
        finished = []
        for request_id in emitted:
            request = self.running[request_id]
            request.generated_tokens += 1
            if request.generated_tokens >= request.output_tokens:
                finished.append(request_id)
                del self.running[request_id]
                self.reserved_tokens -= request.reserved_tokens
        return tuple(finished)

    def _cached_tokens(self, request: Request) -> int:
        hits = 0
        for block in request.blocks:
            if block not in self._cached:
                break
            self._cached.move_to_end(block)
            hits += 1
        # The last token is always computed: its output is the first token of the answer.
        return min(hits * self.timing.block_tokens, max(0, request.prompt_tokens - 1))

    def _remember(self, request: Request) -> None:
        for block in request.blocks:
            self._cached[block] = None
            self._cached.move_to_end(block)
        while len(self._cached) * self.timing.block_tokens > self.timing.cache_tokens:
            self._cached.popitem(last=False)
