"""The picture of README.md: a score and what it stands for against the timestep, and features beside them.

    python benchmarks/picture.py CIFAR-10 docs/timestep.png

The curves are means over seeds and taps of selection.py's rows; the features are fashion_dit's, of its own samples.
"""
import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

import record
import torch
from matplotlib.figure import Figure
from PIL import Image

from mmaselect.extract import Extractor, seeded_noise
from mmaselect.extract.inputs import to_batch
from mmaselect.files import atomic
from mmaselect.pictures import as_picture, feature_colours

DEMO = record.ROOT / 'configs' / 'fashion_dit'
TIMESTEPS = 0, 100, 300, 600, 900


def curves(rows, setting, score):
    """(timesteps, mean accuracies, mean scores) of a setting."""
    own = defaultdict(list)
    for row in rows:
        if row['setting'] == setting:
            own[row['t']].append(((row['accuracy_1'] + row['accuracy_2']) / 2, row[score]))
    if not own:
        raise SystemExit(f'no rows of {setting}: there are {", ".join(dict.fromkeys(row["setting"] for row in rows))}')
    ts = sorted(own)
    return ts, *([mean(pair[k] for pair in own[t]) for t in ts] for k in (0, 1))


def features(count, tap):
    """Pictures of ``count`` samples of fashion_dit, and per timestep of their features."""
    with Image.open(DEMO / 'samples.png') as sheet:
        images = to_batch([sheet.convert('RGB').crop((x, 2, x + 64, 66)) for x in range(68, 68 + 66 * count, 66)])
    extractor = Extractor.from_pretrained(str(DEMO)).eval()
    with torch.no_grad():
        latents = [extractor.encoder(image[None]) for image in images]
    noise = [seeded_noise(latents[0].shape, 0)] * count
    colours = feature_colours(extractor, latents, TIMESTEPS, [tap], noise=noise)
    return [as_picture(image) for image in images], {t: colours[t][0] for t in TIMESTEPS}


def draw(path, ts, accuracies, scores, *, setting, score, count=3, tap=(5, 'hidden')):
    pictures, colours = features(count, tap)
    figure = Figure(figsize=(11, 3.2), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=(5, 6))
    axes = left.subplots()
    axes.plot(ts, accuracies, 'o-', color='black', label='accuracy of a probe with labels, %')
    axes.set(xlabel='timestep t (0 is the cleanest)', ylabel='accuracy, %', title=setting)
    other = axes.twinx()
    other.plot(ts, scores, 's--', color='tab:red', label=f'{score}, without labels')
    other.set_ylabel('score')
    axes.legend(handles=[*axes.lines, *other.lines], loc='lower left', fontsize='small', frameon=False)
    cells = right.subplots(count, 1 + len(TIMESTEPS))
    for r, row in enumerate(cells):
        for c, (cell, shown) in enumerate(zip(row, [pictures[r], *(colours[t][r] for t in TIMESTEPS)], strict=True)):
            cell.imshow(shown.numpy())
            cell.set_axis_off()
            if r == 0:
                cell.set_title('image' if c == 0 else f't = {TIMESTEPS[c - 1]}', fontsize='small')
    with atomic(path) as part:
        figure.savefig(part, dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('setting', help='of the rows')
    parser.add_argument('out', type=Path, help='PNG file')
    parser.add_argument('--rows', type=Path, default=record.ROOT / 'benchmarks' / 'results' / 'selection.csv.gz')
    parser.add_argument('--score', default='half_consistency')
    args = parser.parse_args(argv)
    draw(args.out, *curves(record.read(args.rows)[1], args.setting, args.score), setting=args.setting, score=args.score)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
