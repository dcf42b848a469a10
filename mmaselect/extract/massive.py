"""Massive activations: a few fixed channels of a large DiT that are far larger than all others, on every token, and say little
about the image (Gan et al. 2025, arXiv:2505.18584, who tie them to adaLN)."""


def magnitudes(feature):
    """Mean absolute value of each channel of maps (B, D, h, w): (D,), float64 on the CPU."""
    return feature.float().abs().mean((0, 2, 3)).cpu().double()


def massive_channels(magnitude, factor=50):
    """The channels whose magnitude exceeds the median of all channels by more than a factor.

    Args:
        magnitude (Tensor): (D,), as ``magnitudes`` gives it, or the mean of several.
        factor (float): At least 1.

    Returns:
        dict[int, float]: Channel -> magnitude over the median, the largest first.

    Raises:
        ValueError: A factor below 1, a magnitude that is not finite, or a median of 0.
    """
    median = magnitude.quantile(0.5).item()
    if factor < 1:
        raise ValueError(f'factor={factor}: half of all channels are above the median, so it must be at least 1')
    if not magnitude.isfinite().all() or median == 0:
        raise ValueError(f'the magnitudes of the channels range over [{magnitude.min()}, {magnitude.max()}] with a median of '
                         f'{median}: the feature is dead or not finite. Check the weights, and run in float32 or bfloat16')
    ratio = magnitude / median
    return {channel: ratio[channel].item() for channel in ratio.argsort(descending=True).tolist() if ratio[channel] > factor}
