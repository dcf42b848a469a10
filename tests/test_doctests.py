"""The examples in the docstrings run."""
import doctest
import importlib
import re

import pytest
import runs
from marks import quick

MODULES = [str(path.relative_to(runs.ROOT).with_suffix('')).replace('/', '.').removesuffix('.__init__')
           for path in sorted((runs.ROOT / 'mmaselect').rglob('*.py')) if re.search('^ *>>> ', path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize('name', quick(MODULES, lambda name: name != 'mmaselect.notebook'))  # as README's block, which is run too
def test_examples(name, monkeypatch):
    monkeypatch.chdir(runs.ROOT)  # they name files of the repository
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


def test_what_users_of_notebooks_call_has_an_example():
    assert 'mmaselect.notebook' in MODULES
