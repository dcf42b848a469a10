"""OpenMMLab's folder of a model: README.md and metafile.yml with command, checkpoint and results, and nothing that nobody saw."""
import re

import pytest
import runs
import yaml

CONFIGS = runs.ROOT / 'configs'
FOLDERS = [CONFIGS, *(path for path in sorted(CONFIGS.iterdir()) if path.is_dir() and path.name not in ('_base_', '__pycache__'))]


def models(folder):
    return yaml.safe_load((folder / 'metafile.yml').read_text())['Models']


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_each_model_folder_has_both_files(folder):
    assert (folder / 'README.md').is_file()
    for model in models(folder):
        assert {'Name', 'Command', 'Weights', 'Results'} <= model.keys()
        words = ' '.join(str(model.get(key)) for key in ('Config', 'Command', 'Weights'))
        for place in re.findall(r'(?:configs|tools)/[\w./-]+', words):
            assert (runs.ROOT / place).exists(), place
        for result in model['Results']:
            assert all(value == 'not measured' or isinstance(value, (int, float)) for value in result['Metrics'].values())


def test_each_config_is_named_once():
    named = [model['Config'] for model in models(CONFIGS)]
    assert sorted(named) == [f'configs/{path.name}' for path in runs.CONFIGS.values()]
    for model in models(CONFIGS):
        assert model['Config'].endswith(f"/{model['Name']}.py") and f" {model['Config']}" in model['Command']


def test_the_readme_has_the_results_of_the_metafile():
    lines = (CONFIGS / 'README.md').read_text().splitlines()
    rows = {cells[1].strip('[').partition(']')[0]: cells[-2] for cells in ([c.strip() for c in line.split('|')] for line in lines)
            if len(cells) > 6 and cells[1].startswith('[dit_')}
    assert rows == {model['Name']: str(*model['Results'][0]['Metrics'].values()) for model in models(CONFIGS)}


@pytest.mark.parametrize('model', models(CONFIGS), ids=lambda model: model['Name'])
def test_what_the_metafile_says_is_in_the_config(model):
    cfg = runs.shipped(model['Name'].removeprefix('dit_'))
    backbone, training = cfg.model.backbone, model['Metadata']['Training']
    source = backbone.get('pretrained') or 'random weights'
    assert source.endswith(model['Checkpoint'])
    assert ('lora' in backbone, not backbone.get('frozen', True), 'strategy' in cfg) == (
        training == 'LoRA', training.startswith('fine-tuned'), training.endswith('FSDP'))
    assert model['Results'][0]['Task'] == ('Semantic Segmentation' if cfg.default_scope == 'mmseg' else 'Image Classification')
