"""A complete tiny checkpoint of every family that is tested: random weights, a tokenizer, the family's own processor, a chat template.

Sizes are those that vLLM's CPU kernels take: heads 32 wide, hidden layers 64 wide. Every weight is random, so that none can be
swapped, left out or set to its initial value without changing what the model says.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vidalign.video.clip import Clip

WORDS = (
    "USER: ASSISTANT: User: Assistant: system user assistant model You are a helpful assistant. What moves? Describe the video. "
    "A red circle moves left. A blue square moves right. No. Yes, there is. Frame 0 1 2 3 4 5 6 7 8 9 seconds Video time"
)
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]  # of videos; different for each channel, so that swapped channels show
IMAGES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # other numbers, so that a video treated as an image shows
POSITIONS = 1024
PATCHES = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": MEAN, "image_std": STD}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
Named: TypeAlias = tuple[str, torch.Tensor]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ parts(m) }}<|im_end|>\n{% endfor %}"
CHATML_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_TOKENS = (*CHATML_TOKENS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHATML_ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def template(body: str, video: str, image: str) -> str:
    """A chat template: `parts(m)` in `body` gives the content of a message, its videos and images as these texts."""
    return (
        "{% macro parts(m) %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type in ('video', 'video_url') %}"
        + video
        + "{% elif part.type in ('image', 'image_url') %}"
        + image
        + ""
        "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}" + body
    )


def tokenizer(
    special: Sequence[str], *, named: Mapping[str, str] | None = None, adds_bos: bool = False, **roles: str
) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with these special tokens. `named`: tokens that a processor asks for by name; `roles`: bos, eos and pad."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    core.train_from_iterator([WORDS], trainer)
    if adds_bos:
        bos = roles["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    taken = {*roles.values(), *(named or {}).values()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens=dict(named or {}),
        additional_special_tokens=[token for token in special if token not in taken],
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        **roles,
    )


def roles_of(made: Any) -> dict[str, int]:
    """A text config's special token ids, those that the tokenizer has."""
    found = {name: getattr(made, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in found.items() if value is not None}


def multimodal_rope(head_dim: int = 32, **more: Any) -> dict[str, Any]:
    sections = [head_dim // 8, head_dim // 8 + head_dim // 16, head_dim // 2 - head_dim // 4 - head_dim // 16]
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **more}


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Give every weight a random value of a size that keeps activations finite."""
    torch.manual_seed(0)
    embedded = 0.06 if model.config.tie_word_embeddings else 0.45  # tied ones are the output layer too
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.ndim == 1 and name.endswith("weight") and float(parameter.mean()) == 1.0:
            parameter.copy_(1 + torch.randn_like(parameter) * 0.1)
        elif parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        else:
            size = embedded if "embed_tokens" in name else 0.9 / parameter[0].numel() ** 0.5
            parameter.copy_(torch.randn_like(parameter) * size)


def save(
    folder: pathlib.Path,
    config: Any,
    processor: Any,
    *,
    published: Callable[[str, torch.Tensor], Named] | None = None,
    **generation: Any,
) -> None:
    """Write model and processor into a folder. `published`: from what transformers 5 writes to what published checkpoints hold.

    `generation`: what generation_config.json says beside greedy decoding and the special tokens.
    """
    with torch.device("cpu"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomize(model)
    ids = roles_of(processor.tokenizer)
    with torch.no_grad():  # so that replies end, now and then
        model.get_output_embeddings().weight[ids["eos_token_id"]] *= 3
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=16, **ids, **generation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if published is not None:
        file = folder / "model.safetensors"
        tensors = dict(published(name, tensor) for name, tensor in safetensors.torch.load_file(file).items())
        safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def with_vision_model(name: str, tensor: torch.Tensor) -> Named:
    """LLaVA's towers have one more level."""
    return name.replace("vision_tower.", "vision_tower.vision_model."), tensor


def with_experts_transposed(name: str, tensor: torch.Tensor) -> Named:
    """Qwen3-VL-MoE's experts are stored as [experts, in, out]."""
    return name, tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor


# --- Qwen ---


def qwen(name: str, folder: pathlib.Path, *, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Qwen2-VL to Qwen3.5: the classes are named after `name`."""
    made = tokenizer(QWEN_TOKENS, **CHATML_ENDS)
    token = made.convert_tokens_to_ids
    old = name.startswith("Qwen2")
    sizes = PATCHES | {"size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}}
    videos = sizes if old else sizes | {"size": {"shortest_edge": 4 * 64 * 64, "longest_edge": 16 * 64 * 64}}
    kind = transformers.Qwen2VLVideoProcessor if old else transformers.Qwen3VLVideoProcessor
    system = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    end = CHATML_END if name != "Qwen3_5" else CHATML_END.replace("\n{% endif", "\n<think>\n\n</think>\n\n{% endif")
    marks = [f"<|vision_start|><|{pad}_pad|><|vision_end|>" for pad in ("video", "image")]
    processor = {"Qwen2VL": "Qwen2VL", "Qwen2_5_VL": "Qwen2_5_VL"}.get(name, "Qwen3VL")
    config = getattr(transformers, f"{name}Config")(
        text_config={**TEXT, "vocab_size": len(made), "rope_parameters": multimodal_rope(), **roles_of(made), **text},
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            **vision,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    save(
        folder,
        config,
        getattr(transformers, f"{processor}Processor")(
            image_processor=transformers.Qwen2VLImageProcessor(**sizes | IMAGES),
            tokenizer=made,
            video_processor=kind(**videos, cap_pixels_per_frame=False),
            chat_template=template((system if old else "") + CHATML + end, *marks),
        ),
        published=with_experts_transposed if name == "Qwen3VLMoe" else None,
    )


QWEN3_VISION = {"out_hidden_size": 64, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
QWEN3_ROPE = multimodal_rope(mrope_interleaved=True)
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}


def qwen2_vl(folder: pathlib.Path) -> None:
    qwen("Qwen2VL", folder, text={}, vision={"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2})


def qwen2_5_vl(folder: pathlib.Path) -> None:
    qwen("Qwen2_5_VL", folder, text={}, vision={"out_hidden_size": 64, "window_size": 64, "fullatt_block_indexes": [1]})


def qwen3_vl(folder: pathlib.Path) -> None:
    qwen("Qwen3VL", folder, text={"rope_parameters": QWEN3_ROPE}, vision=QWEN3_VISION)


def qwen3_vl_moe(folder: pathlib.Path) -> None:
    qwen("Qwen3VLMoe", folder, text={"rope_parameters": QWEN3_ROPE, **MOE}, vision=QWEN3_VISION)


def qwen3_5(folder: pathlib.Path) -> None:
    rope = multimodal_rope(mrope_interleaved=True, partial_rotary_factor=1.0)
    vision = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
    qwen("Qwen3_5", folder, text={"rope_parameters": rope, "partial_rotary_factor": 1.0, **LINEAR}, vision=vision)


# --- LLaVA ---

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "vision_use_head": False,
}


def llava_onevision(folder: pathlib.Path) -> None:
    made = tokenizer((*CHATML_TOKENS, "<image>", "<video>"), **CHATML_ENDS)
    token = made.convert_tokens_to_ids
    size = {"size": {"height": 64, "width": 64}, "image_mean": MEAN, "image_std": STD}
    config = transformers.LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(made), **roles_of(made)},
        vision_config=SIGLIP,
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=[[64, 64]],
        tie_word_embeddings=False,
    )
    body = "{% for m in messages %}<|im_start|>{{ m.role }} {{ parts(m) }}<|im_end|>{% endfor %}" + CHATML_END
    save(
        folder,
        config,
        transformers.LlavaOnevisionProcessor(
            image_processor=transformers.LlavaOnevisionImageProcessor(**size | IMAGES, image_grid_pinpoints=[[64, 64]]),
            tokenizer=made,
            video_processor=transformers.LlavaOnevisionVideoProcessor(**size),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=template(body, "<video>\n", "<image>\n"),
        ),
        published=with_vision_model,
    )


def llava_next_video(folder: pathlib.Path) -> None:
    """Its tokenizer writes the bos, as Llama's does; its template does not."""
    made = tokenizer(
        ("<unk>", "<s>", "</s>", "<pad>", "<video>", "<image>"),
        adds_bos=True,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    token = made.convert_tokens_to_ids
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "image_mean": MEAN, "image_std": STD}
    vision = {name: value for name, value in SIGLIP.items() if name not in ("model_type", "vision_use_head")}
    config = transformers.LlavaNextVideoConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(made), **roles_of(made)},
        vision_config={**vision, "model_type": "clip_vision_model", "patch_size": 8, "projection_dim": 64, "vocab_size": 32},
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=[[64, 64]],
        image_seq_length=64,
        video_seq_length=128,
        tie_word_embeddings=False,
    )
    body = (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ parts(m) }} {% else %}ASSISTANT: {{ parts(m) }}</s>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    save(
        folder,
        config,
        transformers.LlavaNextVideoProcessor(
            video_processor=transformers.LlavaNextVideoVideoProcessor(**size),
            image_processor=transformers.LlavaNextImageProcessor(**size | IMAGES, image_grid_pinpoints=[[64, 64]]),
            tokenizer=made,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template(body, "<video>\n", "<image>\n"),
        ),
        published=with_vision_model,
    )


# --- InternVL, GLM, Gemma, MiniCPM, ERNIE ---


def internvl(folder: pathlib.Path) -> None:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    made = tokenizer((*CHATML_TOKENS, *named.values()), named=named, **CHATML_ENDS)
    size = {"size": {"height": 64, "width": 64}, "image_mean": MEAN, "image_std": STD}
    config = transformers.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(made), **roles_of(made)},
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [64, 64],
            "patch_size": [16, 16],
        },
        image_token_id=made.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    save(
        folder,
        config,
        transformers.InternVLProcessor(
            image_processor=transformers.GotOcr2ImageProcessor(**size | IMAGES),
            tokenizer=made,
            # As published: frames that were sampled are sampled again, unless somebody says no.
            video_processor=transformers.InternVLVideoProcessor(**size, do_sample_frames=True, num_frames=4),
            image_seq_length=4,
            chat_template=template(CHATML + CHATML_END, "<video>\n", "<IMG_CONTEXT>\n"),
        ),
    )


GLM_TOKENS = (
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)


def glm(name: str, folder: pathlib.Path, **text: Any) -> None:
    """GLM-4.1V: a reply ends with the next turn's <|user|>."""
    made = tokenizer(GLM_TOKENS, eos_token="<|user|>", pad_token="<|endoftext|>")
    token = made.convert_tokens_to_ids
    sizes = PATCHES | {"size": {"shortest_edge": 4 * 64 * 64, "longest_edge": 16 * 64 * 64}}
    config = getattr(transformers, f"{name}Config")(
        text_config={
            **TEXT,
            "vocab_size": len(made),
            "rope_parameters": multimodal_rope(32, partial_rotary_factor=0.5) | {"mrope_section": [2, 3, 3]},
            "partial_rotary_factor": 0.5,
            "hidden_act": "silu",
            "attention_bias": True,
            **roles_of(made),
            **text,
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "out_hidden_size": 64,
            "image_size": 64,
        },
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"),
        video_end_token_id=token("<|end_of_video|>"),
        tie_word_embeddings=False,
    )
    body = (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ parts(m) }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    marks = [f"<|begin_of_{each}|><|{each}|><|end_of_{each}|>" for each in ("video", "image")]
    save(
        folder,
        config,
        transformers.Glm4vProcessor(
            image_processor=transformers.Glm4vImageProcessor(**sizes | IMAGES),
            tokenizer=made,
            video_processor=transformers.Glm4vVideoProcessor(**sizes),
            chat_template=template(body, *marks),
        ),
    )


def glm4v(folder: pathlib.Path) -> None:
    glm("Glm4v", folder)


def glm4v_moe(folder: pathlib.Path) -> None:
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    glm("Glm4vMoe", folder, **experts, first_k_dense_replace=1, n_group=1, topk_group=1, use_qk_norm=False)


def gemma4(folder: pathlib.Path) -> None:
    """Its tokenizer adds a bos, and its template writes one too."""
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    made = tokenizer(
        ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", *named.values(), "<|video|>"),
        named=named,
        adds_bos=True,
        bos_token="<bos>",
        eos_token="<turn|>",
        pad_token="<pad>",
    )
    token = made.convert_tokens_to_ids
    size = {"max_soft_tokens": 70, "patch_size": 16, "pooling_kernel_size": 3}
    config = transformers.Gemma4Config(
        text_config={
            **TEXT,
            "vocab_size": len(made),
            "vocab_size_per_layer_input": len(made),
            "hidden_size_per_layer_input": 16,
            "sliding_window": 512,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "num_kv_shared_layers": 1,
            "final_logit_softcapping": 4.0,
            "global_head_dim": 32,
            "tie_word_embeddings": True,
            **roles_of(made),
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "default_output_length": 70,
        },
        audio_config=None,
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        boi_token_id=token("<|image>"),
        eoi_token_id=token("<image|>"),
        audio_token_id=token("<|audio|>"),
        boa_token_id=token("<|audio>"),
        eoa_token_index=token("<audio|>"),
        tie_word_embeddings=True,
    )
    body = (
        "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ parts(m) }}<turn|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
    )
    save(
        folder,
        config,
        transformers.Gemma4Processor(
            feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
            image_processor=transformers.Gemma4ImageProcessor(**size),
            tokenizer=made,
            video_processor=transformers.Gemma4VideoProcessor(**size),
            image_seq_length=70,
            chat_template=template(body, "<|video|>", "<|image|>"),
        ),
        suppress_tokens=[token(each) for each in ("<|image|>", "<|audio|>", "<eos>")],
    )


def minicpmv4_6(folder: pathlib.Path) -> None:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    made = tokenizer((*CHATML_TOKENS, *named.values()), named=named, **CHATML_ENDS)
    token = made.convert_tokens_to_ids
    size = {"patch_size": 16, "scale_resolution": 64, "max_slice_nums": 1, "image_mean": MEAN, "image_std": STD}
    config = transformers.MiniCPMV4_6Config(
        text_config={
            **TEXT,
            "model_type": "qwen3_5_text",
            "vocab_size": len(made),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "partial_rotary_factor": 0.5,
            **LINEAR,
            **roles_of(made),
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "insert_layer_id": 0,
        },
        insert_layer_id=0,
        image_size=64,
        patch_size=16,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    save(
        folder,
        config,
        transformers.MiniCPMV4_6Processor(
            image_processor=transformers.MiniCPMV4_6ImageProcessor(**size),
            video_processor=transformers.MiniCPMV4_6VideoProcessor(**size),
            tokenizer=made,
            chat_template=template(CHATML + CHATML_END, "<|video_pad|>\n", "<|image_pad|>\n"),
        ),
    )


def ernie4_5_vl_moe(folder: pathlib.Path) -> None:
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    made = tokenizer(
        ("<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", *named.values()),
        named=named,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )
    token = made.convert_tokens_to_ids
    sizes = PATCHES | {"size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}}
    images = {name: value for name, value in sizes.items() if name != "temporal_patch_size"}
    ids = {name: token(text) for name, text in named.items()}
    config = transformers.Ernie4_5_VLMoeConfig(
        text_config={
            **TEXT,
            "vocab_size": len(made),
            "moe_intermediate_size": [64, 64],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse"],
            "rope_parameters": multimodal_rope() | {"mrope_section": [5, 5, 6]},
            "tie_word_embeddings": True,
            **roles_of(made),
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_merge_size": 2,
        },
        **{f"{name}_id": value for name, value in ids.items()},
        tie_word_embeddings=True,
    )
    body = (
        "<|begin_of_sentence|>{% for m in messages %}{% if m.role == 'user' %}User: {{ parts(m) }}\n{% else %}"
        "Assistant: {{ parts(m) }}<|end_of_sentence|>{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
    )
    marks = [
        f"{each}: <|{each.upper()}_START|><|{each.upper()}_PLACEHOLDER|><|{each.upper()}_END|>"
        for each in ("Video", "Image")
    ]
    save(
        folder,
        config,
        transformers.Ernie4_5_VLMoeProcessor(
            image_processor=transformers.Ernie4_5_VLMoeImageProcessor(**images | IMAGES),
            tokenizer=made,
            video_processor=transformers.Ernie4_5_VLMoeVideoProcessor(**sizes, draw_on_frames=False),
            chat_template=template(body, *marks),
        ),
    )


QUESTIONS = ("What moves?", "Describe the video.", "Which colour?")


def clip(num_frames: int, seed: int, height: int = 64, width: int = 64, *, fps: float = 4.0, every: int = 3) -> Clip:
    """A clip of coarse noise, every so many frames of a video with so many frames a second."""
    coarse = np.random.default_rng(seed).integers(0, 256, (num_frames, 8, 8, 3), np.uint8)
    frames = np.kron(coarse, np.ones((1, height // 8, width // 8, 1), np.uint8))
    total = num_frames * every
    return Clip(
        frames=np.ascontiguousarray(frames),
        fps=fps,
        total_num_frames=total,
        duration_s=total / fps,
        indices=tuple(range(0, total, every)),
    )


@functools.cache
def clips() -> tuple[Clip, Clip, Clip]:
    """Three clips of unequal length, shape and speed."""
    return clip(8, 1), clip(6, 2, 64, 96), clip(5, 3, 96, 64, fps=8.0, every=20)


WRITERS: dict[str, Callable[[pathlib.Path], None]] = {
    writer.__name__: writer
    for writer in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
        qwen3_5,
        llava_onevision,
        llava_next_video,
        internvl,
        glm4v,
        glm4v_moe,
        gemma4,
        minicpmv4_6,
        ernie4_5_vl_moe,
    )
}


@functools.cache
def checkpoint(name: str, root: pathlib.Path) -> pathlib.Path:
    """The folder of a family's tiny checkpoint below `root`, written once a process."""
    folder = root / name
    if not (folder / "config.json").is_file():
        WRITERS[name](folder)
    return folder
