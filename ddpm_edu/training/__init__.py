"""Training: Algorithm 1 with what real runs need, recipes, whole systems. Notebooks 04 to 13."""

from ..lazy import lazily

# Not `train`, `reflow` and `follow`, names of modules: from ddpm_edu.training.train import train.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "train": "TrainConfig TrainStep fit progress",
        "resume": "",
        "share": "shared",
        "optim": "EMA Muon lr_at new_optimizer orthogonal",
        "autoencoder": (
            "Autoencoder LossWeights PatchDiscriminator "
            "classifier_features measure_scale perceptual"
        ),
        "latents": "Latents conditions encode",
        "reflow": "Pairs make_pairs",
        "denoisers": "DENOISER_RECIPES DenoiserRecipe PAINTED_DIT train_denoiser",
        "codes": "CODE_RECIPES CodeRecipe Codes DALLE MASKGIT train_codes train_vq",
        "lora": "Learning train_lora",
        "own": "OwnPlan fitted suited train_own",
        "own_lora": "train_own_lora train_own_word",
        "dreambooth": "prior_pictures with_prior",
        "words": "LearningWord train_word",
        "control": "PAINTED_EDGES ControlRecipe Hinted hinted train_control",
        "cascade": "CASCADE_RECIPES PAINTED_IMAGEN CascadeRecipe train_cascade",
        "prior": "PRIOR_RECIPES PAINTED_PRIOR PriorRecipe train_prior",
        "cuts": "Cuts CutLatents cuts encode_cuts",
        "recipes": "RECIPES Recipe SMALL MINUTE MNIST CIFAR10 PAINTED EMOJI FIVE_MINUTES",
        "whole_system": "assemble train_clip train_system train_unet train_vae",
        "few_steps": "FEW_RECIPES FewRecipe MeanFlowRecipe train_few train_mean_flow",
        "sdxl": "SDXL_RECIPE SDXLRecipe Stage train_sdxl",
        "follow": "",
    },
)
