"""Measures the time of an epoch's phases without synchronizing with the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from avvp_dist.dist.collective import Collective

T = TypeVar("T")

PHASES = ("data_wait", "step", "ranking", "exchange", "all_reduce")
_MAX_SPANS = 500  # of steps that are kept before completed spans are summed


class PhaseTimes:
    """Seconds that one rank spends in each phase of an epoch.

    On CPUs, a span is measured with the host clock. On CUDA, it is the device's time between two events in its stream;
    events are only read after the device has passed them.

    - ``data_wait``: until the next batch is available. On CUDA, this is the time during which the device was idle or copied
      the batch; a wait that overlaps with earlier steps does not count.
    - ``step``: forward, targets, backward, update and metering of the losses.
    - ``ranking``: part of ``step``: the stage computes its targets. If it ranks the global batch, this includes the exchange
      with the other ranks, with the wait for the slowest one, and the ranking itself, but not the scoring pass.
    - ``exchange``: part of ``ranking``: the exchange only; 0 in one process.
    - ``all_reduce``: part of ``step``: the time during which at least one bucket of gradients is being reduced. It overlaps
      with the backward pass and includes the wait for the slowest rank; 0 in one process.

    The rest of an epoch is spent between steps: checkpoints, checks of the loss, reports.

    Args:
        device: on which the phases run.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock: _Clock = _DeviceClock(device) if device.type == "cuda" else _HostClock()
        self._spans: dict[str, list[_Span]] = {phase: [] for phase in PHASES}
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def begin(self, phase: str) -> Callable[[], None]:
        """Begin a span of ``phase`` and return a function that ends it, from any thread. Overlapping spans count once."""
        span = _Span(self._clock.now())
        self._spans[phase].append(span)

        def end() -> None:
            span.end = self._clock.now()

        return end

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure a span of ``phase``."""
        end = self.begin(phase)
        try:
            yield
        finally:
            end()

    def batches(self, source: Iterable[T]) -> Iterator[T]:
        """Yield the items of ``source``; the time until each item is available counts as ``data_wait``."""
        items, end = iter(source), object()
        while True:
            with self.measure("data_wait"):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # mypy does not narrow by identity
            if len(self._spans["step"]) >= _MAX_SPANS:
                for phase in PHASES:
                    self._sum(phase, self._completed(phase))

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call. On CUDA, it waits for the device: call it once per epoch."""
        for phase, spans in self._spans.items():
            if spans:
                self._clock.wait(spans[-1].end)
            self._sum(phase, len(spans))
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _completed(self, phase: str) -> int:
        """Return how many of the oldest spans are completed."""
        spans = self._spans[phase]
        pending = (number for number, span in enumerate(spans) if span.end is None or not self._clock.passed(span.end))
        return next(pending, len(spans))

    def _sum(self, phase: str, count: int) -> None:
        """Sum the ``count`` oldest spans, which are ordered by their beginning."""
        spans, self._spans[phase] = self._spans[phase][:count], self._spans[phase][count:]
        until = 0.0
        for span in spans:
            # relative to the first span: CUDA returns times as float32, which is too coarse for hours
            begin, end = (self._clock.between(spans[0].begin, timestamp) for timestamp in (span.begin, span.end))
            self._seconds[phase] += max(0.0, end - max(begin, until))
            until = max(until, end)


class TimedCollective:
    """Wraps a `Collective` and measures its calls as ``exchange``."""

    def __init__(self, collective: Collective, times: PhaseTimes) -> None:
        self.rank = collective.rank
        self.world_size = collective.world_size
        self._collective = collective
        self._times = times

    def all_gather(self, rows: Tensor, total: int | None = None) -> Tensor:
        """See `Collective`."""
        with self._times.measure("exchange"):
            return self._collective.all_gather(rows, total)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """See `Collective`."""
        with self._times.measure("exchange"):
            return self._collective.all_reduce_sum(values)


class _Span:
    """Timestamps of a clock at which a span begins and, once it is completed, ends."""

    __slots__ = ("begin", "end")

    def __init__(self, begin: Any) -> None:
        self.begin = begin
        self.end: Any = None


class _Clock(Protocol):
    def now(self) -> Any: ...

    def between(self, begin: Any, end: Any) -> float: ...

    def passed(self, timestamp: Any) -> bool: ...

    def wait(self, timestamp: Any) -> None: ...


class _HostClock:
    """Timestamps are seconds."""

    now = staticmethod(time.perf_counter)

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def passed(self, timestamp: float) -> bool:
        return True

    def wait(self, timestamp: float) -> None:
        pass


class _DeviceClock:
    """Timestamps are events in the current stream of the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1000

    def passed(self, timestamp: torch.cuda.Event) -> bool:
        return timestamp.query()

    def wait(self, timestamp: torch.cuda.Event) -> None:
        timestamp.synchronize()
