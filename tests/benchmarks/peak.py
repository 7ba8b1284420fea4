"""The most resident memory of this process while something runs."""

import contextlib
import gc
import threading

import psutil


class Peak:
    """Bytes before, and at most while the context was open."""

    before = most = 0


@contextlib.contextmanager
def watched_memory():
    """Look at the resident memory every 5 ms until the context is left."""
    process, done, found = psutil.Process(), threading.Event(), Peak()

    def watch():
        while not done.wait(0.005):
            found.most = max(found.most, process.memory_info().rss)

    gc.collect()
    found.before = found.most = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
