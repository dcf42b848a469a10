"""What the tools in tools/visualization share: from a config, a checkpoint and a few images to pictures of features."""
import argparse
import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from tqdm import tqdm

from mmaselect.extract import Extractor
from mmaselect.extract.vae import adapter
from mmaselect.pictures import as_picture, feature_colours, grid, noise_level
from mmaselect.selection import SelectionPolicy
from mmaselect.selection.candidates import candidate_grid

from . import launch
from .backbone import DiTBackbone
from .checkpoints import check_checkpoint
from .configs import nodes, type_name
from .modules import find_module
from .neck import AutoTimestepNeck
from .sweep_images import inner_datasets, training_sample


def parser(description, *, out):
    """The options of the tools that draw features; ``out`` is the name of the file they write."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument('config', help="config file; its default_scope, 'mmseg' or 'mmpretrain', names the toolbox")
    options.add_argument('checkpoint', nargs='?', help='weights to load, which may bring the chosen timestep')
    which = options.add_mutually_exclusive_group()
    which.add_argument('--images', type=int, default=4, metavar='N', help='training images to show (default: 4)')
    which.add_argument('--image', metavar='FILE', help='show this image, as the test pipeline gives it')
    options.add_argument('--timesteps', type=int, nargs='+', metavar='T', help='timesteps to show, 0 the cleanest')
    options.add_argument('--blocks', type=int, nargs='+', metavar='B',
                         help="blocks to show, from 0, negative ones from the end (default: the config's)")
    options.add_argument('--tap', default='hidden', help='feature of the blocks to show (default: hidden)')
    options.add_argument('--out', metavar='FILE', help=f'picture to write, numbered where there are several (default: {out} in '
                         'the work dir)')
    options.add_argument('--work-dir', help="of the run (default: the config's, or work_dirs/<config>)")
    options.add_argument('--device', default=get_device(), help='where to compute (default: %(default)s)')
    options.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                         help='replace settings of the config: model.backbone.timestep=100, key="[a,b]" or key=a,b')
    options.set_defaults(launcher='none', local_rank=0, no_pin_memory=True, no_persistent_workers=True, default_out=out)
    return options


@dataclass
class VisInputs:
    """A backbone and what it is shown."""
    cfg: Config
    backbone: DiTBackbone
    extractor: Extractor  # with the blocks' taps, at the timesteps that are drawn
    images: list[torch.Tensor]  # each (3, H, W) in [-1, 1]
    blocks: list[int]
    out: Path

    def latents_and_noise(self):
        """Per image the latent (1, C, H, W) and the noise that the backbone adds to it, or None."""
        latents = [self.extractor.encoder(image[None]) for image in self.images]
        if self.backbone.noise == 'none':
            return latents, [None] * len(latents)
        return latents, [self.extractor.draw(x, seed=self.backbone.seed)[0] for x in latents]

    def file(self, index):
        """Where the picture of an image goes."""
        return self.out if len(self.images) == 1 else self.out.with_stem(f'{self.out.stem}_{index}')


def load_inputs(args):
    """Builds what the options of ``parser`` name.

    Raises:
        FileNotFoundError: There is no such config, checkpoint or image.
        ValueError: The config has no DiTBackbone or no images, the blocks do not exist, or the DiT is folded at its timestep,
            is to be drawn at others and cannot be unfolded.
        CheckpointError: The checkpoint cannot be used.
    """
    cfg = launch.load_config(args)
    if args.checkpoint:
        check_checkpoint(args.checkpoint)
    if args.image and not Path(args.image).is_file():
        raise FileNotFoundError(f'there is no image {args.image}')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).to(args.device).eval()
    backbone = find_module(model, DiTBackbone)
    if backbone is None:
        raise ValueError(f'{args.config} has no DiTBackbone, whose features these are')
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint, map_location='cpu')
    own = args.timesteps and set(args.timesteps) <= set(backbone.timesteps)
    extractor = copy.copy(backbone.extractor) if own else backbone.unfolded()
    blocks = list(dict.fromkeys(block for block, _ in extractor.taps)) if args.blocks is None else args.blocks
    depth = extractor.family.depth
    blocks = sorted({block % depth if -depth <= block < depth else block for block in blocks})
    extractor.set_taps([(block, args.tap) for block in blocks])
    images = [one_image(cfg, model, args.image)] if args.image else training_images(cfg, model, args.images)
    return VisInputs(cfg, backbone, extractor, images, blocks, Path(args.out or Path(cfg.work_dir, args.default_out)))


def training_images(cfg, model, count):
    """``count`` images of those that the sweep looks at, each (3, H, W)."""
    if count < 1:
        raise ValueError(f'--images {count}: show at least one')
    cfg = copy.deepcopy(cfg)
    if cfg.get('train_dataloader'):
        cfg.train_dataloader.num_workers = 0  # a process would cost more than these few
    neck = find_module(model, AutoTimestepNeck)
    images = training_sample(cfg, model, neck.policy if neck else SelectionPolicy(), count)
    return [image for _, batch, _ in images.batches(0, count) for image in batch]


def one_image(cfg, model, path):
    """The image (3, H, W) of a file, as the test pipeline gives it."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or cfg.get('train_dataloader')
    steps = [step for step in inner_datasets(loader.dataset)[0].pipeline if type_name(step) != 'LoadAnnotations']
    if not any(type_name(step) == 'LoadImageFromFile' for step in steps):
        steps.insert(0, dict(type='LoadImageFromFile'))  # the dataset holds its images itself
    data = Compose(steps)(dict(img_path=str(path)))
    return model.data_preprocessor(pseudo_collate([data]), False)['inputs'][0]


def vae_decoder(cfg, backbone):
    """What shows a noisy latent: the decoder of the checkpoint's VAE, read anew, since the backbone keeps the encoder alone.

    Returns:
        Callable: (1, C, H, W) -> (3, H', W') in [-1, 1]. For a DiT on pixels it changes nothing; where the VAE is not
        pretrained it gives the latent's first three channels.
    """
    if backbone.extractor.encoder.vae is None:
        return lambda latent: latent[0]
    node = next(n for n in nodes(cfg.model) if type_name(n) == 'DiTBackbone')
    source = node.get('pretrained') or node.arch.get('vae')
    vae, why = None, 'the VAE has random weights'
    if isinstance(source, str):
        try:
            vae = diffusers.AutoencoderKL.from_pretrained(Path(source).expanduser() if Path(source).exists() else source,
                                                          subfolder='vae', low_cpu_mem_usage=False, variant=node.get('variant'),
                                                          revision=node.get('revision'))
        except (OSError, ValueError, RuntimeError) as error:  # the last: a VAE of another class
            why = f'{source} gives no VAE ({str(error).splitlines()[0]})'
    if vae is None:
        warnings.warn(f'{why}: noisy latents are shown by their first three channels', stacklevel=2)
        return lambda latent: latent[0, :3] / 3  # latents have about unit deviation
    vae.requires_grad_(False).eval().to(backbone.timestep.device)
    shift, factor = (torch.as_tensor(own, dtype=torch.float32, device=backbone.timestep.device).reshape(-1, 1, 1)
                     for own in adapter(vae).statistics(vae))
    return lambda latent: vae.decode((latent / factor + shift).to(vae.dtype)).sample[0]


def draw_features(inputs, *, tap, timesteps=None):
    """A picture per image: its features over timesteps and blocks. By default six timesteps and the chosen ones.

    Returns:
        list[Path]: The pictures.
    """
    process, chosen = inputs.extractor.process, inputs.backbone.timesteps
    timesteps = timesteps or sorted({*candidate_grid(len(process), 6), *chosen})
    latents, noise = inputs.latents_and_noise()
    with tqdm(total=len(timesteps), desc='features', unit=' timesteps') as bar:
        colours = feature_colours(inputs.extractor, latents, timesteps, [(block, tap) for block in inputs.blocks], noise=noise,
                                  advance=bar.update)
    columns = ['image', *(f't = {t}\nσ {process.sigma[t].item():.2f}' for t in timesteps)]
    for index, image in enumerate(inputs.images):
        rows = [[as_picture(image), *(colours[t][b][index] for t in timesteps)] for b in range(len(inputs.blocks))]
        grid(inputs.file(index), rows, columns=columns, labels=[f'block {block}\n{tap}' for block in inputs.blocks],
             title=f'First three principal components, by timestep and block ({tap})',
             chosen_columns=[1 + column for column, t in enumerate(timesteps) if t in chosen])
    return [inputs.file(index) for index in range(len(inputs.images))]


def draw_timesteps(inputs, *, tap, timesteps=None, selection=None):
    """A picture per image: a row per timestep with the noisy latent, the features and, from a selection, the score.

    Args:
        inputs (VisInputs): What to show.
        tap (str): Feature of the blocks.
        timesteps (Sequence[int] | None): By default the candidates of the selection, or ten.
        selection (SelectionResult | None): For the scores and the choice.

    Returns:
        list[Path]: The pictures.
    """
    process = inputs.extractor.process
    scores = {c.timestep: c.score for c in selection.candidates} if selection else {}
    timesteps = timesteps or list(scores) or candidate_grid(len(process), 10)
    chosen = selection.timesteps if selection else inputs.backbone.timesteps
    latents, noise = inputs.latents_and_noise()
    decode = vae_decoder(inputs.cfg, inputs.backbone)
    colours = feature_colours(inputs.extractor, latents, timesteps, [(block, tap) for block in inputs.blocks], noise=noise)
    with tqdm(total=len(inputs.images) * len(timesteps), desc='decoding', unit=' latents') as bar:
        for index, (image, latent, eps) in enumerate(zip(inputs.images, latents, noise, strict=True)):
            rows = []
            for t in timesteps:
                with torch.no_grad():
                    noisy = decode(process.add(latent, torch.tensor([t]), eps))[:, :image.shape[1], :image.shape[2]]
                rows.append([as_picture(image), as_picture(noisy), *(block[index] for block in colours[t])])
                bar.update()
            grid(inputs.file(index), rows, title='Image, what noise leaves of it, and its features, by timestep',
                 columns=['image', 'noisy', *(f'block {block}\n{tap}' for block in inputs.blocks)],
                 labels=[f't = {t}\n{noise_level(process, t)}'.replace(', ', '\n') for t in timesteps],
                 notes=[f'{selection.score["type"]}\n{scores[t]:.4f}' if t in scores else '' for t in timesteps],
                 chosen_rows=[row for row, t in enumerate(timesteps) if t in chosen])
    return [inputs.file(index) for index in range(len(inputs.images))]
