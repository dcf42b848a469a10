"""Puts a DiT in the place of the backbone of any config of MMSegmentation or MMPretrain.

    python tools/swap_backbone.py mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py --out configs/pspnet_dit.py
    python tools/swap_backbone.py my_config.py --pretrained configs/fashion_dit --taps 4.hidden 6.hidden --out my_dit.py

Prints what changes as a diff, a table of what each head reads, and remarks. With --out it writes a short config that inherits
from the original, for tools/train.py and all other tools. A config that cannot be swapped is refused with the reason.
"""
import argparse
import difflib
import sys
from pathlib import Path

from export_vit import tap
from mmengine.config import Config, DictAction

from mmaselect.files import atomic
from mmaselect.openmm.swap import explain, inherit

PRETRAINED = 'facebook/DiT-XL-2-512'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', metavar='CONFIG', help='config file, or one that a toolbox brings, as mmseg::FOLDER/NAME.py')
    parser.add_argument('--pretrained', default=PRETRAINED, metavar='FOLDER_OR_ID',
                        help=f'the DiT: a folder or hub id in the layout of diffusers (default: {PRETRAINED})')
    parser.add_argument('--taps', type=tap, nargs='+', metavar='BLOCK.NAME',
                        help='features of the DiT, one for all levels or one for each that is read, such as 14.hidden')
    parser.add_argument('--backbone', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='further options of DiTBackbone, such as frozen=False')
    parser.add_argument('--neck', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='further options of AutoTimestepNeck, such as selection.num_images=64')
    parser.add_argument('--out', type=Path, metavar='FILE', help='config to write, which must not exist')
    return parser, parser.parse_args()


def nested(options):
    """{'selection.num_images': 64} -> {'selection': {'num_images': 64}}"""
    cfg = Config()
    cfg.merge_from_dict(options)
    return cfg.to_dict()


def table(readers):
    """Lines: each head, the maps that it reads, and the taps that they come from."""
    rows = [('head', 'reads', 'of taps')]
    for reader in readers:
        for k, (channels, stride, taps) in enumerate(reader.maps):
            listed = taps if isinstance(taps[0], tuple) else [taps]
            rows.append((f'{reader.place} {reader.head}' if k == 0 else '',
                         f'{channels} channels' + (f', {stride:g} pixels per cell' if stride else ', pooled'),
                         ' '.join(f'{block}.{name}' for block, name in listed)))
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return [f'{head:{widths[0]}}  <-  {reads:{widths[1]}}  <-  {taps}' for head, reads, taps in rows]


def difference(old, new):
    """Lines of a unified diff between two configs."""
    texts = [cfg.pretty_text.splitlines() for cfg in (old, new)]
    return list(difflib.unified_diff(*texts, 'original', 'swapped', n=1, lineterm=''))


def main():
    parser, args = parse_args()
    if args.out and args.out.exists():
        parser.error(f'--out {args.out} exists already: choose another file or remove this one')
    try:
        path = inherit.find(args.config)
        cfg = Config.fromfile(path)
        found = explain(cfg, args.pretrained, args.taps, backbone=nested(args.backbone), neck=nested(args.neck))
        text = inherit.inheriting(args.config if '::' in args.config else path, cfg, found.cfg, args.out or 'swapped.py',
                                  f'{args.config} on {args.pretrained}, by tools/swap_backbone.py.')
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:  # the last four: MMEngine's
        parser.error(f'{args.config}: {error}')
    print('\n'.join([*difference(cfg, found.cfg), '', *table(found.readers)]))
    for remark in found.remarks:
        print(f'note: {remark}', file=sys.stderr)
    if args.out:
        with atomic(args.out) as part:
            part.write_text(text)
        print(f'\nwrote {args.out}')


if __name__ == '__main__':
    main()
