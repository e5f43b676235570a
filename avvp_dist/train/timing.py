"""Where an epoch's time goes, measured without anybody waiting for it."""

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
_HELD = 500  # steps whose spans are kept before those that are over are added up


class PhaseTimes:
    """Seconds that one rank spends in each phase of an epoch.

    On CPUs a span lies between two looks at the clock. On CUDA it lies between two events in the stream of work: it is the
    device's time, and events are only read when the device has passed them.

    - ``data_wait``: until the next batch is there. On CUDA this is the time the device stood idle for it or copied it; a
      wait that is hidden behind earlier steps does not count.
    - ``step``: forward, targets, backward, update, and taking the losses in.
    - ``ranking``: part of ``step``: the stage chooses its targets. Where it ranks the global batch, this is its exchange
      with the other ranks, which includes waiting for the slowest, and the ranking itself; the network's judging pass is not
      in it.
    - ``exchange``: part of ``ranking``: the exchange alone; 0 in one process.
    - ``all_reduce``: part of ``step``: while at least one bucket of gradients is under way, from handing it over to its sum
      being there. It runs beside the backward pass as far as that lasts, and waits for the slowest rank; 0 in one process.

    What is left of an epoch is spent between steps: checkpoints, looks at the loss, reports.

    Args:
        device: what the phases run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock: _Clock = _DeviceClock(device) if device.type == "cuda" else _HostClock()
        self._spans: dict[str, list[_Span]] = {phase: [] for phase in PHASES}
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def begin(self, phase: str) -> Callable[[], None]:
        """Begins a span of ``phase``; what it returns ends the span, from any thread. Spans may overlap, and count once."""
        span = _Span(self._clock.now())
        self._spans[phase].append(span)

        def end() -> None:
            span.end = self._clock.now()

        return end

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """A span of ``phase``."""
        end = self.begin(phase)
        try:
            yield
        finally:
            end()

    def batches(self, source: Iterable[T]) -> Iterator[T]:
        """Hands ``source`` on; the time until each item comes is ``data_wait``."""
        items, nothing = iter(source), object()
        while True:
            with self.measure("data_wait"):
                item = next(items, nothing)
            if item is nothing:
                return
            yield item  # type: ignore[misc]  # mypy does not see that nothing has gone
            if len(self._spans["step"]) >= _HELD:
                for phase in PHASES:
                    self._add(phase, self._over(phase))

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call. On CUDA it waits for the device: for the end of an epoch."""
        for phase, spans in self._spans.items():
            if spans:
                self._clock.wait(spans[-1].end)
            self._add(phase, len(spans))
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _over(self, phase: str) -> int:
        """How many of the oldest spans are over."""
        spans = self._spans[phase]
        waiting = (number for number, span in enumerate(spans) if span.end is None or not self._clock.passed(span.end))
        return next(waiting, len(spans))

    def _add(self, phase: str, count: int) -> None:
        """Adds up the ``count`` oldest spans, which are in the order of their beginnings."""
        spans, self._spans[phase] = self._spans[phase][:count], self._spans[phase][count:]
        until = 0.0
        for span in spans:
            # counted from the first one: CUDA tells times as float32, too coarse for hours
            begin, end = (self._clock.between(spans[0].begin, mark) for mark in (span.begin, span.end))
            self._seconds[phase] += max(0.0, end - max(begin, until))
            until = max(until, end)


class TimedCollective:
    """A `Collective` whose calls are measured as ``exchange``."""

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
    """Where it begins and, once it is over, ends: marks of a clock."""

    __slots__ = ("begin", "end")

    def __init__(self, begin: Any) -> None:
        self.begin = begin
        self.end: Any = None


class _Clock(Protocol):
    def now(self) -> Any: ...

    def between(self, begin: Any, end: Any) -> float: ...

    def passed(self, mark: Any) -> bool: ...

    def wait(self, mark: Any) -> None: ...


class _HostClock:
    """Marks are seconds."""

    now = staticmethod(time.perf_counter)

    def between(self, begin: float, end: float) -> float:
        return end - begin

    def passed(self, mark: float) -> bool:
        return True

    def wait(self, mark: float) -> None:
        pass


class _DeviceClock:
    """Marks are events in whatever stream the calling thread works on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1000

    def passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()
