"""The metrics of this package as Prometheus reads them."""

import re
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def scraped(targets: Callable[[], Iterable[str]]) -> Iterator[list[dict[str, str]]]:
    """Read the addresses of ``targets`` several times a second; yield series, oldest first: tags, name and value."""
    found: list[dict[str, str]] = []
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(0.2):
            with suppress(OSError, ValueError):  # not up yet, or going down
                for target in targets():
                    with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                        found.extend(_series(answer.read().decode()))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def last(found: list[dict[str, str]], name: str, **tags: str) -> float:
    """Return the newest value of a series."""
    values = [each["value"] for each in found if tags.items() <= each.items() and each["name"] == name]
    assert values, (name, tags, sorted({each["name"] for each in found}))
    return float(values[-1])


def _series(text: str) -> Iterator[dict[str, str]]:
    for name, tags, value in re.findall(r"^(ray_avvp_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        yield {**dict(re.findall(r'(\w+)="([^"]*)"', tags)), "name": name, "value": value}
