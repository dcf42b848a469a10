import pytest

from mmaselect.extract import TAPS, resolve


def test_negative_blocks_count_from_the_end_and_the_callers_list_stays():
    taps = [(5, 'hidden'), (-1, 'query')]
    assert resolve(taps, depth=12) == ((5, 'hidden'), (11, 'query'))
    assert taps == [(5, 'hidden'), (-1, 'query')]


def test_names_of_one_block_come_in_any_order():
    assert resolve([(0, name) for name in reversed(TAPS)], depth=1) == tuple((0, name) for name in reversed(TAPS))


@pytest.mark.parametrize('taps, message', [
    ([(0, 'out')], "unknown tap 'out': choose one of"),
    ([(12, 'hidden')], 'block 12 is out of range: this model has 12 blocks'),
    ([(-13, 'hidden')], 'out of range'),
    ([(True, 'hidden')], 'out of range'),
    ([(1.0, 'hidden')], 'out of range'),
    ([(11, 'key'), (-1, 'key')], 'taps repeat'),
    ([(5, 'key'), (4, 'key')], 'ordered by block'),
    ([], 'no taps'),
    (['hidden'], 'a tap is a pair'),
    ([(1, 'key', 2)], 'a tap is a pair'),
    ([5], 'a tap is a pair'),
    ((5, 'hidden'), r"taps is a list of pairs .* not \(5, 'hidden'\)"),
    ([5, 'hidden'], 'taps is a list of pairs'),
    ('hidden', 'taps is a list of pairs'),
    (5, 'taps is a list of pairs'),
])
def test_bad_taps_are_refused(taps, message):
    with pytest.raises(ValueError, match=message):
        resolve(taps, depth=12)
