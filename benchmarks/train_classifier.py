"""Train a classifier from random weights, measure it, and save weights and card.

    python benchmarks/train_classifier.py mnist --save data/weights
    DDPM_EDU_CIFAR10=FOLDER python benchmarks/train_classifier.py cifar10 --save data/weights

Stochastic gradient descent with Nesterov momentum, one linear warm-up and decay, bfloat16 inside the convolutions.
The weights are rounded to float16 before anything is measured, so that the figures are those of the file.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from ddpm_edu.datasets import images as data
from ddpm_edu.files.load import save
from ddpm_edu.metrics.frechet import accuracy, features, frechet, moments
from ddpm_edu.networks.classifier import Classifier, ClassifierConfig

SETTINGS = {  # epochs, peak learning rate
    "mnist": dict(model=dict(channels=1, widths=(32, 64, 64)), epochs=16, lr=0.2),
    "cifar10": dict(model=dict(channels=3, widths=(32, 64, 128)), epochs=12, lr=0.2),
}
CARD = """# {title} classifier

A small residual classifier (`ddpm_edu.networks.classifier.Classifier`, {parameters:,} parameters, {features} features), float16, with the mean and
covariance of its features on the real training and test pictures. Load it with `ddpm_edu.load("{name}_classifier")`.

| | |
|---|---|
| trained on | {trained_on} |
| command | `{command}` |
| seed, epochs | {seed}, {epochs} |
| time | {seconds:.0f} s |
| hardware | {hardware} |
| versions | Python {python}, torch {torch} |
| test accuracy | {test_accuracy:.2%} of 10,000 |
| bytes | {bytes:,}, packed |

**Yardstick.** Frechet distance, in this classifier's features, between real pictures; {few_count} are {per_class} of each class at random, mean of {draws} draws:

| | |
|---|---|
| {few_count} test pictures to all {train_count:,} training pictures | {test_few_vs_train:.3f} |
| {few_count} test pictures to all 10,000 test pictures, of which they are a part | {test_few_vs_test:.3f} |
| {few_count} training pictures to all 10,000 test pictures | {train_few_vs_test:.3f} |
| all 10,000 test pictures to all training pictures | {test_vs_train:.3f} |

{few_count} perfect samples would score about like the first and third rows. The numbers mean something only beside each other: they scale
with the features, and are not comparable with the FIDs of other networks, nor of the other classifier.

Licence of the weights: MIT, like the code. {source}
"""


def augment_digits(x, generator):
    """A random small rotation, scale, shear and shift of each digit."""
    u = lambda limit: (2 * torch.rand(len(x), generator=generator) - 1) * limit
    angle, scale, shear = u(0.25), 1 + u(0.12), u(0.2)
    theta = torch.stack(
        [
            scale * angle.cos(),
            shear - angle.sin(),
            u(0.15),
            angle.sin(),
            scale * angle.cos(),
            u(0.15),
        ],
        1,
    )
    grid = F.affine_grid(theta.view(-1, 2, 3), x.shape, align_corners=False)
    return (
        F.grid_sample(x + 1, grid, align_corners=False) - 1
    )  # beside the picture lies 0, which must be black = -1


def augment_photos(x, generator):
    """A random mirror image and a shift by up to 4 pixels, edges reflected."""
    b, _, h, w = x.shape
    x = torch.where(torch.rand(b, 1, 1, 1, generator=generator) < 0.5, x, x.flip(3))
    rows = torch.randint(9, (b, 1), generator=generator) + torch.arange(h)
    columns = torch.randint(9, (b, 1), generator=generator) + torch.arange(w)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    return padded[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def train(classifier, dataset, augment, epochs, lr, seed, batch_size=256):
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(dataset) // batch_size)
    ramp = lambda step: min(step / (0.2 * steps), (steps - step) / (0.8 * steps))
    optimizer = torch.optim.SGD(
        classifier.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, ramp)
    started = time.time()
    for epoch in range(epochs):
        for index in torch.randperm(len(dataset), generator=generator).split(batch_size)[
            : len(dataset) // batch_size
        ]:
            x, cond = dataset[index]
            with torch.autocast("cpu", torch.bfloat16):
                logits = classifier(
                    augment(x, generator).contiguous(memory_format=torch.channels_last)
                )
            loss = F.cross_entropy(logits.float(), cond.vector)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(
            f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}, {time.time() - started:.0f} s",
            flush=True,
        )
    return time.time() - started


def measure(classifier, real, test, per_class=100, draws=5):
    """Test accuracy, reference statistics and the distances of real pictures from each other, small sets drawn at random."""
    found = {
        name: torch.cat(
            [features(classifier, data.from_uint8(images)) for images in part.images.split(5000)]
        )
        for name, part in dict(train=real, test=test).items()
    }
    generator = torch.Generator().manual_seed(0)

    def few_vs(
        part, split, other
    ):  # at random: the first half of MNIST's test pictures is the easier one
        orders = [torch.randperm(len(part), generator=generator) for _ in range(draws)]
        drawn = [
            torch.cat(
                [order[part.labels[order] == label][:per_class] for label in range(part.classes)]
            )
            for order in orders
        ]
        return sum(frechet(found[split][index], found[other]) for index in drawn) / draws

    figures = dict(
        test_accuracy=accuracy(classifier, data.from_uint8(test.images), test.labels),
        test_few_vs_train=few_vs(test, "test", "train"),
        test_few_vs_test=few_vs(test, "test", "test"),
        train_few_vs_test=few_vs(real, "train", "test"),
        test_vs_train=frechet(found["test"], found["train"]),
        per_class=per_class,
        draws=draws,
        few_count=per_class * real.classes,
        train_count=len(real),
    )
    reference = {
        f"real_{split}.{key}": value
        for split, f in found.items()
        for key, value in zip(("mean", "cov"), moments(f))
    }
    return figures, reference


def hardware(threads):
    model = (
        [
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return (
        f"{threads} threads of {model[0] if model else platform.processor() or platform.machine()}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="folder for the weights and the card")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    settings = SETTINGS[args.name]
    epochs = args.epochs or settings["epochs"]
    load = data.mnist if args.name == "mnist" else data.cifar10
    real, test = load("train"), load("test")
    classifier = Classifier(ClassifierConfig(**settings["model"])).to(
        memory_format=torch.channels_last
    )
    augment = augment_digits if args.name == "mnist" else augment_photos
    seconds = train(classifier, real, augment, epochs, settings["lr"], args.seed)
    exact = accuracy(classifier, data.from_uint8(test.images), test.labels)
    classifier.half().float()
    for moments_of in (classifier.real_train, classifier.real_test):
        moments_of.double()
    figures, reference = measure(classifier, real, test)
    result = dict(
        benchmark=f"train_classifier {args.name}",
        **figures,
        test_accuracy_float32=exact,
        seconds=seconds,
        epochs=epochs,
        seed=args.seed,
        parameters=sum(p.numel() for p in classifier.parameters()),
        features=settings["model"]["widths"][-1],
        hardware=hardware(args.threads),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    if args.save:
        path = args.save / f"{args.name}_classifier.safetensors.xz"
        classifier.load_state_dict(reference, strict=False)
        save(path, classifier, dtype=torch.float16)
        result["bytes"] = path.stat().st_size
        source = {
            "mnist": (
                "MNIST",
                "the 60,000 training digits, slightly turned, scaled, sheared and shifted",
                "MNIST: see data/README.md.",
            ),
            "cifar10": (
                "CIFAR-10",
                "the 50,000 training pictures, mirrored and shifted",
                "CIFAR-10: see data/README.md; no picture of it is in the file.",
            ),
        }
        title, trained_on, source = source[args.name]
        command = (
            f"python benchmarks/train_classifier.py {args.name} --epochs {epochs} "
            f"--seed {args.seed} --threads {args.threads} --save {args.save}"
        )
        (args.save / f"{args.name}_classifier.md").write_text(
            CARD.format(
                title=title,
                name=args.name,
                trained_on=trained_on,
                source=source,
                command=command,
                **result,
            )
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
