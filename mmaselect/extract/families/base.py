"""What the families share: how they register, the sizes of a model, the buffers of its null condition, and reading it."""
import inspect
import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .. import reader


def unpadded(embeds: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The null condition of a prompt (1, L, D_text) whose padding a mask (1, L) leaves out."""
    return {'prompt_embeds': embeds if mask is None else embeds[:, mask[0].bool()]}  # (1, L', D_text)


def negative_prompt(pipeline, device: torch.device | str, **options) -> dict[str, torch.Tensor]:
    """The null condition of pipelines whose empty prompt is their negative one, without its padding; an ``encode_null``."""
    _, _, embeds, mask = pipeline.encode_prompt('', negative_prompt='', device=device, **options)
    return unpadded(embeds, mask)


def pack(latent: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, H, W) -> tokens of 2 x 2 latent pixels (B, H/2 * W/2, 4 C)."""
    return F.pixel_unshuffle(latent, 2).flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Undoes ``pack``: tokens (B, H/2 * W/2, 4 C) -> latents (B, C, H, W) of this ``size``."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, [side // 2 for side in size]), 2)


class Family(nn.Module):
    """A diffusion transformer of diffusers, whose own forward is read. See the package's docstring for what a subclass says.

    Args:
        model (diffusers.ModelMixin): The transformer.
        null (dict[str, Tensor] | None): The null condition. It becomes the buffers ``null_<name>``, so that checkpoints carry it.
    """
    known: dict[str, type['Family']] = {}
    kinds: tuple[reader.Blocks, ...] = (reader.Blocks('transformer_blocks'),)
    pos_scales: tuple[str, ...] = ()
    pos_scale: str | None = None
    needs = '2.1'  # the oldest PyTorch that runs diffusers' model
    null_tokens = 0
    probed: dict[int, tuple[int, ...]] = {}  # of a model of so many blocks: those that papers found best
    encoded: tuple[str | None, ...] = ()
    timesteps = None  # all are possible
    ours: type[nn.Module] | None = None  # the model's class where diffusers has none

    def __init_subclass__(cls, wraps: str, **kwargs):
        super().__init_subclass__(**kwargs)
        Family.known[wraps] = cls

    def __init__(self, model: nn.Module, null: Mapping[str, torch.Tensor] | None = None):
        super().__init__()
        self.model, self.config = model, model.config
        self.depth = len(self.places())
        self.width: int = getattr(model, 'inner_dim', None)  # type: ignore[assignment]  # a subclass knows where they lack
        self.patch_size: int = self.config.get('patch_size')
        self.in_channels = self.latent_channels(self.config)
        self.lock = reader.Lock()
        for name, value in (null or {}).items():
            self.register_buffer(f'null_{name}', value.to(model.device, model.dtype if value.is_floating_point() else None))

    @staticmethod
    def latent_channels(config) -> int:
        """Channels of the latents that go into a model with this config."""
        return config['in_channels']

    @staticmethod
    def null_shapes(config, tokens: int) -> dict[str, tuple[int, ...]]:
        return {}

    @classmethod
    def encode_null(cls, pipeline, device: torch.device | str, **options) -> dict[str, torch.Tensor]:
        """The null condition, by what diffusers' pipeline makes of the empty prompt; ``options`` are its ``encode_prompt``'s."""
        known = inspect.signature(pipeline.encode_prompt).parameters
        usual = dict(prompt='', prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False)
        made = pipeline.encode_prompt(**{**{name: value for name, value in usual.items() if name in known}, **options})
        return {name: value for name, value in zip(cls.encoded, made, strict=False) if name}

    def inputs(self, noisy: torch.Tensor, time: torch.Tensor) -> dict:
        """The arguments of the model's forward for noisy latents (B, C, H, W) at times (B,), float32, of the scheduler."""
        raise NotImplementedError

    def check_grid(self, size: Sequence[int], most: Sequence[int]) -> None:
        """Raises ValueError where latents of this ``size`` have more tokens (h, w) than there are positions, ``most``."""
        grid = [side // self.patch_size for side in size]
        if any(side > limit for side, limit in zip(grid, most, strict=True)):
            raise ValueError(f'{grid[0]} x {grid[1]} tokens are more than the {most[0]} x {most[1]} positions that this '
                             f"{type(self).__name__} has: cut the images, for instance with test_cfg=dict(mode='slide', ...), or "
                             'shrink them')

    def overrides(self) -> dict[nn.Module, Callable]:
        """Functions that are called in place of the ``forward`` of some of the model's modules."""
        return {}

    def places(self) -> list[tuple[nn.Module, reader.Blocks]]:
        """The blocks in the order in which they run, each with its kind."""
        return [(block, kind) for kind in self.kinds for block in self.model.get_submodule(kind.path)]

    def block_of(self, name: str) -> int | None:
        """The block that a parameter or module is in, by its name in the model or in what holds it; None where it is in none."""
        start = 0
        for kind in self.kinds:
            found = re.search(rf'(?:^|\.){re.escape(kind.path)}\.(\d+)\.', name)
            if found:
                return start + int(found[1])
            start += len(self.model.get_submodule(kind.path))
        return None

    def check(self, taps: Sequence[tuple[int, str]]) -> None:
        """Raises ValueError where a block has no such tap (block, name)."""
        places = self.places()
        for index, name in taps:
            block, kind = places[index]
            if name not in ('hidden', *kind.taps):
                raise ValueError(f'block {index} has no {name!r}: {type(block).__name__} computes it together with others. It '
                                 f'has {", ".join((*kind.taps, "hidden"))}')

    def has(self, tap: tuple[int, str]) -> bool:
        """Whether a block has this tap (block, name)."""
        return tap[1] in ('hidden', *self.places()[tap[0]][1].taps)

    def channels(self, tap: tuple[int, str]) -> int:
        """Channels of a tap: D, but for keys and values that several heads share."""
        block, kind = self.places()[tap[0]]
        where = kind.taps.get(tap[1])
        if tap[1] not in ('query', 'key', 'value') or not isinstance(where, str):
            return self.width
        return block.get_submodule(where).out_features

    def read(self, noisy: torch.Tensor, time: torch.Tensor, taps: Sequence[tuple[int, str]], *, checkpointing: bool = False,
             compiled: Callable | None = None) -> list[torch.Tensor]:
        """Per tap the image's tokens (B, h * w, C), of noisy latents (B, C, H, W) at times (1,) or (B,); see ``reader.read``."""
        noisy, time = noisy.to(self.model.dtype), time.to(noisy.device, torch.float32).expand(len(noisy))
        tokens = noisy[0, 0].numel() // self.patch_size ** 2
        with self.lock.lock, reader.replaced(self.overrides()):
            return reader.read(self.places(), taps, lambda: self.model(**self.inputs(noisy, time)), tokens=tokens,
                               width=self.width, lock=self.lock, checkpointing=checkpointing, compiled=compiled)

    def predict(self, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The model's own prediction (B, C, H, W) at times (1,) or (B,), by its whole forward."""
        noisy, time = noisy.to(self.model.dtype), time.to(noisy.device, torch.float32).expand(len(noisy))
        with self.lock.lock, reader.replaced(self.overrides()):
            return self.unpack(self.model(**self.inputs(noisy, time), return_dict=False)[0], noisy.shape[-2:])

    def unpack(self, output, size: Sequence[int]) -> torch.Tensor:
        """What the model puts out -> (B, C, H, W) of this ``size``."""
        return output
