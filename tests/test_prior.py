"""unCLIP's prior: what it reads, embeddings there and back, drawing, the file, the run, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses

from ddpm_edu import Cond, OptionError, Schedule, ShapeError, load, loss, save
from ddpm_edu.cli import main
from ddpm_edu.datasets.painted import painted_digits
from ddpm_edu.files.load import Pretrained
from ddpm_edu.networks.prior import Prior, PriorConfig
from ddpm_edu.systems.prior import caption_cond, draw_embeddings, nearest
from ddpm_edu.training import prior as module
from ddpm_edu.training.prior import PAINTED_PRIOR, embeddings, train_prior

PROMPTS = [
    "a large red seven on a blue ground, top left",
    "a small pink two on a black ground, centre",
]
SMALL = PriorConfig(width=16, depth=2)
TINY = replace(
    PAINTED_PRIOR,
    prior=SMALL,
    train=replace(PAINTED_PRIOR.train, steps=3, batch_size=16, save_every=2),
    n=64,
)


@pytest.fixture(scope="module")
def clip():
    return load("painted_clip")


def shaken(config=SMALL):
    torch.manual_seed(0)
    net = Prior(config).eval().requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def pretrained():
    return Pretrained(shaken(), Schedule.cosine(), "x_0", {})


# ---------------------------------------------------------------- the network


def test_it_starts_at_zero_and_reads_everything():
    x, t = torch.randn(3, 64), torch.tensor([5, 300, 900])
    cond = Cond(torch.randn(3, 16, 64), torch.randn(3, 64))
    assert not Prior(SMALL)(x, t, cond).any()
    net = shaken()
    y = net(x, t, cond)
    assert y.shape == (3, 64)
    moved = cond.context.clone()
    moved[:, 9] += 1
    for other in (
        net(x + 1, t, cond),
        net(x, t - 5, cond),
        net(x, t, cond._replace(context=moved)),
        net(x, t, cond._replace(vector=cond.vector + 1)),
        net(x, t, cond._replace(context=cond.context.flip(1))),  # tokens have places
    ):
        assert ((other - y).abs().amax(1) > 1e-4).all()
    shorter = cond._replace(context=cond.context[:, :7])
    assert net(x, t, shorter).shape == (3, 64)


def test_each_row_by_itself():
    net, x, t = shaken(), torch.randn(4, 64), torch.tensor([1, 2, 500, 900])
    cond = Cond(torch.randn(4, 16, 64), torch.randn(4, 64))
    alone = [net(x[k : k + 1], t[k : k + 1], cond.map(lambda z: z[k : k + 1])) for k in range(4)]
    torch.testing.assert_close(net(x, t, cond), torch.cat(alone))


def test_refused_inputs():
    net, t, cond = shaken(), torch.zeros(2), Cond(torch.zeros(2, 16, 64), torch.zeros(2, 64))
    x = torch.zeros(2, 64)
    for call, word in (
        (lambda: net(torch.zeros(2, 63), t, cond), "x_t"),
        (lambda: net(torch.zeros(2, 3, 8, 8), t, cond), "x_t"),
        (lambda: net(x, t[:1], cond), "t has shape"),
        (lambda: net(x, t, cond._replace(vector=None)), "cond.vector"),
        (lambda: net(x, t, cond._replace(context=None)), "cond.context"),
        (lambda: net(x, t, cond._replace(context=torch.zeros(2, 17, 64))), "17 tokens.*16"),
    ):
        with refuses(ShapeError, word):
            call()
    with refuses(OptionError, "heads"):
        PriorConfig(width=30)


def test_embeddings_there_and_back():
    net, z = shaken(), F.normalize(torch.randn(500, 64) + torch.linspace(-2, 2, 64), dim=1)
    net.measure(z)
    x_0 = net.standard(z)
    torch.testing.assert_close(x_0.mean(0), torch.zeros(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(x_0.std(0), torch.ones(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(net.embedding(x_0), z, rtol=0, atol=1e-5)
    assert net.embedding(torch.randn(7, 64)).norm(dim=1) == pytest.approx(torch.ones(7), abs=1e-5)


def test_it_learns_with_the_usual_loss(clip):
    """The loss of DDPM, on vectors: half of it is gone after some updates on one batch."""
    torch.manual_seed(0)
    net, schedule = Prior(SMALL), Schedule.cosine()
    data = embeddings(net, clip, painted_digits("train", 64), 64)
    x_0, cond = data[torch.arange(64)]
    t, eps = torch.randint(1000, (64,)), torch.randn(64, 64)
    optimizer, values = torch.optim.Adam(net.parameters(), 5e-3), []
    for _ in range(60):
        value = loss(net, schedule, x_0, cond, t=t, eps=eps, predict="x_0")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] == pytest.approx(1, abs=0.1) and values[-1] < 0.5


# ---------------------------------------------------------------- drawing


def test_what_is_read_of_a_caption(clip):
    cond = caption_cond(clip, PROMPTS)
    assert cond.context.shape == (2, 16, 64)
    torch.testing.assert_close(cond.vector, clip.words(PROMPTS))


def test_draws_depend_on_their_own_prompt_and_seed(clip):
    both = draw_embeddings(pretrained(), clip, PROMPTS, seeds=[3, 8], steps=3)
    assert both.shape == (2, 64)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    alone = draw_embeddings(pretrained(), clip, PROMPTS[1], seeds=8, steps=3)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


def test_the_best_of_many_draws(clip):
    """Of more draws, among them the same ones, one at least as near to the caption is kept."""
    own, near = clip.words(PROMPTS), []
    for n in (1, 2, 8):
        z = draw_embeddings(pretrained(), clip, PROMPTS, steps=3, best_of=n)
        near.append((z * own).sum(1))
    assert (near[0] <= near[1]).all() and (near[1] <= near[2]).all()
    assert (near[0] < near[2]).any()


def test_nearest_by_cosine():
    gallery = F.normalize(torch.randn(20, 64), dim=1)
    assert nearest(gallery[[7, 3]] + 0.01, gallery).tolist() == [7, 3]
    with refuses(ShapeError, "gallery"):
        nearest(gallery, gallery[:, :5])


def test_refused_priors_and_options(clip):
    prior = pretrained()
    other = prior._replace(model=shaken(replace(SMALL, size=32)))
    for call, word in (
        (lambda: draw_embeddings(other, clip, PROMPTS), "two models"),
        (lambda: draw_embeddings(load("mnist"), clip, PROMPTS), "painted-prior"),
        (lambda: draw_embeddings(prior, load("mnist_classifier"), PROMPTS), "painted_clip"),
        (lambda: draw_embeddings(prior, clip, []), "prompts"),
        (lambda: draw_embeddings(prior, clip, PROMPTS, best_of=0), "best_of"),
        (lambda: draw_embeddings(prior, clip, PROMPTS, steps=0), "steps"),
        (lambda: draw_embeddings(prior, clip, PROMPTS, guidance=-1), "guidance"),
        (lambda: draw_embeddings(prior, clip, PROMPTS, sampler="best"), "sampler"),
    ):
        with refuses(OptionError, word):
            call()


# ---------------------------------------------------------------- the run and the file


def test_the_data(clip):
    net, data = shaken(), painted_digits("train", 64)
    made, index = embeddings(net, clip, data, 50), torch.tensor([4, 33])
    assert len(made) == 50
    x_0, cond = made[index]
    torch.testing.assert_close(net.embedding(x_0), clip.image(data[index][0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(cond, caption_cond(clip, data.captions(index)))
    torch.testing.assert_close(made.uncond, caption_cond(clip, [""]))


def test_a_run_that_stopped_goes_on(tmp_path):
    """Bit for bit."""

    class Stop(Exception):
        pass

    def stopping(steps):
        for step in steps:
            yield step
            if step.step == 2:
                raise Stop

    file, whole = tmp_path / "run.safetensors", train_prior(TINY).model.state_dict()
    with pytest.raises(Stop):
        train_prior(TINY, file, stopping)
    again = train_prior(TINY, file).model.state_dict()
    assert all(torch.equal(again[name], w) for name, w in whole.items())


def test_the_command_and_the_file(tmp_path, monkeypatch, clip):
    monkeypatch.setitem(module.PRIOR_RECIPES, "painted-prior", TINY)
    out = tmp_path / "x.safetensors"
    assert main(["train", "painted-prior", "--out", str(out), "--steps", "2"]) == 0
    prior = load(out)
    assert isinstance(prior.model, Prior) and prior.predict == "x_0"
    assert prior.meta["train"]["updates"] == 2 and prior.meta["embeds"] == "painted_clip"
    assert prior.model.std.min() > 0 and prior.model.std.max() < 1
    assert draw_embeddings(prior, clip, PROMPTS).shape == (2, 64)
    assert main(["sample", "--model", str(out), "--out", str(tmp_path / "x.png")]) == 2
    again = tmp_path / "y.safetensors"
    save(again, prior)
    for name, w in load(again).model.state_dict().items():
        assert torch.equal(w, prior.model.state_dict()[name])


def test_the_one_that_ships(clip):
    """Nearer to the picture whose caption it is than the caption's own embedding, which lies aside."""
    data = painted_digits("test", 64, seed=1)
    pictures, captions = data[:]
    own = clip.image(pictures).detach()
    z = draw_embeddings(load("painted-prior"), clip, captions, best_of=1)
    assert (z * own).sum(1).mean() > (clip.words(captions) * own).sum(1).mean() + 0.02
    got = nearest(z, own).tolist()
    assert sum(captions[i] == c for i, c in zip(got, captions)) > 50
