"""Work beside training: begins at once, outlives its failures, ends when told to."""

import threading
import time

from avvp_dist.launch.periodic import PeriodicTask


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_begins_at_once_goes_on_after_a_failure_and_ends(caplog):
    calls = []

    def work():
        calls.append(threading.current_thread())
        if len(calls) in (2, 3):
            raise OSError("the store is away")

    repeating = PeriodicTask("looking", work, every=0.05)
    assert not calls
    repeating.start()
    repeating.start()
    wait_for(lambda: len(calls) >= 5)
    assert len(set(calls)) == 1
    assert threading.main_thread() not in calls
    repeating.stop()
    wait_for(lambda: not calls[0].is_alive())
    assert caplog.text.count("looking: the store is away; tried again") == 1


def test_stopping_waits_for_nothing():
    hangs, begun = threading.Event(), threading.Event()

    def work():
        begun.set()
        hangs.wait(60)

    repeating = PeriodicTask("looking", work, every=60)
    repeating.start()
    assert begun.wait(120)
    started = time.monotonic()
    repeating.stop()
    assert time.monotonic() - started < 40
    hangs.set()
