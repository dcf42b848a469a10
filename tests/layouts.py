"""Tiny datasets in the layouts of the real ones: a handful of small images each."""
import struct

import mat4py
import numpy as np
from mmpretrain.datasets.categories import FGVCAIRCRAFT_CATEGORIES, FOOD101_CATEGORIES
from PIL import Image

TRAIN, VAL = 6, 3  # images of a set for segmentation
CLASSES, PER_CLASS = 4, 4  # of a set for classification; of each class one image is for testing


def picture(rng, height, width):
    """A colour with some texture, (height, width, 3) uint8: images that differ, as view_consistency wants."""
    return (rng.uniform(40, 215, 3) + rng.normal(0, 15, (height, width, 3))).clip(0, 255).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def mask(rng, height, width, labels):
    """Four rectangles of labels, (height, width) uint8."""
    return np.kron(rng.choice(labels, (2, 2)), np.ones((height // 2, width // 2), int)).astype(np.uint8)


def write_fashion_scenes(root):
    rng = np.random.default_rng(0)
    for split, count in (('train', TRAIN), ('val', VAL)):
        for index in range(count):
            save(root / 'img_dir' / split / f'{index:06d}.png', picture(rng, 32, 32))
            save(root / 'ann_dir' / split / f'{index:06d}.png', mask(rng, 32, 32, np.arange(11)))


def write_ade20k(root):
    """Images of different sizes; 0 in the masks is what ADE20K leaves unlabelled."""
    rng = np.random.default_rng(1)
    for split, count in (('training', TRAIN), ('validation', VAL)):
        for index in range(count):
            height, width = (int(2 * side) for side in rng.integers(20, 36, 2))
            name = f'ADE_{split[:5]}_{index:08d}'
            save(root / 'images' / split / f'{name}.jpg', picture(rng, height, width))
            save(root / 'annotations' / split / f'{name}.png', mask(rng, height, width, np.arange(151)))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(str, lines)) + '\n')


def write_cityscapes(root):
    rng = np.random.default_rng(4)
    for split, count in (('train', TRAIN), ('val', VAL)):
        for index in range(count):
            name = f'ulm/ulm_{index:06d}_000019'
            save(root / 'leftImg8bit' / split / f'{name}_leftImg8bit.png', picture(rng, 64, 128))
            save(root / 'gtFine' / split / f'{name}_gtFine_labelTrainIds.png', mask(rng, 64, 128, [*range(19), 255]))


def write_coco_stuff(root):
    rng = np.random.default_rng(5)
    for split, count in (('train2017', TRAIN), ('val2017', VAL)):
        for index in range(count):
            save(root / 'images' / split / f'{index:012d}.jpg', picture(rng, 40, 56))
            save(root / 'annotations' / split / f'{index:012d}_labelTrainIds.png', mask(rng, 40, 56, [*range(171), 255]))


def write_voc(root, labels, lists, folder):
    """``lists``: name -> (folder of masks, number of images); all images are in one folder."""
    rng = np.random.default_rng(6)
    for name, (masks, count) in lists.items():
        names = [f'2007_{name}{index:03d}' for index in range(count)]
        for each in names:
            save(root / 'JPEGImages' / f'{each}.jpg', picture(rng, 56, 40))
            save(root / masks / f'{each}.png', mask(rng, 56, 40, labels))
        write_lines(root / 'ImageSets' / folder / f'{name}.txt', names)


def write_voc_2012(root):
    write_voc(root, [*range(21), 255], folder='Segmentation', lists=dict(
        train=('SegmentationClass', TRAIN // 2), aug=('SegmentationClassAug', TRAIN // 2), val=('SegmentationClass', VAL)))


def write_pascal_context(root):
    masks = 'SegmentationClassContext'
    write_voc(root, np.arange(60), folder='SegmentationContext', lists=dict(train=(masks, TRAIN), val=(masks, VAL)))


def photos(root, name):
    """Saves an image of each class as ``name(label, index)`` below ``root``: (name, label from 0, whether it is for testing)."""
    rng = np.random.default_rng(2)
    found = [(name(label, index), label, index == 0) for label in range(CLASSES) for index in range(PER_CLASS)]
    for path, _, _ in found:
        save(root / path, picture(rng, 40, 48))
    return found


def write_cub(root):
    """Sorted by class, as the real one."""
    found = photos(root / 'images', lambda label, index: f'{label + 1:03d}.Bird/Bird_{index:04d}.jpg')
    for key, values in (('images', [path for path, _, _ in found]), ('image_class_labels', [label + 1 for _, label, _ in found]),
                        ('train_test_split', [int(not test) for _, _, test in found])):
        write_lines(root / f'{key}.txt', [f'{number} {value}' for number, value in enumerate(values, 1)])


def write_flowers(root):
    found = photos(root / 'jpg', lambda label, index: f'image_{label * PER_CLASS + index + 1:05d}.jpg')
    numbers = {part: [n for n, (_, _, test) in enumerate(found, 1) if test == (part == 'tstid')] for part in ('trnid', 'tstid')}
    numbers.update(valid=numbers['trnid'][::2], trnid=numbers['trnid'][1::2])
    mat4py.savemat(str(root / 'imagelabels.mat'), dict(labels=[label + 1 for _, label, _ in found]))
    mat4py.savemat(str(root / 'setid.mat'), numbers)


def write_cars(root):
    found = photos(root, lambda label, index: f'car_ims/{label * PER_CLASS + index + 1:06d}.jpg')
    mat4py.savemat(str(root / 'cars_annos.mat'), dict(annotations={
        'relative_im_path': [path for path, _, _ in found], 'class': [label + 1 for _, label, _ in found],
        'test': [int(test) for _, _, test in found]}))


def write_aircraft(root):
    found = photos(root / 'data' / 'images', lambda label, index: f'{label * PER_CLASS + index:07d}.jpg')
    for split in ('trainval', 'test'):
        write_lines(root / 'data' / f'images_variant_{split}.txt', [
            f'{path[:-4]} {FGVCAIRCRAFT_CATEGORIES[label]}' for path, label, test in found if test == (split == 'test')])


def write_pets(root):
    found = photos(root / 'images', lambda label, index: f'Pet_{label}_{index}.jpg')
    for split in ('trainval', 'test'):
        write_lines(root / 'annotations' / f'{split}.txt', [
            f'{path[:-4]} {label + 1} 1 1' for path, label, test in found if test == (split == 'test')])


def write_food(root):
    found = photos(root / 'images', lambda label, index: f'{FOOD101_CATEGORIES[label]}/{index}.jpg')
    for split in ('train', 'test'):
        write_lines(root / 'meta' / f'{split}.txt', [path[:-4] for path, _, test in found if test == (split == 'test')])


def write_lists(root, images='images'):
    """Images in a folder per class, and a list per part with a line 'path label' per image, as mmpretrain's CustomDataset."""
    found = photos(root / images, lambda label, index: f'{label:03d}/{index}.jpg')
    for split in ('train', 'test'):
        write_lines(root / f'{split}.txt', [f'{path} {label}' for path, label, test in found if test == (split == 'test')])


def write_imagenet(root):
    """Both parts in mmpretrain's layout with lists, where not all of the thousand classes need a folder."""
    for part in ('train', 'val'):
        found = photos(root / part, lambda label, index: f'n{label:08d}/{index}.JPEG')
        write_lines(root / 'meta' / f'{part}.txt',
                    [f'{path} {label}' for path, label, test in found if test == (part == 'val')])


def write_cifar10(root):
    """As tools/dataset_converters/cifar10.py writes it, where not all of the classes need a folder."""
    rng = np.random.default_rng(7)
    for split, count in (('train', PER_CLASS - 1), ('test', 1)):
        names = [(f'class{label}/{index}.png', label) for index in range(count) for label in range(CLASSES)]
        for name, _ in names:
            save(root / split / name, picture(rng, 32, 32))
        write_lines(root / 'meta' / f'{split}.txt', [f'{name} {label}' for name, label in names])


def write_camvid(root):
    """As tools/dataset_converters/camvid.py writes it."""
    rng = np.random.default_rng(8)
    for split, count in (('train', TRAIN), ('test', VAL)):
        names = [f'seq_{index:06d}' for index in range(count)]
        for name in names:
            save(root / 'img_dir' / split / f'{name}.png', picture(rng, 60, 80))
            save(root / 'ann_dir' / split / f'{name}.png', mask(rng, 60, 80, [*range(11), 255]))
        write_lines(root / f'{split}.txt', names)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f'>I{array.ndim}I', 0x800 + array.ndim, *array.shape) + array.tobytes())


def write_fashion_mnist(root, train=12, test=8):
    """Bright garments on black; the two parts differ in size, so that one cannot pass for the other."""
    rng = np.random.default_rng(3)
    for part, count in (('train', train), ('t10k', test)):
        images = np.zeros((count, 28, 28), np.uint8)
        for image in images:
            top, left = rng.integers(2, 8, 2)
            image[top:28 - top, left:28 - left] = rng.integers(60, 256)
        write_idx(root / f'{part}-images-idx3-ubyte', images)
        write_idx(root / f'{part}-labels-idx1-ubyte', (np.arange(count) % 10).astype(np.uint8))


# The data_root of a config -> folder below the tests' data, and who writes it.
LAYOUTS = {
    'data/fashion_scenes': ('fashion_scenes', write_fashion_scenes),
    'data/fashion_mnist': ('fashion_mnist', write_fashion_mnist),
    'data/cifar10': ('cifar10', write_cifar10),
    'data/camvid': ('camvid', write_camvid),
    'data/ade/ADEChallengeData2016': ('ade20k', write_ade20k),
    'data/cityscapes': ('cityscapes', write_cityscapes),
    'data/coco_stuff164k': ('coco_stuff', write_coco_stuff),
    'data/VOCdevkit/VOC2012': ('voc_2012', write_voc_2012),
    'data/VOCdevkit/VOC2010': ('pascal_context', write_pascal_context),
    'data/CUB_200_2011': ('cub', write_cub),
    'data/Flowers102': ('flowers', write_flowers),
    'data/Stanford_Cars': ('cars', write_cars),
    'data/fgvc-aircraft-2013b': ('aircraft', write_aircraft),
    'data/Oxford-IIIT_Pets': ('pets', write_pets),
    'data/food-101': ('food', write_food),
    'data/stanford_dogs': ('dogs', lambda root: write_lists(root, images='Images')),
    'data/nabirds': ('nabirds', write_lists),
    'data/imagenet': ('imagenet', write_imagenet),
}


def write_all(root):
    """All datasets below ``root``."""
    for name, write in LAYOUTS.values():
        write(root / name)
    return root
