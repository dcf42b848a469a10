"""What importing the package does and needs, in a process of its own, where nothing else has been imported."""
import sys

import runs

SCRIPT = '''
import sys
OPENMMLAB = 'mmengine', 'mmcv', 'mmseg', 'mmpretrain'
for name in OPENMMLAB:
    sys.modules[name] = None
import mmaselect
assert not {'torch', 'diffusers'} & set(sys.modules), 'import mmaselect is not light'
assert {'FeatureExtractor', 'select_timestep', 'check_env'} <= set(dir(mmaselect))
import mmaselect.extract, mmaselect.selection
assert mmaselect.FeatureExtractor and mmaselect.select_timestep
try:
    import mmaselect.openmm
except ImportError as error:
    assert "pip install 'mmaselect[onedl]'" in str(error)
else:
    raise AssertionError
print('the lower floors need no OpenMMLab')
for name in OPENMMLAB:
    del sys.modules[name]
from mmengine.runner import CheckpointLoader
before = dict(CheckpointLoader._schemes)
import mmaselect.openmm.launch
assert CheckpointLoader._schemes == before, 'other models of this process load as they did'
print('importing us changes nothing for others')
'''


def test_the_lower_floors_need_no_openmmlab_and_importing_us_changes_nothing_for_others():
    printed = runs.run(sys.executable, '-c', SCRIPT)
    assert 'the lower floors need no OpenMMLab' in printed and 'importing us changes nothing for others' in printed
