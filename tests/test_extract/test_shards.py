"""What caches are written to and read from the disk as, and how they refuse."""
import pickle
from types import SimpleNamespace

import pytest
import torch

from mmaselect.extract import shards as cache

SETTINGS = dict(kind='latents', vae='abc', vae_dtype='torch.float32', pipeline=('Resize', 8))


def item(place):
    return dict(mean=torch.full((2, 1 + place % 3, 2), float(place)), about=torch.tensor([place, 7]))


def items(places):
    batch = [item(place) for place in places]
    for one in batch:
        yield {name: value.t() if value.ndim == 2 else value for name, value in one.items()}


def write(folder, settings=SETTINGS, items=items, **options):
    cache.write(folder, 7, settings, items, shard=3, **options)
    return cache.Cache(folder, 'latents')


def test_every_item_comes_back(tmp_path):
    counts = []
    read = write(tmp_path / 'a' / 'train', advance=counts.append)
    assert len(read) == 7 and counts == [3, 3, 1]
    for copy in (read, pickle.loads(pickle.dumps(read))):
        for place in (6, 0, 4, 1, 3, 2, 5):
            for name, value in item(place).items():
                assert torch.equal(copy.read(place, name), value)
    assert len(list((tmp_path / 'a' / 'train').iterdir())) == 4  # three shards, the index, and nothing temporary
    assert len({path.stat().st_mode for path in (tmp_path / 'a' / 'train').iterdir()}) == 1


def test_tensors_that_are_parts_of_one_are_stored_alone(tmp_path):
    whole = torch.arange(40.).view(10, 4)
    read = write(tmp_path, items=lambda places: (dict(mean=whole[place:place + 2]) for place in places))
    assert all(torch.equal(read.read(place, 'mean'), whole[place:place + 2]) for place in range(7))


def test_a_stopped_writing_goes_on(tmp_path):
    asked = []

    def failing(places):
        asked.append(list(places))
        for place in places:
            if place == 4 and len(asked) == 2:
                raise KeyboardInterrupt
            yield item(place)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, items=failing)
    assert [path.name for path in tmp_path.iterdir()] == ['00000.safetensors']
    with pytest.raises(FileNotFoundError, match='no cache, or one whose writing was stopped'):
        cache.Cache(tmp_path, 'latents')
    read = write(tmp_path, items=failing)
    assert asked == [[0, 1, 2], [3, 4, 5], [3, 4, 5], [6]]
    assert [int(read.read(place, 'about')[0]) for place in range(7)] == list(range(7))
    write(tmp_path, items=failing)
    assert len(asked) == 4  # all was there


def test_shards_of_other_settings_are_not_kept(tmp_path):
    def stopped(places):
        if places[0]:
            raise KeyboardInterrupt
        return (dict(about=torch.tensor([-1, 7])) for _ in places)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, dict(SETTINGS, vae='other'), stopped)
    assert write(tmp_path).read(0, 'about').tolist() == [0, 7]


def test_a_cache_made_otherwise_is_not_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(FileExistsError, match='has a cache of other pipeline, vae: remove it'):
        write(tmp_path, dict(SETTINGS, vae='other', pipeline=()))
    with pytest.raises(FileExistsError, match='of other length'):
        cache.write(tmp_path, 8, SETTINGS, items, shard=3)
    assert cache.Cache(tmp_path, 'latents').settings['vae'] == 'abc'


def test_what_is_not_there_is_named(tmp_path):
    read = write(tmp_path)
    for place in (7, -1):
        with pytest.raises(IndexError, match=f'has 7 items and number {place}'):
            read.read(place, 'mean')
    with pytest.raises(ValueError, match='no readable 1.std .*cached without'):
        read.read(1, 'std')
    with pytest.raises(ValueError, match='a cache of latents, not of features'):
        cache.Cache(tmp_path, 'features')
    (tmp_path / '00001.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='00001.safetensors is gone'):
        read.read(4, 'mean')


def test_damage_is_named(tmp_path):
    read = write(tmp_path)
    shard, index = tmp_path / '00002.safetensors', tmp_path / 'index.json'
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match='00002.safetensors .*damaged'):
        read.read(6, 'mean')
    for text in (index.read_text()[:-30], '[]', '{"settings": {}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match='index.json is damaged'):
            cache.Cache(tmp_path, 'latents')


def test_latents_of_another_vae_are_refused(tmp_path):
    encoder = SimpleNamespace(fingerprint=lambda: 'abc')
    with pytest.raises(FileNotFoundError, match='no cache of latents: write it with tools/cache_latents.py'):
        cache.check_vae(tmp_path, encoder)
    write(tmp_path / 'train')
    cache.check_vae(tmp_path, encoder)
    write(tmp_path / 'val', dict(SETTINGS, vae='other'))
    with pytest.raises(ValueError, match='val were made by a VAE of other weights'):
        cache.check_vae(tmp_path, encoder)
