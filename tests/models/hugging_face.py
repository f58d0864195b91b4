"""Networks of the package transformers, in small sizes, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from models.architecture import DYNAMO, SCRIPT, Architecture, Input, images, normal, ones_then_zeros, tokens, waves

PACKAGE = "transformers"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Named(nn.Module):
    """A network whose inputs are given by position, and of whose results some are returned."""

    def __init__(self, network: nn.Module, inputs: tuple[str, ...], results: tuple[str, ...], **fixed: Any) -> None:
        super().__init__()
        self.network, self.inputs, self.results, self.fixed = network, inputs, results, fixed

    def forward(self, *values: Tensor) -> Any:
        made = self.network(**dict(zip(self.inputs, values, strict=True)), **self.fixed)
        results = tuple(made[name] for name in self.results)
        return results if len(results) > 1 else results[0]


def made(
    model: str, config: str, options: dict[str, Any], inputs: tuple[str, ...], results: tuple[str, ...], **fixed: Any
) -> Callable[[], nn.Module]:
    """Return what builds a network of the package by the names of its class and of its configuration's."""

    def build() -> nn.Module:
        import transformers

        network = getattr(transformers, model)(getattr(transformers, config)(**options))
        return Named(network.eval(), inputs, results, **fixed)

    return build


class WithCache(nn.Module):
    """A decoder with the keys and values of the words before, in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, words: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        result = self.network(input_ids=words, attention_mask=mask, past_key_values=cache, use_cache=True)
        layers = result.past_key_values.layers
        return (result.logits, *(value for layer in layers for value in (layer.keys, layer.values)))


def cached(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    """Build a decoder whose cache goes in and out."""
    import transformers

    return WithCache(getattr(transformers, model)(getattr(transformers, config)(**options)).eval())


WORDS, MASK = Input(tokens(10, 90), free={1: "words"}), Input(ones_then_zeros(10, 5), free={1: "words"})
PICTURE = Input(images(3, 32, 32))
PAST = Input(normal(4, 5, 8, scale=0.5), free={2: "past"})
CACHE = {f"past_{layer}_{kind}": PAST for layer in range(2) for kind in ("key", "value")}
ALL = Input(ones_then_zeros(6, 6), free={1: "seen"})
STEP = {"words": Input(tokens(1, 90)), "mask": ALL, **CACHE}
NEXT = ("logits", *(f"next_{layer}_{kind}" for layer in range(2) for kind in ("key", "value")))

GPT2 = {
    "vocab_size": 96,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {
    **SMALL,
    "vocab_size": 96,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
WHISPER = {
    "vocab_size": 96, "num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_source_positions": 16,
    "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
WAV2VEC2 = {
    **SMALL, "vocab_size": 20, "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "pad_token_id": 0,
}  # fmt: skip
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 7,
}
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32, "num_labels": 5,
}  # fmt: skip
MOBILEVIT = {
    "image_size": 64, "patch_size": 2, "hidden_sizes": [16, 20, 24], "num_attention_heads": 4,
    "neck_hidden_sizes": [8, 8, 12, 16, 16, 20, 24],
    "num_labels": 7,
}  # fmt: skip
CLIP = {
    "text_config": {**SMALL, "vocab_size": 96, "max_position_embeddings": 16, "eos_token_id": 95,
         "bos_token_id": 0, "pad_token_id": 1},
    "vision_config": {**SMALL, "image_size": 32, "patch_size": 8}, "projection_dim": 16,
}  # fmt: skip
DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "num_queries": 5, "num_labels": 4,
}  # fmt: skip
CONVNEXT = {"num_stages": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "num_labels": 7, "image_size": 32}


def detr() -> nn.Module:
    """Build DETR with a small residual network in front."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    backbone = ResNetConfig(**sizes, out_features=["stage2"])
    network = DetrForObjectDetection(DetrConfig(**DETR, backbone_config=backbone))
    return Named(network.eval(), ("pixel_values",), ("logits", "pred_boxes"))


def _architecture(
    name: str, build: Callable[[], nn.Module], inputs: dict[str, Input], outputs: tuple[str, ...], **more: Any
) -> Architecture:
    return Architecture(f"hf_{name}", build, inputs, outputs, requires=PACKAGE, **more)


TEXT = ("input_ids", "attention_mask")
SEEN = {"words": WORDS, "mask": MASK}
DECODED = {**SEEN, "given": Input(tokens(6, 90), free={1: "given"})}
HEARD = {"x": Input(waves(16, 32)), "given": Input(tokens(6, 90), free={1: "given"})}
BERT, TINY = {**SMALL, "vocab_size": 96}, {"vocab_size": 96, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
VIT = {**SMALL, "image_size": 32, "patch_size": 8, "num_labels": 7}
WITHOUT_CACHE = {"use_cache": False}


def _text(name: str, kind: str, family: str, options: dict[str, Any], *results: str, **fixed: Any) -> Architecture:
    """Return a network that reads words and their mask."""
    build = made(kind, f"{family}Config", options, TEXT, results, **fixed)
    return Architecture(f"hf_{name}", build, SEEN, results, requires=PACKAGE)


def _picture(name: str, kind: str, family: str, options: dict[str, Any], size: int = 32, **more: Any) -> Architecture:
    """Return a network that reads a picture and gives classes."""
    build = made(kind, f"{family}Config", options, ("pixel_values",), ("logits",))
    return Architecture(f"hf_{name}", build, {"x": Input(images(3, size, size))}, ("logits",), requires=PACKAGE, **more)


def _step(name: str, kind: str, config: str, options: dict[str, Any]) -> Architecture:
    """Return a decoder of one word with its cache."""
    return Architecture(f"hf_{name}", functools.partial(cached, kind, config, options), STEP, NEXT, requires=PACKAGE)


def _other(
    name: str, kind: str, config: str, options: dict[str, Any], given: dict[str, Input], results: dict[str, str],
    *, names: tuple[str, ...], exporters: tuple[str, ...] = (SCRIPT, DYNAMO), **fixed: Any,
) -> Architecture:  # fmt: skip
    """Return a network with inputs `given`, called `names` by the package, and results by the package's names."""
    build = made(kind, config, options, names, tuple(results), **fixed)
    return Architecture(f"hf_{name}", build, given, tuple(results.values()), exporters, requires=PACKAGE)


ARCHITECTURES = [
    _text("bert", "BertModel", "Bert", BERT, "last_hidden_state", "pooler_output"),
    _text("distilbert", "DistilBertForSequenceClassification", "DistilBert", TINY, "logits"),
    _picture("vit", "ViTForImageClassification", "ViT", VIT),
    _picture("swin", "SwinForImageClassification", "Swin", SWIN, exporters=(SCRIPT,)),
    _picture("convnext", "ConvNextForImageClassification", "ConvNext", CONVNEXT),
    _picture("segformer", "SegformerForSemanticSegmentation", "Segformer", SEGFORMER),
    _picture("mobilevit", "MobileViTForImageClassification", "MobileViT", MOBILEVIT, 64),
    Architecture("hf_detr", detr, {"x": PICTURE}, ("logits", "boxes"), requires=PACKAGE),
    _text("gpt2", "GPT2LMHeadModel", "GPT2", GPT2, "logits", **WITHOUT_CACHE),
    _step("gpt2_cache", "GPT2LMHeadModel", "GPT2Config", GPT2),
    _text("llama", "LlamaForCausalLM", "Llama", {**LLAMA, "num_key_value_heads": 2}, "logits", **WITHOUT_CACHE),
    _step("llama_cache", "LlamaForCausalLM", "LlamaConfig", LLAMA),
    _other(
        "t5", "T5ForConditionalGeneration", "T5Config", T5, DECODED, {"logits": "logits"},
        names=(*TEXT, "decoder_input_ids"), **WITHOUT_CACHE,
    ),
    _other(
        "whisper", "WhisperForConditionalGeneration", "WhisperConfig", WHISPER, HEARD, {"logits": "logits"},
        names=("input_features", "decoder_input_ids"), exporters=(DYNAMO,), **WITHOUT_CACHE,
    ),
    _other(
        "wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC2, {"x": Input(waves(400), free={1: "time"})},
        {"logits": "logits"}, names=("input_values",),
    ),
    _other(
        "clip", "CLIPModel", "CLIPConfig", CLIP, {"words": WORDS, "x": PICTURE, "mask": MASK},
        {"image_embeds": "image", "text_embeds": "text"}, names=("input_ids", "pixel_values", "attention_mask"),
    ),
]  # fmt: skip
