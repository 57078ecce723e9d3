"""Complete editing pipelines of a few hundred thousand random weights, for a folder like a real model's.

Tokenizers are trained on the pipeline's own template, so that its prefix has the length that the pipeline
cuts off.
"""

import json

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WORDS = "brighten the photo make it darker <effect_balumo> style 1 blur \n\r Picture : ."
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
]
SPECIAL += ["<|video_pad|>"]
SHIFTING = {"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>"


def byte_level_bpe(text, size):
    """Vocabulary and merges of a byte-level BPE trained on a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def qwen_tokenizer(text, size=2000):
    vocab, merges = byte_level_bpe(text, size)
    vocab |= {token: len(vocab) + i for i, token in enumerate(SPECIAL)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=SPECIAL[1:])
    tokenizer.padding_side = "left"
    return tokenizer


def qwen_text_encoder(tokenizer):
    """A Qwen2.5-VL that sees photos in patches of 14 pixels, four to a token."""
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start",)}
    ids |= {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")
    }
    layers = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": len(tokenizer)}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text = {**layers, **heads, "rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


BLOCKS = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
FLUX = {**BLOCKS, "num_single_layers": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}


def qwen_processor(tokenizer):
    pixels = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64}
    images = Qwen2VLImageProcessor(**pixels)
    return Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT)


def qwen_latents():
    """What the VAEs of Qwen have in common, with statistics of their latents."""
    statistics = {"latents_mean": torch.randn(16).tolist(), "latents_std": (0.5 + torch.rand(16)).tolist()}
    return {"base_dim": 8, "num_res_blocks": 1, **statistics}


def qwen_image_edit(pipeline_class=QwenImageEditPlusPipeline, **transformer):
    tokenizer = qwen_tokenizer(
        pipeline_class(None, None, None, None, None, None).prompt_template_encode + WORDS
    )
    processor = qwen_processor(tokenizer)
    return pipeline_class(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTING, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(dim_mult=[1, 1, 1, 1], **qwen_latents()),
        text_encoder=qwen_text_encoder(tokenizer),
        tokenizer=tokenizer,
        processor=processor,
        transformer=QwenImageTransformer2DModel(joint_attention_dim=32, **BLOCKS, **transformer),
    )


def qwen_image_edit_first():
    return qwen_image_edit(QwenImageEditPipeline)


def qwen_image_edit_2511():
    return qwen_image_edit(zero_cond_t=True)


def qwen3_vl(tokenizer):
    """A Qwen3-VL that sees photos in patches of 16 pixels, four to a token."""
    names = {
        "vision_start": "vision_start",
        "vision_end": "vision_end",
        "image": "image_pad",
        "video": "video_pad",
    }
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6, "mrope_interleaved": True}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    text = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": len(tokenizer), "rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config={**text, **heads}, vision_config=vision, **ids)
    )


def qwen_image_21():
    tokenizer = qwen_tokenizer(
        "Comprehend and analyze the provided prompt. system user assistant image1" + WORDS
    )
    pixels = {"size": {"shortest_edge": 32 * 32, "longest_edge": 1024 * 1024}, "patch_size": 16}
    images = Qwen2VLImageProcessor(**pixels, merge_size=2)
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTING, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage21(
            decoder_base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1, 1], **qwen_latents()
        ),
        text_encoder=qwen3_vl(tokenizer),
        processor=Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=TURNS),
        transformer=QwenImage21Transformer2DModel(
            in_channels=16, out_channels=16, context_in_dim=32, **BLOCKS
        ),
    )


def longcat_image():
    tokenizer = qwen_tokenizer(WORDS)
    processor = qwen_processor(tokenizer)
    return LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTING),
        vae=flux_vae(),
        text_encoder=qwen_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_processor=processor,
        transformer=LongCatImageTransformer2DModel(**{**FLUX, "axes_dims_rope": [8, 12, 12]}),
    )


def flux_vae():
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )


def flux_kontext():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0)]
    pieces += [(character, -3.0) for character in sorted(set(WORDS) - {" "})]
    t5_tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0)
    clip_vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for character in sorted(set(WORDS) - {" "}):
        clip_vocab |= {character: len(clip_vocab), f"{character}</w>": len(clip_vocab) + 1}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": len(pieces)}
    clip = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip |= {"vocab_size": len(clip_vocab), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTING),
        vae=flux_vae(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip)),
        tokenizer=CLIPTokenizer(vocab=clip_vocab, merges=[], model_max_length=77),
        text_encoder_2=T5EncoderModel(T5Config(**t5)),
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel(guidance_embeds=True, **FLUX),
    )


def flux2_parts(guidance_embeds):
    """Scheduler, VAE and transformer for texts of three stacked layers of 16."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(**SHIFTING),
        "vae": AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4
        ),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            num_attention_heads=2,
            attention_head_dim=32,
            joint_attention_dim=48,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=guidance_embeds,
        ),
    }


def flux2_klein():
    tokenizer = qwen_tokenizer(WORDS)
    tokenizer.chat_template = CHAT
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 28}
    text = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": len(tokenizer), **heads}
    text_encoder = Qwen3ForCausalLM(Qwen3Config(**text))
    return Flux2KleinPipeline(tokenizer=tokenizer, text_encoder=text_encoder, **flux2_parts(False))


def flux2():
    tokenizer = qwen_tokenizer(WORDS)
    marks = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    images = PixtralImageProcessor()
    processor = PixtralProcessor(images, tokenizer, patch_size=16, spatial_merge_size=2, chat_template=PARTS)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 31, "vocab_size": len(tokenizer)}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config=MistralConfig(**text, **heads),
        vision_config=PixtralVisionConfig(**vision, head_dim=8),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    text_encoder = Mistral3ForConditionalGeneration(config)
    return Flux2Pipeline(tokenizer=processor, text_encoder=text_encoder, **flux2_parts(True))


# By the names of the families; every one has a tiny pipeline here.
TINY = {
    "QwenImageEditPlusPipeline": qwen_image_edit,
    "QwenImageEditPipeline": qwen_image_edit_first,
    "QwenImage21Pipeline": qwen_image_21,
    "LongCatImageEditPipeline": longcat_image,
    "FluxKontextPipeline": flux_kontext,
    "Flux2Pipeline": flux2,
    "Flux2KleinPipeline": flux2_klein,
}
