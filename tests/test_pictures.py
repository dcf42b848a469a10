"""Feature maps as colours: against an independent PCA, and what must not change them."""
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from mmaselect.pictures import feature_colours, grid, masks_with_legend, principal_colours


def maps(*sizes, channels=6, seed=0):
    """Skewed features, so that the sign of a component is not a matter of rounding, that vary differently per channel."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])[:channels, None, None]
    mix = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    return [torch.einsum('ij,jhw->ihw', mix, spread * torch.rand(channels, *size, generator=generator) ** 3) for size in sizes]


def test_colours_are_the_first_three_principal_components():
    found = principal_colours(maps((9, 7), (4, 5)))
    assert [tuple(part.shape) for part in found] == [(9, 7, 3), (4, 5, 3)]
    cells = np.concatenate([m.flatten(1).T.numpy() for m in maps((9, 7), (4, 5))]).astype(np.float64)
    left, values, _ = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    scores = left[:, :3] * values[:3]
    scores *= np.sign((scores ** 3).sum(0))
    low, high = np.percentile(scores, (1, 99), axis=0)
    expected = torch.from_numpy(((scores - low) / (high - low)).clip(0, 1)).float()
    torch.testing.assert_close(torch.cat([part.flatten(0, 1) for part in found]), expected, rtol=0, atol=1e-5)


def test_axes_and_signs_of_the_features_do_not_matter():
    given = maps((9, 7), (4, 5))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    expected = principal_colours(given)
    for change in (lambda m: -m, lambda m: 3 * m + 7, lambda m: torch.einsum('ij,jhw->ihw', turn, m)):
        for part, reference in zip(principal_colours([change(m) for m in given]), expected, strict=True):
            torch.testing.assert_close(part, reference, rtol=0, atol=1e-4)


def test_features_that_do_not_vary_are_grey():
    flat, = principal_colours([torch.full((6, 3, 4), 2.5)])
    assert torch.equal(flat, torch.full((3, 4, 3), 0.5))
    one, = principal_colours([torch.linspace(0, 1, 12).reshape(1, 3, 4) * torch.ones(6, 1, 1)])  # one component alone
    assert one[..., 0].std() > 0.2 and torch.equal(one[..., 1:], torch.full((3, 4, 2), 0.5))


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(FloatingPointError, match='not all finite'):
        principal_colours([torch.full((6, 3, 4), float('nan'))])


def test_each_timestep_and_tap_is_fitted_on_all_images():
    extractor = tiny.extractor()
    images = [tiny.images(1, 16, 24), tiny.images(1, 20, 16, seed=1)]
    latents = [extractor.encoder(image) for image in images]
    noise = [extractor.draw(latent)[0] for latent in latents]
    taps = [(1, 'hidden'), (3, 'key')]
    found = feature_colours(extractor, latents, (5, 400), taps, noise=noise)
    assert list(found) == [5, 400] and all(len(at) == 2 for at in found.values())
    for place, tap in enumerate(taps):
        extractor.set_taps([tap])
        expected = principal_colours([extractor(image, 400)[0][0] for image in images])
        for part, reference in zip(found[400][place], expected, strict=True):
            torch.testing.assert_close(part, reference)
    assert found[400][0][0].shape == (4, 6, 3)


def test_a_grid_has_its_pictures_in_order(tmp_path):
    """Read back from the file: red and green above blue and white, each as wide as it should be."""
    red, green, blue, white = (torch.tensor(colour, dtype=torch.float).expand(4, 6, 3)
                               for colour in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)))
    grid(tmp_path / 'grid.png', [[red, green], [blue, white]], title='', columns=['', ''], labels=['a', 'b'], notes=['', 'x'])
    pixels = np.asarray(Image.open(tmp_path / 'grid.png').convert('RGB')).astype(int)
    boxes = []
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)):
        rows, columns = np.nonzero((abs(pixels - colour) < 3).all(2))
        boxes.append((rows.min(), columns.min(), rows.max() - rows.min() + 1, columns.max() - columns.min() + 1))
    (top, left, height, width), right, below, last = boxes
    assert right[0] == top and right[1] > left + width - 1 and below[1] == left and below[0] > top + height - 1
    assert last[:2] == (below[0], right[1]) and width == pytest.approx(1.5 * height, rel=0.02)


def test_masks_are_enlarged_beside_the_image_with_a_legend_of_what_occurs():
    image = np.full((3, 5, 3), 100, np.uint8)
    truth, prediction = np.zeros((2, 3, 5), np.uint8)
    truth[:, 3:], prediction[0], prediction[2] = 2, 1, 255
    palette = [[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 10, 9]]
    picture = masks_with_legend(image, dict(truth=truth, prediction=prediction), 'abcd', palette, opacity=1, side=512)
    times = 103  # the smallest whole number that makes 512 pixels of 5
    top = 32

    def block(panel, row, column):
        """The one colour of a pixel of the first, second or third panel."""
        y, x = top + row * times, 12 + panel * (5 * times + 12) + column * times
        colours = np.unique(picture[y:y + times, x:x + times].reshape(-1, 3), axis=0)
        assert len(colours) == 1
        return tuple(colours[0])
    assert picture.shape[1] == 12 + 3 * (5 * times + 12) and picture.shape[0] > top + 3 * times + 30
    assert block(0, 2, 4) == (100, 100, 100)
    assert block(1, 1, 2) == (200, 0, 0) and block(1, 1, 3) == (0, 0, 200)
    assert [block(2, row, 0) for row in range(3)] == [(0, 200, 0), (200, 0, 0), (255, 255, 255)]
    legend = {tuple(colour) for colour in np.unique(picture[top + 3 * times + 5:].reshape(-1, 3), axis=0)}
    assert {(200, 0, 0), (0, 200, 0), (0, 0, 200)} <= legend and (90, 10, 9) not in legend


def test_masks_of_large_images_keep_their_pixels():
    image = np.zeros((600, 300, 3), np.uint8)
    picture = masks_with_legend(image, dict(truth=np.zeros((600, 300), int)), ['a'], [[1, 2, 3]], opacity=0.5)
    assert picture.shape[1] == 12 + 2 * (300 + 12)
