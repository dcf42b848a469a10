import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
README = ROOT / 'README.md'


class BuildWithMim(build_py):
    """Copies configs/ and tools/ into the package's .mim/, where `mim train mmaselect` and `mim test mmaselect` look.

    An editable installation has none: there, tools/ and configs/ of the checkout are at hand.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib) / 'mmaselect' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # of an earlier build
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, mim / folder, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))


setup(
    name='mmaselect',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mmaselect' / 'version.py').read_text())[1],
    description='A pretrained diffusion transformer that picks its own timestep, as a backbone for MMSegmentation and MMPretrain',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmaselect', 'mmaselect.*']),
    package_data={'mmaselect.report': ['page.html']},
    cmdclass=dict(build_py=BuildWithMim),
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'torchvision', 'diffusers>=0.35', 'accelerate', 'safetensors', 'numpy', 'matplotlib>=3.7',
                      'tqdm', 'jinja2', 'pillow>=10.1', 'packaging'],
    extras_require={
        # The OpenMMLab stack, one of the two and never both: they provide modules of the same names.
        'onedl': ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain', 'ftfy', 'regex'],
        # With what fits torch 2.1: numpy 1, and the last diffusers, transformers and peft that work there.
        'openmmlab': ['mmengine>=0.10.7', 'mmcv==2.1.0', 'mmsegmentation==1.2.2', 'mmpretrain==1.2.0', 'ftfy', 'regex', 'numpy<2',
                      'opencv-python<4.12', 'diffusers==0.35.2', 'huggingface_hub<1', 'transformers<4.49', 'peft<0.18'],
        'export': ['timm', 'onnx', 'onnxscript', 'onnxruntime'],  # tools/export_vit.py; the last to run what it writes
        'lora': ['peft'],
        'text': ['transformers', 'sentencepiece', 'protobuf'],  # for tools/encode_null_prompt.py, whose test is part of dev
        # For benchmarks/ (scikit-learn, scipy), for mmseg's analyze_logs, for what looks at TensorBoard's files, for the empty
        # prompt, for LoRA, and to build a wheel.
        'dev': ['pytest', 'pytest-xdist>=3.8', 'ruff', 'mypy', 'scikit-learn', 'scipy', 'seaborn', 'tensorboard', 'transformers',
                'peft', 'setuptools', 'wheel'],
        'docs': ['mkdocs-material', 'mkdocstrings[python]'],
    },
)
