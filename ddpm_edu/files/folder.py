"""A folder in diffusers' layout: its JSON files as our configs, its weights' places. Notebook 11.

    model_index.json  scheduler/  unet/  vae/  text_encoder/  tokenizer/  [text_encoder_2/ ...]

What our classes cannot do is refused by the name of its entry.
"""

import json
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from ..errors import CheckpointError, DataError, OptionError
from ..networks.clip import CLIPConfig
from ..networks.controlnet import ControlNetConfig
from ..networks.text import CLIP_L, TextConfig
from ..networks.tokenizer import Tokenizer, clip_tokenizer
from ..networks.unet import UNetConfig
from ..networks.vae import SD_VAE, VAEConfig
from ..schedule import Schedule
from ..systems.system import REFINER, SD15, SD15_INPAINT, SD21, SDXL, SDXL_INPAINT, SystemConfig

LAYOUT = "model_index.json, scheduler, unet, vae, text_encoder and tokenizer"
VECTOR = "projection_class_embeddings_input_dim"
MOST_JSON = 30_000_000  # bytes; the largest tokenizers take 20 MB


def variants(dtype, ema: bool = True) -> list[str]:
    """What stands in the names of weights, the most wanted first."""
    half = ["", ".fp16"] if dtype == torch.float32 else [".fp16", ""]
    return half if ema else [".non_ema", *half]


class Folder:
    """The files of a model; every one is asked for here, so that none lies outside."""

    def __init__(self, root):
        self.root = Path(root)
        real = self.root.resolve()  # in the hub's cache the files are links to blobs/ beside
        self.home = real.parent.parent if real.parent.name == "snapshots" else real

    def path(self, name) -> Path:
        """A file's place. CheckpointError for a link that leaves the model's folder."""
        path = self.root / name
        try:
            if path.resolve().is_relative_to(self.home):
                return path
        except (OSError, RuntimeError):  # a circle of links
            pass
        raise CheckpointError(f"{path}: a link out of the model's folder, refused: copy the file")

    def has(self, name) -> bool:
        return os.path.isfile(self.path(name))

    def around(self, name) -> str:
        """What lies where a file should: for messages."""
        try:
            return ", ".join(sorted(os.listdir((self.root / name).parent))[:8]) or "nothing"
        except OSError:
            return "no such folder"

    def json(self, name, missing=None) -> dict:
        """The JSON object in a file, or `missing`. CheckpointError if it is none of both."""
        path = self.path(name)
        if missing is not None and not os.path.isfile(path):
            return missing
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError("no regular file")
            if os.path.getsize(path) > MOST_JSON:
                raise ValueError(f"more than {MOST_JSON:,} bytes")
            if isinstance(entries := json.loads(path.read_text(encoding="utf-8")), dict):
                return entries
            raise ValueError(f"{type(entries).__name__} instead of entries")
        except FileNotFoundError:
            cause = (
                f"no such file (found there: {self.around(name)}); a model's folder holds {LAYOUT}"
            )
        except (OSError, ValueError, RecursionError) as e:
            cause = f"not readable as JSON ({e}); fetch it again"
        raise CheckpointError(f"{path}: {cause}")

    def weights(self, part, dtype=torch.float32, ema: bool = True) -> list[Path]:
        """The files with the weights of a part: one, or the shards of an index; half precision
        prefers `.fp16`. CheckpointError for none, or a missing shard."""
        for variant in variants(dtype, ema):
            for stem in ("diffusion_pytorch_model", "model"):
                if self.has(index := f"{part}/{stem}.safetensors.index{variant}.json"):
                    return self._shards(index)
                if self.has(file := f"{part}/{stem}{variant}.safetensors"):
                    return [self.path(file)]
        for file in (f"{part}/diffusion_pytorch_model.bin", f"{part}/pytorch_model.bin"):
            if self.has(file):
                return [self.path(file)]  # a pickle: refused by name where it is read
        expected = "diffusion_pytorch_model.safetensors or model.safetensors"
        found = self.around(f"{part}/x")
        raise CheckpointError(
            f"{self.root / part}: no weights; expected {expected} (found: {found})"
        )

    def _shards(self, index):
        shards, source = self.json(index).get("weight_map"), self.root / index
        names = list(shards.values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"{source}: no weight_map of names to files; fetch it again")
        for name in names:
            if name in (".", "..") or not re.fullmatch(r"[^/\\:\0]+", name):
                raise CheckpointError(
                    f"{source}: the shard {name!r} is outside its folder: refused"
                )
        paths = [self.path(PurePosixPath(index).parent / name) for name in sorted(set(names))]
        if missing := [path.name for path in paths if not os.path.isfile(path)]:
            which = f"{len(missing)} of {len(paths)} shards missing ({', '.join(missing[:5])})"
            raise CheckpointError(f"{source}: {which}: fetch them")
        return paths


# ---------------------------------------------------------------- entries

# Entries: what our classes can do. The first is what a missing entry means.
UNET_ENTRIES = {
    "encoder_hid_dim encoder_hid_dim_type num_attention_heads class_embed_type": (None,),
    "num_class_embeds time_embedding_dim time_embedding_act_fn timestep_post_act": (None,),
    "time_cond_proj_dim cross_attention_norm reverse_transformer_layers_per_block": (None,),
    "center_input_sample only_cross_attention dual_cross_attention": (False, None),
    "resnet_skip_time_act class_embeddings_concat": (False, None),
    "mid_block_only_cross_attention": (False, None),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "downsample_padding mid_block_scale_factor resnet_out_scale_factor": (1,),
    "conv_in_kernel conv_out_kernel": (3,),
    "norm_eps": (1e-5,),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift attention_type": ("default",),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "addition_embed_type": (None, "text_time"),
}
CONTROL_ENTRIES = {
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
}
VAE_ENTRIES = {
    "act_fn": ("silu", "swish"),
    "shift_factor latents_mean latents_std": (None, 0),
    "use_quant_conv use_post_quant_conv mid_block_add_attention": (True,),
}
TEXT_ENTRIES = {"layer_norm_eps": (1e-5,), "hidden_act": ("quick_gelu", "gelu")}
SOLVERS = {  # class of a scheduler: our sampler, and what a missing timestep_spacing means there
    "PNDMScheduler": ("pndm", "leading"),
    "DDIMScheduler": ("ddim", "leading"),
    "DDPMScheduler": ("ddpm", "leading"),
    "EulerDiscreteScheduler": ("euler", "linspace"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace"),
    "HeunDiscreteScheduler": ("heun", "linspace"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace"),
}
CURVES = {
    "linear": Schedule.linear,
    "scaled_linear": Schedule.sqrt_linear,
    "squaredcos_cap_v2": lambda T, *ends: Schedule.cosine(T),
}
PREDICT = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
SCHEDULER_ENTRIES = {
    "_class_name": tuple(SOLVERS),
    "beta_schedule": tuple(CURVES),
    "prediction_type": tuple(PREDICT),
    "use_karras_sigmas": (False, None, True),
    "thresholding use_exponential_sigmas use_beta_sigmas use_lu_lambdas": (False, None),
    "use_flow_sigmas use_dynamic_shifting euler_at_final": (False, None),
    "sigma_min sigma_max": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero",),
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "variance_type": (None, "fixed_small", "fixed_small_log"),
}


class _Unable(Exception):
    """An entry that our classes cannot do: name, value, what they can."""


@contextmanager
def plan_of(source):
    """Whatever a plan of wrong types or sizes leads to, as one CheckpointError with its file."""
    wrong = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
    try:
        yield
    except _Unable as e:
        name, value, possible = e.args
        cause = f"{name} = {value!r:.80} is not supported here; possible: {possible}"
        raise CheckpointError(f"{source}: {cause}") from None
    except (*wrong, DataError, OptionError) as e:
        if isinstance(e, torch.OutOfMemoryError) or "allocate memory" in str(e):
            raise
        cause = f"{type(e).__name__}: {str(e)[:200]}"
        raise CheckpointError(f"{source}: no plan of a model that can be built ({cause})") from e


def _need(ok, name, value, possible):
    if not ok:
        raise _Unable(name, value, possible)


def _possible(entries, table):
    for names, values in table.items():
        for name in names.split():
            value = entries.get(name, values[0])
            _need(value in values, name, value, " or ".join(map(repr, values)))


def _levels(entries, name, default, levels, same=False) -> list[int]:
    """One number a level; an entry may be one for all. same: they must be equal."""
    value = entries.get(name, default)
    value = [value] * levels if isinstance(value, int) else value
    each = isinstance(value, list) and [type(v) for v in value] == [int] * levels
    _need(each, name, value, f"one number, or {levels}, one a level")
    _need(not same or len(set(value)) == 1, name, value, "one number for all levels")
    return value


def _mult(widths):
    multiples = not any(w % widths[0] for w in widths)
    _need(multiples, "block_out_channels", widths, "whole multiples of the first")
    return tuple(w // widths[0] for w in widths)


# ---------------------------------------------------------------- configs


def unet_config(entries: dict, source="unet/config.json") -> UNetConfig:
    """Of a `UNet2DConditionModel`; there `attention_head_dim` means the NUMBER of heads."""
    with plan_of(source):
        _possible(entries, UNET_ENTRIES)
        get, widths = entries.get, entries.get("block_out_channels", [320, 640, 1280, 1280])
        n = len(widths)
        down = get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        up = get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
        attends = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
        known = len(down) == n and all(b in attends for b in down)
        _need(known, "down_block_types", down, f"{n} of {' or '.join(attends)}")
        mirrored = [b.replace("Down", "Up") for b in reversed(down)]
        _need(up == mirrored, "up_block_types", up, "the down blocks in reverse")
        layers = _levels(entries, "transformer_layers_per_block", 1, n)
        heads = _levels(entries, "attention_head_dim", 8, n)
        vector, adds = get(VECTOR), get("addition_embed_type")
        _need(vector is not None or not adds, VECTOR, None, "a number")
        inputs, outputs = get("in_channels", 4), get("out_channels", 4)
        return UNetConfig(
            in_channels=inputs,
            out_channels=0 if outputs == inputs else outputs,
            channels=widths[0],
            mult=_mult(widths),
            depth=tuple(depth if attends[b] else 0 for depth, b in zip(layers, down)),
            middle=layers[-1],
            heads=tuple(  # without attention they mean nothing
                1 if not attends[b] and w % h else h for w, h, b in zip(widths, heads, down)
            ),
            context=_levels(entries, "cross_attention_dim", 1280, n, same=True)[0],
            vector=vector if adds else 0,
            blocks=_levels(entries, "layers_per_block", 2, n, same=True)[0],
            groups=get("norm_num_groups", 32),
        )


def control_config(entries: dict, source="config.json") -> ControlNetConfig:
    """Of a `ControlNetModel`: a UNet's entries without the way up, and the hint's."""
    with plan_of(source):
        _possible(entries, CONTROL_ENTRIES)
        get = entries.get
        down = get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        up = [block.replace("Down", "Up") for block in reversed(down)]
        more = {"up_block_types": up, "out_channels": get("in_channels", 4)}
        return ControlNetConfig(
            **vars(unet_config(entries | more, source)),
            hint=get("conditioning_channels", 3),
            widths=tuple(get("conditioning_embedding_out_channels", ControlNetConfig.widths)),
        )


def vae_config(entries: dict, source="vae/config.json", scale: float | None = None) -> VAEConfig:
    """Of an `AutoencoderKL`. scale: for a missing scaling_factor; None: it must be there."""
    with plan_of(source):
        _possible(entries, VAE_ENTRIES)
        get, widths = entries.get, entries.get("block_out_channels", [64])
        channels, scale = get("in_channels", 3), get("scaling_factor", scale)
        outputs = get("out_channels", 3)
        _need(outputs == channels, "out_channels", outputs, f"{channels}, as in_channels")
        for side, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
            name, wanted = f"{side}_block_types", [block] * len(widths)
            _need(get(name, wanted) == wanted, name, get(name), wanted)
        possible = "a number such as 0.13025; a wrong one gives grey pictures"
        _need(type(scale) in (int, float), "scaling_factor", scale, possible)
        return VAEConfig(
            in_channels=channels,
            channels=widths[0],
            mult=_mult(widths),
            blocks=get("layers_per_block", 1),
            latent=get("latent_channels", 4),
            groups=get("norm_num_groups", 32),
            scale=float(scale),
        )


def _transformer(entries, width, heads, hidden) -> dict:
    """The sizes that CLIP's two transformers share; the numbers are for missing entries."""
    return {
        "width": entries.get("hidden_size", width),
        "layers": entries.get("num_hidden_layers", 12),
        "heads": entries.get("num_attention_heads", heads),
        "hidden": entries.get("intermediate_size", hidden),
    }


def text_config(
    entries: dict, source="text_encoder/config.json", projects=False, pad="eot"
) -> TextConfig:
    """Of a CLIP text model; projects: whether the class projects the pooled state."""
    entries = entries.get("text_config") or entries
    with plan_of(source):
        _possible(entries, TEXT_ENTRIES)
        return TextConfig(
            **_transformer(entries, 512, 8, 2048),
            act=entries.get("hidden_act", "quick_gelu"),
            projection=entries.get("projection_dim", 512) if projects else 0,
            pad=pad,
            vocab=entries.get("vocab_size", CLIP_L.vocab),
            length=entries.get("max_position_embeddings", 77),
        )


def schedule_config(
    entries: dict, source="scheduler/scheduler_config.json", sd: bool = True
) -> tuple[Schedule, dict]:
    """(Schedule, the fields of SystemConfig that say how it is walked) of a diffusers scheduler.

    Missing entries mean its defaults.  sd: a pipeline of SD 1 or 2, in which diffusers itself sets
    steps_offset to 1 and clips nothing. What a solver of ours does not do is refused by its entry.
    """
    get = entries.get
    with plan_of(source):
        _possible({"_class_name": None} | entries, SCHEDULER_ENTRIES)
        sampler, spacing = SOLVERS[get("_class_name")]
        spacing, predict = (
            get("timestep_spacing", spacing),
            PREDICT[get("prediction_type", "epsilon")],
        )
        deterministic = sampler in ("ddim", "pndm")
        karras = get("use_karras_sigmas") and sampler in ("euler", "heun", "dpmpp_2m")
        stops = deterministic and not get("set_alpha_to_one", sampler == "ddim")
        clips = sampler in ("ddim", "ddpm", "heun") and get("clip_sample", sampler != "heun")
        nowhere = stops and not sd and spacing == "leading" and not get("steps_offset", 0)
        # linspace: the steps of ddim and pndm miss the times that they visit next
        spacings = ("leading", "trailing", "linspace")[: 2 if deterministic else 3]
        cosine = get("beta_schedule") == "squaredcos_cap_v2"
        for name, fits, possible in (
            ("timestep_spacing", spacing in spacings, " or ".join(spacings)),
            ("steps_offset", not nowhere, "1, or set_alpha_to_one"),  # else the last leads nowhere
            ("clip_sample", sd or not clips, "False"),
            ("skip_prk_steps", sampler != "pndm" or get("skip_prk_steps"), "True"),
            ("prediction_type", sampler != "pndm" or predict == "eps", "epsilon in PNDM"),
            ("use_karras_sigmas", not (karras and cosine and sampler == "dpmpp_2m"), "False"),
        ):
            _need(fits, name, get(name), possible)
        if karras:
            spacing = "karras" if spacing == "linspace" else f"{spacing} karras"
        how = {"predict": predict, "sampler": sampler, "spacing": spacing}
        offset = 1 if sd else get("steps_offset", 0)
        return _schedule(get, sampler), how | {"offset": offset, "end": 0 if stops else -1}


def _schedule(get, sampler) -> Schedule:
    start, end = (0.00085, 0.012) if sampler == "heun" else (0.0001, 0.02)
    T, *ends = get("num_train_timesteps", 1000), get("beta_start", start), get("beta_end", end)
    if (betas := get("trained_betas")) is not None:
        schedule = Schedule(torch.tensor(betas, dtype=torch.float64))
    else:
        schedule = CURVES[get("beta_schedule", "linear")](T, *ends)
    if get("rescale_betas_zero_snr"):
        schedule = schedule.zero_terminal_snr()
        if sampler not in ("ddim", "ddpm"):  # solvers in sigma stop short of infinity
            ends_at = torch.tensor([2.0**-24], dtype=torch.float64)
            schedule = Schedule.from_alpha_bar(torch.cat([schedule.alpha_bar[:-1], ends_at]))
    return schedule


def system_config(folder: Folder) -> tuple[SystemConfig, Schedule]:
    """The plan and the schedule of a whole system. CheckpointError that names the entry."""
    index, source = folder.json("model_index.json"), folder.root / "model_index.json"

    def kind(part, *classes):
        found = index.get(part) or [None, None]
        known = isinstance(found, list) and found[-1] in classes
        other = f"Is it another kind of model ({index.get('_class_name')!r:.80})?"
        _need(known, part, index.get(part), f"{' or '.join(map(str, classes))}. {other}")
        return found[-1]

    def read(part, file="config.json"):
        return folder.json(f"{part}/{file}"), folder.root / part / file

    with plan_of(source):
        kind("unet", "UNet2DConditionModel"), kind("vae", "AutoencoderKL")
        encoders = ("CLIPTextModel", "CLIPTextModelWithProjection", None)
        kinds = {suffix: kind(f"text_encoder{suffix}", *encoders) for suffix in ("", "_2")}
    texts = []
    for suffix, encoder in kinds.items():
        if encoder:
            name, projects = f"tokenizer{suffix}", encoder.endswith("WithProjection")
            text = text_config(*read(f"text_encoder{suffix}"), projects, pad(folder, name))
            end = (tokenizer(folder, name, text) or clip_tokenizer()).end
            texts.append(text if end == text.vocab - 1 else replace(text, end=end))
    if not texts:
        raise CheckpointError(f"{source}: no text encoder; expected text_encoder or text_encoder_2")
    entries, unet_source = read("unet")
    unet = unet_config(entries, unet_source)
    with plan_of(unet_source):
        dim, pooled = entries.get("addition_time_embed_dim") or 256, texts[-1].projection
        numbers = (unet.vector - pooled) / dim if unet.vector else 0
        vector = {0: "", 6: "sdxl", 5: "refiner"}.get(numbers)
        possible = f"{pooled} + 6 * {dim} (SDXL) or + 5 * {dim} (its refiner)"
        _need(vector is not None, VECTOR, unet.vector, possible)
    # SD 1.5's own config is older than the entry scaling_factor
    vae = vae_config(*read("vae"), scale=None if vector else SD_VAE.scale)
    schedule, how = schedule_config(*read("scheduler", "scheduler_config.json"), sd=not vector)
    side = entries.get("sample_size")
    known = (SD15, SD21, SDXL, REFINER, SD15_INPAINT, SDXL_INPAINT)
    with plan_of(source):
        return SystemConfig(
            name=next((c.name for c in known if c.unet == unet), folder.root.name),
            unet=unet,
            vae=vae,
            text=tuple(texts),
            layer="penultimate" if vector else "last",
            size=(side if isinstance(side, int) and side > 0 else 64) * 2 ** (len(vae.mult) - 1),
            vector=vector,
            number_dim=dim,
            zero_empty=bool(vector and index.get("force_zeros_for_empty_prompt", vector == "sdxl")),
            guidance=5.0 if vector else 7.5,  # as diffusers' pipelines have it
            **how,
        ), schedule


def clip_config(folder: Folder) -> CLIPConfig:
    """The plan of a whole CLIP in transformers' layout, such as openai/clip-vit-large-patch14."""
    entries, source = folder.json("config.json"), folder.root / "config.json"
    with plan_of(source):
        kind = entries.get("_class_name") or (entries.get("architectures") or ["CLIPModel"])[0]
        if kind != "CLIPModel":
            whole = f"the folder above, which holds {LAYOUT}"
            raise CheckpointError(
                f"{folder.root}: one part of a system ({kind!r:.80}): pass {whole}"
            )
        vision, size = entries.get("vision_config") or {}, entries.get("projection_dim", 512)
        own = {**(entries.get("text_config") or {}), "projection_dim": size}
        text = text_config(own, source, projects=True, pad=pad(folder, "."))
        _possible(vision, {"layer_norm_eps": (1e-5,), "hidden_act": (text.act,)})
        end = own.get("eos_token_id", text.vocab - 1)
        known = end in (2, text.vocab - 1)  # 2: what old files say, and do not mean
        _need(known, "eos_token_id", end, f"{text.vocab - 1}, the highest id")
        return CLIPConfig(
            text,
            size=vision.get("image_size", 224),
            patch=vision.get("patch_size", 32),
            **_transformer(vision, 768, 12, 3072),
            pixels="openai",
        )


# ---------------------------------------------------------------- tokenizers


def pad(folder: Folder, name) -> str:
    """What fills up a prompt, "eot" or "!", by a tokenizer's JSON files; without any: "eot"."""
    pads = {"<|endoftext|>": "eot", "!": "!"}
    for file in (f"{name}/special_tokens_map.json", f"{name}/tokenizer_config.json"):
        with plan_of(folder.root / file):
            if token := _token(folder.json(file, {}).get("pad_token")):
                _possible({"pad_token": token}, {"pad_token": tuple(pads)})
                return pads[token]
    return "eot"


def tokenizer(folder: Folder, name, config: TextConfig) -> Tokenizer | None:
    """The tokenizer of an encoder whose words are not CLIP's alone; None stands for CLIP's own.

    CheckpointError if it knows more words than the encoder.
    """
    source, words = folder.root / name, _words(folder, name)
    size = 1 + max(words.values(), default=-1)
    if size > config.vocab:
        cause = f"its tokenizer knows {size:,} words, and its text encoder only {config.vocab:,}"
        raise CheckpointError(f"{source}: {cause}: they are of two models")
    clip = CLIP_L.vocab <= config.vocab and config.length == CLIP_L.length
    if clip and size in (0, CLIP_L.vocab):
        return None
    with plan_of(source):
        if folder.has(f"{name}/tokenizer.json"):
            made = folder.json(f"{name}/tokenizer_config.json")
            tokens = (_token(made.get(key)) for key in ("bos_token", "eos_token"))
            return Tokenizer(str(folder.path(f"{name}/tokenizer.json")), *tokens, config.length)
        own = clip_tokenizer().bpe
        if {word: n for word, n in words.items() if n < CLIP_L.vocab} != own.get_vocab():
            raise ValueError("words of its own, and no tokenizer.json")
        bpe = type(own).from_str(own.to_str())
        bpe.add_tokens([word for word, n in words.items() if n >= CLIP_L.vocab])
        return Tokenizer(bpe, length=config.length)


def _words(folder: Folder, name) -> dict[str, int]:
    """{word: id}, in the order of the ids, by whatever files there are."""
    whole, vocab, added, made = (
        folder.json(f"{name}/{file}.json", {})
        for file in ("tokenizer", "vocab", "added_tokens", "tokenizer_config")
    )
    with plan_of(folder.root / name):
        found = whole["model"]["vocab"] if folder.has(f"{name}/tokenizer.json") else vocab
        found |= {word["content"]: word["id"] for word in whole.get("added_tokens", [])} | added
        more = made.get("added_tokens_decoder", {})
        found |= {word["content"]: int(n) for n, word in more.items()}
        return dict(sorted(found.items(), key=lambda word: word[1]))


def _token(entry):
    """A special token, however its file writes it."""
    return entry.get("content") if isinstance(entry, dict) else entry
