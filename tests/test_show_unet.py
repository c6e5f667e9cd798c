"""A UNet's picture: blocks, shapes and skip connections against what the networks say themselves."""

import pytest
import torch

from ddpm_edu.diffusion import Cond
from ddpm_edu.errors import OptionError
from ddpm_edu.networks.unet import SD15, UNet, UNetConfig
from ddpm_edu.networks.unet_classic import ClassicUNet
from ddpm_edu.show import plot
from ddpm_edu.show.unet import boxes, draw_unet, follow, skips
from ddpm_edu.show.widgets import UNetView

TINY = UNetConfig(1, channels=8, mult=(1, 2), depth=(0, 1), heads=(1, 1), blocks=1, groups=4)


def tiny():
    return follow(UNet(TINY), torch.zeros(2, 1, 8, 8), torch.zeros(2))


def test_every_parameter_but_the_time_embeddings_is_in_one_block():
    net = UNet(TINY)
    outside = sum(p.numel() for p in net.time.parameters())
    total = sum(p.numel() for p in net.parameters())
    assert sum(block.parameters for block in tiny()) == total - outside


def test_shapes_follow_one_another_and_copies_come_back_last_in_first_out():
    blocks = tiny()
    assert blocks[0].enters == blocks[-1].leaves == (1, 8, 8)
    assert [b.leaves[1] for b in blocks] == [8, 8, 4, 4, 4, 4, 8, 8, 8, 8]
    middle = [b.name for b in blocks].index("middle")
    assert all(b.enters == a.leaves for a, b in zip(blocks[:middle], blocks[1 : middle + 1]))
    pairs = skips(blocks)
    assert [i for i, _ in pairs] == sorted(range(len(pairs)), reverse=True)
    for i, j in pairs:  # data and copy enter side by side
        assert blocks[j].enters[0] == blocks[j - 1].leaves[0] + blocks[i].leaves[0]
        assert blocks[j].enters[1:] == blocks[i].leaves[1:]


def test_hooks_are_gone_afterwards_even_when_the_network_fails():
    net = UNet(TINY)
    with pytest.raises(Exception):
        follow(net, torch.zeros(1, 3, 8, 8), torch.zeros(1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_big_and_classic_networks_without_memory():
    with torch.device("meta"):
        sd, context = UNet(SD15), torch.zeros(1, 77, 768)
        blocks = follow(sd, torch.zeros(1, 4, 64, 64), torch.zeros(1), Cond(context=context))
        classic = follow(ClassicUNet(3, 16), torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert len(blocks) == 26 and len(skips(blocks)) == 12 and blocks[-1].leaves == (4, 64, 64)
    assert sum("transformer" in block.contents() for block in blocks) == 16
    assert len(skips(classic)) == 3 and classic[-1].leaves == (3, 32, 32)


def test_thickness_means_channels_and_height_means_h():
    blocks = tiny()
    drawn = boxes(blocks)
    assert (drawn[:, 2] * 8 == [b.leaves[1] for b in blocks]).all()
    assert drawn[2, 1] < drawn[3, 1] and (drawn[1:, 0] > drawn[:-1, 0] + drawn[:-1, 1]).all()


def test_a_chosen_block_and_its_copy_stand_out():
    fig, ax = plot.axes(8, 3)
    blocks = tiny()
    draw_unet(ax, blocks, chosen=0)
    polygons, arcs = ax.collections
    assert len(polygons.get_facecolors()) == 3 * len(blocks)
    assert list(arcs.get_linewidths()).count(2.5) == 1


def test_the_page_gets_every_network_in_words():
    view = UNetView({"one": tiny(), "two": tiny()}, caption="c", start="two", block=3)
    assert view.shown == 1 and "middle" in view.networks[1]["words"][4]
    assert [len(view.networks[0][k]) for k in ("boxes", "arcs", "words")] == [10, 4, 10]
    assert "two" in view.alt and len(view.still()) > 1000


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(start="three"), "none of"),
        (dict(block=10), "block is 10"),
        (dict(caption=""), "caption"),
    ],
)
def test_views_refuse(options, message):
    with pytest.raises(OptionError, match=message):
        UNetView({"one": tiny()}, **{"caption": "c", **options})
    with pytest.raises(OptionError, match="networks is empty"):
        UNetView({}, caption="c")
