import pytest
import runs


@pytest.fixture(autouse=True, scope='module')
def blank():
    with runs.blank_curves():
        yield
