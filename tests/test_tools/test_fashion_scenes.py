"""The fashion scenes: their layout, what they show, and that they depend on the seed alone."""
import layouts
import numpy as np
import pytest
import runs
from PIL import Image

SCENES = runs.ROOT / 'tools' / 'dataset_converters' / 'fashion_scenes.py'


@pytest.fixture(scope='module')
def garments(tmp_path_factory):
    """Fashion-MNIST's four files with one class per part: trousers to train, bags to test."""
    folder = tmp_path_factory.mktemp('garments')
    layouts.write_fashion_mnist(folder)
    for part, label in (('train', 1), ('t10k', 8)):
        count = int.from_bytes((folder / f'{part}-labels-idx1-ubyte').read_bytes()[4:8], 'big')
        layouts.write_idx(folder / f'{part}-labels-idx1-ubyte', np.full(count, label, np.uint8))
    return folder


def scenes(source, out, **options):
    settings = {'train': 4, 'val': 3, 'pretrain': 2, **options}
    runs.run_here(SCENES, source, out, *(word for key, value in settings.items() for word in (f'--{key}', value)))
    return {path.relative_to(out): np.asarray(Image.open(path)) for path in sorted(out.rglob('*.png'))}


def test_scenes_have_mmsegs_layout_and_classes(garments, tmp_path):
    found = scenes(garments, tmp_path)
    assert sorted(map(str, found)) == sorted(
        f'{kind}/{split}/{index:06d}.png' for kind in ('img_dir', 'ann_dir')
        for split, count in (('train', 4), ('val', 3), ('pretrain', 2)) for index in range(count))
    assert len([path for path in tmp_path.rglob('*') if path.is_file()]) == len(found)
    seen = {split: set() for split in ('train', 'val', 'pretrain')}
    for path, array in found.items():
        assert array.dtype == np.uint8 and array.shape == ((64, 64, 3) if path.parts[0] == 'img_dir' else (64, 64))
        if path.parts[0] == 'ann_dir':
            seen[path.parts[1]] |= set(np.unique(array).tolist())
    # Each split shows the garments of its own part alone: class 1 is trousers + background, and so on.
    assert seen == {'train': {0, 2}, 'val': {0, 9}, 'pretrain': {0, 2}}


def test_scenes_depend_on_the_seed_alone(garments, tmp_path):
    first = scenes(garments, tmp_path / 'a')
    for same in (scenes(garments, tmp_path / 'b', workers=1), scenes(garments, tmp_path / 'a')):
        assert first.keys() == same.keys() and all(np.array_equal(first[path], same[path]) for path in first)
    other = scenes(garments, tmp_path / 'c', seed=1)
    assert not any(np.array_equal(first[path], other[path]) for path in first if path.parts[0] == 'img_dir')
    train = [array for path, array in first.items() if path.parts[:2] == ('img_dir', 'train')]
    pretrain = [array for path, array in first.items() if path.parts[:2] == ('img_dir', 'pretrain')]
    assert not any(np.array_equal(a, b) for a in train for b in pretrain)


def test_an_interrupted_conversion_is_completed(garments, tmp_path):
    first = scenes(garments, tmp_path)
    gone = tmp_path / 'ann_dir' / 'train' / '000002.png'
    gone.unlink()
    kept = tmp_path / 'ann_dir' / 'train' / '000001.png'
    before = kept.stat().st_mtime_ns
    assert all(np.array_equal(array, first[path]) for path, array in scenes(garments, tmp_path).items())
    assert gone.is_file() and kept.stat().st_mtime_ns == before


def test_garments_of_a_split_without_scenes_are_not_needed(garments, tmp_path):
    source = tmp_path / 'train_only'
    source.mkdir()
    for kind in ('images-idx3-ubyte', 'labels-idx1-ubyte'):
        (source / f'train-{kind}').symlink_to(garments / f'train-{kind}')
    found = scenes(source, tmp_path / 'out', val=0)
    assert {path.parts[1] for path in found} == {'train', 'pretrain'}


@pytest.mark.parametrize('change, said', [(dict(seed=1), 'is of another --seed than 1'), (dict(train=3), 'asks for fewer')])
def test_scenes_that_are_there_and_others_are_not_mixed(change, said, garments, tmp_path, capsys):
    first = scenes(garments, tmp_path)
    with pytest.raises(SystemExit):
        scenes(garments, tmp_path, **change)
    assert said in capsys.readouterr().err
    assert all(np.array_equal(array, first[path]) for path, array in scenes(garments, tmp_path).items())
