"""AutoTimestepHook: runs the neck's policy once, before the first forward pass that needs its outcome."""
import contextlib
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.visualization import LocalVisBackend

from mmaselect.extract import TAPS
from mmaselect.registry import HOOKS
from mmaselect.selection import sweep

from .backbone import DiTBackbone
from .cached import CachedFeatures
from .fsdp import whole
from .images import SweepImages
from .neck import AutoTimestepNeck


def unwrap(model):
    """The model inside DDP and inside test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def find(model, kind):
    """The first module of a class in the model, or None."""
    return next((module for module in model.modules() if isinstance(module, kind)), None)


def images_of(cfg, model, neck, count):
    """``count`` training images for the neck's policy."""
    size = neck.image_size or getattr(model.data_preprocessor, 'size', None)
    return SweepImages(cfg, model, count, (size, size) if isinstance(size, int) else size, neck.policy['seed'])


def default_taps(backbone, names=tuple(TAPS)):
    """Taps of four blocks from the middle of the DiT to near its end, where published probes found the best features."""
    depth = backbone.extractor.family.depth
    blocks = sorted({round((depth - 1) * part) for part in (0.4, 0.55, 0.7, 0.85)})
    return [(block, name) for block in blocks for name in names]


@contextlib.contextmanager
def choosing_taps(backbone, neck):
    """The extractor reads the taps that the neck scores, where these are not its own; afterwards it has those that it had.

    Raises:
        ValueError: The DiT is trained: which of its weights are is settled before the tap is chosen.
    """
    before = backbone.extractor.taps
    if neck.policy['choose_tap']:
        if not backbone.frozen:
            raise ValueError("taps='auto' needs frozen=True: choose the tap first, with tools/select_timestep.py and frozen=True,"
                             ' and name it in backbone.taps')
        backbone.extractor.set_taps(neck.tap_candidates or default_taps(backbone))
    elif neck.score_taps:
        backbone.extractor.set_taps(default_taps(backbone, ['value']) if neck.score_taps == 'auto' else neck.score_taps)
    try:
        yield
    finally:
        backbone.extractor.set_taps(before)


def averages(runner):
    """The averaged models of EMAHooks, which are copies of the model that were made before weights were loaded."""
    return [hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')]


@HOOKS.register_module()
class AutoTimestepHook(Hook):
    """Chooses the timestep of a DiTBackbone by the policy of the model's AutoTimestepNeck.

    It acts before training, validation and testing, after weights are loaded, and returns early where a timestep is already
    chosen: fixed by the config, or restored from a checkpoint. Every rank looks at its share of the images and all end with
    the same choice, which is logged, written to the work dir as timestep_selection.json and .png, and sent to the Visualizer.

    Args:
        reselect (bool): Whether to choose anew once per run although a choice is there. Of a DiT that is folded, this takes
            frozen weights of ``backbone.pretrained``, or ``backbone.fold=False``.
    """
    priority = 'VERY_HIGH'

    def __init__(self, reselect=False):
        self.reselect = reselect

    def before_train(self, runner):
        self.select(runner)
        for average in averages(runner):  # each lists what it averages when it is made, and folding replaces parameters
            module = average.module
            average.avg_parameters = module.state_dict() if average.update_buffers else dict(module.named_parameters())

    def before_val(self, runner):
        self.select(runner)

    def before_test(self, runner):
        self.select(runner)

    def select(self, runner):
        """Runs the sweep where it is due.

        Returns:
            SelectionResult | None: None where the choice was already made.

        Raises:
            ValueError: The model has no DiTBackbone, needs a choice and has no AutoTimestepNeck or cached latents for images, or
                cannot be unfolded.
        """
        model = unwrap(runner.model)
        backbone, neck = find(model, DiTBackbone), find(model, AutoTimestepNeck)
        if find(model, CachedFeatures):
            return None  # they were made at a choice
        if backbone is None:
            raise ValueError('AutoTimestepHook found no DiTBackbone in the model: remove the hook or use the backbone')
        if backbone.chosen is not None and not self.reselect:
            if neck and neck.policy['choose_tap'] and backbone.tap[0] < 0:
                raise ValueError("taps='auto' chooses the tap together with the timestep, and the timestep is settled, by "
                                 'backbone.timestep or by the checkpoint: leave it open, or name the tap in backbone.taps')
            return None
        if neck is None:
            raise ValueError("no timestep is chosen and the model has no AutoTimestepNeck, which holds the policy: add it to "
                             "model.neck (type='mmaselect.AutoTimestepNeck'), or fix backbone.timestep")
        if backbone.latents is not None:
            raise ValueError('the sweep looks at images, and this config has cached latents in their place: choose first, with '
                             'tools/select_timestep.py on the config without them, and fix backbone.timestep')
        if neck.policy['num_timesteps'] != backbone.num_timesteps:
            raise ValueError(f"the neck chooses {neck.policy['num_timesteps']} timesteps and the backbone is set up for "
                             f'{backbone.num_timesteps}: set backbone.num_timesteps and neck.timesteps to the same number')
        backbone.unfold()
        images = images_of(runner.cfg, model, neck, neck.num_images)
        with whole(runner.model), choosing_taps(backbone, neck):
            result = sweep(backbone.extractor, images, noise=backbone.noise, noise_seed=backbone.seed, progress=True,
                           **neck.policy)
        for chosen in (backbone, *(find(copy, DiTBackbone) for copy in averages(runner))):
            chosen.select(result.timesteps, result.tap)
        self.reselect = False
        runner.logger.info('%s\n%s', result.summary(), result.table())
        for remark in result.remarks:
            runner.logger.warning(f'timestep selection: {remark}')  # MMEngine drops a second warning of one format string
        self._report(runner, result)
        return result

    @master_only
    def _report(self, runner, result):
        path = Path(runner.work_dir) / 'timestep_selection.json'
        result.save(path)
        figure = result.plot(path.with_suffix('.png'))
        for backend in runner.visualizer._vis_backends.values():
            # The toolboxes' analyze_logs take every line of LocalVisBackend's scalars.json for one of training or validation.
            for candidate in () if isinstance(backend, LocalVisBackend) else result.candidates:
                backend.add_scalar(f"timestep_selection/{result.score['type']}", candidate.score, candidate.timestep)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        runner.visualizer.add_image('timestep_selection', np.asarray(canvas.buffer_rgba())[..., :3])
