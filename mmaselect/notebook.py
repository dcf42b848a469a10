"""Features of images in a notebook or a script: no config, and no OpenMMLab."""
import torch
from torch import nn

from mmaselect.extract import Extractor
from mmaselect.extract.inputs import to_batch
from mmaselect.extract.numbers import check_batch_size
from mmaselect.selection import SelectionPolicy, SelectionResult, TensorImages, sweep


class FeatureExtractor(nn.Module):
    """Features of images from a pretrained diffusion transformer at one timestep. Always frozen, always in evaluation mode.

    Args:
        extractor (Extractor): The model and its taps.
        timestep (int | None): 0 is the cleanest. None leaves it open; set the attribute before the first image.
        size (int | tuple[int, int] | None): Height and width in pixels that images are scaled to; None leaves them as they are.
        seed (int): Of the noise, which is the same for every image.
        noise (str): 'seeded' adds noise, 'none' only scales the clean latent; features and choice alike.

    Attributes:
        timestep (int | tuple[int, ...] | None): As above; several where the selection chose several.
        result (SelectionResult | None): How the timestep was chosen, where 'auto' did: every candidate's score, a plot.

    Raises:
        ValueError: The timestep is not in the schedule, or the noise is neither.

    Examples:
        >>> from PIL import Image
        >>> sheet = Image.open('configs/fashion_dit/samples.png')  # rows of images of 64 x 64 pixels, 2 pixels between them
        >>> images = [sheet.crop((x, 2, x + 64, 66)) for x in range(2, sheet.width, 66)]
        >>> model = FeatureExtractor.from_pretrained('configs/fashion_dit', timestep='auto', images=images, taps=[(5, 'hidden')],
        ...                                          selection=dict(candidates=[0, 100, 500, 900]), progress=False)
        >>> maps, = model(images)  # one for each tap
        >>> maps.shape
        torch.Size([16, 128, 8, 8])
        >>> model.timestep == model.result.timestep
        True
    """

    def __init__(self, extractor, *, timestep=None, size=None, seed=0, noise='seeded'):
        super().__init__()
        steps = len(extractor.process)
        if timestep is not None and not (type(timestep) is int and 0 <= timestep < steps):
            raise ValueError(f"timestep={timestep!r}: 'auto', or an integer from 0, the cleanest, to {steps - 1}")
        if noise not in ('seeded', 'none'):
            raise ValueError(f"noise={noise!r}: 'seeded' or 'none', so that an image has the same features each time")
        self.extractor = extractor.requires_grad_(False)
        self.timestep, self.size, self.seed, self.noise = timestep, size, seed, noise
        self.result = None
        self.eval()

    @classmethod
    def from_pretrained(cls, source, *, timestep='auto', images=None, taps=((-1, 'hidden'),), size=None, seed=0, noise='seeded',
                        device=None, dtype=torch.float32, selection=None, result=None, progress=True):
        """Loads a checkpoint and, where the timestep is 'auto', chooses it.

        Args:
            source (str | Path): Folder or Hugging Face hub id in DiTPipeline layout: transformer/, vae/, scheduler/.
            timestep (int | str | None): 'auto', or as above.
            images: For 'auto': images of the kind that the features are wanted of, without labels; see ``to_batch`` for what
                an image can be. Some dozens to some hundreds.
            taps (Sequence[tuple[int, str]]): What to read, as (block, feature); see ``mmaselect.extract.TAPS``.
            size (int | tuple[int, int] | None): As above.
            seed (int): As above.
            noise (str): As above.
            device (str | torch.device | None): By default the GPU where there is one.
            dtype (torch.dtype): Of the weights, float32 or bfloat16.
            selection (SelectionPolicy | dict | None): For 'auto', how it is chosen; see ``SelectionPolicy``. With
                ``choose_tap=True`` one of its ``score_taps`` replaces ``taps``.
            result (str | Path | None): For 'auto', in place of images: a saved result whose choice is taken, if it was made
                with these weights and noise and, where ``selection`` is given, by that.
            progress (bool): Whether the choice shows a progress bar.

        Returns:
            FeatureExtractor

        Raises:
            FileNotFoundError: The checkpoint is not there or lacks a part.
            ValueError: Its parts do not fit each other, or the options do not.
        """
        auto = timestep == 'auto'
        if auto and (images is None) == (result is None):
            raise ValueError("timestep='auto' chooses it on images: give images=, some dozens of the kind that the features are "
                             'wanted of, or a saved result=, or a timestep')
        if not auto and any(given is not None for given in (images, selection, result)):
            raise ValueError(f"images, selection and result are for timestep='auto', not for {timestep!r}")
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        model = cls(Extractor.from_pretrained(source, taps).to(device, dtype), timestep=None if auto else timestep, size=size,
                    seed=seed, noise=noise)
        if auto:
            if result is None:
                model.result = select_timestep(model, images, selection, progress=progress)
            else:
                model.result = SelectionResult.load(result)
                policy = None if selection is None else SelectionPolicy.of(selection)
                model.result.check(model.extractor, policy, noise=noise, noise_seed=seed)
            model.timestep = model.result.timestep if len(model.result.timesteps) == 1 else model.result.timesteps
            if model.result.tap is not None:
                model.extractor.set_taps([model.result.tap])
        return model

    @torch.no_grad()
    def forward(self, images, batch_size=16):
        """Maps of features.

        Args:
            images: One image or several: PIL, uint8 (H, W, 3), or floating point (3, H, W) from 0 to 1; see ``to_batch``.
            batch_size (int): Images at a time. Does not change the result.

        Returns:
            tuple[Tensor]: For each timestep and, of it, each tap (B, D, h, w), one cell per ``extractor.token_stride`` pixels,
                rounded up.

        Raises:
            ValueError: Bad images, or batch_size is no integer from 1 on.
            RuntimeError: No timestep is chosen.
        """
        check_batch_size(batch_size)
        if self.timestep is None:
            raise RuntimeError("no timestep is chosen: load the model with timestep='auto' and images, or set model.timestep, "
                               'for instance to select_timestep(model, images).timestep')
        device = next(self.extractor.parameters()).device
        parts = [self.extractor(part.to(device), self.timestep, self.noise, self.seed)
                 for part in to_batch(images, self.size).split(batch_size)]
        return tuple(torch.cat(maps) for maps in zip(*parts, strict=True))  # (B, D, h, w) each

    def train(self, mode=True):
        return super().train(False)


def select_timestep(model: FeatureExtractor, images, selection: SelectionPolicy | dict | None = None, *, labels=None,
                    progress: bool = True) -> SelectionResult:
    """Scores candidate timesteps on images and picks one in the middle of those whose features are richest.

    The model is left as it was: set ``model.timestep`` to use the choice.

    Args:
        model (FeatureExtractor): Its taps and its noise are used, unless the selection names other taps.
        images: See ``to_batch``. Where there are more than the selection looks at, a seeded sample of them.
        selection (SelectionPolicy | dict | None): How it is chosen; see ``SelectionPolicy``. None takes its defaults.
        labels (Sequence | None): For scores that need them: (N,) classes, or (N, H, W) classes of the pixels that the model sees.
        progress (bool): Whether to show a progress bar.

    Returns:
        SelectionResult: ``timestep``, every candidate's score, ``table()``, ``plot(path)`` and more.

    Raises:
        ValueError: Bad images, labels that do not fit them, or bad options.
        FloatingPointError: A feature or a score is not finite.

    Examples:
        >>> from PIL import Image
        >>> sheet = Image.open('configs/fashion_dit/samples.png')
        >>> images = [sheet.crop((x, 2, x + 64, 66)) for x in range(2, sheet.width, 66)]
        >>> model = FeatureExtractor.from_pretrained('configs/fashion_dit', timestep=None, taps=[(5, 'hidden')])
        >>> result = select_timestep(model, images, dict(candidates=[0, 100, 500, 900]), progress=False)
        >>> [candidate.timestep for candidate in result.candidates]
        [0, 100, 500, 900]
        >>> model.timestep = result.timestep
    """
    policy = SelectionPolicy.of(selection)
    batch = to_batch(images, model.size)  # (N, 3, H, W)
    if labels is not None:
        labels = torch.as_tensor(labels)
        if labels.shape not in (batch.shape[:1], (len(batch), *batch.shape[2:])):
            raise ValueError(f'labels {tuple(labels.shape)} do not fit images {tuple(batch.shape)}: one for each image, or '
                             'one for each pixel')
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(policy.seed))[:policy.most_images].sort().values
    sample = TensorImages(batch[order], None if labels is None else labels[order])
    return sweep(model.extractor, sample, policy, noise=model.noise, noise_seed=model.seed, progress=progress)
