"""What of the software that mmaselect can use is installed, and what is missing or known to clash."""
import contextlib
import importlib
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from mmaselect import INSTALL

STACKS = {'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain'),
          'stock': ('mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain')}
MODULES = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain')
OTHERS = ('mmaselect', 'torch', 'torchvision', 'diffusers', 'huggingface-hub', 'safetensors', 'numpy', 'opencv-python',
          'opencv-python-headless', 'ftfy', 'regex')


def commit() -> str:
    """The commit of the checkout that this package lies in; '' outside of one, or without git."""
    if shutil.which('git') is None:
        return ''
    return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=Path(__file__).parent, capture_output=True, text=True,
                          check=False).stdout.strip()


def check_env() -> dict[str, Any]:
    """Prints what is installed, and what is missing or known to clash, each with its remedy.

    Returns:
        ``stack`` ('onedl', 'stock', 'both' or None), ``packages`` (name -> version), ``devices`` (a list of str), ``machine``
        (MMEngine's ``collect_env``; empty without MMEngine), ``ops`` (mmcv's compiled operators, in words, or None without mmcv)
        and ``problems``, a list of dicts of ``what`` and ``remedy``. All of it can be written as JSON.
    """
    env = examine()
    print(report(env))
    return env


def examine() -> dict[str, Any]:
    """What ``check_env`` returns, without printing it."""
    packages = installed()
    ops = compiled_ops() if stacks(packages) else None
    problems = [*clashes(packages, ops=ops), *broken_imports(packages)]
    return dict(stack='both' if len(stacks(packages)) == 2 else next(iter(stacks(packages)), None), packages=packages,
                devices=devices(), machine=machine(), ops=ops,
                problems=[dict(what=what, remedy=remedy) for what, remedy in problems])


def report(env: dict[str, Any]) -> str:
    """The text for what ``check_env`` returns."""
    lines = [('OpenMMLab', env['stack'] or 'none'), *(('device', device) for device in env['devices'])]
    lines += [('mmcv ops', env['ops'])] if env['ops'] else []
    lines += [('', ''), *env['machine'].items(), ('', ''), *env['packages'].items(), ('', '')]
    for problem in env['problems']:
        lines += [('problem', problem['what']), ('remedy', problem['remedy']), ('', '')]
    width = max(len(name) for name, _ in lines)
    return '\n'.join([*(f'{name:{width}}  {text}'.rstrip() for name, text in lines),
                      'no problems found' if not env['problems'] else f'{len(env["problems"])} problems'])


def installed() -> dict[str, str]:
    """Versions of the installed distributions that matter, by name."""
    versions = {}
    for name in sorted({*OTHERS, *STACKS['onedl'], *STACKS['stock']}):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def machine() -> dict[str, str]:
    """MMEngine's ``collect_env`` without the page on how PyTorch was compiled; empty where MMEngine does not import."""
    try:
        from mmengine.utils.dl_utils import collect_env
    except Exception:  # whatever it is, ``broken_imports`` names it
        return {}
    return {name: str(text) for name, text in collect_env().items() if name != 'PyTorch compiling details'}


def stacks(packages: dict[str, str]) -> list[str]:
    """The stacks of which some package is installed."""
    return [stack for stack, names in STACKS.items() if packages.keys() & set(names)]


def clashes(packages: dict[str, str], *, python: str | None = None, ops: str | None = None) -> Iterator[tuple[str, str]]:
    """Pairs of what is missing or known to clash, and its remedy.

    Args:
        packages: Name -> version, as ``installed`` gives it.
        python: Version; by default this Python's.
        ops: As ``compiled_ops`` gives it.
    """
    have = {name: Version(version) for name, version in packages.items()}
    running = Version(python or platform.python_version())

    def at_least(name: str, version: str) -> bool:
        return name in have and have[name] >= Version(version)

    def below(name: str, version: str) -> bool:
        return name in have and have[name] < Version(version)

    present = stacks(packages)
    if len(present) == 2:
        both = [name for names in STACKS.values() for name in names if name in packages]
        yield ('both OpenMMLab stacks are installed: they have modules of the same names, and overwrite each other',
               f"pip uninstall {' '.join(both)}, then install one of them: pip install 'mmaselect[onedl]'")
    if not present:
        yield ('no OpenMMLab stack is installed: configs and tools do not run (mmaselect.FeatureExtractor does)', INSTALL)
    if len(present) == 1:
        stack, = present
        extra = 'onedl' if stack == 'onedl' else 'openmmlab'
        missing = [name for name in (*STACKS[stack], 'ftfy', 'regex') if name not in packages]  # mmseg imports these two
        if missing:
            yield f'the {stack} stack lacks {", ".join(missing)}', f"pip install 'mmaselect[{extra}]'"
    if 'stock' in present:
        if running >= Version('3.12'):
            yield f'the stock stack needs torch 2.1, which Python {running} does not have', 'use Python 3.10 or 3.11, or onedl'
        if at_least('numpy', '2'):
            yield f'numpy {packages["numpy"]}: torch 2.1 and mmcv 2.1 were compiled for numpy 1', "pip install 'numpy<2'"
        if at_least('opencv-python', '4.12') or at_least('opencv-python-headless', '4.12'):
            yield 'opencv 4.12 and newer need numpy 2, and the stock stack numpy 1', "pip install 'opencv-python<4.12'"
        if at_least('torch', '2.6'):
            yield (f'torch {packages["torch"]}: the loader of stock mmengine fails on resume and test from torch 2.6 on, where '
                   'mmaselect.openmm is not imported; mmcv 2.1 does not compile against torch 2.10',
                   "pip install torch==2.1.2 torchvision==0.16.2, or install onedl in place of the stock stack")
        if 'mmcv' in have and ops is not None and ops != 'compiled':
            yield (f"mmcv's operators: {ops}; mmseg 1.2 does not import without them",
                   'compile mmcv against this torch; `make test-stock` shows how')
    if below('torch', '2.6') and at_least('diffusers', '0.36'):
        yield (f'diffusers {packages["diffusers"]} with torch {packages["torch"]}: 0.35.2 is the newest that is known to work '
               'with torch before 2.6', "pip install 'diffusers==0.35.2' 'huggingface_hub<1'")
    if below('diffusers', '0.36') and at_least('huggingface-hub', '1'):
        yield (f'huggingface_hub {packages["huggingface-hub"]} is too new for diffusers {packages["diffusers"]}',
               "pip install 'huggingface_hub<1'")


def broken_imports(packages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """A pair of what and remedy for each module of the installed stacks that does not import."""
    known = {name: module for names in STACKS.values() for name, module in zip(names, MODULES, strict=True)}
    for module in dict.fromkeys(known[name] for name in packages if name in known):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever it is, it is what the user has to know
            headless = isinstance(error, ImportError) and 'libGL' in str(error)
            yield (f'{module} does not import: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}',
                   'pip uninstall opencv-python; pip install opencv-python-headless (this machine has no libGL)' if headless
                   else 'mend the other problems first; then reinstall it')


def compiled_ops() -> str | None:
    """Whether mmcv's operators are compiled and load, in words; None without mmcv."""
    try:
        importlib.import_module('mmcv')
    except Exception:
        return None  # not there, or broken, which is reported as such
    try:
        importlib.import_module('mmcv._ext')
    except ModuleNotFoundError:
        return 'not compiled'
    except ImportError as error:
        return f'compiled, but they do not load ({str(error).splitlines()[0]})'
    return 'compiled'


def devices() -> list[str]:
    """What torch can compute on, a line each."""
    found = [f'CPU, {torch.get_num_threads()} threads']
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        bf16 = 'bf16' if torch.cuda.get_device_capability(index) >= (8, 0) else 'no bf16 in hardware'
        found.append(f'cuda:{index}, {about.name}, {about.total_memory / 2**30:.0f} GiB, {bf16}')
    return found
