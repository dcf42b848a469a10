"""Writes a DiT at a timestep as a ViT for other software: weights for timm's VisionTransformer, or ONNX.

    python tools/export_vit.py configs/fashion_dit OUT --timestep 50 --taps 5.hidden
    python tools/export_vit.py configs/dit_aselect_ade20k.py OUT --checkpoint work_dirs/dit_aselect_ade20k/iter_160000.pth --onnx

OUT gets model.safetensors and timm.json, which mmaselect.extract.export.load_timm reads, or with --onnx model.onnx. Both take
noisy latents, signal * latent + sigma * noise, at the numbers that timm.json names; with --with-vae the graph takes images in
[-1, 1], and the VAE and the noise are in it.
"""
import argparse
from pathlib import Path

from mmaselect.extract import Extractor, export


def tap(text):
    """'5.query' -> (5, 'query')"""
    block, _, name = text.partition('.')
    try:
        return int(block), name
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not BLOCK.NAME, as in 5.hidden') from None


def options():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', metavar='CONFIG_OR_FOLDER', help='config with a DiTBackbone, or folder or hub id of a DiT')
    parser.add_argument('out', metavar='OUT', help='folder to write into')
    parser.add_argument('--checkpoint', help='of a training with the config')
    parser.add_argument('--timestep', type=int, help="0 the cleanest (default: that of the config or of the checkpoint)")
    parser.add_argument('--taps', type=tap, nargs='+', metavar='BLOCK.NAME',
                        help="features to keep, such as 5.hidden (default: the config's, or the last block's)")
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help='of the images in pixels (default: that of the training of the DiT)')
    parser.add_argument('--onnx', action='store_true', help='write ONNX, and not weights for timm')
    parser.add_argument('--with-vae', action='store_true', help='images go into the ONNX graph, with VAE and noise in it')
    return parser


def from_config(path, checkpoint, timestep, taps):
    """The extractor, timestep, and options of the noise of a config's backbone."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mmaselect.openmm.safe_load import load
    from mmaselect.registry import MODELS
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    changes = {**({} if timestep is None else {'timestep': timestep}), **({} if taps is None else {'taps': taps})}
    backbone = MODELS.build({**cfg.model.backbone, **changes})
    if checkpoint:
        state = load(checkpoint, 'cpu')
        state = state.get('state_dict', state)
        backbone.load_state_dict({key[len('backbone.'):]: value for key, value in state.items() if key.startswith('backbone.')})
    if backbone.chosen is None:
        raise ValueError(f'{path} leaves the timestep open: name one with --timestep, or a checkpoint that has one')
    if backbone.noise_draws > 1:
        raise ValueError(f'{path} averages features over noise_draws={backbone.noise_draws}, and an export has one draw: set 1')
    return backbone.extractor, backbone.chosen, dict(noise='none' if backbone.noise == 'none' else 'seeded', seed=backbone.seed)


def main():
    parser = options()
    args = parser.parse_args()
    try:
        if args.with_vae and not args.onnx:
            raise ValueError('--with-vae is for --onnx: timm has no VAE')
        if Path(args.source).suffix == '.py':
            extractor, timestep, noise = from_config(args.source, args.checkpoint, args.timestep, args.taps)
        elif args.timestep is None or args.checkpoint:
            raise ValueError('a folder or hub id takes --timestep and no --checkpoint')
        else:
            extractor = Extractor.from_pretrained(args.source, args.taps or [(-1, 'hidden')])
            timestep, noise = args.timestep, {}
        if args.onnx:
            inputs = 'images' if args.with_vae else 'latents'
            export.write_onnx(extractor, args.out, timestep, args.size, inputs=inputs, **(noise if args.with_vae else {}))
        else:
            export.write_timm(extractor, args.out, timestep, args.size)
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(str(error))
    print(f"written to {args.out}: {export.GRAPH if args.onnx else f'{export.WEIGHTS} and {export.ARGUMENTS}'}, t={timestep}, "
          f"taps {', '.join(f'{block}.{name}' for block, name in extractor.taps)}")


if __name__ == '__main__':
    main()
