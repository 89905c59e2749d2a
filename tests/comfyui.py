"""ComfyUI's rule for LoRA files on a diffusers pipeline, without ComfyUI and without the package.

Read in comfyanonymous/ComfyUI. Which weight a key means: comfy/lora.py, `model_lora_keys_unet` and
`model_lora_keys_clip` @ 41444b5, and comfy/utils.py, `unet_to_diffusers` @ 00728eb. What is added:
``.diff`` to it and ``.diff_b`` to its bias, comfy/lora.py, `load_lora`; ``up @ down * alpha /
rank``, comfy/weight_adapter/lora.py @ 6fd406f.
"""

from typing import NamedTuple

import torch
from original_layouts import transformer_names, unet_name

_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
_LAYERS = ("mlp.fc1", "mlp.fc2", *(f"self_attn.{part}_proj" for part in ("k", "q", "v", "out")))


class Rows(NamedTuple):
    """The diffusers parameters that one weight of ComfyUI joins; ``swap`` of scale and shift."""

    parameters: list
    swap: bool = False

    def add(self, difference):
        """Adds a difference of the joined weight."""
        parts = torch.cat(difference.chunk(2)[::-1]) if self.swap else difference
        split = parts.split([len(parameter) for parameter in self.parameters])
        for parameter, part in zip(self.parameters, split, strict=True):
            parameter.add_(part.reshape(parameter.shape))


def comfy_weights(pipeline):
    """A pipeline's parameters by the names of ComfyUI's state dicts, and by those of its keys."""
    weights = _encoder_weights(pipeline)
    keys = {f"text_encoders.{_layer(name)}": name for name in weights if _layer(name)}
    for name in list(weights):
        keys |= dict.fromkeys(_encoder_keys(name), name)
    if hasattr(pipeline, "unet"):
        for name, parameter in pipeline.unet.named_parameters():
            own = f"diffusion_model.{unet_name(name, pipeline.unet)}"
            weights[own] = Rows([parameter])
            if layer := _layer(name):
                keys[f"lora_unet_{layer.replace('.', '_')}"] = own
    else:
        weights |= _transformer_weights(pipeline.transformer)
    for name in weights:
        if name.startswith("diffusion_model."):
            layer = _layer(name)
            keys[layer or name] = name
            if layer:
                short = layer.removeprefix("diffusion_model.").replace(".", "_")
                keys[f"lora_unet_{short}"] = name
    return weights, keys


@torch.no_grad()
def load_lora(tensors, pipeline):
    """Adds a file's tensors to a pipeline; raises if one has no place, of which ComfyUI warns."""
    weights, keys = comfy_weights(pipeline)
    unread = dict(tensors)
    for key, name in keys.items():
        alpha = unread.pop(f"{key}.alpha", None)
        up = unread.pop(f"{key}.lora_up.weight", None)
        if up is not None:
            down = unread.pop(f"{key}.lora_down.weight")
            scale = 1 if alpha is None else float(alpha) / len(down)
            weights[name].add(scale * (up.flatten(1) @ down.flatten(1)))
        difference = unread.pop(f"{key}.diff", None)
        if difference is not None:
            weights[name].add(difference)
        difference = unread.pop(f"{key}.diff_b", None)
        if difference is not None:
            weights[f"{_layer(name)}.bias"].add(difference)
    if unread:
        raise KeyError(f"lora keys not loaded: {sorted(unread)}")


def _layer(name):
    """The layer of a weight; None of other parameters."""
    return name.removesuffix(".weight") if name.endswith(".weight") else None


def _encoder_weights(pipeline):
    encoders = dict(_ENCODERS)
    if "Flux" in type(pipeline).__name__:
        encoders["text_encoder_2"] = "t5xxl"
    weights = {}
    for component, encoder in encoders.items():
        module = getattr(pipeline, component, None)
        for name, parameter in module.named_parameters() if module is not None else ():
            is_wrapped = encoder != "t5xxl" and not name.startswith("text_")
            own = f"text_model.{name}" if is_wrapped else name
            weights[f"{encoder}.transformer.{own}"] = Rows([parameter])
    return weights


def _encoder_keys(name):
    """Kohya's keys of a weight of CLIP: those of its layers' linear maps."""
    encoder, _, rest = name.partition(".transformer.text_model.encoder.layers.")
    number, _, layer = rest.partition(".")
    if _layer(layer) not in _LAYERS:
        return []
    end = f"text_model_encoder_layers_{number}_{_layer(layer).replace('.', '_')}"
    prefixes = {"clip_l": ("lora_te", "lora_te1"), "clip_g": ("lora_te2",)}
    return [f"{prefix}_{end}" for prefix in prefixes[encoder]]


def _transformer_weights(transformer):
    parameters = dict(transformer.named_parameters())
    weights = {}
    for name, sources in transformer_names(transformer).items():
        for end in ("weight", "bias"):
            joined = [source.strip("~").format(end) for source in sources]
            if all(source in parameters for source in joined):
                own = f"diffusion_model.{name.format(end)}"
                parts = [parameters[source] for source in joined]
                weights[own] = Rows(parts, sources[0].startswith("~"))
    return weights
