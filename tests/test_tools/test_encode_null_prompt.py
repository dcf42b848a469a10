"""The tool on whole tiny pipelines, with text encoders and tokenizers made here: no network."""
import json
from fnmatch import fnmatch

import pytest
import runs
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file

from mmaselect.extract import Extractor, loading, null_prompt

transformers = pytest.importorskip('transformers')
SCRIPT = runs.ROOT / 'tools' / 'encode_null_prompt.py'
SIZES = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3, projection_dim=5, vocab_size=4,
             bos_token_id=2, eos_token_id=3, pad_token_id=3)


def clip(folder):
    """A text encoder and a tokenizer of four words; as in CLIP, the end of the text pads it, too."""
    folder.mkdir(parents=True)
    (folder / 'vocab.json').write_text(json.dumps({'a</w>': 0, 'b</w>': 1, '<|startoftext|>': 2, '<|endoftext|>': 3}))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**SIZES)).eval(), tokenizer


def t5(folder, width):
    """A text encoder and a tokenizer of four words, of pieces with a weight each."""
    from tokenizers import Tokenizer, models, processors
    pieces = Tokenizer(models.Unigram([('<pad>', 0.), ('</s>', 0.), ('<unk>', 0.), ('a', -1.)], unk_id=2))
    pieces.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    folder.mkdir(parents=True)
    pieces.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}))
    config = transformers.T5Config(vocab_size=4, d_model=width, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config).eval(), transformers.T5TokenizerFast.from_pretrained(folder)


def options(arch):
    return {key: value for key, value in arch.items() if key != 'type'}


@pytest.fixture(scope='module')
def sd3(tmp_path_factory):
    """The folder of an SD3 with three text encoders, and what its own pipeline makes of the empty prompt."""
    folder = tmp_path_factory.mktemp('sd3')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoders = [*clip(folder / 'c1'), *clip(folder / 'c2'), *t5(folder / 't5', 20)]
        pipeline = StableDiffusion3Pipeline(
            SD3Transformer2DModel(**dict(options(tiny.SD3), joint_attention_dim=20)),
            FlowMatchEulerDiscreteScheduler(shift=3.0), AutoencoderKL(**tiny.VAE), *encoders)
    pipeline.save_pretrained(folder / 'pipeline')
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(prompt='', prompt_2='', prompt_3='', do_classifier_free_guidance=False)
    return folder / 'pipeline', dict(prompt_embeds=embeds, pooled_prompt_embeds=pooled)


@pytest.fixture(scope='module')
def pixart(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pixart')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, tokenizer = t5(folder / 't5', 10)
        pipeline = PixArtAlphaPipeline(tokenizer, encoder, AutoencoderKL(**tiny.VAE),
                                       PixArtTransformer2DModel(**options(tiny.PIXART)), DPMSolverMultistepScheduler())
    pipeline.save_pretrained(folder / 'pipeline')
    with torch.no_grad():
        embeds, mask, _, _ = pipeline.encode_prompt('', do_classifier_free_guidance=False)
    return folder / 'pipeline', dict(prompt_embeds=embeds, prompt_attention_mask=mask)


@pytest.mark.parametrize('kind', ['sd3', 'pixart'])
def test_the_file_has_what_the_pipeline_makes_of_the_empty_prompt(kind, request):
    folder, expected = request.getfixturevalue(kind)
    with pytest.raises(FileNotFoundError, match=f'{null_prompt.FILE}.*python tools/encode_null_prompt.py {folder}'):
        loading.from_pretrained(folder)
    printed = runs.run_here(SCRIPT, folder, '--device', 'cpu')
    assert f'written to {folder / null_prompt.FILE}' in printed
    made = load_file(folder / null_prompt.FILE)
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value)
    extractor = Extractor.from_pretrained(folder, [(2, 'query')]).eval()
    length = {'sd3': 333, 'pixart': 1}[kind]  # of PixArt's 120 tokens all but the end of the sentence are padding
    torch.testing.assert_close(extractor.family.null_prompt_embeds, made['prompt_embeds'][:, :length])
    assert extractor.family.null_tokens == length
    assert extractor(tiny.images(), 7)[0].isfinite().all()


def test_another_file_and_precision(sd3, tmp_path):
    folder, expected = sd3
    runs.run_here(SCRIPT, folder, '--device', 'cpu', '--dtype', 'bfloat16', '--out', tmp_path / 'new' / 'null.safetensors')
    made = load_file(tmp_path / 'new' / 'null.safetensors')
    assert made['prompt_embeds'].dtype == torch.bfloat16
    torch.testing.assert_close(made['prompt_embeds'].float(), expected['prompt_embeds'], rtol=0.1, atol=0.1)


def test_of_a_hub_id_only_what_is_needed_is_fetched(sd3, tmp_path, monkeypatch):
    folder, _ = sd3
    wanted = []
    listed = [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]
    monkeypatch.setattr(loading, 'list_repo_files', lambda name: [*listed, 'text_encoder/model.fp16.safetensors'])
    monkeypatch.setattr(loading, 'snapshot_download', lambda name, allow_patterns: wanted.extend(allow_patterns) or folder)
    runs.run_here(SCRIPT, 'stabilityai/sd3', '--device', 'cpu', '--out', tmp_path / 'null.safetensors')
    files = [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file() and path.parent != folder]
    fetched = {name for name in files if any(fnmatch(name, pattern) for pattern in wanted)}
    weights = {name.partition('/')[0] for name in fetched if name.endswith('.safetensors')}
    assert weights == {'text_encoder', 'text_encoder_2', 'text_encoder_3'}
    assert not any(fnmatch('text_encoder/model.fp16.safetensors', pattern) for pattern in wanted)
    assert {'transformer/config.json', 'tokenizer_3/tokenizer.json'} < fetched
    assert (tmp_path / 'null.safetensors').is_file()


def test_code_in_the_pipeline_is_not_run(pixart, tmp_path, capsys):
    folder, _ = pixart
    for part in ('transformer', 'text_encoder', 'tokenizer'):
        (tmp_path / part).symlink_to(folder / part)
    index = json.loads((folder / 'model_index.json').read_text())
    (tmp_path / 'model_index.json').write_text(json.dumps({**index, 'scheduler': ['planted', 'Planted']}))
    (tmp_path / 'scheduler').mkdir()
    (tmp_path / 'scheduler' / 'planted.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\nclass Planted: pass\n')
    refused([tmp_path], 'names code for scheduler that is neither of diffusers nor of transformers', capsys)
    assert not (tmp_path / 'ran').exists()


def test_a_pickled_text_encoder_is_refused(pixart, tmp_path, capsys):
    folder, _ = pixart
    for part in ('transformer', 'tokenizer', 'scheduler', 'model_index.json'):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / 'text_encoder').mkdir()
    (tmp_path / 'text_encoder' / 'config.json').symlink_to(folder / 'text_encoder' / 'config.json')
    torch.save({}, tmp_path / 'text_encoder' / 'pytorch_model.bin')
    refused([tmp_path], f'text encoders and tokenizers of {tmp_path} cannot be loaded', capsys)


def test_a_dit_needs_none(capsys):
    refused([runs.ROOT / 'configs' / 'fashion_dit'], 'not conditioned on text', capsys)


def test_a_folder_without_text_encoders_is_named(pixart, tmp_path, capsys):
    (tmp_path / 'transformer').symlink_to(pixart[0] / 'transformer')
    refused([tmp_path], f'model_index.json found in directory {tmp_path}', capsys)


def refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        runs.run_here(SCRIPT, *arguments)
    assert message in capsys.readouterr().err
