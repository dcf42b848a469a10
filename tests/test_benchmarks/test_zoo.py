"""benchmarks/zoo.py: rows of what trains, what is refused and what fails, kept between calls."""
import sys

import pytest
import runs

sys.path.insert(0, str(runs.ROOT / 'benchmarks'))
import zoo  # noqa: E402


def test_outcomes(monkeypatch):
    assert zoo.outcome('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py') == ('EncoderDecoder', 'FCNHead', 'ok')
    model, head, found = zoo.outcome('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py')
    assert (model, head) == ('EncoderDecoder', 'PIDHead') and found.startswith('refused: decode_head PIDHead reads')
    monkeypatch.setattr(zoo, 'step', lambda cfg: 1 / 0)
    assert zoo.outcome('mmpretrain::resnet/resnet18_8xb32_in1k.py') == (
        'ImageClassifier', 'LinearClsHead', 'failed: ZeroDivisionError: division by zero')


def test_a_neck_that_gets_no_gradient_fails():
    from mmengine.config import Config

    from mmaselect.openmm import swap
    from mmaselect.openmm.swap import inherit
    cfg = swap(Config.fromfile(inherit.find('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')),
               backbone=dict(arch=zoo.ARCH, timestep=50))
    cfg.model.neck.scales = [*cfg.model.neck.scales, 4]  # a level that no head reads
    cfg.model.neck.num_taps, cfg.model.backbone.taps = 1, [(1, 'hidden')]
    with pytest.raises(AssertionError, match='no gradient at neck'):
        zoo.step(cfg)


def test_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / 'zoo.csv.gz'
    monkeypatch.setattr(zoo, 'outcome', lambda name: (asked.append(name), ('EncoderDecoder', 'PSPHead', 'ok'))[1])
    monkeypatch.setattr(sys, 'argv', ['zoo.py', '--toolbox', 'mmseg', '--sample', '5', '--out', str(out)])
    zoo.main()
    assert len(asked) == 5 and len(zoo.read(out)) == 5
    zoo.main()
    assert len(asked) == 5  # all are done
    assert 'of the 5 whose operators are installed 5 train and predict (100.0 %)' in capsys.readouterr().out
