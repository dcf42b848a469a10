"""Turns a checkpoint in the layout of Meta's DiT code (DiT, SiT, REPA, REPA-E) and a VAE into a folder that DiTBackbone loads.

    python tools/model_converters/dit2diffusers.py DiT-XL-2-256x256.pt sd-vae-ft-ema checkpoints/dit_xl_2_256
    python tools/model_converters/dit2diffusers.py SiT-XL-2-256x256.pt sd-vae-ft-ema checkpoints/sit_xl_2_256

The VAE of REPA-E's weights is the one that was trained with them; what normalises its latents is written into its config.

The folder is in DiTPipeline layout. diffusers' own DiTPipeline samples from a converted DiT, and not from SiT or REPA, whose
time it does not know.
"""
import argparse
from pathlib import Path

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

from mmaselect.extract import converters, loading
from mmaselect.files import new_folder


def build(state, config):
    """A DiTTransformer2DModel that holds ``state``, and the keys of it that were not needed."""
    weights, left = converters.convert(state, config['num_layers'])
    with torch.device('meta'):
        model = DiTTransformer2DModel(**config)
    model.load_state_dict(weights, assign=True)
    # Meta's code spaces the frequencies of the time by 1 / 128 of the range and diffusers by 1 / 127: families/dit.py.
    model.register_to_config(_downscale_freq_shift=0)
    return model, left


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', type=Path, help='.pt or .safetensors file')
    parser.add_argument('vae', metavar='VAE_FOLDER', type=Path,
                        help='folder of the VAE that it was trained with, or of a pipeline with a vae/; for the published files '
                        'stabilityai/sd-vae-ft-ema or -mse')
    parser.add_argument('out', metavar='OUT', type=Path, help='a new folder for the result')
    parser.add_argument('--arch', metavar='NAME', help='checked against the shapes, such as DiT-XL/2 or SiT-B/4')
    parser.add_argument('--heads', type=int, help="attention heads, for sizes other than DiT's S, B, L and XL")
    parser.add_argument('--process', choices=converters.PROCESSES,
                        help="whose noise process: DiT's, SiT's (time 1 is clean) or REPA's (time 0 is clean). By default REPA's "
                        'where there are projectors, and else what --arch or the path says')
    args = parser.parse_args()
    try:
        with new_folder(args.out) as folder:
            state = converters.read_checkpoint(args.source)
            config = converters.transformer_config(state, arch=args.arch, heads=args.heads)
            process = args.process or converters.process_of(args.source, state, args.arch)
            model, left = build(state, config)
            vae = loading.load_vae(args.vae, config['in_channels'])
            statistics = converters.latent_statistics(state)
            if statistics:  # they take the place of the VAE's own scale
                vae.register_to_config(**statistics, scaling_factor=1.0, shift_factor=None)
            DiTPipeline(model, vae, converters.scheduler_of(process)).save_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:  # the last by torch, for shapes that are none of DiT's
        raise SystemExit(f'{args.source} was not converted: {error}') from error
    if left:
        print(f'left out, since the network does not need them: {", ".join(left)}')
    print(f'wrote {args.out}: {config["num_layers"]} blocks of width {model.inner_dim}, patch {config["patch_size"]}, trained on '
          f'latents of side {config["sample_size"]}, {config["num_embeds_ada_norm"]} classes and the null class; the noise '
          f'process is that of {process}')


if __name__ == '__main__':
    main()
