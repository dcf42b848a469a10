"""Which parameters ``make test`` runs."""
import pytest


def quick(values, wanted):
    """Parameters, of which make test runs those that ``wanted`` is true of, or that are in it; the others are slow."""
    chosen = wanted if callable(wanted) else wanted.__contains__
    return [value if chosen(value) else pytest.param(value, marks=pytest.mark.slow) for value in values]
