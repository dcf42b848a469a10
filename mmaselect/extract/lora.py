"""LoRA: low-rank adapters beside a frozen transformer's linear layers (Hu et al. 2021, arXiv:2106.09685), by peft."""
import warnings

from torch import nn


def add_lora(extractor, *, r=16, alpha=16, targets=('to_q', 'to_v'), dropout=0.0):
    """Puts an adapter beside each linear layer that is named and that the taps depend on; the model's weights get frozen.

    An adapter adds alpha / r * B A x to its layer's output (equation 3). B starts at zero, so that the features do not change.

    Args:
        extractor (Extractor): Changed in place. A layer ``to_q`` becomes ``to_q.base_layer`` in its state dict.
        r (int): Rank of the adapters.
        alpha (float): Their scale, times r.
        targets (Sequence[str]): Ends of the layers' names: 'to_q' or 'attn1.to_q', 'ff.net.2'.
        dropout (float): Of the adapters' input, while training.

    Returns:
        list[nn.Parameter]: The adapters' weights. Layers after the last tap have none, as DDP wants it.

    Raises:
        ImportError: peft is not installed.
        ValueError: A target that is no linear layer on the way to the taps.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora needs peft: pip install 'mmaselect[lora]'") from error
    used = {id(parameter) for parameter in extractor.used_parameters()}
    layers = [name for name, layer in extractor.family.named_modules()
              if isinstance(layer, nn.Linear) and id(layer.weight) in used]
    chosen = {target: [name for name in layers if f'.{name}'.endswith(f'.{target}')] for target in targets}
    missing = [target for target, names in chosen.items() if not names]
    if missing or not chosen:
        ends = sorted({name.rpartition('blocks.')[2].partition('.')[2] for name in layers if 'blocks.' in name})
        raise ValueError(f'lora targets {missing or targets}: no linear layer on the way to the taps is called so; there are '
                         f'{", ".join(ends)}')
    _warn_of_missed(extractor.family, layers, {*sum(chosen.values(), [])})
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=sorted({*sum(chosen.values(), [])}))
    inject_adapter_in_model(config, extractor.family)
    return [parameter for name, parameter in extractor.family.named_parameters() if '.lora_' in name]


def _warn_of_missed(family, layers, chosen):
    """Warns where kinds of blocks that have layers on the way to the taps get no adapter: their layers may be fused."""
    kinds = {}  # class of block -> layers
    places = family.places()
    for name in layers:
        index = family.block_of(name)
        if index is not None:
            kinds.setdefault(type(places[index][0]).__name__, []).append(name)
    for kind, names in kinds.items():
        if not chosen & {*names}:
            ends = sorted({name.rpartition('blocks.')[2].partition('.')[2] for name in names})
            warnings.warn(f'no lora target is in {kind}, whose layers are {", ".join(ends)}: name some of them too, or its '
                          'blocks stay as they are', stacklevel=3)
