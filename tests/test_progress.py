"""The time that a bar says is left is that of the work that is left."""

import io

import pytest

from biasgym_tl.progress import Bar, bar
from biasgym_tl.text import generate


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


def test_what_is_done_soon_shows_no_bar(capsys):
    for delay, written in ((60, False), (0, True)):
        with bar(total=2, desc="answers", progress=True, delay=delay) as found:
            found.update()
        assert ("answers" in capsys.readouterr().err) == written


def test_answers_are_all_counted_however_soon_they_end(main_model, monkeypatch):
    bars = []
    monkeypatch.setattr(Bar, "close", lambda self: bars.append((self.n, self.total)))
    prompts = [[1, 7, 9], [1, 7, 9, 8, 8], [1, 7]]
    written = generate(main_model, prompts, max_new_tokens=6, batch_size=2, progress=True)
    cut = generate(main_model, prompts, max_new_tokens=6, until=[written[0][:1]], progress=True)
    assert len(written[0]) > 1 and cut[0] == ""
    assert all(n == total > 0 for n, total in bars) and len(bars) >= 2
