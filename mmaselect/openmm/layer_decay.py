"""Learning rates that decay with depth, for fine-tuning a pretrained backbone in either toolbox."""
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmaselect.extract import Extractor
from mmaselect.registry import OPTIM_WRAPPER_CONSTRUCTORS

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)  # the first: batch and instance normalisation
NORMS += (nn.RMSNorm, ) if hasattr(nn, 'RMSNorm') else ()  # torch 2.4


def layer_of(extractor: Extractor, name: str, prefix: str) -> tuple[int, int]:
    """The layer of a parameter of the whole model and the number of layers.

    Layer 0 comes before the blocks, block i is layer i + 1, the last is what is not under ``prefix``: neck and head. Blocks after
    the last tap do not count.
    """
    layers, block = extractor.taps[-1][0] + 3, extractor.family.block_of(name)
    layer = 0 if block is None else block + 1
    return layer if name.startswith(prefix) else layers - 1, layers


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer l of L learns at lr * layer_decay_rate ** (L - 1 - l), as in BEiT (arXiv:2106.08254).

    The backbone says by ``get_layer_depth(name, prefix)`` which layer a parameter is of. Neck and head are the last. Weights of
    linear layers, convolutions and embeddings decay; norms, biases, LayerScale and class tokens do not. Frozen parameters are
    left out. In a config:

        optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            constructor='mmaselect.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9))

    Raises:
        ValueError: paramwise_cfg has anything but ``layer_decay_rate`` in (0, 1], or no module of the model has
            ``get_layer_depth``.
    """

    def _validate_cfg(self):
        if set(self.paramwise_cfg) != {'layer_decay_rate'} or not 0 < self.paramwise_cfg['layer_decay_rate'] <= 1:
            raise ValueError(f'paramwise_cfg={self.paramwise_cfg}: {type(self).__name__} takes layer_decay_rate, above 0 and at '
                             'most 1, and nothing else')

    def add_params(self, params, module, prefix='', **_):
        """Appends to ``params`` a group per layer and kind of weight decay, of all trained parameters of ``module``."""
        # Asked of the class, since a wrapper such as FSDP's passes on what it is asked to the module inside. The model itself
        # has no name; mmpretrain's ImageClassifier has the method as well, and asks its backbone.
        found = [(name, part) for name, part in module.named_modules() if name and hasattr(type(part), 'get_layer_depth')]
        if not found:
            raise ValueError(f'no module of this {type(module).__name__} has get_layer_depth, so its layers are not known: use '
                             'a DiTBackbone, or a backbone of mmpretrain that has it')
        place, backbone = found[0]
        rate, groups, seen = self.paramwise_cfg['layer_decay_rate'], {}, set()
        for path, owner in module.named_modules():
            for leaf, parameter in owner.named_parameters(recurse=False):
                if not parameter.requires_grad or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                layer, layers = backbone.get_layer_depth(f'{path}.{leaf}', f'{place}.')
                # By name and not by shape: FSDP's parameters are flat.
                decays = leaf.endswith('weight') and not isinstance(owner, NORMS)
                if (layer, decays) not in groups:
                    groups[layer, decays] = dict(params=[], lr=self.base_lr * rate ** (layers - 1 - layer))
                    if self.base_wd is not None:
                        groups[layer, decays]['weight_decay'] = self.base_wd if decays else 0.0
                groups[layer, decays]['params'].append(parameter)
        params.extend(groups[key] for key in sorted(groups))
        rates = [group['lr'] for group in groups.values()]
        print_log(f'layer-wise learning rates: {len(seen)} parameters at {min(rates):.3g} to {max(rates):.3g}', 'current')
