"""Augmented views, and the way of their maps back to the image."""
import tiny
import torch
import torch.nn.functional as F

from mmaselect.selection.views import align, augment


def test_augment_shifts_and_mirrors_by_its_generator_alone():
    image = tiny.images(1, 20, 40)[0]
    views = [augment(image, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, *range(1, 30))]
    assert torch.equal(views[0], views[1])
    assert all(view.shape == image.shape for view in views)
    # Some view is the image moved down by one or two rows, some is its mirror image moved so.
    assert len({view.sum().item() for view in views}) > 10


def test_aligned_views_show_the_same_place():
    """On an image that grows evenly to the right and downwards, reading between cells is exact; not so beyond the view."""
    y, x = torch.meshgrid(torch.arange(40.), torch.arange(60.), indexing='ij')
    image = torch.stack([y, x, y + 2 * x])
    views = [augment(image, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert {mirrored for _, (_, _, mirrored) in views} == {True, False} and len({dy for _, (dy, _, _) in views}) > 3
    maps = F.avg_pool2d(torch.stack([view for view, _ in views]), 4)  # (12, 3, 10, 15), cells of 4 pixels
    aligned = align(maps, [origin for _, origin in views], width=60, stride=4)
    expected = F.avg_pool2d(image[None], 4).expand(12, -1, -1, -1)
    inner = ..., slice(2, -2), slice(2, -2)
    torch.testing.assert_close(aligned[inner], expected[inner], rtol=0, atol=1e-4)
    assert (maps[inner] - expected[inner]).abs().max() > 3  # else this shows nothing


def test_views_of_an_image_that_ends_within_a_cell():
    """13 pixels in cells of 4: mirroring turns about the middle of the image, not of the map."""
    x = torch.arange(16.).expand(1, 4, 16)  # what the padded image shows, its mirror image and their maps
    mirrored = torch.cat([x[..., :13].flip(-1), x[..., :3]], -1)
    aligned = align(F.avg_pool2d(mirrored[None], 4), [(0, 0, True)], width=13, stride=4)
    assert torch.allclose(aligned[0, 0, 0, 1:3], torch.tensor([5.5, 9.5]))
