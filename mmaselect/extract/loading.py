"""A DiT, its VAE and its noise process: from a folder or hub id in DiTPipeline layout, or from an arch without weights.

Weights are read by diffusers from safetensors, or with weights_only=True; nothing here unpickles.
"""
import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import diffusers
import torch
from diffusers.utils import is_accelerate_available
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from packaging.version import Version

from . import null_prompt
from .families import FAMILIES, TO_ADD
from .noise import NoiseProcess
from .vae import Adapter, adapter

CONVERTER = 'tools/model_converters/dit2diffusers.py'  # for Meta's own files
# Older checkpoints, such as facebook/DiT-XL-2-256, name one class for several families, which the norm_type tells apart.
LEGACY = {'ada_norm_zero': 'DiTTransformer2DModel', 'ada_norm_single': 'PixArtTransformer2DModel'}
# What is fetched of a model on the hub: for an extractor, and to encode the empty prompt.
PARTS = ('transformer/*.json', 'vae/*.json', 'scheduler/*', '*.json', null_prompt.FILE)
TEXT_PARTS = ('*.json', '*/*.json', 'tokenizer*/*', 'processor/*')
DTYPES = ('float32', 'bfloat16', 'float16')
# diffusers' and transformers' files, in one or several parts; the variant is before the numbers, and used to be behind them.
WEIGHTS = re.compile(r'(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?(\.(?P<legacy>\w+))?'
                     r'\.(?P<suffix>safetensors|bin)')


@dataclass
class Parts:
    """What an extractor is built from.

    ``vae`` is None for a DiT that works on pixels; ``null`` has the embeddings of the empty prompt for a model that is
    conditioned on text, else nothing; see ``null_prompt``.
    """
    transformer: diffusers.ModelMixin
    vae: diffusers.ModelMixin | None
    process: NoiseProcess
    null: dict[str, torch.Tensor] = field(default_factory=dict)


def from_pretrained(source: str | Path, *, variant: str | None = None, revision: str | None = None, dtype: str | None = None,
                    single_file: str | Path | None = None) -> Parts:
    """Loads the parts of a checkpoint.

    Args:
        source: A folder with transformer/, scheduler/, for a latent DiT vae/, and for a model that is conditioned on text
            null_prompt.safetensors (see tools/encode_null_prompt.py); or a Hugging Face hub id.
        variant: Of the files with weights, such as 'fp16'. By default those without a variant, or the only ones that there are.
        revision: Branch, tag or commit on the hub.
        dtype: 'float32', 'bfloat16' or 'float16', in which the transformer is kept from the start; by default float32. Its class
            may keep some layers in float32. The VAE has a dtype of its own (``LatentEncoder``).
        single_file: The transformer's weights in one file of its authors' layout, as diffusers' ``from_single_file`` takes it,
            in place of those in ``source``.

    Raises:
        FileNotFoundError: The folder lacks a part, or there is no such folder and no such model within reach.
        ValueError: A part is of an unknown class, damaged, has keys or shapes other than its config says, or is of another
            model than the transformer; or an unknown dtype, or a variant that is not there.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f'dtype is one of {", ".join(DTYPES)}, not {dtype!r}')
    folder = _local(source, variant=variant, revision=revision, weights=('vae',) if single_file else ('transformer', 'vae'))
    cls = _transformer_class(folder)
    transformer = _load(cls, folder, 'transformer', variant=variant, dtype=dtype and getattr(torch, dtype),
                        single_file=single_file)
    vae, channels = None, FAMILIES[cls.__name__].latent_channels(transformer.config)
    if (folder / 'vae').is_dir():
        vae = load_vae(folder, channels, variant=variant)
    elif channels != 3:
        raise FileNotFoundError(f'{folder} has no vae/, and its transformer takes {channels} channels: copy the VAE that it was '
                                'trained with to vae/ (only a DiT on RGB pixels goes without)')
    scheduler = _config(folder, 'scheduler')
    try:
        process = _process(scheduler['_class_name'], scheduler)
    except ValueError as error:
        raise ValueError(f'{folder}/scheduler/scheduler_config.json: {error}') from error
    return Parts(transformer, vae, process, null_prompt.load(folder, transformer, source))


def load_vae(folder: str | Path, channels: int | None = None, *, variant: str | None = None) -> diffusers.ModelMixin:
    """The VAE in ``folder``, or in the vae/ of the pipeline that it is, in float32.

    Raises:
        FileNotFoundError: There is no VAE.
        ValueError: It is damaged or of an unknown class, or its latents do not have as many ``channels``.
    """
    folder = Path(folder).resolve()
    parent, part = (folder, 'vae') if (folder / 'vae').is_dir() else (folder.parent, folder.name)
    name = _config(parent, part)['_class_name']
    if name not in Adapter.known:
        raise ValueError(f'{parent / part} is a {name}: the known VAEs are {", ".join(Adapter.known)}')
    vae = _load(class_of(name), parent, part, variant=variant)
    found = adapter(vae).channels
    if channels not in (None, found):
        raise ValueError(f'{parent / part}/config.json: the latents of this {name} have {found} channels and the DiT takes '
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
    folder = _local(source, TEXT_PARTS, weights=('text_encoder*',))
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
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch is a dict of transformer and, optionally, vae and scheduler, not {arch!r}')
    if not {'transformer'} <= set(arch) <= {'transformer', 'vae', 'scheduler'}:
        raise ValueError(f'arch takes transformer and, optionally, vae and scheduler; it has {sorted(arch)}')

    def split(part, default):
        options = dict(arch.get(part) or {})
        return options.pop('type', default), options

    name, options = split('transformer', 'DiTTransformer2DModel')
    transformer = arch_class(name)(**options)
    vae = None
    if isinstance(arch.get('vae'), str):
        vae = load_vae(_local(arch['vae'], ('vae/*.json', '*.json'), weights=('vae',)))
    elif arch.get('vae'):
        kind, options = split('vae', 'AutoencoderKL')
        if kind not in Adapter.known:
            raise ValueError(f'arch.vae.type {kind!r} is not supported: choose one of {", ".join(Adapter.known)}')
        vae = class_of(kind)(**options)
    return Parts(transformer, vae, _process(*split('scheduler', 'DDIMScheduler')), null_prompt.seeded(transformer))


def arch_of(source: str | Path, revision: str | None = None) -> dict:
    """The sizes of a checkpoint's parts, without weights, as ``from_arch`` takes them.

    Raises:
        FileNotFoundError: As ``from_pretrained``.
        ValueError: A config is damaged.
    """
    folder, private = _local(source, revision=revision), ('_class_name', '_diffusers_version', '_name_or_path')
    parts = ('transformer', 'scheduler', *(['vae'] if (folder / 'vae').is_dir() else []))
    found = {part: _config(folder, part) for part in parts}
    arch = {part: {'type': config['_class_name'], **{key: value for key, value in config.items() if key not in private}}
            for part, config in found.items()}
    arch['transformer']['type'] = _transformer_class(folder).__name__
    return arch


def _transformer_class(folder):
    config = _config(folder, 'transformer')
    name = config['_class_name']
    if name == 'Transformer2DModel':
        name = LEGACY.get(config.get('norm_type'), name)
    if name not in FAMILIES:
        raise ValueError(f'{folder}/transformer is a {name}: the known transformers are {", ".join(FAMILIES)}. {TO_ADD}')
    return class_of(name)


def arch_class(name: str) -> type:
    """The class of arch.transformer.type.

    Raises:
        ValueError: No family reads it, or as ``class_of``.
    """
    if name not in FAMILIES:
        raise ValueError(f'arch.transformer.type {name!r} is not supported: choose one of {", ".join(FAMILIES)}. {TO_ADD}')
    return class_of(name)


def class_of(name: str) -> type:
    """The class of a transformer or VAE: diffusers', or ours where it has none.

    Raises:
        ValueError: The installed diffusers lacks it, or PyTorch is too old for it.
    """
    if ours := getattr(FAMILIES.get(name), 'ours', None):
        return ours
    if not hasattr(diffusers, name):
        raise ValueError(f'diffusers {diffusers.__version__} has no {name}: install a newer one, pip install -U diffusers')
    needed = FAMILIES[name].needs if name in FAMILIES else '0'
    if Version(torch.__version__) < Version(needed):
        raise ValueError(f"diffusers' {name} needs PyTorch {needed} or newer, and this is {torch.__version__}")
    return getattr(diffusers, name)


def _local(source, parts=PARTS, *, variant=None, revision=None, weights=()):
    """The folder of ``source``, which is downloaded first where it is a hub id: ``parts``, and of the ``weights`` one variant."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f'revision={revision!r} is of a model on the hub, and {source} is a folder')
        return folder
    if folder.exists():
        raise FileNotFoundError(f'{source} is a file, not a folder in DiTPipeline layout (transformer/, vae/, scheduler/). '
                                f'{CONVERTER} makes one of a checkpoint of Meta\'s DiT or SiT')
    name, where = str(source), dict(revision=revision) if revision else {}
    try:
        listed = list_repo_files(name, **where)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _unreachable(source, error) from error
    except Exception:  # no network, of which the hub's versions have several kinds: take what was fetched before
        parts = (*parts, *(f'{part}/*' for part in weights))
    else:
        folders = {file.partition('/')[0] for file in listed if '/' in file}
        for part in sorted(part for part in folders if any(fnmatch(part, pattern) for pattern in weights)):
            files = [file.partition('/')[2] for file in listed if file.startswith(f'{part}/')]
            parts = (*parts, *(f'{part}/{file}' for file in _weights(files, variant, part)[1]))
    try:
        return Path(snapshot_download(name, allow_patterns=list(parts), **where))
    except Exception as error:  # the hub raises many kinds, for a bad id, no network, no permission
        raise _unreachable(source, error) from error


def _unreachable(source, error):
    if isinstance(error, GatedRepoError):
        return FileNotFoundError(f'{source} is given only to those who accepted its licence: do so at https://huggingface.co/'
                                 f'{source}, then log in here with `hf auth login` (or set HF_TOKEN)')
    return FileNotFoundError(f'{source!r} is neither a folder nor a model that the Hugging Face hub gave '
                             f'({type(error).__name__}: {str(error).splitlines()[0]}). Without a network, download it '
                             'elsewhere and give the path of its folder')


def _weights(files, variant, part):
    """Of the names of files in a part, the variant to load and the files with its weights, safetensors where there are any.

    Raises:
        ValueError: There are only other variants.
    """
    found = {}  # variant -> suffix -> names
    for name in files:
        match = WEIGHTS.fullmatch(name)
        if match:
            kind, legacy, suffix = match.group('variant', 'legacy', 'suffix')
            found.setdefault(kind or legacy, {}).setdefault(suffix, []).append(name)
    if not found:
        return None, []
    if variant is None and None not in found and len(found) == 1:
        variant, = found  # such as fp16 alone
    elif variant not in found and not part.endswith('transformer') and None in found:
        variant = None  # many repositories have variants of the transformer alone
    if variant not in found:
        names = ', '.join(repr(name) for name in found if name)
        raise ValueError(f'{part} has no weights of variant={variant!r}: there are {names}')
    of_it = found[variant]
    chosen = of_it.get('safetensors') or of_it['bin']
    return variant, chosen


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


def _load(cls, folder, part, *, variant=None, dtype=None, single_file=None):
    """``cls`` from ``folder/part``, with keys and shapes checked in both directions."""
    _config(folder, part)
    options = dict(torch_dtype=dtype, local_files_only=True)
    # With accelerate large weights are in memory once, and in their dtype. Classes that keep layers in float32 need it.
    options['low_cpu_mem_usage'] = is_accelerate_available()
    if single_file is None:
        variant = _weights([path.name for path in (folder / part).iterdir()], variant, f'{folder}/{part}')[0]
    verbosity = diffusers.utils.logging.get_verbosity()
    try:
        diffusers.utils.logging.set_verbosity(logging.CRITICAL)  # what does not fit is said below, in one sentence
        if single_file is not None:
            model, info = cls.from_single_file(str(single_file), config=str(folder), subfolder=part, **options), {}
            info['missing_keys'] = [name for name, value in model.named_parameters() if value.is_meta]
        else:
            model, info = cls.from_pretrained(folder, subfolder=part, variant=variant, output_loading_info=True, **options)
    except Exception as error:  # safetensors, torch and diffusers raise many kinds for a damaged or mismatched file
        if _is_refusal(error):
            raise ValueError(f'{folder}/{part}: the pickled weights are damaged, or hold more than tensors and are refused, '
                             'since loading them could run code. Get them as safetensors, or have them saved as such by '
                             'someone who trusts them') from None
        raise ValueError(f'{folder}/{part} cannot be loaded as {cls.__name__}: {error}. Its weights are missing, damaged, or '
                         'of another shape than its config.json says') from error
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)
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
