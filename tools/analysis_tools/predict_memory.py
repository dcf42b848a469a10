"""Predicts the memory that a training step of each config takes on one GPU. Needs no weights, no data and no GPU.

    python tools/analysis_tools/predict_memory.py configs/dit_aselect_ade20k*.py
"""
import argparse
import warnings
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from mmaselect.openmm.memory import precision_of, predict


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', nargs='+', help='config files')
    parser.add_argument('--batch-size', type=int, help="images per GPU (default: the config's)")
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help="of an image in pixels (default: the config's crop)")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='replace settings of the config')
    args = parser.parse_args()
    table = Table('config', 'images', 'precision', 'parameters', 'gradients', 'optimizer', 'activations', 'peak',
                  title='Memory of a training step, GiB')
    MMLogger.get_current_instance().setLevel('ERROR')  # it names every frozen parameter
    warnings.simplefilter('ignore')
    sharded = False
    try:
        for path in tqdm(args.config, desc='configs', disable=len(args.config) == 1):
            cfg = Config.fromfile(path)
            cfg.merge_from_dict(args.cfg_options)
            sharded |= cfg.get('strategy') is not None
            memory = predict(cfg, batch_size=args.batch_size, size=args.size)
            parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.peak)
            table.add_row(Path(path).stem, str(args.batch_size or cfg.train_dataloader.batch_size),
                          precision_of(cfg) or 'float32', *(f'{part / 2**30:.2f}' for part in parts))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console = Console(width=130)
    console.print(table)
    console.print("Activations are the images and what the forward pass leaves for the backward pass. Not counted: the GPU's "
                  "context, work space inside of operators, gaps of the allocator, DDP's buckets.", style='dim')
    if sharded:
        console.print('FSDP is counted as one GPU. On several, it divides gradients and optimizer state among them, and the '
                      'parameters between the steps.', style='dim')


if __name__ == '__main__':
    main()
