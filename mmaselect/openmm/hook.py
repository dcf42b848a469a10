"""AutoTimestepHook: runs the neck's policy once, before the first forward pass that needs its outcome."""
import contextlib
import copy
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner, autocast
from mmengine.visualization import LocalVisBackend, WandbVisBackend
from torch import nn

from mmaselect.registry import HOOKS
from mmaselect.selection import SelectionResult, sweep
from mmaselect.selection.distributed import broadcast, rank_and_size

from .backbone import DiTBackbone
from .caches.features import CachedFeatures
from .configs import type_name
from .modules import find_module, gathered, unwrap
from .neck import AutoTimestepNeck
from .sweep_images import training_sample

RESULT = 'timestep_selection.json'


def precision(cfg: Config) -> contextlib.AbstractContextManager:
    """Autocasting as the config trains: an AmpOptimWrapper's, or none."""
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) != 'AmpOptimWrapper':
        return contextlib.nullcontext()  # and not disabled, for a tool's --amp may be around it
    dtype = wrapper.get('dtype')
    return autocast(dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def averages(runner: Runner) -> list[nn.Module]:
    """The averaged models of EMAHooks, which are copies of the model that were made before weights were loaded."""
    return [hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')]


def _check_taps(backbone, taps):
    """Raises ValueError where the backbone could not go on with one of these taps."""
    if not backbone.frozen:  # which of its weights are trained is settled before the tap is chosen
        raise ValueError('choose_tap=True needs frozen=True: choose the tap first, with tools/select_timestep.py and '
                         'frozen=True, and name it in backbone.taps')
    try:
        copy.copy(backbone.extractor).set_taps(taps)
    except ValueError as error:
        raise ValueError(f'choose_tap=True tries taps up to {taps[-1]}, and backbone.taps={list(backbone.taps)} build less of '
                         "the DiT: set backbone.taps=[(-1, 'hidden')]") from error


def _add_curve(backend, name, result):
    """Sends the score of each candidate to a visualisation backend, with the timestep as the x axis."""
    if isinstance(backend, WandbVisBackend):  # which ignores the step
        axis = 'timestep_selection/timestep'
        backend.experiment.define_metric(name, step_metric=axis)
        for candidate in result.candidates:
            backend.add_scalars({axis: candidate.timestep, name: candidate.score})
        return
    for candidate in result.candidates:
        backend.add_scalar(name, candidate.score, candidate.timestep)


@HOOKS.register_module()
class AutoTimestepHook(Hook):
    """Chooses the timestep of a DiTBackbone by the policy of the model's AutoTimestepNeck.

    It acts before training, validation and testing, after weights are loaded, and returns early where a timestep is already
    chosen: fixed by the config, or restored from a checkpoint. Every rank looks at its share of the images and all end with
    the same choice, which is logged, written to the work dir as timestep_selection.json and .png, and sent to the Visualizer.

    Args:
        reselect (bool): Whether to choose anew once per run although a choice is there. Of a DiT that is folded, this takes
            frozen weights of ``backbone.pretrained``, or ``backbone.fold=False``.
        result (str | None): A timestep_selection.json whose choice is taken in place of a sweep. An error says where it was made
            with other weights, taps, noise or options.
        resume (bool): Whether to take the result that lies in the work dir, where it fits: of a run that was killed after its
            sweep and before its first checkpoint. ``tools/train.py --resume`` sets it.
    """
    priority = 'VERY_HIGH'

    def __init__(self, reselect: bool = False, result: str | None = None, resume: bool = False):
        self.reselect, self.result, self.resume = reselect, result, resume

    def before_train(self, runner: Runner) -> None:
        self.select(runner)

    before_val = before_test = before_train

    def select(self, runner: Runner) -> SelectionResult | None:
        """Runs the sweep where it is due.

        Returns:
            SelectionResult | None: None where the choice was already made.

        Raises:
            ValueError: The model has no DiTBackbone, needs a choice and has no AutoTimestepNeck or cached latents for images, or
                cannot be unfolded.
        """
        model = unwrap(runner.model)
        backbone, neck = find_module(model, DiTBackbone), find_module(model, AutoTimestepNeck)
        if find_module(model, CachedFeatures):
            return None  # they were made at a choice
        if backbone is None:
            raise ValueError('AutoTimestepHook found no DiTBackbone in the model: remove the hook or use the backbone')
        if backbone.chosen is not None and not self.reselect:
            if neck and neck.policy.choose_tap and backbone.tap[0] < 0:
                raise ValueError('choose_tap=True chooses the tap together with the timestep, and the timestep is settled, by '
                                 'backbone.timestep or by the checkpoint: leave it open, or name the tap in backbone.taps')
            return None
        if neck is None:
            raise ValueError("no timestep is chosen and the model has no AutoTimestepNeck, which holds the policy: add it to "
                             "model.neck (type='mmaselect.AutoTimestepNeck'), or fix backbone.timestep")
        if backbone.latents is not None:
            raise ValueError('the sweep looks at images, and this config has cached latents in their place: choose first, with '
                             'tools/select_timestep.py on the config without them, and fix backbone.timestep')
        policy = neck.policy
        if policy.num_timesteps != backbone.num_timesteps:
            raise ValueError(f'the neck chooses {policy.num_timesteps} timesteps and the backbone is set up for '
                             f'{backbone.num_timesteps}: set num_timesteps of the backbone and of the neck\'s selection to the '
                             'same number')
        extractor = backbone.unfolded()
        if policy.choose_tap:
            _check_taps(backbone, policy.taps_for(extractor))
        options = dict(noise=backbone.noise, noise_seed=backbone.seed, draws=backbone.noise_draws)
        with gathered(runner.model):
            result = self._earlier(runner, extractor, policy, options)
            again = result is not None
            if not again:
                images = training_sample(runner.cfg, model, policy)
                with precision(runner.cfg):
                    result = sweep(extractor, images, policy, **options, progress=True, log=runner.logger.info)
        for chosen in (backbone, *(find_module(average, DiTBackbone) for average in averages(runner))):
            chosen.select(result.timesteps, result.tap)
        self.reselect = False
        runner.logger.info('%s\n%s', result.summary(), result.table())
        for remark in result.remarks:
            runner.logger.warning(f'timestep selection: {remark}')  # MMEngine drops a second warning of one format string
        if not again:
            self._report(runner, result)
        return result

    def _earlier(self, runner, extractor, policy, options):
        """The result that is to be taken in place of a sweep, or None. The first rank reads the file, which others may not see.

        Raises:
            ValueError: ``result`` is no such file, or was made otherwise.
        """
        outcome = None
        if rank_and_size()[0] == 0:
            try:
                outcome = self._fitting(runner, extractor, policy, options)
            except Exception as error:  # the others have to hear of it
                outcome = error
        outcome = broadcast(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _fitting(self, runner, extractor, policy, options):
        path = self.result
        if path is None and self.resume and not self.reselect and Path(runner.work_dir, RESULT).is_file():
            path = Path(runner.work_dir, RESULT)
        if path is None:
            return None
        try:
            result = SelectionResult.load(path)
            result.check(extractor, policy, **options)
        except (OSError, ValueError) as error:
            if self.result is not None:
                raise ValueError(f'AutoTimestepHook cannot take result={str(path)!r}: {error}') from error
            runner.logger.warning(f'the sweep is done again, since {path} does not fit: {error}')
            return None
        runner.logger.info(f'the timestep is that of {path}, whose weights, taps and options are those of this run: no sweep')
        return result

    @master_only
    def _report(self, runner, result):
        path = Path(runner.work_dir) / RESULT
        result.save(path)
        figure = result.plot(path.with_suffix('.png'))
        for backend in runner.visualizer._vis_backends.values():
            # The toolboxes' analyze_logs take every line of LocalVisBackend's scalars.json for one of training or validation.
            if not isinstance(backend, LocalVisBackend):
                _add_curve(backend, f"timestep_selection/{result.score['type']}", result)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        runner.visualizer.add_image('timestep_selection', np.asarray(canvas.buffer_rgba())[..., :3])
