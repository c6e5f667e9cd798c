"""A folder in diffusers' layout: its JSON files as our configs, its weights' places. Notebook 11.

    model_index.json  scheduler/  unet/  vae/  text_encoder/  tokenizer/  [text_encoder_2/ ...]

What our classes cannot do is refused by the name of its entry.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from ..errors import CheckpointError, DataError, OptionError
from ..networks.clip import CLIPConfig
from ..networks.text import CLIP_L, TextConfig
from ..networks.tokenizer import Tokenizer, clip_tokenizer
from ..networks.unet import UNetConfig
from ..networks.vae import SD_VAE, VAEConfig
from ..schedule import Schedule
from ..systems.system import REFINER, SD15, SD21, SDXL, SystemConfig

LAYOUT = "model_index.json, scheduler, unet, vae, text_encoder and tokenizer"
MOST_JSON = 30_000_000  # bytes; the largest tokenizers take 20 MB


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
            inside = path.resolve().is_relative_to(self.home)
        except (OSError, RuntimeError):  # a circle of links
            inside = False
        if not inside:
            raise CheckpointError(
                f"{path} is a link out of the model's folder: refused, put the file itself there"
            )
        return path

    def has(self, name) -> bool:
        return os.path.isfile(self.path(name))

    def around(self, name) -> str:
        """What lies where a file should: for messages."""
        try:
            return ", ".join(sorted(os.listdir((self.root / name).parent))[:8]) or "nothing"
        except OSError:
            return "no such folder"

    def json(self, name) -> dict:
        """The JSON object in a file. CheckpointError if it is missing or something else."""
        path = self.path(name)
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError("no regular file")
            if os.path.getsize(path) > MOST_JSON:
                raise ValueError(f"more than {MOST_JSON:,} bytes")
            entries = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(entries, dict):
                raise ValueError(f"{type(entries).__name__} instead of entries")
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file; a model's folder holds {LAYOUT} "
                f"(found there: {self.around(name)})"
            ) from None
        except (OSError, ValueError, RecursionError) as e:
            raise CheckpointError(f"{path}: not readable as JSON ({e}); fetch it again") from e
        return entries

    def weights(self, part, dtype=torch.float32, ema: bool = True) -> list[Path]:
        """The files with the weights of a part: one, or the shards of an index; half precision
        prefers `.fp16`. CheckpointError for none, or a missing shard."""
        variants = ["", ".fp16"] if dtype == torch.float32 else [".fp16", ""]
        for variant in ([] if ema else [".non_ema"]) + variants:
            for stem in ("diffusion_pytorch_model", "model"):
                if self.has(index := f"{part}/{stem}.safetensors.index{variant}.json"):
                    return self._shards(index)
                if self.has(file := f"{part}/{stem}{variant}.safetensors"):
                    return [self.path(file)]
        for file in (f"{part}/diffusion_pytorch_model.bin", f"{part}/pytorch_model.bin"):
            if self.has(file):
                return [self.path(file)]  # a pickle: refused by name where it is read
        raise CheckpointError(
            f"{self.root / part}: no weights; expected diffusion_pytorch_model.safetensors or "
            f"model.safetensors there (found: {self.around(f'{part}/x')})"
        )

    def _shards(self, index):
        names = self.json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            names = {}
        if not names:
            raise CheckpointError(f"{index}: no weight_map of names to files; fetch it again")
        files = sorted(set(names.values()))
        for name in files:
            if (
                PurePosixPath(name).name != name
                or name in ("", ".", "..")
                or set(name) & set("\\:\0")
            ):
                raise CheckpointError(
                    f"{self.root / index}: names the shard {name!r}, outside its folder: refused, "
                    "use an index from a source you trust"
                )
        paths = [self.path(PurePosixPath(index).parent / name) for name in files]
        if missing := [path.name for path in paths if not os.path.isfile(path)]:
            raise CheckpointError(
                f"{self.root / index}: {len(missing)} of {len(files)} shards missing "
                f"({', '.join(missing[:5])}): fetch them"
            )
        return paths


# ---------------------------------------------------------------- entries

# (what our classes can do, the entries); the first value is what a missing entry means
UNET_ENTRIES = [
    (
        (None,),
        "encoder_hid_dim encoder_hid_dim_type num_attention_heads class_embed_type "
        "num_class_embeds time_embedding_dim time_embedding_act_fn timestep_post_act "
        "time_cond_proj_dim cross_attention_norm reverse_transformer_layers_per_block",
    ),
    (
        (False, None),
        "center_input_sample only_cross_attention dual_cross_attention "
        "resnet_skip_time_act class_embeddings_concat mid_block_only_cross_attention",
    ),
    ((True,), "flip_sin_to_cos"),
    ((0,), "freq_shift"),
    ((1,), "downsample_padding mid_block_scale_factor resnet_out_scale_factor"),
    ((3,), "conv_in_kernel conv_out_kernel"),
    ((1e-5,), "norm_eps"),
    (("silu", "swish"), "act_fn"),
    (("default",), "resnet_time_scale_shift attention_type"),
    (("positional",), "time_embedding_type"),
    (("UNetMidBlock2DCrossAttn",), "mid_block_type"),
    ((None, "text_time"), "addition_embed_type"),
]
VAE_ENTRIES = [
    (("silu", "swish"), "act_fn"),
    ((None, 0), "shift_factor latents_mean latents_std"),
    ((True,), "use_quant_conv use_post_quant_conv mid_block_add_attention"),
]
TEXT_ENTRIES = [((1e-5,), "layer_norm_eps"), (("quick_gelu", "gelu"), "hidden_act")]
SCHEDULER_ENTRIES = [
    (("linear", "scaled_linear", "squaredcos_cap_v2"), "beta_schedule"),
    (("epsilon", "v_prediction", "sample"), "prediction_type"),
    ((False, None, True), "use_karras_sigmas"),
    (
        (False, None),
        "thresholding use_exponential_sigmas use_beta_sigmas use_lu_lambdas use_flow_sigmas "
        "use_dynamic_shifting euler_at_final",
    ),
    ((None,), "sigma_min sigma_max"),
    (("linear",), "interpolation_type"),
    (("discrete",), "timestep_type"),
    (("zero",), "final_sigmas_type"),
    (("dpmsolver++",), "algorithm_type"),
    ((2,), "solver_order"),
    (("midpoint",), "solver_type"),
    ((None, "fixed_small", "fixed_small_log"), "variance_type"),
]
SOLVERS = {  # class of a scheduler: our sampler, and what a missing timestep_spacing means there
    "PNDMScheduler": ("pndm", "leading"),
    "DDIMScheduler": ("ddim", "leading"),
    "DDPMScheduler": ("ddpm", "leading"),
    "EulerDiscreteScheduler": ("euler", "linspace"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace"),
    "HeunDiscreteScheduler": ("heun", "linspace"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace"),
}
PREDICT = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}


class _Unable(Exception):
    """An entry that our classes cannot do: name, value, what they can."""


@contextmanager
def plan_of(source):
    """Whatever a plan of wrong types or sizes leads to, as one CheckpointError with its file."""
    try:
        yield
    except _Unable as e:
        name, value, possible = e.args
        raise CheckpointError(
            f"{source}: {name} = {value!r:.80} is not supported here; possible: {possible}"
        ) from None
    except (
        *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError),
        *(DataError, OptionError),
    ) as e:
        if isinstance(e, torch.OutOfMemoryError) or "allocate memory" in str(e):
            raise
        raise CheckpointError(
            f"{source}: no plan of a model that can be built ({type(e).__name__}: {str(e)[:200]})"
        ) from e


def _possible(entries, table):
    for values, names in table:
        for name in names.split():
            if (value := entries.get(name, values[0])) not in values:
                raise _Unable(name, value, " or ".join(map(repr, values)))


def _per_level(entries, name, default, levels):
    value = entries.get(name, default)
    value = [value] * levels if isinstance(value, int) else value
    if not isinstance(value, list) or [type(v) for v in value] != [int] * levels:
        raise _Unable(name, value, f"one number, or {levels}, one a level")
    return value


def _same(entries, name, default):
    value = entries.get(name, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise _Unable(name, value, "one number for all levels")
    return value


def _mult(widths):
    if any(w % widths[0] for w in widths):
        raise _Unable("block_out_channels", widths, "whole multiples of the first")
    return tuple(w // widths[0] for w in widths)


# ---------------------------------------------------------------- configs


def unet_config(entries: dict, source="unet/config.json") -> UNetConfig:
    """Of a `UNet2DConditionModel`; there `attention_head_dim` means the NUMBER of heads."""
    with plan_of(source):
        _possible(entries, UNET_ENTRIES)
        widths = entries.get("block_out_channels", [320, 640, 1280, 1280])
        levels = len(widths)
        down = entries.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        up = entries.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
        attends = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
        if len(down) != levels or any(b not in attends for b in down):
            raise _Unable("down_block_types", down, f"{levels} of {' or '.join(attends)}")
        if up != [b.replace("Down", "Up") for b in reversed(down)]:
            raise _Unable("up_block_types", up, "the down blocks in reverse")
        layers = _per_level(entries, "transformer_layers_per_block", 1, levels)
        heads = _per_level(entries, "attention_head_dim", 8, levels)
        vector = entries.get("projection_class_embeddings_input_dim")
        if entries.get("addition_embed_type") and vector is None:
            raise _Unable("projection_class_embeddings_input_dim", None, "a number")
        inputs, outputs = entries.get("in_channels", 4), entries.get("out_channels", 4)
        return UNetConfig(
            in_channels=inputs,
            out_channels=0 if outputs == inputs else outputs,
            channels=widths[0],
            mult=_mult(widths),
            depth=tuple(n if attends[b] else 0 for n, b in zip(layers, down)),
            middle=layers[-1],
            heads=tuple(  # without attention they mean nothing
                1 if not attends[b] and w % h else h for w, h, b in zip(widths, heads, down)
            ),
            context=_same(entries, "cross_attention_dim", 1280),
            vector=vector if entries.get("addition_embed_type") else 0,
            blocks=_same(entries, "layers_per_block", 2),
            groups=entries.get("norm_num_groups", 32),
        )


def vae_config(entries: dict, source="vae/config.json", scale: float | None = None) -> VAEConfig:
    """Of an `AutoencoderKL`. scale: for a missing scaling_factor; None: it must be there."""
    with plan_of(source):
        _possible(entries, VAE_ENTRIES)
        widths = entries.get("block_out_channels", [64])
        for side, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
            wanted = [block] * len(widths)
            if entries.get(f"{side}_block_types", wanted) != wanted:
                raise _Unable(f"{side}_block_types", entries[f"{side}_block_types"], wanted)
        channels, scale = entries.get("in_channels", 3), entries.get("scaling_factor", scale)
        if entries.get("out_channels", 3) != channels:
            raise _Unable(
                "out_channels", entries.get("out_channels"), f"{channels}, as in_channels"
            )
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise _Unable(
                "scaling_factor", scale, "a number such as 0.13025; a wrong one gives grey pictures"
            )
        return VAEConfig(
            in_channels=channels,
            channels=widths[0],
            mult=_mult(widths),
            blocks=entries.get("layers_per_block", 1),
            latent=entries.get("latent_channels", 4),
            groups=entries.get("norm_num_groups", 32),
            scale=float(scale),
        )


def text_config(
    entries: dict, source="text_encoder/config.json", projects=False, pad="eot"
) -> TextConfig:
    """Of a CLIP text model; projects: whether the class projects the pooled state."""
    entries = entries.get("text_config") or entries
    with plan_of(source):
        _possible(entries, TEXT_ENTRIES)
        return TextConfig(
            width=entries.get("hidden_size", 512),
            layers=entries.get("num_hidden_layers", 12),
            heads=entries.get("num_attention_heads", 8),
            hidden=entries.get("intermediate_size", 2048),
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
    kind, get = entries.get("_class_name"), entries.get
    with plan_of(source):
        if not isinstance(kind, str) or kind not in SOLVERS:
            raise _Unable("_class_name", kind, " or ".join(SOLVERS))
        sampler, spacing = SOLVERS[kind]
        _possible(entries, SCHEDULER_ENTRIES)
        predict, spacing = (
            PREDICT[get("prediction_type", "epsilon")],
            get("timestep_spacing", spacing),
        )
        karras = get("use_karras_sigmas") and sampler in ("euler", "heun", "dpmpp_2m")
        stops = sampler in ("ddim", "pndm") and not get("set_alpha_to_one", sampler == "ddim")
        clips = sampler in ("ddim", "ddpm", "heun") and get("clip_sample", sampler != "heun")
        spacings = ["leading", "trailing", "linspace"]
        if sampler in ("ddim", "pndm"):  # there their steps miss the times that they visit next
            spacings.remove("linspace")
        for name, wrong, possible in (
            ("timestep_spacing", spacing not in spacings, " or ".join(spacings)),
            (  # a last step that leads nowhere
                "steps_offset",
                stops and not sd and spacing == "leading" and not get("steps_offset", 0),
                "1, or set_alpha_to_one",
            ),
            ("clip_sample", clips and not sd, "False"),
            ("skip_prk_steps", sampler == "pndm" and not get("skip_prk_steps"), "True"),
            ("prediction_type", sampler == "pndm" and predict != "eps", "epsilon in PNDM"),
            (
                "use_karras_sigmas",
                karras and sampler == "dpmpp_2m" and get("beta_schedule") == "squaredcos_cap_v2",
                "False beside squaredcos_cap_v2",
            ),
        ):
            if wrong:
                raise _Unable(name, get(name), possible)
        if karras:
            spacing = "karras" if spacing == "linspace" else f"{spacing} karras"
        return _schedule(entries, sampler), {
            "predict": predict,
            "sampler": sampler,
            "spacing": spacing,
            "offset": 1 if sd else get("steps_offset", 0),
            "end": 0 if stops else -1,
        }


def _schedule(entries, sampler) -> Schedule:
    T, kind = entries.get("num_train_timesteps", 1000), entries.get("beta_schedule", "linear")
    start, end = (0.00085, 0.012) if sampler == "heun" else (0.0001, 0.02)
    ends = entries.get("beta_start", start), entries.get("beta_end", end)
    if entries.get("trained_betas") is not None:
        schedule = Schedule(torch.tensor(entries["trained_betas"], dtype=torch.float64))
    elif kind == "squaredcos_cap_v2":
        schedule = Schedule.cosine(T)
    else:
        schedule = (Schedule.linear if kind == "linear" else Schedule.sqrt_linear)(T, *ends)
    if entries.get("rescale_betas_zero_snr"):
        schedule = schedule.zero_terminal_snr()
        if sampler not in ("ddim", "ddpm"):  # solvers in sigma stop short of infinity
            ends_at = torch.tensor([2.0**-24], dtype=torch.float64)
            schedule = Schedule.from_alpha_bar(torch.cat([schedule.alpha_bar[:-1], ends_at]))
    return schedule


def system_config(folder: Folder) -> tuple[SystemConfig, Schedule]:
    """The plan and the schedule of a whole system. CheckpointError that names the entry."""
    index, source = folder.json("model_index.json"), folder.root / "model_index.json"

    def entry(part, *classes):
        kind = index.get(part) or [None, None]
        if not isinstance(kind, list) or kind[-1] not in classes:
            raise CheckpointError(
                f"{source}: {part} = {index.get(part)!r:.80} is not supported here; possible: "
                f"{' or '.join(map(str, classes))}. Is it another kind of model "
                f"({index.get('_class_name')!r:.80})?"
            )
        return kind[-1]

    def read(part):
        return folder.json(f"{part}/config.json"), str(folder.root / part / "config.json")

    entry("unet", "UNet2DConditionModel"), entry("vae", "AutoencoderKL")
    texts = []
    for suffix in ("", "_2"):
        kind = entry(f"text_encoder{suffix}", "CLIPTextModel", "CLIPTextModelWithProjection", None)
        if kind:
            name = f"tokenizer{suffix}"
            projects = kind.endswith("WithProjection")
            text = text_config(*read(f"text_encoder{suffix}"), projects, pad(folder, name))
            end = (tokenizer(folder, name, text) or clip_tokenizer()).end
            texts.append(text if end == text.vocab - 1 else replace(text, end=end))
    if not texts:
        raise CheckpointError(f"{source}: no text encoder; expected text_encoder or text_encoder_2")
    entries, unet_source = read("unet")
    unet = unet_config(entries, unet_source)
    with plan_of(unet_source):
        dim = entries.get("addition_time_embed_dim") or 256
        numbers = (unet.vector - texts[-1].projection) / dim if unet.vector else 0
        if (vector := {0: "", 6: "sdxl", 5: "refiner"}.get(numbers)) is None:
            raise _Unable(
                "projection_class_embeddings_input_dim",
                unet.vector,
                f"{texts[-1].projection} + 6 * {dim} (SDXL) or + 5 * {dim} (its refiner)",
            )
    # SD 1.5's own config is older than the entry scaling_factor
    vae = vae_config(*read("vae"), scale=None if vector else SD_VAE.scale)
    name = "scheduler/scheduler_config.json"
    schedule, how = schedule_config(folder.json(name), str(folder.root / name), sd=not vector)
    side, known = entries.get("sample_size"), (SD15, SD21, SDXL, REFINER)
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
        own, vision = entries.get("text_config") or {}, entries.get("vision_config") or {}
        own = {**own, "projection_dim": entries.get("projection_dim", 512)}
        text = text_config(own, source, projects=True, pad=pad(folder, "."))
        _possible(vision, [((1e-5,), "layer_norm_eps"), ((text.act,), "hidden_act")])
        end = own.get("eos_token_id", text.vocab - 1)
        if end not in (2, text.vocab - 1):  # 2: what old files say, and do not mean
            raise _Unable("eos_token_id", end, f"{text.vocab - 1}, the highest id")
        return CLIPConfig(
            text,
            size=vision.get("image_size", 224),
            patch=vision.get("patch_size", 32),
            width=vision.get("hidden_size", 768),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 12),
            hidden=vision.get("intermediate_size", 3072),
            pixels="openai",
        )


# ---------------------------------------------------------------- tokenizers


def pad(folder: Folder, name) -> str:
    """What fills up a prompt, "eot" or "!", by a tokenizer's JSON files; without any: "eot"."""
    for file in (f"{name}/special_tokens_map.json", f"{name}/tokenizer_config.json"):
        if folder.has(file) and (token := _token(folder.json(file).get("pad_token"))):
            if token not in ("<|endoftext|>", "!"):
                raise CheckpointError(
                    f"{folder.root / file}: pad_token = {token!r:.80} is not supported here; "
                    "possible: '<|endoftext|>' or '!'"
                )
            return "!" if token == "!" else "eot"
    return "eot"


def tokenizer(folder: Folder, name, config: TextConfig) -> Tokenizer | None:
    """The tokenizer of an encoder whose words are not CLIP's alone; None stands for CLIP's own.

    CheckpointError if it knows more words than the encoder.
    """
    source, words = folder.root / name, _words(folder, name)
    size = 1 + max(words.values(), default=-1)
    if size > config.vocab:
        raise CheckpointError(
            f"{source}: its tokenizer knows {size:,} words, and its text encoder (vocab_size) "
            f"only {config.vocab:,}: they are of two models"
        )
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
    found = {}
    with plan_of(folder.root / name):
        if folder.has(f"{name}/tokenizer.json"):
            entries = folder.json(f"{name}/tokenizer.json")
            found |= entries["model"]["vocab"]
            found |= {word["content"]: word["id"] for word in entries.get("added_tokens", [])}
        elif folder.has(f"{name}/vocab.json"):
            found |= folder.json(f"{name}/vocab.json")
        if folder.has(f"{name}/added_tokens.json"):
            found |= folder.json(f"{name}/added_tokens.json")
        if folder.has(f"{name}/tokenizer_config.json"):
            added = folder.json(f"{name}/tokenizer_config.json").get("added_tokens_decoder", {})
            found |= {word["content"]: int(n) for n, word in added.items()}
        return dict(sorted(found.items(), key=lambda word: word[1]))


def _token(entry):
    return entry.get("content") if isinstance(entry, dict) else entry
