"""Latents or features of a dataset on the disk: shards in safetensors, and an index that says what they were made from.

The index is written last, so that a folder with one is complete.
"""
import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mmaselect.files import atomic

INDEX = 'index.json'
SHARD = 1024  # items


def write(folder, length, settings, items, *, shard=SHARD, advance=lambda count: None):
    """Writes a cache, or what an earlier call that was stopped left to do.

    Args:
        folder (str | Path): Made where it is not there.
        length (int): Items.
        settings (dict): All that the items depend on, as plain data of JSON, with ``kind``.
        items (Callable[[range], Iterable[dict[str, Tensor]]]): Gives the tensors of the items of a range, in their order, on
            the CPU.
        shard (int): Items per file.
        advance (Callable[[int], None]): Told how many items a shard had when it is there.

    Raises:
        FileExistsError: The folder has a cache that was made otherwise.
        OSError: It cannot be written.
    """
    folder = Path(folder)
    index = json.loads(json.dumps(dict(settings=settings, length=length, shard=shard)))
    if (folder / INDEX).is_file():
        found = _read_index(folder)
        if found != index:
            differs = [key for key in {*index['settings'], *found['settings']}
                       if index['settings'].get(key) != found['settings'].get(key)]
            differs += [key for key in ('length', 'shard') if index[key] != found[key]]
            raise FileExistsError(f'{folder} has a cache of other {", ".join(sorted(differs))}: remove it or choose another '
                                  'folder')
    made = hashlib.blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16).hexdigest()
    for start in range(0, length, shard):
        path, places = _shard(folder, start // shard), range(start, min(length, start + shard))
        if _made(path) != made:
            tensors = {f'{place}.{name}': value.contiguous().clone()  # save takes no tensors that share memory
                       for place, item in zip(places, items(places), strict=True) for name, value in item.items()}
            with atomic(path) as part:
                part.write_bytes(save(tensors, metadata=dict(made=made)))  # save_file's are for their owner alone
        advance(len(places))
    with atomic(folder / INDEX) as part:
        part.write_text(json.dumps(index, indent=1) + '\n')


class Cache:
    """Reads what ``write`` wrote. Files are mapped into memory when an item of theirs is first asked for.

    Args:
        folder (str | Path): With an index.
        kind (str): 'latents' or 'features', which ``settings['kind']`` must be.

    Raises:
        FileNotFoundError: There is no cache, or it is not complete.
        ValueError: It is of another kind, or its index is damaged.
    """

    def __init__(self, folder, kind):
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.settings, self.length, self.shard = index['settings'], index['length'], index['shard']
        if self.settings['kind'] != kind:
            raise ValueError(f'{self.folder} is a cache of {self.settings["kind"]}, not of {kind}')
        self._open = {}

    def __len__(self):
        return self.length

    def __getstate__(self):  # for workers that are spawned: open files do not travel
        return {**self.__dict__, '_open': {}}

    def read(self, place, name):
        """One tensor of the item at ``place``.

        Raises:
            IndexError: There are fewer items.
            FileNotFoundError: A shard is gone.
            ValueError: A shard is damaged, or the items have no such tensor.
        """
        if not 0 <= place < self.length:
            raise IndexError(f'{self.folder} has {self.length} items and number {place} is asked for: the dataset has grown '
                             'since it was cached. Remove the cache and write it again')
        number = place // self.shard
        path = _shard(self.folder, number)
        try:
            if number not in self._open:
                self._open[number] = safe_open(path, 'pt')
            return self._open[number].get_tensor(f'{place}.{name}')
        except FileNotFoundError:
            raise FileNotFoundError(f'{path} is gone: remove {self.folder / INDEX} and write the cache again') from None
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{path} has no readable {place}.{name} ({error}): it was cached without, or the file is damaged '
                             'and the cache has to be written again') from error


def caches_in(folder, kind):
    """The caches in the folders of ``folder``, by their names.

    Raises:
        FileNotFoundError: There are none.
        ValueError: One is of another kind or damaged.
    """
    found = {path.parent.name: Cache(path.parent, kind) for path in sorted(Path(folder).glob(f'*/{INDEX}'))}
    if not found:
        raise FileNotFoundError(f'{folder} has no cache of {kind}: write it with tools/cache_{kind}.py CONFIG --out {folder}')
    return found


def check_vae(folder, encoder):
    """Raises ValueError where latents in the folders of ``folder`` were not made by this LatentEncoder."""
    own = encoder.fingerprint()
    for cache in caches_in(folder, 'latents').values():
        if cache.settings['vae'] != own:
            raise ValueError(f'the latents in {cache.folder} were made by a VAE of other weights, scaling or dtype '
                             f'({cache.settings["vae_dtype"]}) than this model has: write them again with tools/cache_latents.py')


def _shard(folder, number):
    return Path(folder) / f'{number:05d}.safetensors'


def _made(path):
    """The mark of what a shard was made from, or None where there is no whole shard."""
    try:
        with safe_open(path, 'pt') as file:
            return (file.metadata() or {}).get('made')
    except (SafetensorError, OSError):
        return None


def _read_index(folder):
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        index['settings']['kind'], index['length'], index['shard']
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} is not there: the folder holds no cache, or one whose writing was stopped. Write it, '
                                'or go on, with tools/cache_latents.py or tools/cache_features.py') from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error!r}): remove it and write the cache again') from error
    return index
