"""How many examples a property is tried on.

The gate tries the same ones at every run. `pytest --hypothesis-profile nightly` draws at least 1,000 new ones each time
and prints how to draw one that fails again.
"""

from __future__ import annotations

from hypothesis import settings

NIGHTLY = 1000


def load_profiles() -> None:
    """Register both profiles, and load that of the gate."""
    settings.register_profile("gate", deadline=None, derandomize=True, database=None)
    settings.register_profile("nightly", deadline=None, max_examples=NIGHTLY, print_blob=True)
    settings.load_profile("gate")


def tries(count: int) -> settings:
    """Return the decorator of a property that the gate tries on so many examples."""
    current = settings.get_profile(settings.get_current_profile_name())
    return settings(max_examples=count if current.derandomize else max(count, NIGHTLY))
