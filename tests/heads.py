"""A head per family, with the levels of the pyramid that it reads, and their training by two processes."""
import tiny
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmaselect.openmm import configs

HEAD = dict(channels=8, num_classes=5, norm_cfg=dict(type='BN'), align_corners=False, dropout_ratio=0,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False))
AUXILIARY = dict(HEAD, type='FCNHead', in_channels=16, in_index=2, num_convs=1)
HEADS = {  # a family of heads -> its config, and the levels that are read
    'FCNHead': (dict(HEAD, type='FCNHead', in_channels=16, num_convs=1), None, [3]),
    'DMHead': (dict(HEAD, type='DMHead', filter_sizes=(1, 3), in_channels=16, in_index=2), None, [2]),
    'PSPHead': (dict(HEAD, type='PSPHead', in_channels=16, in_index=3, pool_scales=(1, 2)), AUXILIARY, [2, 3]),
    'DepthwiseSeparableASPPHead': (dict(HEAD, type='DepthwiseSeparableASPPHead', in_channels=16, in_index=-1, dilations=(1, 2),
                                        c1_in_channels=16, c1_channels=4), [AUXILIARY], [0, 2, 3]),
    'SegformerHead': (dict(HEAD, type='SegformerHead', in_channels=[16] * 2, in_index=[0, -2]), AUXILIARY, [0, 2]),
    'UPerHead': (dict(HEAD, type='UPerHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2)), AUXILIARY,
                 [0, 1, 2, 3])}


def config(name, num_taps=1, **neck):
    decode, auxiliary, _ = HEADS[name]
    return dict(
        type='mmseg.EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(24, 32)),
        backbone=dict(type='mmaselect.DiTBackbone', arch=tiny.ARCH, timestep=100,
                      taps=[(block, 'hidden') for block in range(num_taps)]),
        neck=dict(type='mmaselect.AutoTimestepNeck', in_channels=16, num_taps=num_taps, output='pyramid', fusion='attention',
                  num_heads=4, norm='layer', **neck),
        decode_head=decode, auxiliary_head=auxiliary, test_cfg=ConfigDict(mode='whole'))


def train_as_one_of_two(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/init', rank=rank, world_size=2)
    init_default_scope('mmseg')
    generator = torch.Generator().manual_seed(rank)
    for name in HEADS:
        torch.manual_seed(0)
        cfg = Config(dict(model=config(name, num_taps=4 if name == 'SegformerHead' else 1)))
        configs.leave_out_levels(cfg)
        model = MODELS.build(cfg.model).train()
        ddp = MMDistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(5, (1, 24, 32), generator=generator)),
                               metainfo=dict(img_shape=(24, 32), ori_shape=(24, 32)))
        images = torch.randn(2, 3, 24, 32, generator=generator).clamp(-1, 1)
        for _ in range(2):  # DDP complains at the second
            optimizer.zero_grad()
            losses = ddp(images, [sample, sample], mode='loss')
            sum(value for key, value in losses.items() if 'loss' in key).backward()
            optimizer.step()
        torch.save({key: value for key, value in model.state_dict().items() if 'running' not in key}, f'{folder}/{name}.{rank}')
    torch.distributed.barrier()  # else gloo of torch 2.1 may wait forever for a thread that waits for the interpreter
    torch.distributed.destroy_process_group()
