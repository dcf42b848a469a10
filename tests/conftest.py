import gc
import os
import sys
from pathlib import Path

import pytest

# What takes seconds to import is imported in the functions: the process that hands out the tests does not run them.
sys.path.insert(0, str(Path(__file__).parent))  # tiny.py, runs.py, layouts.py


# Files that take longest, which come first, so that the processes of make test end at about the same time.
LONG = ('test_hook.py', 'test_tools.py', 'test_swap.py', 'test_compare.py', 'test_visualization.py', 'test_configs.py',
        'test_baselines.py', 'test_cached.py', 'test_policy.py', 'test_pretrain_dit.py', 'test_docs.py', 'test_folding.py')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))  # stable


def pytest_collection_finish():
    import torch
    torch.set_num_threads(1)  # for fixtures of a wider scope than few_threads
    if torch.cuda.is_available():  # what must be equal to the last bit is so on a GPU only where it is asked for
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False
    # MMEngine collects garbage with each dataset that it builds. Going through all that was imported was half of a tiny run.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A folder with all tiny datasets; see layouts.py."""
    import layouts
    return layouts.write_all(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """A checkpoint folder of the tiny DiT; see tiny.py."""
    import tiny
    return tiny.save(tmp_path_factory.mktemp('pretrained'))


@pytest.fixture
def evaluated(monkeypatch):
    """Fills with what evaluators in this process get."""
    from by_hand import Watched
    from mmengine.evaluator import Evaluator
    watched, process = Watched(), Evaluator.process

    def see(self, data_samples, data_batch=None):
        watched.see(data_samples)
        return process(self, data_samples, data_batch)
    monkeypatch.setattr(Evaluator, 'process', see)
    return watched


@pytest.fixture(autouse=True)
def few_threads():
    # Tiny tensors: threads only cost here, and the suite shares two cores with its own subprocesses.
    import torch
    torch.set_num_threads(1)
