"""The time that a bar says is left is that of the work that is left."""

import io

import pytest

from biasgym_tl.progress import bar


class Clock:
    """Seconds as a test wants them."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def shown(monkeypatch):
    """A bar of 100 steps, and its clock."""
    found = bar(total=100, desc="x", unit="step", progress=True)
    clock = Clock()
    found._time, found.start_t, found.last_print_t, found.fp = clock, 100.0, 100.0, io.StringIO()
    yield found, clock
    found.close()


def left(found):
    """Seconds that it says are left."""
    values = found.format_dict
    rate = values["rate"] or (values["n"] - values["initial"]) / values["elapsed"]
    return (values["total"] - values["n"]) / rate


def test_what_was_read_back_is_no_work_of_now(shown):
    found, clock = shown
    found.found(60)
    for _ in range(10):
        clock.now += 2
        found.update()
    assert found.n == 70 and left(found) == pytest.approx(30 * 2)
    found.found(10)  # more that was finished, in the middle
    assert left(found) == pytest.approx(20 * 2)


def test_work_of_known_seconds_counts_with_them(shown):
    found, clock = shown
    found.found(50, seconds=250.0)  # probes included, which come once in many steps
    assert left(found) == pytest.approx(50 * 5)
    for _ in range(10):
        clock.now += 1
        found.update()
    assert left(found) == pytest.approx(40 * 260 / 60)


def test_slow_steps_among_fast_ones_count(shown):
    found, clock = shown
    for i in range(40):
        clock.now += 11 if i % 10 == 9 else 1
        found.update()
    assert left(found) == pytest.approx(60 * 2)


def test_a_bar_that_is_not_shown_takes_the_same_calls(capsys):
    with bar(total=3, desc="x", unit="step", progress=False) as found:
        found.found(2, seconds=1.0)
        found.update()
    assert not capsys.readouterr().err
