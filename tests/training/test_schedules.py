import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.training import schedules
from tfbp.training.phase import Phase


def rates(updates, **settings):
    """Returns the rate at each update of a phase."""
    phase = Phase("fit", ".*", epochs=1, learning_rate=1.0, **settings)
    schedule = schedules.of(phase, 0.5, updates)
    return np.array([float(schedule(update)) for update in range(updates)])


def test_a_constant_rate_is_a_number():
    assert schedules.of(Phase("fit", ".*", epochs=1, learning_rate=1.0), 0.5, 9) == 0.5


@pytest.mark.parametrize(("updates", "rising"), [(20, 5), (19, 4), (3, 0)])
def test_a_warm_up_rises_in_a_line_from_zero(updates, rising):
    settings = {"warm_up": 0.25, "schedule": "cosine"}
    line = 0.5 * np.arange(rising) / max(1, rising)
    rest = updates - rising
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(rest) / rest)) / 2
    np.testing.assert_allclose(rates(updates, **settings), [*line, *cosine], rtol=1e-5, atol=1e-7)
    if rising:
        constant = rates(updates, warm_up=0.25)
        np.testing.assert_allclose(constant, [*line, *[0.5] * rest], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60))
def test_one_cycle_rises_falls_and_ends_low(updates):
    found = rates(updates, schedule="one_cycle")
    places = np.array([0, 0.45, 0.9, 1]) * updates
    expected = np.interp(np.arange(updates), places, [0.05, 0.5, 0.05, 0.0005])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
