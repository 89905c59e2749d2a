"""Single-file checkpoints in the layouts of the models' authors, out of diffusers pipelines.

Written from the layouts themselves (the keys that diffusers' converters accept), without import of
the package and independent of its maps.
"""

import inspect
import re

import torch
from diffusers.loaders import lora_conversion_utils, single_file_utils
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def unet_name(name, unet):
    """The authors' name of a UNet's parameter."""
    module, _, end = name.rpartition(".")
    if module in _UNET:
        return f"{_UNET[module]}.{end}"
    size = unet.config.layers_per_block + 1
    place, rest = _split(name)
    match place:
        case ["mid_block", kind, number, *_]:
            number = {"resnets": 2 * int(number), "attentions": 1}[kind]
            block = f"middle_block.{number}"
        case ["down_blocks", block, "downsamplers", *_]:
            return f"input_blocks.{1 + int(block) * size + size - 1}.0.op.{end}"
        case ["up_blocks", block, "upsamplers", *_]:
            has_attention = hasattr(unet.up_blocks[int(block)], "attentions")
            number = int(block) * size + size - 1
            return f"output_blocks.{number}.{2 if has_attention else 1}.conv.{end}"
        case ["down_blocks" | "up_blocks" as way, block, kind, number, *_]:
            up = way == "up_blocks"
            number = int(block) * size + int(number) + (not up)
            part = {"resnets": 0, "attentions": 1}[kind]
            block = f"{'output' if up else 'input'}_blocks.{number}.{part}"
    for new, old in _RESNET.items() if "resnets" in name else ():
        rest = re.sub(rf"^{new}\.", f"{old}.", rest)
    return f"{block}.{rest}"


def _split(name):
    """A block's place, ``down_blocks 0 resnets 1``, and the rest of a name."""
    segments = name.split(".")
    length = 3 if segments[0] == "mid_block" else 4
    return segments[:length], ".".join(segments[length:])


def _unet(unet):
    return {unet_name(name, unet): value for name, value in unet.state_dict().items()}


def _vae(vae):
    blocks = len(vae.config.up_block_types)
    values = {}
    for name, value in vae.state_dict().items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        up = re.search(r"up_blocks\.(\d+)", name)
        if up:
            number = blocks - 1 - int(up[1])
            name = re.sub(r"up_blocks\.\d+\.resnets\.", f"up.{number}.block.", name)
            name = re.sub(r"up_blocks\.\d+\.upsamplers\.0", f"up.{number}.upsample", name)
        resnet = re.search(r"mid_block\.resnets\.(\d)", name)
        if resnet:
            name = name.replace(resnet[0], f"mid.block_{int(resnet[1]) + 1}")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in _VAE_ATTENTION.items():
                name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
            value = value[:, :, None, None] if value.dim() == 2 else value
        values[name] = value
    return values


def _clip(model):
    """OpenAI's layout, with the wrapper that transformers had."""
    names = {n: n if n.startswith("text_") else f"text_model.{n}" for n in model.state_dict()}
    values = {names[name]: value for name, value in model.state_dict().items()}
    return {name: value for name, value in values.items() if name != "text_projection.weight"}


def _open_clip(model):
    values = {}
    state = {n.removeprefix("text_model."): v for n, v in model.state_dict().items()}
    for name, value in state.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)", name)
        if not layer:
            name = name.replace("embeddings.token_embedding.weight", "token_embedding.weight")
            name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
            name = name.replace("final_layer_norm", "ln_final")
            is_projection = name == "text_projection.weight"
            values[name.removesuffix(".weight") if is_projection else name] = (
                value.T if is_projection else value
            )
            continue
        rest = layer[2]
        parts = re.match(r"self_attn\.q_proj\.(\w+)", rest)
        if parts:
            keys = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            rest = f"attn.in_proj_{parts[1]}"
            value = torch.cat([state[key] for key in keys])
        elif re.match(r"self_attn\.[kv]_proj", rest):
            continue
        for new, old in _OPEN_CLIP.items():
            rest = rest.replace(new, old)
        values[f"transformer.resblocks.{layer[1]}.{rest}"] = value
    return values


def _swapped(value):
    """Scale and shift in the authors' order."""
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])


def _renamed(state, names):
    """A state by other names; a list of sources is joined, and a ``~`` swaps scale and shift."""
    values = {}
    for new, sources in names.items():
        for end in ("weight", "bias"):
            old = new.format(end)
            keys = [source.strip("~").format(end) for source in sources]
            if old not in values and all(key in state for key in keys):
                value = torch.cat([state[key] for key in keys])
                values[old] = _swapped(value) if sources[0].startswith("~") else value
    used = {s.strip("~").format(e) for v in names.values() for s in v for e in ("weight", "bias")}
    assert not state.keys() - used, sorted(state.keys() - used)
    return values


def transformer_names(transformer):
    """Authors' names of a transformer's tensors, and the diffusers parameters that each joins.

    ``{}`` is ``weight`` or ``bias``; before the first parameter, ``~`` swaps scale and shift.
    """
    return (_flux if "Flux" in type(transformer).__name__ else _sd3)(transformer)


def _sd3(transformer):
    layers = len(transformer.transformer_blocks)
    names = {
        "pos_embed": ["pos_embed.pos_embed"], "x_embedder.proj.{}": ["pos_embed.proj.{}"],
        "context_embedder.{}": ["context_embedder.{}"],
        "final_layer.linear.{}": ["proj_out.{}"],
        "final_layer.adaLN_modulation.1.{}": ["~norm_out.linear.{}"],
    }  # fmt: skip
    for old, new in {"t_embedder": "timestep_embedder", "y_embedder": "text_embedder"}.items():
        for number, linear in ((0, "linear_1"), (2, "linear_2")):
            names[f"{old}.mlp.{number}.{{}}"] = [f"time_text_embed.{new}.{linear}.{{}}"]
    for i in range(layers):
        x, c, b = (
            f"joint_blocks.{i}.x_block",
            f"joint_blocks.{i}.context_block",
            (f"transformer_blocks.{i}"),
        )
        for number in ("", "2"):
            own = f"{b}.attn{number}"
            names[f"{x}.attn{number}.qkv.{{}}"] = [f"{own}.to_{p}.{{}}" for p in "qkv"]
            names[f"{x}.attn{number}.proj.{{}}"] = [f"{own}.to_out.0.{{}}"]
            names[f"{x}.attn{number}.ln_q.{{}}"] = [f"{own}.norm_q.{{}}"]
            names[f"{x}.attn{number}.ln_k.{{}}"] = [f"{own}.norm_k.{{}}"]
        names[f"{c}.attn.qkv.{{}}"] = [f"{b}.attn.add_{p}_proj.{{}}" for p in "qkv"]
        names[f"{c}.attn.proj.{{}}"] = [f"{b}.attn.to_add_out.{{}}"]
        names[f"{c}.attn.ln_q.{{}}"] = [f"{b}.attn.norm_added_q.{{}}"]
        names[f"{c}.attn.ln_k.{{}}"] = [f"{b}.attn.norm_added_k.{{}}"]
        swap = "~" if i == layers - 1 else ""
        names[f"{x}.adaLN_modulation.1.{{}}"] = [f"{b}.norm1.linear.{{}}"]
        names[f"{c}.adaLN_modulation.1.{{}}"] = [f"{swap}{b}.norm1_context.linear.{{}}"]
        for block, ff in ((x, "ff"), (c, "ff_context")):
            names[f"{block}.mlp.fc1.{{}}"] = [f"{b}.{ff}.net.0.proj.{{}}"]
            names[f"{block}.mlp.fc2.{{}}"] = [f"{b}.{ff}.net.2.{{}}"]
    return names


def _flux(transformer):
    names = {
        "img_in.{}": ["x_embedder.{}"], "txt_in.{}": ["context_embedder.{}"],
        "final_layer.linear.{}": ["proj_out.{}"],
        "final_layer.adaLN_modulation.1.{}": ["~norm_out.linear.{}"],
    }  # fmt: skip
    embedders = {"time_in": "timestep", "vector_in": "text", "guidance_in": "guidance"}
    for old, new in embedders.items():
        for layer, linear in (("in_layer", "linear_1"), ("out_layer", "linear_2")):
            names[f"{old}.{layer}.{{}}"] = [f"time_text_embed.{new}_embedder.{linear}.{{}}"]
    for i in range(len(transformer.transformer_blocks)):
        d, b = f"double_blocks.{i}", f"transformer_blocks.{i}"
        names |= {
            f"{d}.img_mod.lin.{{}}": [f"{b}.norm1.linear.{{}}"],
            f"{d}.txt_mod.lin.{{}}": [f"{b}.norm1_context.linear.{{}}"],
            f"{d}.img_attn.qkv.{{}}": [f"{b}.attn.to_{p}.{{}}" for p in "qkv"],
            f"{d}.txt_attn.qkv.{{}}": [f"{b}.attn.add_{p}_proj.{{}}" for p in "qkv"],
            f"{d}.img_attn.norm.query_norm.scale": [f"{b}.attn.norm_q.weight"],
            f"{d}.img_attn.norm.key_norm.scale": [f"{b}.attn.norm_k.weight"],
            f"{d}.txt_attn.norm.query_norm.scale": [f"{b}.attn.norm_added_q.weight"],
            f"{d}.txt_attn.norm.key_norm.scale": [f"{b}.attn.norm_added_k.weight"],
            f"{d}.img_attn.proj.{{}}": [f"{b}.attn.to_out.0.{{}}"],
            f"{d}.txt_attn.proj.{{}}": [f"{b}.attn.to_add_out.{{}}"],
        }
        for side, ff in (("img", "ff"), ("txt", "ff_context")):
            names[f"{d}.{side}_mlp.0.{{}}"] = [f"{b}.{ff}.net.0.proj.{{}}"]
            names[f"{d}.{side}_mlp.2.{{}}"] = [f"{b}.{ff}.net.2.{{}}"]
    for i in range(len(transformer.single_transformer_blocks)):
        s, b = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        names |= {
            f"{s}.modulation.lin.{{}}": [f"{b}.norm.linear.{{}}"],
            f"{s}.linear1.{{}}": [*(f"{b}.attn.to_{p}.{{}}" for p in "qkv"), f"{b}.proj_mlp.{{}}"],
            f"{s}.linear2.{{}}": [f"{b}.proj_out.{{}}"],
            f"{s}.norm.query_norm.scale": [f"{b}.attn.norm_q.weight"],
            f"{s}.norm.key_norm.scale": [f"{b}.attn.norm_k.weight"],
        }
    return names


def _transformer(transformer):
    return _renamed(transformer.state_dict(), transformer_names(transformer))


def original_tensors(pipeline):
    """All weights of a pipeline, by the names of its family's authors."""
    denoiser = "model.diffusion_model."
    parts = {"first_stage_model.": _vae(pipeline.vae)}
    match type(pipeline).__name__:
        case "StableDiffusionPipeline":
            parts[denoiser] = _unet(pipeline.unet)
            parts["cond_stage_model.transformer."] = _clip(pipeline.text_encoder)
        case "StableDiffusionXLPipeline":
            parts[denoiser] = _unet(pipeline.unet)
            parts["conditioner.embedders.0.transformer."] = _clip(pipeline.text_encoder)
            parts["conditioner.embedders.1.model."] = _open_clip(pipeline.text_encoder_2)
        case "StableDiffusion3Pipeline":
            parts[denoiser] = _transformer(pipeline.transformer)
            parts["text_encoders.clip_l.transformer."] = _clip(pipeline.text_encoder)
            parts["text_encoders.clip_g.transformer."] = pipeline.text_encoder_2.state_dict()
            parts["text_encoders.t5xxl.transformer."] = pipeline.text_encoder_3.state_dict()
        case "FluxPipeline":  # published as the transformer alone
            parts = {"": _transformer(pipeline.transformer)}
    return {f"{p}{name}": value for p, part in parts.items() for name, value in part.items()}


def second_generation(pipeline):
    """A Stable Diffusion pipeline in the layout of 2.x, whose text encoder is OpenCLIP's."""
    tensors = original_tensors(pipeline)
    tensors = {n: v for n, v in tensors.items() if not n.startswith("cond_stage_model.")}
    text = _open_clip(pipeline.text_encoder)
    return tensors | {f"cond_stage_model.model.{name}": value for name, value in text.items()}


def write_original(tensors, file):
    """A safetensors file of tensors that may share memory."""
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, file)
    return file


def narrow_flux_readers(width):
    """diffusers' converters of FLUX.1's checkpoints and Kohya LoRAs, for another width than 3072.

    Their code has the published numbers in it; these are replaced, and nothing else.
    """
    published = {"inner_dim = 3072": f"inner_dim = {width}"}
    published["[3072, 3072, 3072, 12288]"] = str([width] * 3 + [4 * width])
    converters = []
    for module, name in (
        (single_file_utils, "convert_flux_transformer_checkpoint_to_diffusers"),
        (lora_conversion_utils, "_convert_kohya_flux_lora_to_diffusers"),
    ):
        source = inspect.getsource(getattr(module, name))
        for old, new in published.items():
            source = source.replace(old, new)
        space = dict(vars(module))
        exec(source, space)
        converters.append(space[name])
    return converters
