import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / 'README.md'

setup(
    name='mmaselect',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mmaselect' / 'version.py').read_text())[1],
    description='A pretrained diffusion transformer that picks its own timestep, as a backbone for MMSegmentation and MMPretrain',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmaselect', 'mmaselect.*']),
    package_data={'mmaselect.report': ['page.html']},
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'torchvision', 'diffusers>=0.35', 'safetensors', 'numpy', 'matplotlib', 'tqdm', 'jinja2',
                      'pillow'],
    extras_require={
        # The OpenMMLab stack, one of the two and never both: they provide modules of the same names.
        'onedl': ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain', 'ftfy', 'regex'],
        'openmmlab': ['mmengine>=0.10.7', 'mmcv==2.1.0', 'mmsegmentation==1.2.2', 'mmpretrain==1.2.0', 'ftfy', 'regex'],
        'export': ['timm', 'onnx', 'onnxscript', 'onnxruntime'],  # tools/export_vit.py; the last to run what it writes
        'lora': ['peft'],
        'text': ['transformers', 'sentencepiece', 'protobuf'],  # for tools/encode_null_prompt.py, whose test is part of dev
        # For benchmarks/ (its digits), for mmseg's analyze_logs, for what looks at TensorBoard's files, and for the empty prompt.
        'dev': ['pytest', 'ruff', 'scikit-learn', 'seaborn', 'tensorboard', 'transformers', 'peft'],
    },
)
