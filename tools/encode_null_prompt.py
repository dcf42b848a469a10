"""Encodes the empty prompt of a text-to-image pipeline once, so that training on its features needs no text encoder.

    python tools/encode_null_prompt.py checkpoints/stable-diffusion-3-medium-diffusers

writes null_prompt.safetensors into that folder, where the config that names the folder as its ``pretrained`` finds it. The
pipeline's own tokenizers and text encoders are used, by diffusers' own code, which needs transformers to be installed. SD3's T5
has 4.7 billion parameters: 19 GB of memory in float32, half as much in bfloat16.
"""
import argparse
from pathlib import Path

import torch
from torch import nn

from mmaselect.extract import loading, null_prompt
from mmaselect.extract.families import FAMILIES


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('pipeline', help='folder of a pipeline in the layout of diffusers, or Hugging Face hub id')
    parser.add_argument('--out', type=Path, help=f'file to write; by default {null_prompt.FILE} in the folder of the pipeline, '
                        'which is where it is looked for')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32', help='of the text encoders')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='of the text encoders')
    args = parser.parse_args()
    try:
        folder, pipeline = loading.text_pipeline(args.pipeline, getattr(torch, args.dtype))
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != 'transformer':
                part.to(args.device)
        with torch.no_grad():
            tensors = FAMILIES[type(pipeline.transformer).__name__].encode_null(pipeline, args.device)
        path = args.out or folder / null_prompt.FILE
        null_prompt.save(path, tensors, pipeline.transformer)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f'written to {path}: {", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())}')


if __name__ == '__main__':
    main()
