"""The networks, one a file: each is a plain nn.Module with a config. Notebooks 02 to 08."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "mlp": "MLP",
        "unet": (
            "UNet UNetConfig SpaceToDepth SD15 SD21 SDXL_BASE SDXL_REFINER timestep_embedding "
            "ResBlock Attention FeedForward TransformerBlock SpatialTransformer"
        ),
        "dit": "DiT DiTConfig DiTBlock DIT_XL sine_positions",
        "mmdit": "MMDiT MMDiTConfig SD3_MEDIUM FLUX_DEV",
        "gpt": "GPT GPTConfig Cache",
        "prior": "Prior PriorConfig",
        "controlnet": (
            "ControlNet ControlNetConfig control_net SD15_CONTROL SD21_CONTROL SDXL_CONTROL"
        ),
        "lora": "LoRA LowRank low_rank attach detach merge",
        "recompute": "recomputing",
        "unet_classic": "ClassicUNet",
        "vae": "VAE VAEConfig SD_VAE SDXL_VAE kl",
        "vq": "VectorQuantizer VQVAE VQConfig",
        "text": "Text TextConfig TextEncoder CLIP_L OPEN_CLIP_H OPEN_CLIP_G",
        "tokenizer": (
            "Tokenizer tokenize clip_tokenizer clean split_words known_words unseen "
            "train_tokenizer learn_merges"
        ),
        "clip": "CLIP CLIPConfig contrastive_loss cosines zero_shot retrieval clip_score",
        "classifier": "Classifier ClassifierConfig",
        "gaussian": "GaussianPrior",
        "precondition": "Preconditioned preconditioning",
    },
)
