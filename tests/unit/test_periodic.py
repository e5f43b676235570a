"""Periodic tasks: start immediately, survive failures, stop on request."""

import threading
import time

from avvp_dist.launch.periodic import PeriodicTask


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_task_starts_immediately_survives_failures_and_stops(caplog):
    calls = []

    def work():
        calls.append(threading.current_thread())
        if len(calls) in (2, 3):
            raise OSError("the store is unavailable")

    task = PeriodicTask("polling", work, every=0.05)
    assert not calls
    task.start()
    task.start()
    wait_for(lambda: len(calls) >= 5)
    assert len(set(calls)) == 1
    assert threading.main_thread() not in calls
    task.stop()
    wait_for(lambda: not calls[0].is_alive())
    assert caplog.text.count("polling: the store is unavailable; retrying") == 1


def test_stopping_does_not_wait_for_the_current_call():
    hangs, started_work = threading.Event(), threading.Event()

    def work():
        started_work.set()
        hangs.wait(60)

    task = PeriodicTask("polling", work, every=60)
    task.start()
    assert started_work.wait(120)
    started = time.monotonic()
    task.stop()
    assert time.monotonic() - started < 40
    hangs.set()
