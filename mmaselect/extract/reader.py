"""Taps of a diffusers transformer: its own forward runs, its modules are listened to, and it stops at the last tap.

The modules' ``forward`` is replaced while the model runs, and put back whatever happens. So a block can be computed anew for the
backward pass, compiled, or left in its middle by itself, inside of what FSDP or a checkpoint wraps around it.
"""
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

WRAPPERS = ('_fsdp_wrapped_module', '_checkpoint_wrapped_module')  # where PyTorch's wrappers keep the block


def names(attention: str = 'attn', **others) -> dict:
    """Where diffusers' attention and blocks usually have the taps; ``others`` replace some, or None leaves them out."""
    usual = {'modulated': f'{attention}.to_q', 'query': f'{attention}.to_q', 'key': f'{attention}.to_k',
             'value': f'{attention}.to_v', 'attn': f'{attention}.to_out.0', 'mlp': 'ff'}
    return {tap: where for tap, where in {**usual, **others}.items() if where is not None}


@dataclass(frozen=True)
class Blocks:
    """A list of blocks of one kind, and where the image's tokens are in it.

    Args:
        path: Of the ``ModuleList`` in the model.
        taps: Tap -> the module in a block whose output it is; of 'modulated' whose input. A pair (module, k) is the k-th D
            channels of the output of a module that is several layers in one. What is not named the blocks do not have; 'hidden'
            is a block's own output.
        output: Which of a block's outputs has the image's tokens; None where there is one output.
        image: 'last' or 'first': where the image's N tokens are, wherever there are more than N.
    """
    path: str
    taps: Mapping[str, str | tuple[str, int]] = field(default_factory=names)
    output: int | None = None
    image: str = 'last'


class _Done(Exception):  # noqa: N818, no error
    """All taps are read."""


class Lock:
    """A lock that copies of what holds it do not share."""

    def __init__(self):
        self.lock = threading.RLock()

    def __reduce__(self):
        return Lock, ()


@contextlib.contextmanager
def replaced(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Calls these functions in place of the modules' ``forward``."""
    before = {}
    try:
        for module, function in forwards.items():
            before[module] = module.__dict__.get('forward')  # that of the instance, which accelerate for one sets
            module.forward = function
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


class _Block:
    """Runs a block and keeps the taps on the way. Not the features: the graph that leads to them refers to it."""

    def __init__(self, block, kind, wanted, *, last, lock, tokens, width, checkpointing, compiled):
        self.kind, self.wanted, self.last, self.lock = kind, tuple(wanted), last, lock
        self.tokens, self.width, self.checkpointing = tokens, width, checkpointing
        self.block, self.forward = block, block.forward
        self.inner = {}  # module -> taps that it has
        for tap in self.wanted:
            if tap != 'hidden':
                where = kind.taps[tap]
                path, part = (where, None) if isinstance(where, str) else where
                self.inner.setdefault(block.get_submodule(path), {})[tap] = part
        # A compiled block cannot be looked into, and one whose forward was replaced is someone else's business.
        if compiled is not None and not self.inner and 'forward' not in block.__dict__:
            self.forward = functools.partial(compiled(type(block).forward), block)

    def stand_in(self, features, *args, **kwargs):
        """Called in place of the block's ``forward``; adds its taps to the dict ``features``."""
        run = functools.partial(checkpoint, self.run, use_reentrant=False) if self.checkpointing else self.run
        output, found = run(*args, **kwargs)
        missing = set(self.wanted) - found.keys()
        if missing:
            raise RuntimeError(f'{type(self.block).__name__} ran without {", ".join(sorted(missing))}: were its layers fused '
                               '(fuse_qkv_projections)? Load it anew, or take "hidden"')
        # Where the block was left in its middle its taps stand for its output: FSDP looks there for what will have gradients.
        features.update(found)
        return tuple(found.values()) if output is None else output

    def run(self, *args, **kwargs):
        """The block's output, None where it was left before its end, and its taps. Called again for the backward pass."""
        found = {}
        listeners = {module: functools.partial(self._listen, found, module.forward, taps) for module, taps in self.inner.items()}
        with self.lock, replaced(listeners):
            try:
                with _closing_scopes():
                    output = self.forward(*args, **kwargs)
            except _Done:
                return None, found
        if 'hidden' in self.wanted:
            found['hidden'] = self._image(output if self.kind.output is None else output[self.kind.output])
        return output, found

    def _listen(self, found, forward, taps, *args, **kwargs):
        """Called in place of an inner module's ``forward``."""
        if 'modulated' in taps:
            self._keep(found, 'modulated', args[0] if args else next(iter(kwargs.values())))
        output = forward(*args, **kwargs)
        for tap, part in taps.items():
            if tap != 'modulated':
                start = None if part is None else part * self.width
                self._keep(found, tap, output if part is None else output[..., start:start + self.width])
        return output

    def _keep(self, found, tap, value):
        found[tap] = self._image(value)
        if self.last and found.keys() >= set(self.wanted):
            raise _Done

    def _image(self, value):
        """The image's tokens (B, N, C) of tokens (B, N + others, C), or of a map (B, C, h, w)."""
        if value.ndim == 4:
            value = value.flatten(2).transpose(1, 2)  # (B, N, C)
        return value[:, :self.tokens] if self.kind.image == 'first' else value[:, -self.tokens:]


@contextlib.contextmanager
def _closing_scopes() -> Iterator[None]:
    """Closes the scopes of a trace that are still open where a forward is left before its end.

    MMEngine's counter of FLOPs opens one by a hook before each module and closes it by a hook behind it, which does not run then;
    torch ends the process over one that is left open.
    """
    state = torch._C._get_tracing_state()
    before = state.current_scope() if state else None
    try:
        yield
    except _Done:
        while state and state.current_scope() != before:
            state.pop_scope()
        raise


def read(places: Sequence[tuple[nn.Module, Blocks]], taps: Sequence[tuple[int, str]], call: Callable[[], object], *, tokens: int,
         width: int, lock: Lock, checkpointing: bool = False, compiled: Callable | None = None) -> list[torch.Tensor]:
    """Runs a model up to its last tap.

    Args:
        places: The blocks in the order in which they run, each with its kind.
        taps: As ``taps.resolve`` returns them; the kinds have them all.
        call: Runs the model's forward.
        tokens: N, of an image.
        width: D, the channels of a token.
        lock: Of the model: its modules listen for one thread at a time.
        checkpointing: Whether a backward pass computes each block anew instead of remembering its inside.
        compiled: Compiles a function once. Blocks that are read in their middle are not.

    Returns:
        Per tap the image's tokens (B, N, C).

    Raises:
        RuntimeError: The forward did not come by a tap.
    """
    last, forwards = taps[-1][0], {}
    features: list[dict[str, torch.Tensor]] = [{} for _ in places]
    for index in range(last + 1):
        wanted = [name for block, name in taps if block == index]
        if wanted or checkpointing or compiled:
            block = places[index][0]
            while wrapper := next((name for name in WRAPPERS if name in block._modules), None):
                block = getattr(block, wrapper)
            one = _Block(block, places[index][1], wanted, last=index == last, lock=lock.lock, tokens=tokens, width=width,
                         checkpointing=checkpointing, compiled=compiled)
            forwards[block] = functools.partial(one.stand_in, features[index])

    def stop(module, args, output):
        raise _Done

    with lock.lock, replaced(forwards):
        handle = places[last][0].register_forward_hook(stop)  # after the block, and after what a wrapper does behind it
        try:
            with _closing_scopes():
                call()
        except _Done:
            return [features[block][name] for block, name in taps]
        finally:
            handle.remove()
    raise RuntimeError(f'the forward of the model ended before block {last}')
