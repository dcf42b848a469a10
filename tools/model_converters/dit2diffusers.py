"""Turns a checkpoint of DiT, SiT, REPA, REPA-E or LightningDiT, as their authors publish it, and a VAE into a folder that
DiTBackbone loads.

    python tools/model_converters/dit2diffusers.py DiT-XL-2-256x256.pt sd-vae-ft-ema checkpoints/dit_xl_2_256
    python tools/model_converters/dit2diffusers.py SiT-XL-2-256x256.pt sd-vae-ft-ema checkpoints/sit_xl_2_256

    python tools/model_converters/dit2diffusers.py lightningdit-xl-imagenet256-800ep.pt vavae-imagenet256-f16d32-dinov2.pt \\
        checkpoints/lightningdit_xl_256 --latents-stats latents_stats.pt

The VAE of REPA-E's weights is the one that was trained with them. What normalises the latents, of REPA-E's in the weights and of
LightningDiT's in a file beside its VAE, is written into the VAE's config.

The folder is in DiTPipeline layout. diffusers' own DiTPipeline samples from a converted DiT, and not from the others, whose time
or network it does not know.
"""
import argparse
from pathlib import Path

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

from mmaselect.extract import converters, loading
from mmaselect.extract.families.lightning_dit import LightningDiTTransformer2DModel
from mmaselect.files import new_folder


def build(state, arch=None, heads=None):
    """The transformer that holds ``state``, and the keys of it that were not needed."""
    left = []
    if converters.is_lightning(state):
        cls, config = LightningDiTTransformer2DModel, converters.lightning_config(state)
        weights = converters.convert_lightning(state)
    else:
        cls, config = DiTTransformer2DModel, converters.transformer_config(state, arch=arch, heads=heads)
        weights, left = converters.convert(state, config['num_layers'])
    with torch.device('meta'):
        model = cls(**config)
    model.load_state_dict(weights, assign=True)
    if cls is DiTTransformer2DModel:
        # Meta's code spaces the frequencies of the time by 1 / 128 of the range and diffusers by 1 / 127: families/dit.py.
        model.register_to_config(_downscale_freq_shift=0)
    return model, left


def load_vae(source, channels, state, stats):
    """The VAE from a folder or file, with what normalises its latents for the network of ``state`` in its config."""
    statistics = converters.read_statistics(stats, channels) if stats else converters.latent_statistics(state)
    if converters.is_lightning(state) and not statistics:
        raise ValueError('LightningDiT sees latents normalised by a mean and a deviation per channel: give the file with them, '
                         'which is published beside its VAE, by --latents-stats latents_stats.pt')
    if not source.is_file():
        vae = loading.load_vae(source, channels)
    elif statistics:
        vae = converters.convert_vae(converters.read_checkpoint(source))
        if vae.config.latent_channels != channels:
            raise ValueError(f'{source} has latents of {vae.config.latent_channels} channels, and the transformer takes '
                             f'{channels}: use the VAE that it was trained with')
    else:
        raise ValueError(f'{source} is a file, which does not say the scale of its latents: give a folder of diffusers\' '
                         'AutoencoderKL, whose config.json does')
    if statistics:  # they take the place of the VAE's own scale
        vae.register_to_config(**statistics, scaling_factor=1.0, shift_factor=None)
    return vae


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', type=Path, help='.pt or .safetensors file')
    parser.add_argument('vae', metavar='VAE_FOLDER', type=Path,
                        help='folder of the VAE that it was trained with, or of a pipeline with a vae/; for the published files '
                        "of DiT and SiT stabilityai/sd-vae-ft-ema or -mse. For LightningDiT also VA-VAE's .pt file")
    parser.add_argument('out', metavar='OUT', type=Path, help='a new folder for the result')
    parser.add_argument('--arch', metavar='NAME', help='checked against the shapes, such as DiT-XL/2 or SiT-B/4')
    parser.add_argument('--heads', type=int, help="attention heads, for sizes other than DiT's S, B, L and XL")
    parser.add_argument('--process', choices=converters.PROCESSES,
                        help="whose noise process: DiT's, SiT's (time 1 is clean) or REPA's (time 0 is clean). By default REPA's "
                        "where there are projectors, SiT's of LightningDiT, and else what --arch or the path says")
    parser.add_argument('--latents-stats', metavar='FILE', type=Path,
                        help="latents_stats.pt, with the mean and deviation per channel of LightningDiT's latents")
    args = parser.parse_args()
    try:
        with new_folder(args.out) as folder:
            state = converters.read_checkpoint(args.source)
            model, left = build(state, args.arch, args.heads)
            process = args.process or converters.process_of(args.source, state, args.arch)
            config = model.config
            vae = load_vae(args.vae, config.in_channels, state, args.latents_stats)
            scheduler = converters.scheduler_of(process)
            if isinstance(model, DiTTransformer2DModel):
                DiTPipeline(model, vae, scheduler).save_pretrained(folder)
            else:  # of which diffusers has no pipeline
                for name, part in dict(transformer=model, vae=vae, scheduler=scheduler).items():
                    part.save_pretrained(folder / name)
    except (OSError, ValueError, RuntimeError) as error:  # the last by torch, for shapes that are none of DiT's
        raise SystemExit(f'{args.source} was not converted: {error}') from error
    if left:
        print(f'left out, since the network does not need them: {", ".join(left)}')
    print(f'wrote {args.out}: {config.num_layers} blocks of width {model.inner_dim}, patch {config.patch_size}, trained on '
          f'latents of side {config.sample_size}, {config.num_embeds_ada_norm} classes and the null class; the noise '
          f'process is that of {process}')


if __name__ == '__main__':
    main()
