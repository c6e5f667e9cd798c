"""The oral examination: thirty questions with answers, and where to read again. Notebook 18.

Notebook 18 has each as a text cell (`markdown`), and asks them in any order (show/widgets/oral.py).
Answers are HTML without formulas, so that both can show them.
"""

from typing import NamedTuple


class Question(NamedTuple):
    """One of the thirty."""

    text: str
    answer: str  # HTML
    notebooks: tuple[str, ...]  # numbers, where it is taught


T, PREV = "<sub>t</sub>", "<sub>t−1</sub>"
PARTS = {
    "Noise and back (notebooks 00 to 05)": (
        Question(
            f"Why shrink? x{T} is √(1 − β{T}) x{PREV} plus noise. Why the factor below 1?",
            f"So that the variance stays where it is: (1 − β{T}) · 1 + β{T} = 1 for data of "
            "variance 1. Noise alone would make the variance grow with every step. The end would "
            "depend on the schedule, and the network would see inputs of every size. With the "
            "factor, every picture ends as N(0, I), from where drawing can start.",
            ("01",),
        ),
        Question(
            "Why can training jump to any t at once, when the process is defined step by step?",
            "A sum of independent Gaussians is one Gaussian. The factors multiply to √ᾱ"
            f"{T}, the variances add up to 1 − ᾱ{T}. So x{T} = √ᾱ{T} x<sub>0</sub> + √(1 − ᾱ{T}) "
            "ε in one line, and a training step costs one evaluation, not t.",
            ("01",),
        ),
        Question(
            "Stable Diffusion's schedule does not end in pure noise. How much of the picture is "
            "left, and what does that spoil?",
            "At the last step √ᾱ<sub>T</sub> is 0.068. That is little, but the mean brightness of "
            "a picture is a sum over all pixels and stays visible. The network learns to read it "
            "there. Drawing starts from noise of mean 0, so very dark and very bright pictures "
            "are hard to get.",
            ("01", "13"),
        ),
        Question(
            f"Nobody can compute q(x{PREV} | x{T}). What do we compute in its place?",
            f"q(x{PREV} | x{T}, x<sub>0</sub>), where the picture is known. By Bayes' rule it is a "
            "Gaussian whose mean is a weighted sum of both. The network guesses x<sub>0</sub>; "
            "the mean of that Gaussian at the guess is the next step.",
            ("02",),
        ),
        Question(
            "Are ε, x<sub>0</sub> and v three methods?",
            f"No, one. x{T} = s x<sub>0</sub> + n ε and v = s ε − n x<sub>0</sub> are two "
            f"equations: with x{T} known, each of the three gives the other two. What differs is "
            "the weight of each noise level in a squared error, and what happens at the ends: at "
            "pure noise ε tells nothing about the picture.",
            ("02", "16"),
        ),
        Question(
            "The likelihood's bound has a weight for each t. Why does the simple loss drop it?",
            "Those weights put nearly all effort on the smallest t, where the noise is hardly "
            "visible. Without them the noisier levels count as much, and there the shape of the "
            "picture is decided. The likelihood gets a little worse, the pictures better.",
            ("02",),
        ),
        Question(
            "Ask a well-trained network once, at pure noise. Why does it answer with a blur?",
            "Least squares learns the mean of all pictures that could lie behind its input. Behind "
            "pure noise lies everything, so the answer is the mean of the data (of the class, of "
            "the prompt). A sharp picture in one evaluation needs another training: distillation.",
            ("02", "05", "16"),
        ),
        Question(
            "Why GroupNorm, and not BatchNorm?",
            "BatchNorm makes a picture depend on its neighbours in the batch. In training they "
            "have other noise levels, in drawing all have the same one, so its statistics fit "
            "neither. GroupNorm takes its mean from one picture alone.",
            ("03",),
        ),
        Question(
            "What would a UNet lose without its skip connections?",
            "Places. The way down keeps what is there and gives up where exactly. The skips carry "
            "the fine grid past the bottleneck to the level of the same size. Noise is fine grid, "
            "so without them even the noise could not be told.",
            ("03",),
        ),
        Question(
            "Why do we draw with averaged weights?",
            "The last updates shake the weights around a good place, at a learning rate that is "
            "still large. Their mean (EMA) lies nearer to its middle. The loss hardly shows it; "
            "the pictures do.",
            ("04",),
        ),
        Question(
            "The loss has been flat for an hour, and the pictures still get better. How?",
            "Most of the loss cannot be learned: given x<sub>t</sub>, the noise is not known "
            "exactly, even to a perfect network. What can be learned is a small part on top, and "
            "it hides in that floor. So look at the loss by t, and judge the pictures.",
            ("04",),
        ),
        Question(
            "What does guidance do, what does it cost, and when is it too much?",
            "It goes beyond the conditional answer, away from the unconditional one: "
            "ε<sub>∅</sub> + w (ε<sub>c</sub> − ε<sub>∅</sub>). Each step asks the network twice. "
            "Pictures obey more and differ less; with a large w colours burn, because the sum "
            "leaves the range of pictures.",
            ("05",),
        ),
        Question(
            "What does the Fréchet distance see, and what not?",
            "Mean and covariance of features, over many pictures: so quality and variety together. "
            "It cannot see whether one picture is good, whether it shows what was asked, or "
            "whether it was copied from the training set. With few pictures it is too large.",
            ("00", "04"),
        ),
    ),
    "Latents, text and Stable Diffusion (06 to 11)": (
        Question(
            "Why does Stable Diffusion work on latents?",
            "A picture of 512 × 512 × 3 becomes 64 × 64 × 4 numbers, 48 times fewer. Most bits of "
            "a picture are texture that the eye hardly checks; a decoder can invent it. Diffusion "
            "then works on what matters, with attention over 64 times fewer places.",
            ("06", "07"),
        ),
        Question(
            "Latents are multiplied by 0.18215 before diffusion. Where does that number come from?",
            "It is one over the standard deviation of the latents. The schedule is made for data "
            "of variance 1; with other data the same β would mean another signal-to-noise ratio, "
            "and the last step would not be noise.",
            ("06", "07"),
        ),
        Question(
            "The VAE's KL weight is about one millionth. Why have it at all, and why so small?",
            "It keeps latents from running away, and neighbours decodable. A large weight would "
            "force each latent towards N(0, I) and make copies blurry. Making noise into latents "
            "is not the VAE's task here: diffusion does that.",
            ("06",),
        ),
        Question(
            "Why is CLIP's cosine multiplied by a learned temperature?",
            "Cosines lie between −1 and 1. Their softmax is nearly flat: even a perfect match "
            "among 100 texts gets a probability of only 7 %. So the loss could never become small. "
            "CLIP learns a factor, up to 100.",
            ("08",),
        ),
        Question(
            "Prompt and picture meet in cross-attention. Who asks, who answers?",
            "Places of the picture ask (queries), tokens of the text answer (keys and values). "
            "Each place takes a weighted mean of the tokens' values. So the map of weights shows "
            "which word drew where, and swapping keys moves it.",
            ("09", "10"),
        ),
        Question(
            "What is a negative prompt, in the equation of guidance?",
            "It takes the place of the empty prompt: the step goes away from it instead of from "
            "the unconditional answer. It costs nothing more, for that answer was asked anyway.",
            ("05", "10"),
        ),
        Question(
            "Inpainting: why not draw a whole picture and paste the hole?",
            "The hole would not know its border. Keeping the known part noised to level t at each "
            "step lets the network see both. A network trained for it also gets mask and masked "
            "picture as further channels, and need not guess what is kept.",
            ("10",),
        ),
        Question(
            "A ControlNet's connections begin at zero. What would go wrong otherwise?",
            "Random weights would add noise to a network that draws well, and training would "
            "first have to repair that. With zeros the first step is the old network exactly. Its "
            "gradient is not zero, for it depends on the input, not on the weight itself.",
            ("10",),
        ),
        Question(
            "Where do Stable Diffusion 1.5's UNet parameters sit, and where its work?",
            "It has 859,520,964 parameters. Most of them sit in the deep levels, where channels "
            "are many; most of the work is done on the top level, where places are many. A "
            "weight of a convolution works once for each place.",
            ("11",),
        ),
    ),
    "SDXL (12 to 14)": (
        Question(
            "SDXL is told the original size of each training picture. What for?",
            "So that small pictures need not be thrown away. Enlarged they are blurry; the network "
            "learns that blur belongs to small sizes. In drawing one asks for a large size, and "
            "for a crop that begins at the corner, so that no heads are cut off.",
            ("12", "13"),
        ),
        Question(
            "Why two text encoders, and what is the pooled vector for?",
            "Their tokens are set side by side: 768 + 1280 = 2048 numbers each. Two trainings know "
            "more words than one. The pooled vector of the second says what the whole prompt is "
            "about, and joins the time embedding, which reaches every block.",
            ("12",),
        ),
        Question(
            "Why does the refiner know only the last 200 steps?",
            "It was trained on t below 200 of 1,000 only. There the composition is fixed and "
            "detail is decided, so all its capacity goes there. At more noise it never learned an "
            "answer: it must be given a base picture, at that noise level.",
            ("12", "13", "14"),
        ),
        Question(
            "A GPU step is slow. How do you find out whether arithmetic or memory holds it up?",
            "Divide the operations by the bytes that must move: the arithmetic intensity. Below "
            "the roofline's ridge the memory is the limit: fuse, use smaller numbers. Above it the "
            "arithmetic: use faster formats. Then measure, kernel by kernel.",
            ("14",),
        ),
    ),
    "Other roads, and your own (15 to 17)": (
        Question(
            "DALL-E writes a picture word by word. What does MaskGIT change?",
            "The order. A transformer that sees all places, masked or not, fills in many codes at "
            "once, the surest first. So a picture takes some ten evaluations, not one for each "
            "code. Codes filled in at once do not see each other, which costs quality.",
            ("15",),
        ),
        Question(
            "In flow matching every training line is straight. Are the paths of drawing straight?",
            "No. Where lines cross, the network answers with their mean, and paths bend. Reflow "
            "trains again on pairs that the flow itself has joined: these do not cross, so the new "
            "paths are nearly straight, and few steps are enough.",
            ("16",),
        ),
        Question(
            "How does a consistency model differ from a denoiser that is asked once?",
            "The denoiser says the mean of all pictures behind its input; the consistency model "
            "says where the one path through it ends. One training has data as its target, the "
            "other a second point of the same path.",
            ("16",),
        ),
        Question(
            "LoRA trains B A of rank r in place of W. How many numbers are that, and why do they "
            "do?",
            "r (d + k) in place of d k: for 768 × 768 and rank 4, one number in 96. What a "
            "fine-tuning changes is small and has few directions; its singular values fall fast. "
            "W itself stays, so what the model knew is one subtraction away.",
            ("17",),
        ),
    ),
}  # fmt: skip
QUESTIONS = tuple(question for part in PARTS.values() for question in part)
FILES = {
    "00": "00_pictures_first", "01": "01_forward_process", "02": "02_reverse_process",
    "03": "03_unet", "04": "04_train_mnist_cifar", "05": "05_samplers_guidance", "06": "06_vae",
    "07": "07_latent_diffusion", "08": "08_clip", "09": "09_text_to_image", "10": "10_editing",
    "11": "11_stable_diffusion", "12": "12_sdxl", "13": "13_sdxl_training",
    "14": "14_sdxl_sampling", "15": "15_dalle_imagen", "16": "16_flow_dit",
    "17": "17_make_it_yours",
}  # fmt: skip


def markdown(number: int) -> str:
    """Question 1 to 30 as a text cell: its answer is folded, with links to the notebooks."""
    question = QUESTIONS[number - 1]
    links = ", ".join(f"[{n}]({FILES[n]}.ipynb)" for n in question.notebooks)
    return (
        f"#### {number}. {question.text}\n\n<details><summary>The answer</summary>\n\n"
        f"{question.answer}\n\nTaught in notebook{'s' * (len(question.notebooks) > 1)} {links}."
        "\n\n</details>"
    )
