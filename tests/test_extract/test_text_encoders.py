"""The empty prompt of each text-to-image family, by its pipeline's own text encoder: tiny random ones, saved and read again."""
import functools

import diffusers
import pytest
import tiny
import torch

from mmaselect.extract import loading, null_prompt
from mmaselect.extract.families import FAMILIES

transformers = pytest.importorskip('transformers')
WIDTH = 8  # of the text encoders
SIZES = dict(hidden_size=WIDTH, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3, vocab_size=260,
             bos_token_id=256, eos_token_id=257, pad_token_id=258)
HEADS = dict(num_key_value_heads=1, head_dim=4)
# What a chat becomes; a message is a text, or a list of parts.
CHAT = ("{% for message in messages %}<{{ message.role }}>{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}")


def tokenizer(**options):
    """A byte is a token; every text begins with the token 256 and is padded by 258."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {'<s>': 256, '</s>': 257, '<pad>': 258}
    made = Tokenizer(models.BPE({**{letter: index for index, letter in enumerate(letters)}, **special}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 256)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token='<s>', eos_token='</s>', pad_token='<pad>',
                                                chat_template=CHAT, model_max_length=20, **options)


def gemma2():
    return transformers.Gemma2Model(transformers.Gemma2Config(**SIZES, **HEADS))


def t5gemma():
    module = transformers.T5GemmaModuleConfig(**SIZES, **HEADS)
    return transformers.T5GemmaEncoderModel(transformers.T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False))


def qwen3(kind, layers):
    return getattr(transformers, kind)(transformers.Qwen3Config(**{**SIZES, 'num_hidden_layers': layers}, **HEADS))


def mistral3():
    vision = transformers.PixtralVisionConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
                                              image_size=16, patch_size=8)
    text = transformers.MistralConfig(**{**SIZES, 'num_hidden_layers': 31}, **HEADS)
    return transformers.Mistral3ForConditionalGeneration(transformers.Mistral3Config(vision_config=vision, text_config=text))


def qwen25_vl():
    rope = dict(rope_type='default', type='default', mrope_section=[1, 1, 0])
    text = dict(**SIZES, num_key_value_heads=1, rope_scaling=rope, rope_parameters=dict(rope, rope_theta=10000.0))
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=WIDTH)
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def flux():
    clip = transformers.CLIPTextConfig(**SIZES, projection_dim=WIDTH)
    t5 = transformers.T5Config(vocab_size=260, d_model=WIDTH, d_kv=4, d_ff=8, num_layers=2, num_heads=2, pad_token_id=258)
    return dict(text_encoder=transformers.CLIPTextModel(clip), tokenizer=tokenizer(), tokenizer_2=tokenizer(),
                text_encoder_2=transformers.T5EncoderModel(t5))


def one(build):
    return lambda: dict(text_encoder=build(), tokenizer=tokenizer(padding_side='left'))  # the side of Gemma's


def negative(pipeline):
    """The negative prompt's tokens that the mask keeps."""
    _, _, embeds, mask = pipeline.encode_prompt('a', negative_prompt='')
    return dict(prompt_embeds=embeds[mask.bool()][None])


def prompt(*names):
    return lambda pipeline: {name: value for name, value in zip(names, pipeline.encode_prompt('', *(
        [None] if len(names) > 1 else [])), strict=False)}


# Pipeline, text encoders, sizes of the text in the transformer, what the pipeline makes of the empty prompt, and its tokens.
KINDS = {
    'flux': ('FluxPipeline', flux, dict(joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH),
             prompt('prompt_embeds', 'pooled_prompt_embeds'), 512),
    'flux2': ('Flux2Pipeline', one(mistral3), dict(joint_attention_dim=3 * WIDTH), prompt('prompt_embeds'), 512),
    'flux2_klein': ('Flux2KleinPipeline', one(functools.partial(qwen3, 'Qwen3ForCausalLM', 28)),
                    dict(joint_attention_dim=3 * WIDTH), prompt('prompt_embeds'), 512),
    'lumina2': ('Lumina2Pipeline', one(gemma2), dict(cap_feat_dim=WIDTH), negative, 1),
    'z_image': ('ZImagePipeline', one(functools.partial(qwen3, 'Qwen3Model', 3)), dict(cap_feat_dim=WIDTH),
                lambda pipeline: dict(prompt_embeds=pipeline.encode_prompt('')[0][0][None]), len('<user>') + 1),
    'sana': ('SanaPipeline', one(gemma2), dict(caption_channels=WIDTH), negative, 1),
    'qwen_image': ('QwenImagePipeline', one(qwen25_vl), dict(joint_attention_dim=WIDTH), prompt('prompt_embeds'), None),
    'prx': ('PRXPipeline', one(t5gemma), dict(context_in_dim=WIDTH), negative, 1)}


@pytest.mark.parametrize('name', KINDS)
def test_the_null_prompt_is_what_the_pipeline_makes_of_an_empty_one(name, tmp_path):
    pipeline, encoders, sizes, expected, tokens = KINDS[name]
    arch = dict(tiny.TEXT_TO_IMAGE[name], **sizes)
    family = FAMILIES[arch['type']]
    if not hasattr(diffusers, pipeline):
        pytest.skip(f'this diffusers has no {pipeline}')
    try:
        cls = loading.class_of(arch.pop('type'))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts = {part: made.eval() if isinstance(made, torch.nn.Module) else made for part, made in encoders().items()}
            transformer = cls(**arch)
    except (ValueError, AttributeError) as error:
        pytest.skip(f'this environment is too old: {error}')
    whole = getattr(diffusers, pipeline)(transformer=transformer, vae=None, **parts,
                                         scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    whole.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = expected(whole)
        _, again = loading.text_pipeline(tmp_path)
        made = family.encode_null(again, 'cpu')
    assert made.keys() == wanted.keys()
    for key, value in wanted.items():
        assert value.std() > 1e-3
        torch.testing.assert_close(made[key], value, rtol=0, atol=1e-6)
    if tokens is None:  # the template without its system's part
        tokens = 1 + len(whole.prompt_template_encode.format('').encode()) - whole.prompt_template_encode_start_idx
    assert made['prompt_embeds'].shape == (1, tokens, parts['text_encoder'].config.get_text_config().hidden_size
                                           * (3 if name.startswith('flux2') else 1))
    null_prompt.save(tmp_path / null_prompt.FILE, made, transformer)
    for key, value in null_prompt.load(tmp_path, transformer, tmp_path).items():
        assert torch.equal(value, made[key])
