"""How large a DiT is, by its configs alone: no weights are read or made."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from . import loading, null_prompt
from .families import family_of
from .latent import LatentEncoder

CONFIGS = ('transformer/config.json', 'vae/config.json', '*.json')  # what is fetched of a model on the hub


@dataclass(frozen=True)
class Sizes:
    """``depth`` blocks of ``width`` channels; a token is ``token_stride`` image pixels wide, and the training images were
    ``image_size`` pixels wide, where the config says so.
    """
    depth: int
    width: int
    token_stride: int
    image_size: int | None


def sizes(source: str | Path | Mapping) -> Sizes:
    """Reads the sizes of a DiT off its configs.

    Args:
        source (str | Path | Mapping): Folder or hub id in DiTPipeline layout, or an ``arch``; see ``loading``.

    Raises:
        FileNotFoundError: The folder lacks a config, or there is no such folder and no such model within reach.
        ValueError: A config is damaged, or the transformer is of an unknown class.
    """
    if isinstance(source, Mapping):
        transformer = dict(source.get('transformer') or {})
        name, vae = transformer.pop('type', 'DiTTransformer2DModel'), source.get('vae')
        cls = loading.arch_class(name)
        if isinstance(vae, str):
            vae = loading._config(loading._local(vae, CONFIGS), 'vae')
    else:
        folder = loading._local(source, CONFIGS)
        cls, transformer = loading._transformer_class(folder), loading._config(folder, 'transformer')
        vae = loading._config(folder, 'vae') if (folder / 'vae').is_dir() else None
    with torch.device('meta'):
        model = cls.from_config(transformer)
    family = family_of(model, null_prompt.seeded(model))
    with torch.device('meta'):
        kind = vae and (vae.get('type') or vae.get('_class_name') or 'AutoencoderKL')
        autoencoder = loading.class_of(kind).from_config({k: v for k, v in vae.items() if k != 'type'}) if vae else None
        encoder = LatentEncoder(autoencoder, patch_size=family.patch_size, channels=family.in_channels)
    sample = family.config.get('sample_size')
    return Sizes(family.depth, family.width, encoder.token_stride, sample and sample * encoder.stride)
