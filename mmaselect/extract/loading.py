"""A DiT, its VAE and its noise process: from a folder or hub id in DiTPipeline layout, or from an arch without weights.

Weights are read by diffusers from safetensors, or with weights_only=True; nothing here unpickles.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
from huggingface_hub import snapshot_download

from .families import FAMILIES
from .noise import NoiseProcess


@dataclass
class Parts:
    """What an extractor is built from; ``vae`` is None for a DiT that works on pixels."""
    transformer: diffusers.ModelMixin
    vae: diffusers.AutoencoderKL | None
    process: NoiseProcess


def from_pretrained(source):
    """Loads the parts of a checkpoint.

    Args:
        source (str | Path): A folder with transformer/, scheduler/ and, for a latent DiT, vae/; or a Hugging Face hub id.

    Raises:
        FileNotFoundError: The folder lacks a part, or there is no such folder and no such model within reach.
        ValueError: A part is of an unknown class, damaged, or has keys or shapes other than its config says.
    """
    folder = _local(source)
    name = _config(folder, 'transformer')['_class_name']
    if name not in FAMILIES:
        raise ValueError(f'{folder}/transformer is a {name}: the known transformers are {", ".join(FAMILIES)}')
    transformer = _load(getattr(diffusers, name), folder, 'transformer')
    vae = None
    if (folder / 'vae').is_dir():
        vae = _load(diffusers.AutoencoderKL, folder, 'vae')
    elif transformer.config.in_channels != 3:
        raise FileNotFoundError(f'{folder} has no vae/, and its transformer takes {transformer.config.in_channels} channels: '
                                'copy the VAE that it was trained with to vae/ (only a DiT on RGB pixels goes without)')
    scheduler = _config(folder, 'scheduler')
    return Parts(transformer, vae, _process(scheduler['_class_name'], scheduler))


def from_arch(arch):
    """Builds the parts with random weights.

    Args:
        arch (dict): ``transformer``, and optionally ``vae`` and ``scheduler``: the keyword arguments of diffusers'
            classes, each with an optional ``type``, by default DiTTransformer2DModel, AutoencoderKL and DDIMScheduler.
            Without ``vae`` the DiT works on pixels; a folder in place of a dict gives its pretrained vae/. Not changed.

    Raises:
        ValueError: An unknown key, or an unknown type of transformer.
    """
    if not {'transformer'} <= set(arch) <= {'transformer', 'vae', 'scheduler'}:
        raise ValueError(f'arch takes transformer and, optionally, vae and scheduler; it has {sorted(arch)}')

    def split(part, default):
        options = dict(arch.get(part) or {})
        return options.pop('type', default), options

    name, options = split('transformer', 'DiTTransformer2DModel')
    if name not in FAMILIES:
        raise ValueError(f'arch.transformer.type {name!r} is not supported: choose one of {", ".join(FAMILIES)}')
    transformer = getattr(diffusers, name)(**options)
    vae = None
    if isinstance(arch.get('vae'), str):
        vae = _load(diffusers.AutoencoderKL, _local(arch['vae']), 'vae')
    elif arch.get('vae'):
        kind, options = split('vae', 'AutoencoderKL')
        vae = getattr(diffusers, kind)(**options)
    return Parts(transformer, vae, _process(*split('scheduler', 'DDIMScheduler')))


def _local(source):
    """The folder of ``source``, which is downloaded first where it is a hub id."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f'{source} is a file, not a folder in DiTPipeline layout (transformer/, vae/, scheduler/)')
    try:
        return Path(snapshot_download(str(source), allow_patterns=['transformer/*', 'vae/*', 'scheduler/*', '*.json']))
    except Exception as error:  # the hub raises many kinds, for a bad id, no network, no permission
        raise FileNotFoundError(f'{source!r} is neither a folder nor a model that the Hugging Face hub gave '
                                f'({type(error).__name__}: {str(error).splitlines()[0]}). Without a network, download it '
                                'elsewhere and give the path of its folder') from error


def _config(folder, part):
    path = folder / part / ('scheduler_config.json' if part == 'scheduler' else 'config.json')
    if not path.is_file():
        raise FileNotFoundError(f'{folder} lacks {part}/{path.name}: a checkpoint in DiTPipeline layout has transformer/, '
                                'vae/ and scheduler/, each with its config')
    try:
        config = json.loads(path.read_text())
        config['_class_name']  # noqa: B018, a probe
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not a diffusers config (a JSON object with _class_name): {error}') from error
    return config


def _load(cls, folder, part):
    """``cls`` from ``folder/part``, with keys and shapes checked in both directions."""
    _config(folder, part)
    try:
        # low_cpu_mem_usage would need accelerate, and would leave missing keys on the meta device.
        model, info = cls.from_pretrained(folder, subfolder=part, local_files_only=True, low_cpu_mem_usage=False,
                                          output_loading_info=True)
    except Exception as error:  # safetensors, torch and diffusers raise many kinds for a damaged or mismatched file
        raise ValueError(f'{folder}/{part} cannot be loaded as {cls.__name__}: {error}. Its weights are missing, damaged, or '
                         'of another shape than its config.json says') from error
    for problem in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
        if info.get(problem):
            raise ValueError(f'{folder}/{part}: {problem.replace("_", " ")} {sorted(map(str, info[problem]))[:5]}: the weights '
                             'do not fit the config.json beside them')
    return model


def _process(name, config):
    scheduler = getattr(diffusers, name, None)
    if scheduler is None or not hasattr(scheduler, 'from_config'):
        raise ValueError(f'{name!r} is not a scheduler of diffusers')
    return NoiseProcess.from_scheduler(scheduler.from_config(dict(config)))
