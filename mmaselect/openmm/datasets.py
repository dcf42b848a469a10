"""Datasets that MMSegmentation lacks. Imported when a config names one, since they need it."""
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


@DATASETS.register_module()
class CamVid(BaseSegDataset):
    """CamVid's street scenes (Brostow et al. 2009) with the 11 classes and colours of SegNet (arXiv:1511.00561), written by
    tools/dataset_converters/camvid.py. Arguments are BaseSegDataset's."""

    METAINFO = dict(
        classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist'),
        palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
                 [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]])

    def __init__(self, img_suffix='.png', **kwargs):
        super().__init__(img_suffix=img_suffix, **kwargs)
