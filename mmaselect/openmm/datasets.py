"""The demo's dataset. Imported when a config names it, since it needs MMSegmentation."""
from mmseg.datasets import BaseSegDataset

from mmaselect.registry import DATASETS


@DATASETS.register_module()
class FashionScenes(BaseSegDataset):
    """Scenes of Fashion-MNIST garments, written by tools/dataset_converters/fashion_scenes.py. Arguments are BaseSegDataset's."""

    METAINFO = dict(
        classes=('background', 'T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'boot'),
        palette=[[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48], [145, 30, 180],
                 [70, 240, 240], [240, 50, 230], [210, 245, 60], [0, 128, 128]])

    def __init__(self, img_suffix='.png', **kwargs):
        super().__init__(img_suffix=img_suffix, **kwargs)
