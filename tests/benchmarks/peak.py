"""The most resident memory of this process while something runs."""

import contextlib
import gc
import threading

import psutil


class Peak:
    """Bytes before, and at most while the context was open."""

    before = most = 0


@contextlib.contextmanager
def meanwhile(look, seconds):
    """Call ``look`` again and again, so many seconds apart, until the context is left."""
    done = threading.Event()

    def watch():
        while not done.wait(seconds):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def watched_memory():
    """Look at the resident memory every 5 ms until the context is left."""
    process, found = psutil.Process(), Peak()

    def look():
        found.most = max(found.most, process.memory_info().rss)

    gc.collect()
    found.before = found.most = process.memory_info().rss
    with meanwhile(look, 0.005):
        yield found
