import math

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from mmaselect.extract import NoiseProcess, seeded_noise


@pytest.mark.parametrize('scheduler', [DDPMScheduler(), DDIMScheduler(beta_schedule='scaled_linear', num_train_timesteps=100)])
def test_equals_the_schedulers_own_noise(scheduler):
    process = NoiseProcess.from_scheduler(scheduler)
    x, eps = seeded_noise((3, 4, 2, 6), 0), seeded_noise((3, 4, 2, 6), 1)
    t = torch.tensor([0, 17, 99])
    torch.testing.assert_close(process.add(x, t, eps), scheduler.add_noise(x, eps, t))
    assert len(process) == scheduler.config.num_train_timesteps


@pytest.mark.parametrize('options', [dict(shift=3.0), dict(shift=3.0, use_dynamic_shifting=True)])
def test_flow_matching_counts_up_with_the_schedulers_own_shift(options):
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    process = NoiseProcess.from_scheduler(scheduler)
    torch.testing.assert_close(process.sigma.flip(0).float(), scheduler.sigmas[:1000].cpu())
    torch.testing.assert_close(process.model_time.flip(0).float(), scheduler.timesteps.cpu())
    torch.testing.assert_close(process.signal, 1 - process.sigma)


@pytest.mark.parametrize('name, first, last', [('signal', 0.999, 0), ('sigma', 0.001, 1), (None, 1, 1000)])
def test_what_a_flow_matching_network_is_given_as_its_time(name, first, last):
    scheduler = FlowMatchEulerDiscreteScheduler()
    if name:
        scheduler.register_to_config(_model_time=name)
    process = NoiseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler.config)))
    assert process.model_time[[0, -1]].tolist() == pytest.approx([first, last], abs=1e-12)
    assert process.sigma[[0, -1]].tolist() == pytest.approx([0.001, 1])


@pytest.mark.parametrize('kind', [DPMSolverMultistepScheduler, UniPCMultistepScheduler, SASolverScheduler])
def test_solvers_with_flow_sigmas_have_the_noise_of_a_flow(kind):
    """They have alphas_cumprod as well, which is not theirs. SANA's published scheduler is the first."""
    scheduler = kind(use_flow_sigmas=True, flow_shift=3.0, prediction_type='flow_prediction')
    process = NoiseProcess.from_scheduler(scheduler)
    torch.testing.assert_close(process.signal, 1 - process.sigma)
    assert process.sigma[[499, 999]].tolist() == pytest.approx([3 * 0.5 / (1 + 2 * 0.5), 1])
    scheduler.set_timesteps(20)
    for sigma, time in zip(scheduler.sigmas[:20].tolist(), scheduler.timesteps.tolist(), strict=True):
        place = (process.sigma - sigma).abs().argmin()  # between 1000 levels; the solver's times are whole numbers
        assert abs(process.model_time[place].item() - time) < 3
    plain = NoiseProcess.from_scheduler(kind())
    assert not torch.allclose(plain.signal, 1 - plain.sigma, atol=0.1)


@pytest.mark.parametrize('scheduler, mu', [
    (FlowMatchEulerDiscreteScheduler(shift=3.0), None), (FlowMatchHeunDiscreteScheduler(shift=3.0), None),
    *((FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=end), mu)
      for mu in (0.5, 1.15) for end in (None, 0.02)),
])
def test_each_step_of_a_flow_is_on_our_clock(scheduler, mu):
    """A level has the same time whatever shift, that of the image's size too, chose it to be visited."""
    process = NoiseProcess.from_scheduler(scheduler)
    scheduler.set_timesteps(28, **({} if mu is None else dict(mu=mu)))
    x, eps = seeded_noise((1, 4, 2, 6), 0), seeded_noise((1, 4, 2, 6), 1)
    for step in range(0, len(scheduler.timesteps), 5):
        sigma, time = scheduler.sigmas[step].item(), scheduler.timesteps[step].item()
        here = NoiseProcess(torch.tensor([1 - sigma]), torch.tensor([sigma]), torch.tensor([time]))
        place = (process.sigma - sigma).abs().argmin()
        tolerance = process.sigma.diff().max().item()
        assert process.model_time[place].item() == pytest.approx(time, abs=1000 * tolerance)
        mixed = process.add(x, place[None], eps)
        torch.testing.assert_close(mixed, here.add(x, torch.tensor([0]), eps), rtol=0, atol=5 * tolerance)
        if hasattr(scheduler, 'scale_noise') and mu is None and type(scheduler) is FlowMatchEulerDiscreteScheduler:
            own = scheduler.scale_noise(x, scheduler.timesteps[step:step + 1], eps)
            torch.testing.assert_close(here.add(x, torch.tensor([0]), eps), own)


@pytest.mark.parametrize('scheduler, message', [
    (DPMSolverMultistepScheduler(prediction_type='flow_prediction'), 'set use_flow_sigmas'),
    (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 'turns its levels around'),
])
def test_levels_that_would_be_taken_for_others_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        NoiseProcess.from_scheduler(scheduler)


def test_zero_is_the_cleanest():
    process = NoiseProcess.from_scheduler(DDPMScheduler())
    assert process.sigma.diff().min() > 0
    assert process.log_snr(0) > process.log_snr(500) > process.log_snr(999)
    assert process.log_snr(100) == pytest.approx(2 * math.log(process.signal[100] / process.sigma[100]))


def test_flow_matching_ends_without_signal():
    assert NoiseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler()).log_snr(999) == -math.inf


def test_no_noise_only_scales():
    process = NoiseProcess.from_scheduler(DDPMScheduler())
    x = seeded_noise((1, 4, 2, 2), 0)
    torch.testing.assert_close(process.add(x, torch.tensor([500]), None), x * process.signal[500].float())


def test_a_scheduler_without_a_process_is_refused():
    with pytest.raises(ValueError, match='defines no noise process'):
        NoiseProcess.from_scheduler(CMStochasticIterativeScheduler())


def test_noise_depends_on_shape_and_seeds_alone():
    before = torch.get_rng_state()
    noise = seeded_noise((4, 8, 8), 3, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(noise, seeded_noise((4, 8, 8), 3, 7))
    assert not torch.equal(noise, seeded_noise((4, 8, 8), 7, 3))
    assert not torch.equal(noise, seeded_noise((4, 8, 8), 3, 8))
    assert abs(seeded_noise((10000,), 0).std() - 1) < 0.05


def test_euler_schedulers_keep_the_process_they_were_trained_with():
    assert len(NoiseProcess.from_scheduler(EulerDiscreteScheduler())) == 1000
