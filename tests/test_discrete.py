"""Codes in order and by absorbing diffusion, on a toy language whose exact probabilities are known."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import refuses

from ddpm_edu import OptionError, ShapeError, generators
from ddpm_edu.discrete import (
    autoregressive,
    bound,
    cosine_counts,
    guided_logits,
    masked,
    masked_loss,
    next_code_loss,
    plan,
    unknown_after,
)
from ddpm_edu.networks.gpt import GPT, GPTConfig

K, N = 3, 4  # codes, places
WORDS = torch.tensor(list(itertools.product(range(K), repeat=N)))  # all 81
ROWS = torch.arange(len(WORDS))
EMPTY = torch.tensor([[2]])


def language(seed):
    """log p of all words of a random language, far from independent letters."""
    gen = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(K**N, generator=gen, dtype=torch.float64)).log_softmax(0)


LANGUAGES = torch.stack(
    [language(seed) for seed in (0, 1, 2)]
)  # of text 0, 1, and 2, the empty one


class Exact:
    """The exact p(c_i | what is known), by the sum over all words: the best network there is."""

    unknown = K
    config = SimpleNamespace(codes=K, places=N)

    def __init__(self, causal=False):
        self.causal = causal

    def new_cache(self):
        return None

    def __call__(self, codes, text, cache=None):
        n = codes.shape[1]
        codes = torch.cat([codes, codes.new_full((len(codes), N - n), K)], 1)
        logits = [self.at(codes, text, i) for i in range(n)]
        return torch.stack(logits, 1)

    def at(self, codes, text, i):
        known = codes != K
        known = known & (torch.arange(N) < i if self.causal else torch.arange(N) != i)
        agree = ((WORDS == codes[:, None]) | ~known[:, None]).all(2)  # (B, 81)
        log_p = LANGUAGES[text[:, 0]].masked_fill(~agree, -math.inf)
        each = [log_p[:, WORDS[:, i] == k].logsumexp(1) for k in range(K)]
        return torch.stack(each, 1).log_softmax(1)


class Wrong(Exact):
    """A network that is not exact."""

    def at(self, codes, text, i):
        return (0.6 * super().at(codes, text, i)).log_softmax(1)


def text_of(word, batch=len(WORDS)):
    return torch.full((batch, 1), word)


# ---------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("word", [0, 1])
def test_in_order_the_loss_is_the_likelihood(word):
    exact = -LANGUAGES[word]
    each = [
        next_code_loss(Exact(causal=True), WORDS[k : k + 1], text_of(word, 1)) * N for k in ROWS
    ]
    torch.testing.assert_close(torch.stack(each), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("word", [0, 1])
def test_the_bound_is_the_likelihood_where_the_network_is_exact(word):
    value = bound(Exact(), WORDS, text_of(word))
    torch.testing.assert_close(value, -LANGUAGES[word], rtol=0, atol=1e-6)


def test_the_bound_lies_above_for_another_network():
    """On the average over the language; by the Kullback-Leibler divergence of what it draws."""
    p, text = LANGUAGES[0].exp(), text_of(0)
    entropy = -(p * LANGUAGES[0]).sum()
    assert (p * bound(Wrong(), WORDS, text)).sum() > entropy + 0.1


def kl_sum(gpt, word, text, steps):
    """sum_t E_q(x_t | c) KL(q(x_s | x_t, c) || p(x_s | x_t)) with all states of t and s, as it is defined."""
    m = [math.cos(math.pi / 2 * s / steps) for s in range(steps)] + [0.0]
    states = torch.tensor(list(itertools.product(range(K + 1), repeat=N)))  # K: unknown

    def step(start, codes, high, low):
        """q(x_s | x_t = start, c = codes) of every letter: (N, K + 1)."""
        out = torch.zeros(N, K + 1, dtype=torch.float64)
        for i in range(N):
            if start[i] < K:
                out[i, start[i]] = 1
            else:
                out[i, K] = low / high
                out[i] += (1 - low / high) * torch.nn.functional.pad(codes[i], (0, 1))
        return out

    total, one_hot = 0.0, torch.eye(K, dtype=torch.float64)[word]
    for high, low in zip(m, m[1:]):
        for start in states:
            if not ((start == word) | (start == K)).all():
                continue
            unknown = int((start == K).sum())
            weight = high**unknown * (1 - high) ** (N - unknown)
            if not unknown or not weight:
                continue
            guess = gpt(start[None], text)[0].exp()
            q, p = step(start, one_hot, high, low), step(start, guess, high, low)
            for end in states:
                both = q[torch.arange(N), end].prod(), p[torch.arange(N), end].prod()
                if both[0] > 0:
                    total += weight * both[0] * (both[0] / both[1]).log()
    return total


@pytest.mark.parametrize("gpt", [Exact(), Wrong()], ids=["exact", "wrong"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_bound_in_few_steps_is_the_sum_of_divergences(gpt, steps):
    word, text = torch.tensor([2, 0, 1, 1]), text_of(1, 1)
    value = bound(gpt, word[None], text, steps=steps)[0]
    assert abs(value.item() - kl_sum(gpt, word, text, steps).item()) < 1e-9


def test_more_steps_cost_less():
    """And one step is the product of the letters' own probabilities."""
    p, text = LANGUAGES[0].exp(), text_of(0)
    cost = [(p * bound(Exact(), WORDS, text, steps=s)).sum().item() for s in (1, 2, 4, 16, 2000)]
    entropy = -(p * LANGUAGES[0]).sum().item()
    assert all(a > b for a, b in zip(cost, cost[1:])) and cost[0] > entropy + 0.1
    assert entropy < cost[-1] < entropy + 1e-3
    letters = Exact()(torch.full((1, N), K), text[:1])[0]
    alone = -letters[torch.arange(N), WORDS].sum(1)
    torch.testing.assert_close(bound(Exact(), WORDS, text, steps=1), alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [None, 3])
def test_drawn_sets_have_the_bound_as_their_mean(steps):
    many = WORDS[[5]].expand(4000, -1)
    exact = bound(Wrong(), WORDS[[5]], text_of(0, 1), steps=steps).item()
    found = bound(
        Wrong(), many, text_of(0, 4000), steps=steps, draws=2, generator=torch.Generator()
    )
    assert abs(found.mean().item() - exact) < 4 * found.std().item() / 4000**0.5


def test_the_masked_loss_is_the_bound_a_code():
    many, text = WORDS[[5]].expand(20000, -1), text_of(0, 20000)
    exact = bound(Wrong(), WORDS[[5]], text[:1]).item() / N
    found = masked_loss(Wrong(), many, text, generator=torch.Generator().manual_seed(0)).item()
    assert abs(found - exact) < 0.03


def test_a_network_that_knows_nothing_pays_for_every_code():
    config = GPTConfig(K, N, 3, 1, 8, 1, 1, causal=False)
    for steps in (None, 5):
        value = bound(GPT(config), WORDS, text_of(0), steps=steps)
        assert (value - N * math.log(K)).abs().max() < 1e-6
    assert abs(masked_loss(GPT(config), WORDS, text_of(0)).item() - math.log(K)) < 1e-6


def test_masks_hide_what_is_asked_for():
    """All that the network sees, it may use: the loss of a network that repeats what it sees."""
    seen = []

    class Watched(Exact):
        def __call__(self, codes, text, cache=None):
            seen.append(codes)
            return super().__call__(codes, text)

    count = torch.arange(len(WORDS)) % N + 1
    gen = torch.Generator().manual_seed(0)
    masked_loss(Watched(), WORDS, text_of(0), count=count, generator=gen)
    unknown = seen[0] == K
    assert torch.equal(unknown.sum(1), count) and torch.equal(seen[0][~unknown], WORDS[~unknown])
    assert all(unknown.any(0)) and not any(unknown.all(0))


def test_plans_begin_with_everything_and_end_with_nothing():
    assert plan(1).tolist() == [1, 0]
    m = plan(8)
    assert m[0] == 1 and m[-1] == 0 and (m.diff() < 0).all()
    assert unknown_after(64, 64) == list(range(64, -1, -1))
    assert unknown_after(8, 64) == [64, 62, 59, 53, 45, 35, 24, 12, 0]
    counts = cosine_counts(10000, 64, torch.Generator().manual_seed(0))
    assert counts.min() >= 1 and counts.max() == 64
    assert abs(counts.double().mean().item() / 64 - 2 / math.pi) < 0.02


# ---------------------------------------------------------------- drawing


def last(steps):
    *_, step = steps
    return step


def frequencies(codes):
    index = (codes * K ** torch.arange(N - 1, -1, -1)).sum(1)
    return torch.bincount(index, minlength=K**N) / len(codes)


def distance(a, b):
    """Total variation."""
    return 0.5 * (a - b).abs().sum().item()


def generator():
    return torch.Generator().manual_seed(0)


def test_in_order_words_come_as_often_as_they_are_likely():
    text = text_of(0, 40000)
    step = last(autoregressive(Exact(causal=True), text, generator=generator(), cached=False))
    assert distance(frequencies(step.codes), LANGUAGES[0].exp()) < 0.02 and step.known.all()


def test_in_any_order_one_by_one_they_do_too():
    text = text_of(0, 40000)
    step = last(masked(Exact(), text, N, shuffle=1e5, generator=generator()))
    assert distance(frequencies(step.codes), LANGUAGES[0].exp()) < 0.02


def test_in_one_step_letters_are_independent():
    text = text_of(0, 40000)
    step = last(masked(Exact(), text, 1, generator=generator()))
    letters = Exact()(torch.full((1, N), K), text[:1])[0].exp()
    alone = letters[torch.arange(N), WORDS].prod(1)
    found = frequencies(step.codes)
    assert distance(found, alone) < 0.02 and distance(found, LANGUAGES[0].exp()) > 0.1


def test_confidence_alone_draws_the_likely_too_often():
    text, p = text_of(0, 20000), LANGUAGES[0].exp()
    often = lambda shuffle: frequencies(
        last(masked(Exact(), text, N, shuffle=shuffle, generator=generator())).codes
    )
    assert (often(0.0) * LANGUAGES[0]).sum() > (p * LANGUAGES[0]).sum() + 0.05
    assert distance(often(0.0), p) > distance(often(1e5), p) + 0.05


def test_what_is_known_stays_and_confidence_is_its_probability():
    steps = list(masked(Exact(), text_of(0, 50), 3, generator=generator()))
    left = [int((~s.known[0]).sum()) for s in steps]
    assert left == unknown_after(3, N)[1:]
    for before, after in zip(steps, steps[1:]):
        assert torch.equal(after.codes[before.known], before.codes[before.known])
        assert torch.equal(after.confidence[before.known], before.confidence[before.known])
        assert (before.codes[~before.known] == K).all()
    first = Exact()(torch.full((50, N), K), text_of(0, 50)).exp()
    chosen = first.gather(2, steps[0].codes.clamp(max=K - 1)[..., None])[..., 0]
    known = steps[0].known
    assert (steps[0].confidence[known] - chosen[known]).abs().max() < 1e-6


def test_temperature_0_and_top_1_take_the_likeliest():
    text = text_of(0, 20)
    step = last(autoregressive(Exact(causal=True), text, temperature=0, generator=generator()))
    one = last(autoregressive(Exact(causal=True), text, top_k=1, generator=generator()))
    greedy = []
    for i in range(N):
        codes = torch.tensor([greedy + [0] * (N - i)])
        greedy.append(Exact(causal=True)(codes, text[:1])[0, i].argmax().item())
    assert step.codes.unique(dim=0).tolist() == [greedy] == one.codes.unique(dim=0).tolist()


def test_temperature_and_top_k_change_the_first_letter_as_they_should():
    text, first = text_of(0, 40000), Exact(causal=True)(WORDS[:1], text_of(0, 1))[0, 0]
    for how, wanted in (
        (dict(temperature=0.5), (2 * first).softmax(0)),
        (dict(top_k=2), first.masked_fill(first == first.min(), -math.inf).softmax(0)),
    ):
        step = next(autoregressive(Exact(causal=True), text, generator=generator(), **how))
        found = torch.bincount(step.codes[:, 0], minlength=K) / len(text)
        assert (found - wanted).abs().max() < 0.01


def test_guidance_goes_away_from_the_empty_text():
    gpt, text = Exact(causal=True), text_of(0, 40000)
    logits = [gpt(WORDS[:1], t)[0, 0] for t in (text[:1], EMPTY)]
    step = next(autoregressive(gpt, text, guidance=3, empty=EMPTY, generator=generator()))
    found = torch.bincount(step.codes[:, 0], minlength=K) / len(text)
    assert (found - (3 * logits[0] - 2 * logits[1]).softmax(0)).abs().max() < 0.01
    assert torch.equal(guided_logits(*logits, 1.0), logits[0])


@pytest.fixture(scope="module")
def gpts():
    found = []
    for causal in (True, False):
        torch.manual_seed(0)
        config = GPTConfig(11, 9, 7, 5, 16, 2, 4, causal)
        gpt = GPT(config).eval().requires_grad_(False)
        for p in gpt.parameters():
            torch.nn.init.normal_(p, std=0.3)
        found.append(gpt)
    return found


TEXT = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2], [0, 0, 1, 1, 2]])


def test_a_picture_depends_on_its_own_seed_alone(gpts):
    for gpt, draw in zip(gpts, (autoregressive, lambda *a, **k: masked(*a, 4, **k))):
        codes = last(draw(gpt, TEXT, generator=generators([5, 6, 7]))).codes
        alone = last(draw(gpt, TEXT[1:2], generator=generators([6]))).codes
        again = last(draw(gpt, TEXT, generator=generators([5, 6, 7]))).codes
        assert torch.equal(codes[1:2], alone) and torch.equal(codes, again)
        other = last(draw(gpt, TEXT, generator=generators([8, 6, 7]))).codes
        assert not torch.equal(codes[0], other[0]) and torch.equal(codes[1:], other[1:])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_draws_the_same(gpts, guidance):
    draw = lambda cached: list(
        autoregressive(
            gpts[0],
            TEXT,
            guidance=guidance,
            empty=torch.zeros(1, 5, dtype=torch.long),
            generator=generators([5, 6, 7]),
            cached=cached,
        )
    )
    with_cache, without = draw(True), draw(False)
    assert len(with_cache) == 9
    for a, b in zip(with_cache, without):
        assert torch.equal(a.codes, b.codes) and torch.equal(a.known, b.known)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda a, m: masked(m, TEXT, 0), OptionError, ["steps"]),
        (lambda a, m: masked(m, TEXT, 10), OptionError, ["steps", "9"]),
        (lambda a, m: masked(m, TEXT, 4, shuffle=-1), OptionError, ["shuffle"]),
        (lambda a, m: autoregressive(a, TEXT, temperature=-1), OptionError, ["temperature"]),
        (lambda a, m: autoregressive(a, TEXT, top_k=12), OptionError, ["top_k", "11"]),
        (lambda a, m: autoregressive(a, TEXT, guidance=2), ShapeError, ["empty", "missing"]),
        (lambda a, m: masked(m, TEXT, 4, guidance=-1), OptionError, ["guidance"]),
        (lambda a, m: plan(0), OptionError, ["steps"]),
        (
            lambda a, m: next_code_loss(a, torch.full((3, 9), 11), TEXT),
            OptionError,
            ["codes", "book", "10"],
        ),
        (lambda a, m: masked_loss(m, torch.full((3, 9), 11), TEXT), OptionError, ["codes"]),
        (lambda a, m: bound(m, torch.full((3, 9), 11), TEXT), OptionError, ["codes"]),
        (lambda a, m: bound(m, torch.zeros(3, 9), TEXT), ShapeError, ["codes"]),
        (lambda a, m: next(autoregressive(a, TEXT, generator=[])), ShapeError, ["generators"]),
    ],
)
def test_refusals(gpts, call, error, words):
    with refuses(error, *words):
        call(*gpts)


def test_all_sets_of_many_places_are_refused():
    gpt = GPT(GPTConfig(K, 13, 3, 1, 8, 1, 1, causal=False))
    with refuses(OptionError, "draws", "2\\^13"):
        bound(gpt, torch.zeros(1, 13, dtype=torch.long), text_of(0, 1))
