"""The null condition of models that are conditioned on text: the embeddings of the empty prompt, made once and kept in a file.

With them training needs no text encoder: SD3's T5 has 4.7 billion parameters (arXiv:2403.03206), more than twice as many as the
transformer of SD3-medium. Which tensors there are is the family's business.
"""
import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmaselect.files import atomic

from .families import FAMILIES
from .noise import seeded_noise

FILE = 'null_prompt.safetensors'  # in the checkpoint's folder, beside transformer/


def save(path, tensors, transformer):
    """Writes the tensors, and the class and config of the transformer that they are for.

    Raises:
        ValueError: A tensor is not finite.
        OSError: The file cannot be written.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f'{name} has values that are not finite: encode the prompt in float32 or bfloat16, since T5 '
                             'overflows in float16')
    metadata = {'transformer': type(transformer).__name__, 'config': json.dumps(_config(transformer))}
    with atomic(path) as part:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, part, metadata)


def load(folder, transformer, source):
    """The null condition of a checkpoint's transformer, from the file beside it; empty for a family that has none.

    Args:
        folder (Path): Of the checkpoint.
        transformer (diffusers.ModelMixin): The checkpoint's.
        source (str | Path): What the user calls the checkpoint: the folder, or a hub id.

    Returns:
        dict[str, Tensor]: By name; on the CPU, in the file's dtype.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: The file is damaged, or was made for another transformer.
    """
    expected = FAMILIES[type(transformer).__name__].null_shapes
    if not expected(transformer.config, 1):
        return {}
    path, name = folder / FILE, type(transformer).__name__
    remedy = f'make it with `python tools/encode_null_prompt.py {source}`'
    if not path.is_file():
        raise FileNotFoundError(f'{folder} has no {FILE}, and its {name} needs the embeddings of the empty prompt: {remedy}, '
                                'once; training then needs no text encoder')
    try:
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
        made_for = metadata['transformer'], dict(json.loads(metadata['config']))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is damaged, or not a null prompt ({type(error).__name__}: {error}): {remedy}') from error
    other = _difference(made_for, (name, _config(transformer)))
    if not other:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        prompt = shapes.get('prompt_embeds', ())
        wanted = expected(transformer.config, prompt[1] if len(prompt) > 1 else 1)  # of as many tokens, any number
        other = '' if shapes == wanted else f'it has {shapes} and {name} takes {wanted}'
    if other:
        raise ValueError(f'{path} is of another model: {other}. For this one, {remedy}')
    return tensors


def seeded(transformer):
    """A random null condition of the right shapes for a model with random weights, the same every time."""
    family = FAMILIES[type(transformer).__name__]
    shapes = family.null_shapes(transformer.config, family.null_tokens)
    return {name: torch.ones(shape, dtype=torch.long, device='cpu') if name.endswith('mask') else seeded_noise(shape, 0)
            for name, shape in shapes.items()}


def _config(transformer):
    """The transformer's config as JSON would give it back, without diffusers' notes of version and origin."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith('_')}
    return json.loads(json.dumps(config))


def _difference(recorded, wanted):
    """In words, where two (class name, config) differ; '' where they agree. Options that only one has are of versions."""
    (theirs, their_config), (ours, our_config) = recorded, wanted
    if theirs != ours:
        return f'it was made for {theirs}, not {ours}'
    differing = sorted(key for key in their_config.keys() & our_config.keys() if their_config[key] != our_config[key])
    return ', '.join(f'it was made for {key}={their_config[key]}, not {our_config[key]}' for key in differing[:3])
