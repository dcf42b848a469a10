"""Names and indices of the features that can be read from a transformer block."""
from collections.abc import Sequence

# Checkpoints with a chosen tap store its place here: append, never insert.
TAPS = {
    'modulated': 'input of the attention, after adaLN',
    'query': 'attention queries, before the head split',
    'key': 'attention keys, before the head split',
    'value': 'attention values, before the head split',
    'attn': 'attention output, after its projection and before the gate',
    'mlp': 'MLP output, before the gate',
    'hidden': 'block output, the residual stream',
}


def resolve(taps: Sequence[tuple[int, str]], depth: int) -> tuple[tuple[int, str], ...]:
    """Checks ``taps`` and returns them as a tuple of (block, name) with blocks counted from 0.

    Args:
        taps (Sequence[tuple[int, str]]): Pairs of block and name; a negative block counts from the end. Not changed.
        depth (int): Number of blocks.

    Raises:
        ValueError: Not a list of pairs, no tap, an unknown name, a block out of range, a duplicate, or blocks that do not ascend.

    Examples:
        >>> resolve([(5, 'hidden'), (-1, 'query')], depth=12)
        ((5, 'hidden'), (11, 'query'))
    """
    if not isinstance(taps, Sequence) or isinstance(taps, str) or (len(taps) == 2 and isinstance(taps[1], str)):
        raise ValueError(f'taps is a list of pairs (block, name), such as [(-1, "hidden")], not {taps!r}')
    resolved = []
    for tap in taps:
        if not isinstance(tap, Sequence) or isinstance(tap, str) or len(tap) != 2:
            raise ValueError(f'a tap is a pair (block, name), such as (-1, "hidden"), not {tap!r}')
        block, name = tap
        if name not in TAPS:
            raise ValueError(f'unknown tap {name!r}: choose one of {", ".join(TAPS)}')
        if isinstance(block, bool) or not isinstance(block, int) or not -depth <= block < depth:
            raise ValueError(f'block {block!r} is out of range: this model has {depth} blocks, 0 to {depth - 1} or {-depth} '
                             'to -1')
        resolved.append((block % depth, name))
    if not resolved:
        raise ValueError('no taps were given: name at least one, such as [(-1, "hidden")]')
    if len(set(resolved)) < len(resolved):
        raise ValueError(f'taps repeat: {list(taps)} resolves to {resolved}')
    if [block for block, _ in resolved] != sorted(block for block, _ in resolved):
        raise ValueError(f'taps must be ordered by block: {list(taps)} resolves to {resolved}')
    return tuple(resolved)
