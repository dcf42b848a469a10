"""What the configs of tools/compare.py should have in common, and where they do not."""
from pathlib import Path

from mmaselect.openmm import launch

# Of the configs that test on the same data, these settings should agree, except for those that a backbone brings with it or
# that change the speed alone.
SHARED = ('train_dataloader', 'test_dataloader', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'train_cfg',
          'model.decode_head', 'model.auxiliary_head', 'model.head', 'model.test_cfg')
OWN = {'in_channels', 'in_index', 'c1_in_channels', 'num_workers', 'persistent_workers', 'pin_memory', 'val_interval'}


def leaves(node, path=''):
    """Dotted path -> value of every setting in a tree of dicts and lists; None counts as absent."""
    if not isinstance(node, (dict, list, tuple)):
        return {} if node is None else {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {key: value for name, child in items for key, value in leaves(child, f'{path}.{name}'.lstrip('.')).items()}


def differences(one, other):
    """Of two configs, what should agree and does not: [(dotted path, value, value)]; None where one lacks the setting."""
    both = [{path: value for path, value in leaves(cfg.to_dict()).items()
             if path.startswith(SHARED) and not OWN & set(path.split('.'))} for cfg in (one, other)]
    paths = dict.fromkeys([*both[0], *both[1]])
    return [(path, both[0].get(path), both[1].get(path)) for path in paths if both[0].get(path) != both[1].get(path)]


def data_of(cfg):
    """The name of the data that a config tests on: that of its folder, else of its class.

    Raises:
        ValueError: There is none, as in a pretraining.
    """
    if cfg.get('test_dataloader') is None:
        raise ValueError(f'{cfg.filename} has no test_dataloader, so there is nothing to compare it by')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return Path(dataset.get('data_root') or launch.type_name(dataset)).name


def warnings_about(cfgs):
    """A sentence for every config that differs from the first one on the same data."""
    first, sentences = {}, []
    for name, cfg in cfgs.items():
        other = first.setdefault(data_of(cfg), name)
        found = [f'{path} ({theirs!r}, not {ours!r})' for path, ours, theirs in differences(cfgs[other], cfg)]
        if found:
            sentences.append(f'{name} differs from {other} in {", ".join(found)}')
    return sentences
