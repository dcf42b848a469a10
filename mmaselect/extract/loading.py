"""A DiT, its VAE and its noise process: from a folder or hub id in DiTPipeline layout, or from an arch without weights.

Weights are read by diffusers from safetensors, or with weights_only=True; nothing here unpickles.
"""
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from huggingface_hub import snapshot_download

from . import null_prompt
from .families import FAMILIES
from .noise import NoiseProcess

CONVERTER = 'tools/model_converters/dit2diffusers.py'  # for Meta's own files
# Older checkpoints, such as facebook/DiT-XL-2-256, name one class for several families, which the norm_type tells apart.
LEGACY = {'ada_norm_zero': 'DiTTransformer2DModel', 'ada_norm_single': 'PixArtTransformer2DModel'}
# What is fetched of a model on the hub: for an extractor, and to encode the empty prompt.
PARTS = ('transformer/*', 'vae/*', 'scheduler/*', '*.json', null_prompt.FILE)
TEXT_PARTS = ('transformer/config.json', 'text_encoder*/*', 'tokenizer*/*', '*.json')


@dataclass
class Parts:
    """What an extractor is built from.

    ``vae`` is None for a DiT that works on pixels; ``null`` has the embeddings of the empty prompt for a model that is
    conditioned on text, else nothing; see ``null_prompt``.
    """
    transformer: diffusers.ModelMixin
    vae: diffusers.AutoencoderKL | None
    process: NoiseProcess
    null: dict[str, torch.Tensor] = field(default_factory=dict)


def from_pretrained(source):
    """Loads the parts of a checkpoint.

    Args:
        source (str | Path): A folder with transformer/, scheduler/, for a latent DiT vae/, and for a model that is conditioned
            on text null_prompt.safetensors (see tools/encode_null_prompt.py); or a Hugging Face hub id.

    Raises:
        FileNotFoundError: The folder lacks a part, or there is no such folder and no such model within reach.
        ValueError: A part is of an unknown class, damaged, has keys or shapes other than its config says, or is of another
            model than the transformer.
    """
    folder = _local(source)
    transformer = _load(_transformer_class(folder), folder, 'transformer')
    vae = None
    if (folder / 'vae').is_dir():
        vae = load_vae(folder, transformer.config.in_channels)
    elif transformer.config.in_channels != 3:
        raise FileNotFoundError(f'{folder} has no vae/, and its transformer takes {transformer.config.in_channels} channels: '
                                'copy the VAE that it was trained with to vae/ (only a DiT on RGB pixels goes without)')
    scheduler = _config(folder, 'scheduler')
    try:
        process = _process(scheduler['_class_name'], scheduler)
    except ValueError as error:
        raise ValueError(f'{folder}/scheduler/scheduler_config.json: {error}') from error
    return Parts(transformer, vae, process, null_prompt.load(folder, transformer, source))


def load_vae(folder, channels):
    """The AutoencoderKL in ``folder``, or in the vae/ of the pipeline that it is.

    Raises:
        FileNotFoundError: There is no VAE.
        ValueError: It is damaged, or its latents do not have as many channels.
    """
    folder = Path(folder).resolve()
    parent, part = (folder, 'vae') if (folder / 'vae').is_dir() else (folder.parent, folder.name)
    vae = _load(diffusers.AutoencoderKL, parent, part)
    if vae.config.latent_channels != channels:
        raise ValueError(f'{parent / part}/config.json: latent_channels is {vae.config.latent_channels} and the DiT takes '
                         f'{channels}: use the VAE that it was trained with')
    return vae


def text_pipeline(source, dtype=torch.float32):
    """The pipeline of a checkpoint with its text encoders and tokenizers alone: no VAE, a transformer without weights.

    Args:
        source (str | Path): A folder that diffusers' pipeline was saved to, or a Hugging Face hub id.
        dtype (torch.dtype): Of the text encoders.

    Returns:
        tuple[Path, DiffusionPipeline]: The folder and the pipeline, which is on the CPU.

    Raises:
        OSError: There is no such folder and no such model within reach, or it has no readable model_index.json.
        ValueError: The transformer is not conditioned on text or of an unknown class, or a part cannot be loaded.
    """
    folder = _local(source, TEXT_PARTS)
    cls = _transformer_class(folder)
    with torch.device('meta'):
        transformer = cls.from_config(_config(folder, 'transformer'))
    if not FAMILIES[cls.__name__].null_shapes(transformer.config, 1):
        raise ValueError(f'{folder}/transformer is a {cls.__name__}, which is not conditioned on text: it needs no null prompt')
    index = diffusers.DiffusionPipeline.load_config(folder)
    foreign = [key for key, value in index.items()
               if isinstance(value, list | tuple) and value[0] not in (None, 'diffusers', 'transformers')]
    if foreign:
        raise ValueError(f'{folder}/model_index.json names code for {", ".join(foreign)} that is neither of diffusers nor of '
                         'transformers, and it is not run')
    try:
        return folder, diffusers.DiffusionPipeline.from_pretrained(
            folder, transformer=transformer, vae=None, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers and transformers raise many kinds
        raise ValueError(f'the text encoders and tokenizers of {folder} cannot be loaded: {error}') from error


def from_arch(arch):
    """Builds the parts with random weights.

    Args:
        arch (dict): ``transformer``, and optionally ``vae`` and ``scheduler``: the keyword arguments of diffusers'
            classes, each with an optional ``type``, by default DiTTransformer2DModel, AutoencoderKL and DDIMScheduler.
            Without ``vae`` the DiT works on pixels; a folder in place of a dict gives its pretrained vae/. Not changed.
            A model that is conditioned on text gets a random null prompt, the same every time.

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
    return Parts(transformer, vae, _process(*split('scheduler', 'DDIMScheduler')), null_prompt.seeded(transformer))


def _transformer_class(folder):
    config = _config(folder, 'transformer')
    name = config['_class_name']
    if name == 'Transformer2DModel':
        name = LEGACY.get(config.get('norm_type'), name)
    if name not in FAMILIES:
        raise ValueError(f'{folder}/transformer is a {name}: the known transformers are {", ".join(FAMILIES)}')
    return getattr(diffusers, name)


def _local(source, parts=PARTS):
    """The folder of ``source``, which is downloaded first where it is a hub id."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f'{source} is a file, not a folder in DiTPipeline layout (transformer/, vae/, scheduler/). '
                                f'{CONVERTER} makes one of a checkpoint of Meta\'s DiT or SiT')
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(parts)))
    except Exception as error:  # the hub raises many kinds, for a bad id, no network, no permission
        raise FileNotFoundError(f'{source!r} is neither a folder nor a model that the Hugging Face hub gave '
                                f'({type(error).__name__}: {str(error).splitlines()[0]}). Without a network, download it '
                                'elsewhere and give the path of its folder') from error


def _config(folder, part):
    path = folder / part / ('scheduler_config.json' if part == 'scheduler' else 'config.json')
    if not path.is_file():
        meta = ', '.join(file.name for file in folder.glob('*.pt'))
        raise FileNotFoundError(f'{folder} lacks {part}/{path.name}: a checkpoint in DiTPipeline layout has transformer/, '
                                'vae/ and scheduler/, each with its config'
                                + (f'. {CONVERTER} makes one of {meta} if that is Meta\'s DiT or SiT' if meta else ''))
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
        if _is_refusal(error):
            raise ValueError(f'{folder}/{part}: the pickled weights are damaged, or hold more than tensors and are refused, '
                             'since loading them could run code. Get them as safetensors, or have them saved as such by '
                             'someone who trusts them') from None
        raise ValueError(f'{folder}/{part} cannot be loaded as {cls.__name__}: {error}. Its weights are missing, damaged, or '
                         'of another shape than its config.json says') from error
    for problem in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
        if info.get(problem):
            raise ValueError(f'{folder}/{part}: {problem.replace("_", " ")} {sorted(map(str, info[problem]))[:5]}: the weights '
                             'do not fit the config.json beside them')
    return model


def _is_refusal(error):
    """Whether torch's weights_only refused a file somewhere behind ``error``."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None


def _process(name, config):
    scheduler = getattr(diffusers, name, None)
    if scheduler is None or not hasattr(scheduler, 'from_config'):
        raise ValueError(f'{name!r} is not a scheduler of diffusers')
    return NoiseProcess.from_scheduler(scheduler.from_config(dict(config)))
